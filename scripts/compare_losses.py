"""Trains the same network with squared error, with a perceptual distance too, and with an adversary too, and prints a table.

    python scripts/compare_losses.py data.root=...                                     experiment=vqgan_cifar10, CIFAR-10
    python scripts/compare_losses.py data=folder data.root=... data.image_size=32 trainer.steps=1200 adversary.start_step=500
    python scripts/compare_losses.py --prior 2000 --judge efficientnet_lite2 data.root=...

Each row has the same steps and seed. --judge is the pretrained network that judges, one that no loss was taken from: perceptual
distance and Frechet distance of reconstructions of the validation images, and class accuracy by a linear classifier on its
features. The last row is that of real images. --prior trains a transformer on each row's codes for so many steps.

Everything behind the options is an override of train.py, for all rows. Runs lie in run_dir (default
runs/compare_losses); called again, it continues what was stopped and skips what is finished.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.compare_quantizers import call, cell, figures_of

ROWS = {
    "squared error": ["adversary=none", "~loss.terms.perceptual"],
    "and perceptual distance": ["adversary=none"],
    "and an adversary": [],
}
DEFAULTS = ["experiment=vqgan_cifar10", "logger=off"]


def columns_of(judge: str) -> dict[str, tuple[str, str | None, str]]:
    """Columns of the table: title -> figure, the figure of its error, format."""
    return {
        "PSNR dB": ("autoencoder/psnr_db", "autoencoder/psnr_error_db", ".2f"),
        "SSIM": ("autoencoder/ssim", None, ".3f"),
        "perceptual": (f"autoencoder/perceptual_{judge}", None, ".3f"),
        "Frechet": (f"autoencoder/rfd_{judge}", f"autoencoder/rfd_error_{judge}", ".1f"),
        "class accuracy": (f"autoencoder/raccuracy_{judge}", None, ".1%"),
        "bits per code": ("prior/bits_per_code", "prior/bits_per_code_error", ".3f"),
        "items/s": ("autoencoder/items_per_second", None, ",.0f"),
    }


def floors_of(judge: str) -> dict[str, str]:
    """Column -> the figure of real images in its place."""
    return {
        "Frechet": f"autoencoder/rfd_floor_{judge}",
        "class accuracy": f"autoencoder/raccuracy_floor_{judge}",
    }


def train_and_judge(folder: Path, overrides: list[str], judge: list[str]) -> str | None:
    """Train one row and judge it -> None, or the last line of what went wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    problem = call(["train.py", *DEFAULTS, *overrides, f"run_dir={folder}"], folder.with_suffix(".log"))
    if problem is None and not (folder / "evaluation_val.json").is_file():
        problem = call(["scripts/evaluate.py", f"run_dir={folder}", *judge], folder.with_suffix(".evaluation.log"))
    return problem


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--judge", default="efficientnet_lite1", help="network that judges (default: efficientnet_lite1)"
    )
    parser.add_argument("--judge-file", help="its weights, where no installed package has them")
    parser.add_argument("--prior", type=int, default=0, help="steps of a transformer on the codes (default: none)")
    parser.add_argument("overrides", nargs="*", help="overrides of train.py")
    arguments = parser.parse_intermixed_args()
    given = [o for o in arguments.overrides if o.startswith("run_dir=")]
    base = Path(given[-1].removeprefix("run_dir=") if given else "runs/compare_losses")
    prior = [f"prior.trainer.steps={arguments.prior}"] if arguments.prior else ["stages=[autoencoder]"]
    judge = [f"backbone={arguments.judge}", "samples=0", "metrics=[reconstruction,perceptual,frechet,classes]"]
    judge += [f"backbone_file={arguments.judge_file}"] if arguments.judge_file else []
    shared = [*prior, *(o for o in arguments.overrides if o not in given)]
    folders = {name: base / name.replace(" ", "_") for name in ROWS}
    errors = {name: train_and_judge(folders[name], [*ROWS[name], *shared], judge) for name in ROWS}
    found = {name: figures_of(folders[name]) for name in ROWS if errors[name] is None}
    columns = {
        title: column
        for title, column in columns_of(arguments.judge).items()
        if any(column[0] in figures for figures in found.values())
    }
    print(f"| loss | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for name, figures in found.items():
        print(f"| {name} | {' | '.join(cell([figures], *column) for column in columns.values())} |")
    for figures in [*found.values()][:1]:
        floors = floors_of(arguments.judge)
        cells = [cell([figures], floors.get(title, ""), None, column[2]) for title, column in columns.items()]
        print(f"| real images | {' | '.join(cells)} |")
    for name, error in errors.items():
        if error is not None:
            print(f"{name} failed, {error}", file=sys.stderr)
    return 1 if any(errors.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
