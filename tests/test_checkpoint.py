"""Checkpoints: what comes back is what was kept, to the bit, or it is refused."""

from __future__ import annotations

import math
import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from normbench import checkpoint
from normbench.checkpoint import CheckpointError, Clock
from normbench.errors import StoreError

STATE: dict[str, Any] = {
    "net": {"a": torch.randn(3, 4), "b": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)},
    "half": torch.randn(5).bfloat16(),
    "empty": torch.zeros(0),
    "number": 3,
    "loss": math.nan,
    "small": 5e-324,
    "rows": [{"epoch": 1, "name": None}, (1, 2.5)],
}


def test_what_comes_back_is_what_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert checkpoint.load(path) is None
    checkpoint.save(path, STATE)
    found = checkpoint.load(path)
    assert found is not None
    assert checkpoint.digest(found) == checkpoint.digest(STATE)
    assert found["net"]["b"].is_contiguous(memory_format=torch.channels_last)
    assert torch.load(path, weights_only=True)["version"] == checkpoint.VERSION
    assert [item.name for item in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize(
    "other",
    [
        {"number": 4}, {"number": 3.0}, {"loss": 0.0}, {"small": 0.0}, {"rows": []}, {"half": STATE["half"].float()},
        {"empty": torch.zeros(0, 1)}, {"net": {"a": STATE["net"]["a"] + 1e-7, "b": STATE["net"]["b"]}},
    ],
)  # fmt: skip
def test_the_digest_sees_every_bit(other: dict[str, Any]) -> None:
    assert checkpoint.digest({**STATE, **other}) != checkpoint.digest(STATE)


def test_what_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, STATE)
    whole = path.read_bytes()
    at = whole.index(STATE["net"]["a"].numpy().tobytes())
    for content in (b"", whole[: len(whole) // 2], whole[:at] + b"\0" * 8 + whole[at + 8 :], b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="not gone on from"):
            checkpoint.load(path)
    torch.save({"version": 0, "state": {}}, path)
    with pytest.raises(CheckpointError, match="another version"):
        checkpoint.load(path)


def test_what_wants_to_run_code_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'it-ran'}",)

    path = tmp_path / "checkpoint.pt"
    for write in (lambda: torch.save(Hostile(), path), lambda: path.write_bytes(pickle.dumps(Hostile()))):
        write()
        with pytest.raises(CheckpointError):
            checkpoint.load(path)
    assert not (tmp_path / "it-ran").exists()


def test_the_one_before_stands_until_the_next_is_whole(tmp_path: Path) -> None:
    """Killed again and again in the middle of writing, there is always a whole one."""
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"number": torch.zeros(10**6), "n": 0})
    code = """
import sys, torch
from pathlib import Path
from normbench import checkpoint
n = 1
while True:
    checkpoint.save(Path("checkpoint.pt"), {"number": torch.full((10**6,), float(n)), "n": n})
    print(n, flush=True)
    n += 1
"""
    for _ in range(2):
        writer = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(3)][-1]
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        found = checkpoint.load(path)
        assert found is not None
        assert found["n"] >= told
        assert (found["number"] == found["n"]).all()


def test_a_folder_that_is_gone_or_full_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="was deleted"):
        checkpoint.save(tmp_path / "gone" / "checkpoint.pt", {})


def test_generators_go_back_to_where_they_stood() -> None:
    def draw() -> tuple[Any, ...]:
        return torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.rand(3).tolist()

    random.gauss(0, 1)  # it keeps one for the next time
    found = checkpoint.draws(torch.device("cpu"))
    first = draw()
    checkpoint.set_draws(found, torch.device("cpu"))
    assert draw() == first


def test_checkpoints_come_seldom_enough_to_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock = Clock()
    now = checkpoint.SECONDS - 0.1
    assert not clock.due(at_end=False)
    assert clock.due(at_end=True)
    clock.saved(now - 2.0)  # it took two seconds
    now += checkpoint.AT_END * 2.0 - 0.1
    assert not clock.due(at_end=True)
    now += 0.2
    assert clock.due(at_end=True)
    assert not clock.due(at_end=False)
    now += checkpoint.WITHIN * 2.0
    assert clock.due(at_end=False)
