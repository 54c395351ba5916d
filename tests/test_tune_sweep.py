"""tune.lr from the command on: trials, then cells; stopped, gone on with, failing, rerun; what is left behind."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from normbench.commands import DONE
from normbench.files import read_json
from normbench.launch import slurm
from normbench.records import cell_status, rows
from normbench.records.merge import merge

Sweep = Callable[..., int]
Results = Callable[..., list[dict[str, str]]]
Said = pytest.CaptureFixture[str]

SHORT = ("norm=bn", "batch=8", "data.limit=40", "steps=2", "name=t")
TUNED = "tune.lr=[0.001,0.1]"


def marks(paths: Iterable[Path]) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in paths}


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def make_win(lr: float, trials: Path) -> None:
    """As if trials had been lost, and came to something else when they were made again."""
    for path in trials.glob("*/result.json"):
        found = read_json(path)
        path.write_text(json.dumps({**found, "top1": 90.0 if found["config"]["lr"] == lr else 10.0}))


def test_rates_are_tried_on_held_out_pictures_and_the_best_one_is_tested(
    sweep: Sweep, results: Results, tmp_path: Path, capsys: Said
) -> None:
    folder, trials = tmp_path / "runs" / "t", tmp_path / "runs" / "t" / ".tune"
    assert sweep(*SHORT, TUNED, "plan=true") == 0
    said = capsys.readouterr().out
    assert "2 trials + 1 cell" in said
    assert "2 trials: 2 new" in said
    assert "by tune.lr" in said
    assert not folder.exists()

    assert sweep(*SHORT, TUNED) == 0
    said = capsys.readouterr().out
    assert "2 trials + 1 cell" in said
    assert "learning rate tuned over 0.001, 0.1 on a held-out 10 % of the training set (1 seed, full length)" in (
        " ".join(said.split())
    )
    tried = rows(trials)
    assert [(row["split"], row["data.valid"], row["seed"], row["lr"]) for row in tried] == [
        ("valid", 0.1, 1000, row["lr"]) for row in tried
    ]
    best = max(tried, key=lambda row: (row["top1"], -row["lr"]))
    (row,) = results("t")
    # Nobody asks of a trial what its normalizer alone does.
    assert all(math.isnan(trial["train_top1"]) for trial in tried)
    assert row["train_top1"] != "NaN"
    assert [path.parent.parent.name for path in folder.rglob("correct.npy")] == ["t"]
    assert (row["split"], row["seed"], row["status"], row["step"]) == ("test", "0", "ok", "2")
    assert (float(row["lr"]), float(row["tune_top1"])) == (best["lr"], best["top1"])
    assert (row["tune_trials"], row["tune_edge"]) == ("2", "lowest" if best["lr"] == 0.001 else "highest")
    assert row["tune"].startswith("0.001, 0.1 on a held-out 10 %")
    assert "data.valid" not in row
    with (folder / "tune.csv").open() as file:
        table = {line["cell_id"]: line for line in csv.DictReader(file)}
    assert {key: line["chosen"] for key, line in table.items()} == {
        row["cell_id"]: str(row is best).lower() for row in tried
    }

    # Another seed has the same trials, and nothing is run twice; where stores are merged, trials come along.
    assert sweep(*SHORT, TUNED, "plan=true") == 0
    assert "1 cell: 1 done" in capsys.readouterr().out
    before = marks(folder.rglob("result.json"))
    assert sweep(*SHORT, TUNED, "seed=0,1") == 0
    assert {(found["seed"], found["lr"]) for found in results("t")} == {("0", row["lr"]), ("1", row["lr"])}
    after = marks(folder.rglob("result.json"))
    assert (len(before), len(after)) == (3, 4)
    assert {path: after[path] for path in before} == before
    merge([tmp_path / "runs"], tmp_path / "merged")
    assert {row["cell_id"] for row in rows(tmp_path / "merged" / "t" / ".tune")} == set(table)

    # Trials that come to something else: no seed is averaged with one of another rate.
    other = {"0.001": "0.1", "0.1": "0.001"}[row["lr"]]
    make_win(float(other), trials)
    capsys.readouterr()
    assert sweep(*SHORT, TUNED, "seed=0,1,2", "plan=true") == 0
    said = capsys.readouterr().out
    assert "2 trials (2 not to be run) + 3 cells (2 not to be run)" in said
    assert "3 cells: 3 new" in said
    assert [line.split()[-2:] for line in said.splitlines() if line.startswith("bn-b8-s") and "s1000" not in line] == [
        [other, "new"]
    ] * 3


BROKEN = """
from torch import nn

class Broken(nn.Module):
    def __init__(self, num_features):
        super().__init__()

    def forward(self, x):
        raise RuntimeError("this norm is broken")
