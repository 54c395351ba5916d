"""Cells in processes of their own: slots and their order, cells that others have, what a cell costs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import time
from pathlib import Path

from bad_cells import SHORT, Results, Sweep, command, wait_for

from normbench import claim, grid
from normbench.files import read_json
from normbench.launch import forkserver
from normbench.launch.local import record_skip
from normbench.preflight import Preflight
from normbench.records import Store, cell_status


def test_two_slots_run_two_cells_at_a_time(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    assert sweep("norm=bn,gn,frn", "batch=8", "slots=2", *SHORT) == 0
    assert [row["status"] for row in results()] == ["ok"] * 3
    spans = []
    for path in tmp_path.glob("runs/*/*/result.json"):
        ended = read_json(path)["ended"]
        spans.append((path.with_name("config.yaml").stat().st_mtime, ended))
    first, second, _ = sorted(spans)
    assert second[0] < first[1], "the second began before the first was done"


def test_the_longest_cell_starts_first_when_there_are_slots(sweep: Sweep, tmp_path: Path) -> None:
    assert sweep("norm=bn", "batch=16,8,4", "slots=2", *SHORT) == 0
    began = {
        read_json(path.with_name("result.json"))["config"]["batch"]: path.stat().st_mtime_ns
        for path in tmp_path.glob("runs/*/*/config.yaml")
    }
    assert max(began, key=began.__getitem__) == 16


def test_a_cell_of_a_silent_machine_is_taken_over(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    grid = ("norm=bn", "batch=8", *SHORT, "name=t")
    assert sweep(*grid) == 0
    (cell,) = (path.parent for path in tmp_path.glob("runs/t/*/result.json"))
    (cell / "result.json").unlink()
    theirs = cell / "running-2.json"
    theirs.write_text(json.dumps({"pid": 1, "host": "another", "config": {}, "changed": []}))
    assert sweep(*grid) == 1  # it is at work
    assert theirs.exists()
    silent = time.time() - claim.STALE - 1
    os.utime(theirs, (silent, silent))
    assert sweep(*grid) == 0
    assert read_json(cell / "result.json")["attempt"] == 3
    assert not list(cell.glob("running-*"))


def test_a_cell_taken_over_or_deleted_while_at_work_ends_alone(tmp_path: Path) -> None:
    """Its machine was silent too long: the old owner leaves it, and the other cells of its sweep go on."""
    process = command(tmp_path, "norm=bn", "batch=2,64", "data.limit=200", "epochs=40", "slots=2", "name=t")
    store = tmp_path / "runs" / "t"
    wait_for(lambda: list(store.glob("bn-b2-*/running-1.json")) and list(store.glob("bn-b2-*/rows.jsonl")))
    (cell,) = store.glob("bn-b2-*")
    theirs = claim.take(cell, 2, {"config": {}, "changed": []})
    assert theirs is not None
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1, err
    assert "normbench: " not in err
    assert theirs.exists()
    assert not (cell / "result.json").exists()
    (other,) = store.glob("bn-b64-*")
    assert cell_status(other) == "ok"


def test_a_skip_does_not_take_the_place_of_what_another_did_meanwhile(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs", "t")
    store.create()
    (planned,) = Preflight().plan(grid.read(["norm=bn", "batch=8"]), store)
    theirs = store.begin(planned.cell_id, {}, planned.known)
    assert theirs is not None
    theirs.finish({"status": "ok", **planned.known})
    skipped = dataclasses.replace(planned, skip="too large")
    record_skip(skipped, store)
    assert store.status(planned.cell_id) == "ok"
    record_skip(dataclasses.replace(skipped, attempts=1), store)
    assert store.status(planned.cell_id) == "skipped"
    record_skip(dataclasses.replace(skipped, attempts=2), store)
    assert store.attempts(planned.cell_id) == 2  # it is known


def test_a_cell_costs_little_beside_its_training(sweep: Sweep, tmp_path: Path) -> None:
    """The bound is half a second a cell on quiet machines, once kernels are compiled; here it has room for noise."""
    assert sweep("norm=bn", "batch=32", "seed=range(2)", *SHORT) == 0
    assert sweep("norm=bn", "batch=32", "seed=range(2,8)", *SHORT) == 0
    found = sorted(read_json(path)["ended"] for path in tmp_path.glob("runs/*/*/result.json"))
    trained = max(read_json(path)["train_seconds"] for path in tmp_path.glob("runs/*/*/result.json"))
    gaps = sorted(late - early - trained for early, late in itertools.pairwise(found[2:]))
    assert gaps[len(gaps) // 2] < 1.0


def test_the_server_is_shared_by_the_sweeps_of_a_process(sweep: Sweep) -> None:
    before = forkserver.shared()
    assert sweep("norm=bn", "batch=32", *SHORT) == 0
    assert forkserver.shared() is before


def test_a_server_that_died_between_cells_is_replaced(sweep: Sweep, results: Results) -> None:
    assert sweep("norm=bn", "batch=32", *SHORT) == 0
    before = forkserver.shared()
    os.kill(before.process.pid, signal.SIGKILL)
    assert sweep("norm=gn", "batch=32", *SHORT) == 0
    assert forkserver.shared() is not before
