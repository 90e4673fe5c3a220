"""The direction of imports, and the places that alone may know a library."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "vqvae"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Parts of the package -> what of ours they may import. Leaves (seeding, images, hardware, schedules) know only torch.
ALLOWED = {
    "seeding": set(),
    "images": {
        "storage",
    },
    "training": {
        "distributed",
        "images",
        "seeding",
        "stages",
        "storage",
    },
    "distributed": set(),
    "storage": {
        "distributed",
    },
    "quantizers": {
        "distributed",
    },
    "metrics": {
        "distributed",
    },
    "networks": {
        "distributed",
    },
    "losses": set(),
    "model": {
        "distributed",
        "networks",
        "quantizers",
    },
    "priors": {
        "distributed",
        "networks",
    },
    "data": {
        "distributed",
        "images",
        "seeding",
        "storage",
    },
    "inference": {
        "losses",
        "model",
    },
    "exported": {
        "config",
        "inference",
        "losses",
        "model",
        "priors",
        "storage",
    },
    "export": {
        "config",
        "exported",
        "inference",
        "onnx_export",
        "pipeline",
        "storage",
    },
    "onnx_export": {
        "inference",
    },
    "stages": {
        "distributed",
        "images",
        "losses",
        "metrics",
        "model",
        "priors",
        "training",
    },
}
# What puts things together may know everything.
ENTRY = {"config", "evaluation", "pipeline", "plots", "report", "run_folder", "run_folder_check", "sampling"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    ours = {name.split(".")[1] for name in imports_of(path) if name.startswith("vqvae.")} - {part}
    if part in ENTRY or part == "__init__":
        return
    assert ours <= ALLOWED[part]


def test_the_trainer_knows_no_stage_but_the_contract() -> None:
    for path in (PACKAGE / "training").glob("*.py"):
        assert not any(name.startswith("vqvae.stages") for name in imports_of(path)), path


@pytest.mark.parametrize(
    ("library", "places"),
    [
        ("torch.distributed", {"distributed.py"}),
        ("wandb", {"training/logger.py"}),
        ("hydra", {"config.py", "run_folder.py"}),
        ("omegaconf", {"config.py", "run_folder.py"}),
        ("matplotlib", {"plots.py"}),
    ],
)
def test_a_library_is_known_in_its_place_only(library: str, places: set[str]) -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        if any(name == library or name.startswith(library + ".") for name in imports_of(path))
    }
    assert users == places


def test_files_and_functions_stay_small() -> None:
    for path in MODULES:
        assert len(path.read_text().splitlines()) <= 300, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= 60, f"{path}: {node.name} has {lines} lines"
                assert len(node.args.args) + len(node.args.kwonlyargs) <= 9, f"{path}: {node.name}"
