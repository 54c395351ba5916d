"""Imports point one way: sweep, launch → train → surgery, models, data → norms → torch; report → records, no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import normbench

PACKAGE = Path(normbench.__file__).parent
# From the bottom up; rooms on one line do not know each other.
FLOORS = [
    {"errors"},
    {"commands", "options", "targets", "files", "spinning", "memory"},
    {"claim"},
    {"attempt"},
    {"cell", "records"},
    {"ranks"},
    {"norms", "machine", "checkpoint"},
    {"surgery", "models", "data"},
    {"optimize", "evaluate", "step", "meter", "weighing"},
    {"graph", "isolate"},
    {"train", "rehearse"},
    {"choices"},
    {"steptime"},
    {"grid"},
    {"preflight"},
    {"tune"},
    {"progress"},
    {"report", "display", "track"},
    {"launch", "bench", "check"},
    {"planning", "stages"},
    {"sweep"},
    {"paper"},
]
TORCH_FREE = {
    "errors", "options", "files", "claim", "attempt", "cell", "records", "report", "progress", "display", "track",
    "grid", "sweep", "memory", "spinning", "tune", "planning", "commands",
    "stages",
}  # fmt: skip


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively; say the whole name"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_every_room_has_its_floor() -> None:
    assert {room(path) for path in FILES} == set().union(*FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    height = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    own = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "normbench" or len(parts) < 2 or parts[1] not in height:
            continue
        assert parts[1] == own or height[parts[1]] < height[own], f"{own} imports {name}"


@pytest.mark.parametrize("path", [path for path in FILES if room(path) in TORCH_FREE], ids=lambda path: path.stem)
def test_what_needs_no_torch_does_not_import_it_on_loading(path: Path) -> None:
    heavy = {"torch", "torchvision"}
    assert not heavy & {name.split(".")[0] for name in imports(path, top_only=True)}


@pytest.mark.parametrize("module", ["normbench", "normbench.report", "normbench.records", "normbench.sweep"])
def test_loading_it_leaves_torch_out(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code]).returncode == 0


def test_the_public_names_are_true_and_few() -> None:
    assert set(normbench.__all__) == {"apply", "build", "names"}
    for name in normbench.__all__:
        assert callable(getattr(normbench, name))
    with pytest.raises(AttributeError, match="it has apply, build, names"):
        normbench.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["norms.step_hooks", "norms.set_example_weight", "surgery.report"])
def test_what_the_readme_calls_is_there_in_a_new_process(name: str) -> None:
    code = f"import normbench; normbench.{name}"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code]).returncode == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
    assert len(first) > 15
