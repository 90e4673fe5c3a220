"""The model card of an export: README.md with the metadata that model hubs read, figures with protocols, pictures."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path

from vqvae.inference.trained_model import TrainedModel
from vqvae.priors.conditions import CLASS
from vqvae.report.contents import all_figures, read_json
from vqvae.report.pictures import read_png
from vqvae.run.folder import STAGES
from vqvae.run.run import Run
from vqvae.storage.files import write_bytes
from vqvae.training.logger import read_lines

CARD = "README.md"
CAPTIONS = {"reconstructions.png": "originals and their reconstructions", "samples.png": "samples of the prior"}


def write_card(run: Run, trained: TrainedModel, folder: Path, name: str, license_name: str | None) -> None:
    """Write README.md, and beside it the pictures that it shows.

    name: how others load the model, such as owner/name. license_name: of the weights, as their owner names it.
    """
    pictures = copied_pictures(run, folder)
    parts = [
        metadata(trained, license_name),
        f"# {safe(name.rpartition('/')[2])}",
        about(trained),
        loading(trained, name),
    ]
    parts += [f"![{caption}]({file})" for file, caption in pictures.items()]
    parts += [figures_of(run)]
    write_bytes(folder / CARD, ("\n\n".join(parts) + "\n").encode())


def metadata(trained: TrainedModel, license_name: str | None) -> str:
    """The YAML head of a card."""
    lines = ["library_name: vqvae", "tags: [vq-vae, tokenizer]"]
    if license_name is not None:
        lines.append(f"license: {json.dumps(license_name)}")
    if trained.prior is not None and len(trained.data.size) == 2:
        lines.append("pipeline_tag: unconditional-image-generation")
    return "\n".join(["---", *lines, "---"])


def about(trained: TrainedModel) -> str:
    """What the model is, in a few sentences."""
    data, size = trained.data, " x ".join(map(str, trained.data.size))
    maps = ", ".join(
        f"{' x '.join(map(str, shape))} codes of {count}"
        for shape, count in zip(trained.code_shapes, trained.codebook_sizes)
    )
    count = sum(parameter.numel() for parameter in trained.model.parameters())
    said = [
        f"A VQ-VAE of items of {data.channels} x {size} ({safe(data.name)}): {maps or 'no codes'}, {count:,} parameters."
    ]
    if trained.prior is not None:
        count = sum(parameter.numel() for parameter in trained.prior.parameters())
        said.append(f"Its prior is a {type(trained.prior).__name__} of {count:,} parameters.")
        if trained.prior.conditions is not None:
            said.append(f"Its conditions: {safe(str(trained.prior.conditions))}.")
    if data.class_names:
        said.append(f"Classes: {', '.join(map(safe, data.class_names[:20]))}{', ...' * (len(data.class_names) > 20)}.")
    return " ".join(said)


def loading(trained: TrainedModel, name: str) -> str:
    """How to load it, as a block of code."""
    lines = ["import vqvae", "", f"model = vqvae.load({json.dumps(name)})"]
    lines += ["codes = model.encode(x)  # x (B, C, *S) in [-1, 1]", "x_hat = model.decode(codes)"]
    if trained.prior is not None:
        asked = ", labels=[0] * 16" if trained.sampled_classes else ""
        each = [] if trained.prior.conditions is None else trained.prior.conditions.each
        values = {one.name: one.values[0] for one in each if one.values and one.name != CLASS}
        asked += f", conditions={json.dumps(values)}" if values else ""
        lines += [f"items = model.sample(seeds=range(16){asked})"]
    return "\n".join(["```python", *lines, "```"])


def copied_pictures(run: Run, folder: Path) -> dict[str, str]:
    """Copy the run's pictures, the last reconstructions and samples -> file names and captions."""
    previews = sorted((run.folder.stage("autoencoder") / "images").glob("reconstructions_*.png"))
    sources = {"reconstructions.png": previews[-1:], "samples.png": [run.folder.path / "samples.png"]}
    for name, files in sources.items():
        if files and read_png(files[0]) is not None:
            shutil.copyfile(files[0], folder / name)
    return {name: caption for name, caption in CAPTIONS.items() if (folder / name).is_file()}


def figures_of(run: Run) -> str:
    """Tables of the figures that the run's files hold, each with its protocol."""
    lines = {stage: read_lines(run.folder.stage(stage) / "metrics.jsonl") for stage in STAGES}
    found = all_figures(run, read_json(run.folder.path / "summary.json"), lines)
    head = ["| figure | value | protocol |", "|---|---|---|"]
    tables = []
    for source, figures in found.items():
        rows = [f"| {safe(one.name)} | {in_digits(one.value)} | {safe(one.protocol)} |" for one in figures]
        tables.append("\n".join([f"Figures of {safe(source)}:", "", *head, *rows]))
    return "\n\n".join(tables)


def in_digits(value: float) -> str:
    """A figure with four significant digits, a whole number with all of them."""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def safe(text: str) -> str:
    """Text that may be a stranger's, on one line, without what Markdown or HTML would make of it."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{letter}" if letter in "|[]`*\\" else letter for letter in plain)
