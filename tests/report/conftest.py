"""Made-up sweeps: what the store of a real one holds, without the training."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

DEFAULTS: dict[str, Any] = {
    "arch": "resnet8", "data": "digits", "norm": "bn", "recipe": "quick", "batch": 8, "workers": 1, "seed": 0,
    "epochs": 10, "lr": 0.1,
}  # fmt: skip


def cell(top1: float | None = None, status: str = "ok", reason: str = "", **config: Any) -> dict[str, Any]:
    """The result of one cell; dotted keys as ``norm__num_groups``. What differs from DEFAULTS counts as set."""
    dotted = {key.replace("__", "."): value for key, value in config.items()}
    flat = DEFAULTS | dotted
    changed = [key for key, value in dotted.items() if DEFAULTS.get(key) != value]
    measured = {"top1": top1, "loss": 0.1, "split": "test"} if status == "ok" else {}
    return {"status": status, "reason": reason, **measured, "config": flat, "changed": changed}


def save(folder: Path, cells: Iterable[dict[str, Any]]) -> Path:
    """Write a sweep's folder as the store's format says."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "store.json").write_text('{"schema": 1}\n')
    for k, result in enumerate(cells):
        config = result["config"]
        cell_id = f"{config['norm']}-b{config['batch']}-s{config['seed']}-{k:04d}".replace("/", "_")
        (folder / cell_id).mkdir()
        (folder / cell_id / "config.yaml").write_text("made: up\n")
        content = {"schema": 1, "cell_id": cell_id, **result}
        (folder / cell_id / "result.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Callable[..., Path]:
    """``sweep(cells)`` → the folder of a sweep named ``first``."""
    return lambda cells, name="first": save(tmp_path / "runs" / name, cells)


@pytest.fixture(name="cell")
def _cell() -> Callable[..., dict[str, Any]]:
    return cell