"""


def test_where_no_trial_succeeds_the_cell_is_a_row_that_says_so(
    sweep: Sweep, results: Results, tmp_path: Path, capsys: Said
) -> None:
    (tmp_path / "mine.py").write_text(BROKEN)
    grid = (*SHORT[1:], "norm=mine.py:Broken", TUNED)
    assert sweep(*grid) == 1
    (row,) = results("t")
    assert (row["status"], row["lr"], row["top1"]) == ("error", "", "NaN")
    assert "none of 0.001, 0.1 passed its trials (2 error); one of them: RuntimeError: this norm is br" in row["reason"]
    before = marks(tmp_path.glob("runs/t/**/result.json"))
    assert sweep(*grid) == 1
    assert marks(tmp_path.glob("runs/t/**/result.json")) == before
    capsys.readouterr()
    assert sweep(*grid, "plan=true", "rerun=failed") == 0
    said = capsys.readouterr().out
    assert "2 trials: 2 error, to be run again" in said
    assert "1 cell: 1 error, to be run again" in said
    assert sweep(*grid, "rerun=failed") == 1
    after = marks(tmp_path.glob("runs/t/**/result.json"))
    assert {path for path in after if after[path] > before[path]} == set(tmp_path.glob("runs/t/.tune/*/result.json"))


FATAL = """
import os
import signal

import torch
from torch import nn

class Fatal(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.moved = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        if self.moved.abs() > 1:  # a step at a high rate
            os.kill(os.getpid(), signal.SIGSEGV)
        return x + self.moved
"""


def test_a_trial_that_always_dies_has_failed_after_the_second_time(
    sweep: Sweep, results: Results, tmp_path: Path, capsys: Said
) -> None:
    (tmp_path / "mine.py").write_text(FATAL)
    grid = (*SHORT[1:], "norm=mine.py:Fatal", "tune.lr=[1e-9,1e9]")
    assert sweep(*grid) == 1
    assert "1 of the cells wait for trials" in capsys.readouterr().err
    (dead,) = (path for path in tmp_path.glob("runs/t/.tune/*/result.json") if read_json(path)["status"] == "killed")

    # What was stopped or went with the machine was not its own doing, in however many attempts.
    first = dead.read_text()
    dead.write_text(json.dumps({**read_json(dead), "status": "interrupted", "attempt": 5}))
    assert sweep(*grid) == 1
    assert (read_json(dead)["status"], read_json(dead)["attempt"]) == ("killed", 6)
    dead.unlink()
    assert sweep(*grid, "plan=true") == 0
    assert "2 trials: 1 done; 1 killed, to be run again" in capsys.readouterr().out
    dead.write_text(first)

    assert sweep(*grid) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 trial taken as failed: killed in 2 attempts: its process ended by a segmentation fault (SIGSEGV)" in said
    (row,) = results("t")
    assert (row["status"], float(row["lr"]), row["tune_edge"]) == ("ok", 1e-9, "lowest")

    # It stands, for other cells too.
    before = marks([dead])
    assert sweep(*grid, "seed=0,1", "plan=true") == 0
    said = capsys.readouterr().out
    assert "1 trial taken as failed: killed in 2 attempts" in said
    assert "2 trials: 1 done; 1 error" in said
    assert sweep(*grid, "seed=0,1") == 0
    assert marks([dead]) == before
    assert len(results("t")) == 2


def test_where_every_trial_dies_the_cell_fails(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FATAL)
    grid = (*SHORT[1:], "norm=mine.py:Fatal", "tune.lr=[1e8,1e9]")
    assert [sweep(*grid), sweep(*grid)] == [1, 1]
    (row,) = results("t")
    assert (row["status"], row["lr"]) == ("error", "")
    assert "(2 error); one of them: killed in 2 attempts: its process ended by a segmentation" in row["reason"]


def test_a_sweep_that_is_killed_among_its_trials_goes_on_and_runs_none_twice(
    sweep: Sweep, results: Results, tmp_path: Path
) -> None:
    grid = (*SHORT, TUNED, "tune.seeds=2")
    process = subprocess.Popen(
        [sys.executable, "-m", "normbench.sweep", *grid], cwd=tmp_path, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        wait_for(lambda: any(tmp_path.glob("runs/t/.tune/*/result.json")))
    finally:
        process.kill()
        process.wait()
    trials = list(tmp_path.glob("runs/t/.tune/*/config.yaml"))
    # What a killed sweep leaves follows it at once.
    wait_for(lambda: all(cell_status(path.parent) != "running" for path in trials))
    before = marks(tmp_path.glob("runs/t/.tune/*/result.json"))
    assert 1 <= len(before) < 4
    assert not list(tmp_path.glob("runs/t/bn-*"))
    assert sweep(*grid) == 0
    after = marks(tmp_path.glob("runs/t/.tune/*/result.json"))
    assert len(after) == 4
    assert {path: after[path] for path in before} == before
    assert [(row["status"], row["tune_trials"]) for row in results("t")] == [("ok", "4")]


def test_trials_that_are_at_work_elsewhere_are_waited_for(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Said
) -> None:
    """detach=true submits the trials and leaves; the cells are submitted when these have ended."""
    submitted: list[list[str]] = []

    class Cluster:
        left = 0

        def __init__(self, store: Any, *_: Any) -> None:
            self.name = store.folder.name

        def run(self, todo: Any, standing: Any) -> None:
            submitted.append([self.name, *(item.label for item in todo)])
            self.left = len(todo)

    monkeypatch.setattr(slurm, "Slurm", Cluster)
    monkeypatch.setattr(slurm, "check", lambda _: None)
    assert sweep(*SHORT, TUNED, "launch=slurm", "detach=true") == DONE
    assert submitted == [[".tune", "bn-b8-s1000 lr=0.001", "bn-b8-s1000 lr=0.1"]]
    assert "1 of the cells wait for trials of tune.lr that have not ended" in capsys.readouterr().err
    assert rows(tmp_path / "runs" / "t") == []
