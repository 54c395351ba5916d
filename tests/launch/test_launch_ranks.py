"""A cell of several processes: the cell that one process makes, gone on with bit for bit, and ended whole."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from normbench import grid, track
from normbench.errors import ConfigError
from normbench.files import read_json
from normbench.launch.local import Local
from normbench.preflight import Preflight
from normbench.records import Store

MINE = """
import os, time
import torch
from torch import distributed, nn

class Slow(nn.BatchNorm2d):
    def __init__(self, num_features, takes=0.005):
        super().__init__(num_features)
        self.takes = takes

    def forward(self, x):
        time.sleep(self.takes)
        return nn.functional.dropout(super().forward(x), 0.1, self.training)

class Fails(nn.BatchNorm2d):
    ranks = (1,)

    def forward(self, x):
        y = super().forward(x)
        failing = self.training and self.num_batches_tracked > 4 and distributed.get_rank() in self.ranks
        return self.fail(y) if failing else y

class Raises(Fails):
    def fail(self, y):
        raise RuntimeError("this norm is broken in two\\nlines")

class RaisesOnTheFirst(Raises):
    ranks = (0,)

class RaisesOnBoth(Raises):
    ranks = (0, 1)

class Memory(Fails):
    def fail(self, y):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

class NotANumber(Fails):
    def fail(self, y):
        return y * float("nan")

class Exits(Fails):
    def fail(self, y):
        os._exit(3)
"""
BASE = ("data.limit=64", "batch=4", "workers=4", "deterministic=true", "device=cpu")


class Seen:
    """A display that keeps the results and, at each step that it is told of, does what a test wants."""

    def __init__(self, at_step: Callable[[], None]) -> None:
        self.at_step, self.results = at_step, list[dict[str, Any]]()

    def step(self, *_: Any) -> None:
        self.at_step()

    def finish(self, _cell_id: str, _label: str, result: dict[str, Any]) -> None:
        self.results.append(result)

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_, **__: None


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("norm=bn", ranks=2)`` → the one cell's result, and its folder; ``then(local)`` is called at each step."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)

    def go(*overrides: str, ranks: int = 2, name: str = "t", then: Callable[[Local], None] | None = None) -> Any:
        store = Store(tmp_path, name)
        store.create()
        (item,) = Preflight().plan(grid.read([*overrides, *BASE, f"ranks={ranks}"]), store)
        seen = Seen(lambda: None if then is None else then(local))
        local = Local(store, seen, track.make("none", folder=store.folder), 1, ranks)  # type: ignore[arg-type]
        with contextlib.suppress(KeyboardInterrupt):
            local.run([item])
        store.write_results()
        assert len(seen.results) == 1
        folder = store.cell(item.cell_id)
        return {**read_json(folder / "result.json"), "folder": folder}

    return go


def stop(local: Local) -> None:
    local.asked = 1


def table(folder: Path) -> dict[str, str]:
    with (folder.parent / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    return row


def test_one_process_or_two_are_the_same_cell(run: Run) -> None:
    one, two = (run("norm=bgn", "epochs=2", ranks=ranks, name=str(ranks)) for ranks in (1, 2))
    assert one["status"] == two["status"] == "ok"
    assert one["folder"].name == two["folder"].name
    assert (one["folder"] / "config.yaml").read_text() == (two["folder"] / "config.yaml").read_text()
    ours, theirs = table(one["folder"]), table(two["folder"])
    assert list(ours) == list(theirs)
    rounded = {"loss", "train_loss", "last_loss"}  # float32 sums, in another order, over 8 steps
    measured = {"train_seconds", "images_per_s", "peak_memory_mib"}
    for key in ours.keys() - measured:
        assert theirs[key] == ours[key] or (
            key in rounded and float(theirs[key]) == pytest.approx(float(ours[key]), rel=1e-4)
        ), key
    assert [read_json(each["folder"] / "provenance.json")["ranks"] for each in (one, two)] == [1, 2]


def test_a_run_over_ranks_that_was_stopped_goes_on_bit_for_bit(run: Run) -> None:
    """Dropout included, whose draws are each rank's own."""
    cell = ("norm=mine.py:Slow", "epochs=3")
    whole = run(*cell, name="whole")
    stopped = run(*cell, then=stop)
    assert (whole["status"], stopped["status"]) == ("ok", "interrupted")
    assert 0 < stopped["step"] < 12
    saved = torch.load(stopped["folder"] / "checkpoint.pt", weights_only=True)["state"]
    assert len(saved["draws"]) == 2
    assert not torch.equal(saved["draws"][0]["torch"], saved["draws"][1]["torch"])
    again = run(*cell)
    assert (again["status"], again["step"], again["attempt"]) == ("ok", 12, 2)
    for key in ("weights", "loss", "train_loss", "last_loss", "top1"):
        assert again[key] == whole[key]


