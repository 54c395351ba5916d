"""A made-up store of many cells, to see how a report copes: python scripts/large_store.py FOLDER [key=value ...]

Writes the sweep FOLDER as normbench.sweep would have left it after the grid given (2,000 cells of 100 epochs unless
said): configuration, rows, result, provenance and the bits of 10,000 pictures per cell. Nothing is trained; the numbers
follow the normalizer, the batch and the seed. Then reports on it, and says the seconds and MiB that took.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml

from normbench import grid
from normbench.attempt import SCHEMA
from normbench.files import plain
from normbench.records import correct

GRID = (
    "arch=resnet8,resnet20", "data=digits,cifar10", "norm=bn,gn,bgn,frn,brn,ln,in,none,evonorm_s0,gbn",
    "batch=2,4,8,16,32,64,128,256,512,1024", "seed=0,1,2,3,4", "epochs=100",
)  # fmt: skip
PICTURES = 10_000
PROVENANCE = {"attempt": 1, "python": "3.11.7", "torch": "2.6.0", "device": "cpu", "cores": 2, "threads": 1}
Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # a fifth of the time, where libyaml is there


def make(folder: Path, words: Sequence[str] = GRID, pictures: int = PICTURES) -> int:
    """Write the sweep; returns its number of cells. A tenth of the cells of small batches diverge."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "store.json").write_text(json.dumps({"schema": SCHEMA}) + "\n")
    cells = grid.read(words).cells
    with mock.patch("os.fsync"):  # ten thousand small files, and nothing that must outlive a power cut
        for item in cells:
            _write(folder, item, pictures)
    return len(cells)


def _write(folder: Path, item: grid.GridCell, pictures: int) -> None:
    cell, config = item.cell, {**item.cell.flat(), "data.source": "5b2e9939"}
    draws = np.random.default_rng(zlib.crc32(json.dumps(plain(config), sort_keys=True).encode()))
    number = hashlib.sha256(json.dumps(plain(config), sort_keys=True).encode()).hexdigest()[:10]
    place = folder / f"{cell.label()}-{number}"
    place.mkdir()
    (place / "config.yaml").write_text(yaml.dump(plain(cell.nested()), Dumper=Dumper, sort_keys=False))
    (place / "provenance.json").write_text(json.dumps(PROVENANCE, indent=1) + "\n")
    goal = 95 - 20 * (zlib.crc32(cell.norm.name.encode()) % 7) / cell.batch**0.5 + draws.normal(0, 0.4)
    rows = _rows(cell.length("epochs") or 1, goal, cell.peak_lr, draws)
    diverged = cell.batch <= 4 and draws.random() < 0.1
    if diverged:
        rows = rows[: len(rows) // 2]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = _diverged(rows) if diverged else _ok(rows[-1], draws, pictures, place)
    result = {"schema": SCHEMA, "cell_id": place.name, "attempt": 1, **ended, "config": config}
    result |= {"changed": list(item.changed), "ended": 1.8e9}
    (place / "result.json").write_text(json.dumps(plain(result), indent=1) + "\n")


def _rows(epochs: int, goal: float, rate: float, draws: np.random.Generator) -> list[dict[str, Any]]:
    noise = draws.normal(size=(epochs, 3))
    return [
        {
            "epoch": k + 1, "step": 44 * (k + 1), "lr": rate * (1 - k / epochs), "train_loss": 2.3 / (k + 1) ** 0.5,
            "top1": float(np.clip(goal * (1 - 0.8 ** (k + 1)) + 0.2 * a, 0, 100)), "top5": 99.0,
            "loss": float(2.3 / (k + 1) ** 0.4 + 0.01 * b), "eval_count": 10_000,
            "images_per_s": 1000 + 10 * float(c), "train_seconds": 1.5 * (k + 1),
        }
        for k, (a, b, c) in enumerate(noise)
    ]  # fmt: skip


def _ok(last: dict[str, Any], draws: np.random.Generator, pictures: int, place: Path) -> dict[str, Any]:
    right = draws.random(pictures) < last["top1"] / 100
    correct.write(place, right)
    top1 = 100 * float(right.mean())
    measured = {key: value for key, value in last.items() if key != "lr"} | {"top1": top1, "batch_top1": top1 - 0.5}
    more = {"precise_top1": top1 + 0.1, "train_top1": top1 + 2, "gap": 2.0, "eval_flips": 0, "peak_memory_mib": 486.6}
    words = {"execution": "eager", "last_loss": 0.3, "split": "test", "sites": 7, "groups": "", "parameters": 75290}
    return {"status": "ok", "reason": "", **measured, **more, **words}


def _diverged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    reached = {"epoch": len(rows), "step": 44 * len(rows)}
    return {"status": "diverged", "reason": f"the training loss is nan at step {44 * len(rows)}", **reached}


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        print(__doc__)
        return 2
    folder = Path(arguments[0])
    start = time.perf_counter()
    count = make(folder, arguments[1:] or GRID)
    print(f"{count} cells written in {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "normbench.report", str(folder)], stdout=subprocess.DEVNULL)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # KiB, on Linux
    print(f"report: {time.perf_counter() - start:.1f} s, {peak:.0f} MiB")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
