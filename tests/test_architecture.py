"""The rooms of the package: which may import which, and the places that alone may know a library."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "vqvae"
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOT_FILES = 8

# Rooms and root files, lowest first -> what of ours each may import. Only names further up this list: no circles.
LAYERS = {"backbones", "quantizers", "networks", "losses", "priors", "model", "ranges"}
ALLOWED = {
    "surroundings": set(),
    "errors": set(),
    "shipped": {"errors"},
    "ranges": {"errors"},
    "seeding": set(),
    "distributed": {"errors"},
    "devices": {"distributed"},
    "storage": {"distributed", "errors"},
    "images": {"storage"},
    "metrics": {"surroundings", "distributed", "errors", "ranges"},
    "networks": {"distributed", "errors", "ranges"},
    "quantizers": {"surroundings", "distributed", "errors", "networks", "ranges"},
    "compat": {"distributed", "errors", "metrics", "quantizers", "ranges"},
    "backbones": {"surroundings", "errors", "storage"},
    "losses": {"backbones", "distributed", "errors", "metrics", "ranges"},
    "model": {"distributed", "errors", "networks", "quantizers", "ranges"},
    "priors": {"devices", "distributed", "errors", "networks", "ranges"},
    "data": {"surroundings", "devices", "distributed", "errors", "images", "ranges", "seeding", "storage"},
    "training": {
        "surroundings",
        "devices",
        "distributed",
        "errors",
        "images",
        "metrics",
        "ranges",
        "seeding",
        "storage",
    },
    "stages": {"data", "distributed", "errors", "images", "metrics", "training"} | LAYERS,
    "inference": {"data", "distributed", "errors", "images"} | LAYERS,
    "judging": {"backbones", "data", "distributed", "errors", "inference", "losses", "metrics", "storage"},
    "compression": {"distributed", "errors", "images", "inference", "priors", "storage"},
    "config": {"surroundings", "shipped", "data", "errors", "training"} | LAYERS,
    "run": {
        "surroundings",
        "config",
        "data",
        "distributed",
        "errors",
        "images",
        "inference",
        "judging",
        "metrics",
        "seeding",
        "stages",
        "storage",
        "training",
    }
    | LAYERS,
    "report": {
        "surroundings",
        "config",
        "data",
        "distributed",
        "errors",
        "images",
        "inference",
        "metrics",
        "run",
        "storage",
        "training",
    },
    "export": {
        "surroundings",
        "config",
        "data",
        "distributed",
        "errors",
        "inference",
        "report",
        "run",
        "storage",
        "training",
    }
    | LAYERS,
    "sampling": {
        "surroundings",
        "config",
        "data",
        "distributed",
        "errors",
        "images",
        "inference",
        "metrics",
        "run",
        "seeding",
        "storage",
        "training",
    }
    | LAYERS,
    "__init__": {"config", "export", "inference", "run", "errors", "shipped", "training"} | LAYERS,
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Modules and names that a file imports, anywhere in it, and those that its strings name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and re.fullmatch(r"vqvae(\.\w+)+", str(node.value)):
            names.add(str(node.value))
    return names


def ours(path: Path) -> set[str]:
    """The rooms and root files that a file names, without its own."""
    parts = {name.split(".")[1] for name in imports_of(path) if name.startswith("vqvae.")}
    return (parts & ALLOWED.keys()) - {part_of(path)}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    assert ours(path) <= ALLOWED[part_of(path)]


def test_the_rooms_have_no_circle() -> None:
    """A room may name only rooms that come before it in the list."""
    order = list(ALLOWED)
    for room, below in ALLOWED.items():
        assert all(order.index(one) < order.index(room) for one in below), room


def test_the_root_is_small_and_every_room_says_what_belongs_there() -> None:
    assert len([p for p in PACKAGE.iterdir() if p.is_file()]) <= ROOT_FILES
    for room in (p for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"):
        docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
        assert docstring, room
        assert docstring.endswith("."), room


def test_training_knows_no_stage_but_the_contract() -> None:
    for path in (PACKAGE / "training").glob("*.py"):
        assert not any(name.startswith("vqvae.stages") for name in imports_of(path)), path


@pytest.mark.parametrize(
    ("library", "places"),
    [
        ("torch.distributed", {"distributed.py"}),
        ("wandb", {"training/wandb_run.py", "training/wandb_values.py"}),
        (
            "hydra",
            {
                "config/build.py",
                "config/compose.py",
                "config/messages.py",
                "config/program.py",
                "config/sweep.py",
                "config/typed.py",
                "run/sweep.py",
            },
        ),
        (
            "omegaconf",
            {
                "config/build.py",
                "config/compose.py",
                "config/hints.py",
                "config/messages.py",
                "config/presets.py",
                "config/program.py",
                "config/saved.py",
                "config/sweep.py",
                "run/folder.py",
                "run/sweep.py",
            },
        ),
        ("matplotlib", {"run/plots.py"}),
        ("jinja2", {"report/page.py"}),
        ("huggingface_hub", {"export/hub.py"}),
    ],
)
def test_a_library_is_imported_in_its_place_only(library: str, places: set[str]) -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        if any(name == library or name.startswith(library + ".") for name in imports_of(path))
    }
    assert users == places


def is_constant_of_a_kernel(argument: ast.arg) -> bool:
    """True for what a GPU kernel is compiled for, such as the size of a tile: it is no argument when the kernel runs."""
    return argument.annotation is not None and ast.unparse(argument.annotation) == "tl.constexpr"


def test_files_and_functions_stay_small() -> None:
    for path in MODULES:
        assert len(path.read_text().splitlines()) <= 300, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= 60, f"{path}: {node.name} has {lines} lines"
                given = [argument for argument in node.args.args if not is_constant_of_a_kernel(argument)]
                assert len(given) + len(node.args.kwonlyargs) <= 9, f"{path}: {node.name}"


@pytest.mark.parametrize("script", sorted(path.stem for path in (PACKAGE.parent / "scripts").glob("*.py")))
def test_every_script_finds_what_it_imports(script: str) -> None:
    importlib.import_module(f"scripts.{script}")