@pytest.mark.slow
def test_it_goes_on_over_another_number_of_ranks(run: Run) -> None:
    """Not bit for bit then: sums are taken in another order, and other ranks draw."""
    cell = ("norm=mine.py:Slow", "epochs=4")
    stopped = [run(*cell, ranks=ranks, then=stop) for ranks in (1, 2)]
    assert [each["status"] for each in stopped] == ["interrupted", "interrupted"]
    again = run(*cell, ranks=1)
    assert (again["status"], again["step"], again["attempt"]) == ("ok", 16, 3)
    assert 0 < stopped[0]["step"] < stopped[1]["step"] < 16


@pytest.mark.parametrize(
    ("norm", "status", "reason"),
    [
        ("Raises", "error", "rank 1: RuntimeError: this norm is broken in two lines"),
        ("RaisesOnTheFirst", "error", "RuntimeError: this norm is broken in two lines"),
        ("RaisesOnBoth", "error", "RuntimeError: this norm is broken in two lines"),
        ("Memory", "oom", "rank 1: OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"),
        ("NotANumber", "diverged", "the training loss is nan in epoch 2, step 5"),
        ("Exits", "error", "its process ended with exit code 3 and no result"),
    ],
)
def test_what_happens_on_one_rank_ends_the_cell_and_is_said(run: Run, norm: str, status: str, reason: str) -> None:
    began = time.monotonic()
    result = run(f"norm=mine.py:{norm}", "epochs=4")
    assert (result["status"], result["reason"]) == (status, reason)
    assert (result["epoch"], result["step"]) == ((2, 5) if status == "diverged" else (1, 4))
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("victim", [0, 1])
def test_one_rank_killed_ends_all(run: Run, victim: int) -> None:
    processes: dict[int, int] = {}
    when = 0.0

    def kill(local: Local) -> None:
        nonlocal when
        if not processes:
            processes.update(local.running[0].pids)
            pid = next(pid for pid, rank in processes.items() if rank == victim)
            when = time.monotonic()
            os.kill(pid, signal.SIGKILL)

    result = run("norm=mine.py:Slow", "norm.takes=0.05", "epochs=20", then=kill)
    assert time.monotonic() - when < 5
    assert (result["status"], result["reason"]) == ("killed", "its process was killed (SIGKILL)")
    assert len(processes) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["workers=1", "ranks=2"], "ranks=2 with workers=1: .* take workers=2 or ranks=1"),
        (["workers=8", "ranks=6"], "ranks=6 with workers=8: .* take workers=12 or ranks=4"),
        (["workers=8,6", "ranks=4"], "ranks=4 with workers=6: .* take workers=8 or ranks=3"),
        (["workers=2", "ranks=2", "device=cuda"], "ranks=2: each rank takes a GPU, and there is 1 here; take ranks=1"),
        (["workers=2", "ranks=2", "device=cuda:0"], "device=cuda:0: ranks take a device each; take device=cuda or cpu"),
    ],
)
def test_ranks_that_cannot_be_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=message):
        Preflight().plan(grid.read(["norm=bn", "batch=4", *overrides]), Store(tmp_path, "t"))
    assert not any(tmp_path.iterdir())
