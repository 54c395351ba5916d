"""Cells in processes of their own: however one ends, it is a row, and the others go on; nothing is lost."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from normbench import checkpoint, claim, grid
from normbench.files import read_json
from normbench.launch import forkserver
from normbench.launch.local import record_skip
from normbench.preflight import Preflight
from normbench.records import Store, cell_status, epochs
from normbench.sweep import main

Sweep = Callable[..., int]
Rows = list[dict[str, str]]
Results = Callable[..., Rows]

SHORT = ("data.limit=60", "epochs=1")
# What may differ between a run that was stopped and one that was not.
TIMES = ("train_seconds", "images_per_s", "peak_memory_mib")
BAD = """
import ctypes, os, resource, signal, time
from pathlib import Path
import torch
from torch import nn

class Base(nn.Module):
    mixes_samples = False

    def __init__(self, num_features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.seen = 0

    def forward(self, x):
        self.seen += 1
        if self.training and self.seen > 5:
            x = self.bad(x)
        return x * self.weight[:, None, None]

class Segfault(Base):
    def bad(self, x):
        ctypes.string_at(0)

class Hungry(Base):
    def bad(self, x):
        if "NO_LIMIT" not in os.environ:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, -1))
        kept = []
        while True:
            kept.append(torch.ones(2**24))

class Endless(Base):
    def bad(self, x):
        while True:
            time.sleep(1)

class Raises(Base):
    def bad(self, x):
        raise RuntimeError("this norm is broken")

class Nan(Base):
    def bad(self, x):
        return x * float("nan")

class Exits(Base):
    def bad(self, x):
        os._exit(3)

class Killed(Base):
    def bad(self, x):
        os.kill(os.getpid(), signal.SIGKILL)

class KillsTheServer(Base):
    def bad(self, x):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(100)

class SpoilsThePictures(Base):
    def bad(self, x):
        for path in Path("pictures").rglob("*.png"):
            path.unlink()
        return x
"""


@pytest.fixture(autouse=True)
def _bad(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD)


def by_norm(rows: Rows) -> dict[str, dict[str, str]]:
    return {row["norm"].rsplit(":")[-1]: row for row in rows}


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def command(folder: Path, *argv: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "normbench.sweep", *argv]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_each_end_is_its_row_and_the_others_are_untouched(sweep: Sweep, results: Results) -> None:
    names = ("Segfault", "Hungry", "Raises", "Nan", "Exits", "Killed")
    norms = ",".join(["bn", *(f"bad.py:{name}" for name in names), "gn"])
    assert sweep(f"norm={norms}", "batch=8", *SHORT) == 1
    found = by_norm(results())
    assert {name: row["status"] for name, row in found.items()} == {
        "bn": "ok", "Segfault": "killed", "Hungry": "oom", "Raises": "error", "Nan": "diverged", "Exits": "error",
        "Killed": "killed", "gn": "ok",
    }  # fmt: skip
    for name, words in {
        "Segfault": "bad.py:",
        "Hungry": "memory",
        "Raises": "this norm is broken",
        "Nan": "the training loss is nan in epoch 1, step 6",
        "Exits": "exit code 3",
        "Killed": "SIGKILL",
    }.items():
        assert words in found[name]["reason"]
        assert found[name]["top1"] == "NaN"
    assert float(found["Nan"]["last_loss"]) > 0


def test_failed_cells_stand_and_killed_ones_go_on(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    def attempts() -> dict[str, int]:
        return {
            read_json(path)["config"]["norm"].rsplit(":")[-1]: read_json(path)["attempt"]
            for path in tmp_path.glob("runs/*/*/result.json")
        }

    grid = ("norm=bad.py:Raises,bad.py:Killed,bn", "batch=8", *SHORT)
    assert sweep(*grid) == 1
    assert sweep(*grid) == 1
    assert attempts() == {"Raises": 1, "Killed": 2, "bn": 1}
    assert sweep(*grid, "rerun=failed") == 1
    assert attempts() == {"Raises": 2, "Killed": 3, "bn": 1}
    assert sweep(*grid, "rerun=all") == 1
    assert attempts() == {"Raises": 3, "Killed": 4, "bn": 2}


def test_what_ran_out_of_memory_spares_larger_batches_and_says_so(sweep: Sweep, results: Results) -> None:
    grid = ("norm=bad.py:Hungry,bn", "batch=8,4,16", *SHORT)
    assert sweep(*grid) == 1
    found = {(row["norm"].rsplit(":")[-1], row["batch"]): row for row in results()}
    statuses = {key: row["status"] for key, row in found.items()}
    assert statuses["Hungry", "8"] == "oom"
    assert statuses["Hungry", "4"] == "oom"  # a smaller one has a chance
    assert statuses["Hungry", "16"] == "skipped"
    assert "4 images at once ran out of memory" in found["Hungry", "16"]["reason"]
    assert {statuses["bn", batch] for batch in ("4", "8", "16")} == {"ok"}
    assert sweep(*grid) == 1  # the failures stand, and so does what follows from them
    assert {(row["norm"].rsplit(":")[-1], row["batch"]): row["status"] for row in results()} == statuses


@pytest.fixture
def memory_limit() -> Iterator[Path]:
    """A control group with 2.5 GB."""
    made = []
    for root, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup") / root / f"normbench-{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            made.append(group)
            (group / limit).write_text("2500000000")
            yield group / "cgroup.procs"
            break
    else:
        for group in made:
            group.rmdir()
        pytest.skip("no control group can be made here")
    wait_for(lambda: not group.joinpath("cgroup.procs").read_text())
    group.rmdir()


def test_the_systems_own_memory_killer_is_oom(memory_limit: Path, tmp_path: Path, results: Results) -> None:
    grid = ("norm=bad.py:Hungry,bn", "batch=8", *SHORT)
    script = 'echo $$ > "$0"; exec "$@"'
    words = ["sh", "-c", script, str(memory_limit), sys.executable, "-m", "normbench.sweep", *grid]
    env = {**os.environ, "NO_LIMIT": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    found = by_norm(results())
    assert (found["Hungry"]["status"], found["bn"]["status"]) == ("oom", "ok")
    assert "SIGKILL" in found["Hungry"]["reason"]


def test_when_the_fork_server_dies_its_cells_do_and_the_others_get_a_new_one(sweep: Sweep, results: Results) -> None:
    assert sweep("norm=bad.py:KillsTheServer,bn", "batch=8", *SHORT) == 1
    assert {name: row["status"] for name, row in by_norm(results()).items()} == {"KillsTheServer": "killed", "bn": "ok"}


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


def test_pictures_that_go_or_change_meanwhile_are_said(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    for split in ("train", "test"):
        for number in range(12):
            folder = tmp_path / "pictures" / split / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    grid = ("norm=bad.py:SpoilsThePictures,bn", "batch=2", "epochs=2", "data=folder", "data.root=pictures")
    assert sweep(*grid, "name=t") == 1
    found = by_norm(results("t"))
    assert (found["SpoilsThePictures"]["status"], found["bn"]["status"]) == ("ok", "error")
    assert "DataError" in found["bn"]["reason"]


GRID = ("batch=8", "norm=bn,brn", "data.limit=200", "epochs=8", "deterministic=true", "name=t")
LARGER = ("batch=8,32", *GRID[1:])


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], Path]:
    """``calm(grid)`` → the folder of a sweep that nobody disturbed."""

    @functools.cache
    def run(grid: tuple[str, ...]) -> Path:
        folder = tmp_path_factory.mktemp("calm")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            assert main(list(grid)) == 0
        return folder

    return run


def compared(rows: Rows) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def read(folder: Path) -> Rows:
    with (folder / "runs" / "t" / "results.csv").open() as file:
        return list(csv.DictReader(file))


def weights(folder: Path) -> dict[str, str]:
    return {path.parent.name: read_json(path)["weights"] for path in folder.glob("runs/t/*/result.json")}


def changes(store: Path) -> dict[Path, int]:
    """When the rows of each cell were last written."""
    return {path: path.stat().st_mtime_ns for path in store.glob("*/rows.jsonl") if path.stat().st_size}


def at_work(store: Path) -> list[int]:
    """The process of the cell at work, and that of its fork server."""
    pids = [read_json(path).get("pid") for path in store.glob("*/running-*.json") if claim.alive(path)]
    with contextlib.suppress(OSError, IndexError):
        return [pids[0], int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])]
    return []


def claimed(process: subprocess.Popen[str], store: Path) -> bool:
    """Whether a cell of the sweep is at work, or the sweep has ended."""
    return process.poll() is not None or bool(at_work(store))


def moved(process: subprocess.Popen[str], store: Path, before: dict[Path, int]) -> bool:
    """Whether the sweep has written a row, or ended."""
    return process.poll() is not None or changes(store) != before


@pytest.mark.parametrize(("kills", "grid"), [(2, GRID), pytest.param(50, LARGER, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(
    kills: int, grid: tuple[str, ...], tmp_path: Path, calm: Callable[[tuple[str, ...]], Path]
) -> None:
    """SIGKILL to the sweep, to a cell's process, to the fork server, at random moments; then the same command again."""
    draw, store = random.Random(kills), tmp_path / "runs" / "t"
    for number in range(kills):
        process = command(tmp_path, *grid)
        before = changes(store)
        if number % 2:  # in the middle of training; else at any moment from the start on
            wait_for(functools.partial(moved, process, store, before))
        else:
            wait_for(functools.partial(claimed, process, store))
        time.sleep(draw.random() * 0.5)
        victim = [process.pid, *at_work(store)][number % 3 if at_work(store) else 0]
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        if victim != process.pid:  # the sweep sees a cell die, and goes on; then it is stopped too
            time.sleep(draw.random() * 0.5)
            process.kill()
        process.communicate(timeout=60)
        for path in store.rglob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                json.loads(path.read_text())
    process = command(tmp_path, *grid)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert compared(read(tmp_path)) == compared(read(calm(grid)))
    assert weights(tmp_path) == weights(calm(grid))
    for cell in store.glob("*/rows.jsonl"):
        assert [row["epoch"] for row in epochs(cell.parent)] == list(range(1, 9))
        assert {path.name for path in cell.parent.iterdir()} - {"log.txt"} == {
            "config.yaml", "rows.jsonl", "result.json", "provenance.json",
        }  # fmt: skip


def test_stopped_in_the_middle_it_goes_on_from_there(
    tmp_path: Path, sweep: Sweep, calm: Callable[[tuple[str, ...]], Path]
) -> None:
    """Ctrl-C once: a checkpoint, then the end; the same command goes on from it and ends as one that never stopped."""
    process = command(tmp_path, *GRID)
    wait_for(functools.partial(moved, process, tmp_path / "runs" / "t", {}))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    (cell,) = (path.parent for path in tmp_path.glob("runs/t/*/result.json"))
    assert cell_status(cell) == "interrupted"
    assert (cell / "checkpoint.pt").exists()
    stopped = read_json(cell / "result.json")["step"]
    assert sweep(*GRID) == 0
    provenance = read_json(cell / "provenance.json")
    assert (provenance["attempt"], provenance["from_step"]) == (2, stopped)
    assert not (cell / "checkpoint.pt").exists()
    assert compared(read(tmp_path)) == compared(read(calm(GRID)))
    assert weights(tmp_path) == weights(calm(GRID))


def test_ctrl_c_twice_ends_it_at_once(tmp_path: Path) -> None:
    process = command(tmp_path, "norm=bad.py:Endless", "batch=8", *SHORT, "name=t")
    wait_for(lambda: list(tmp_path.glob("runs/t/*/running-1.json")))
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # the cell does not come to a checkpoint
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Ctrl-C again stops at once" in out
    (row,) = read(tmp_path)
    assert row["status"] == "interrupted"


def test_a_checkpoint_that_wants_to_run_code_is_refused(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path / 'it-ran'}",)

    grid = ("norm=bn", "batch=8", *SHORT, "name=t")
    assert sweep(*grid) == 0
    (cell,) = (path.parent for path in tmp_path.glob("runs/t/*/result.json"))
    expected = results("t")
    for content in (pickle.dumps(Hostile()), b"", b"PK\x03\x04 half a file"):
        (cell / "result.json").unlink()
        (cell / "checkpoint.pt").write_bytes(content)
        assert sweep(*grid) == 0
        assert not (tmp_path / "it-ran").exists()
        assert "starts from its beginning" in (cell / "log.txt").read_text()
        assert [row["top1"] for row in results("t")] == [row["top1"] for row in expected]
    (cell / "result.json").write_text("{")
    (cell / "config.yaml").write_text(f"!!python/object/apply:os.system ['touch {tmp_path / 'it-ran'}']")
    assert sweep("norm=gn", "batch=8", *SHORT, "name=t") == 0
    assert not (tmp_path / "it-ran").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, as the folder ``runs``."""
    folder = tmp_path / "runs"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_stops_it_with_one_message_and_it_goes_on_later(
    small_disk: Path, tmp_path: Path, sweep: Sweep
) -> None:
    grid = ("norm=bn,gn,ln", "batch=8", *SHORT, "name=t")
    assert sweep(*grid[:1], "batch=16", *grid[2:]) == 0
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(b"x" * (free.f_bavail * free.f_bsize - 8192))
    process = command(tmp_path, *grid)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert [line for line in err.splitlines() if line.startswith("normbench: ")] == err.splitlines()
    assert "No space left on device" in err
    assert "the same command goes on from here" in err
    assert "Traceback" not in err
    finished = [path for path in small_disk.glob("t/*/result.json") if json.loads(path.read_text())["status"] == "ok"]
    assert len(finished) >= 3
    (small_disk / "filler").unlink()
    assert sweep(*grid) == 0
    assert [row["status"] for row in read(tmp_path)] == ["ok"] * 6


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


def test_a_checkpoint_that_does_not_fit_is_set_aside_and_the_others_go_on(
    sweep: Sweep, results: Results, tmp_path: Path
) -> None:
    """As after an update of normbench or torch: it is whole, and of another network or with fewer rows."""
    grid = ("norm=bn", "batch=8", *SHORT, "name=t")
    assert sweep(*grid) == 0
    (cell,) = (path.parent for path in tmp_path.glob("runs/t/*/result.json"))
    expected = read_json(cell / "result.json")["top1"]
    meter = {"epoch": 1, "done": 0, "steps": 0, "read": 0.0, "last": 1.0, "untimed": 0, "seconds": 0.0}
    state = {"cell": cell.name, "meter": meter, "done": 0, "row": {}, "net": {}, "update": {}, "draws": []}
    for bad in (state, {**state, "meter": {**meter, "epoch": 5}}):
        checkpoint.save(cell / "checkpoint.pt", bad)
        (cell / "result.json").unlink()
        assert sweep("norm=bn,gn", *grid[1:]) == 0
        assert "starts from its beginning" in (cell / "log.txt").read_text()
        assert read_json(cell / "result.json")["top1"] == expected
        assert len(epochs(cell)) == 1


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


@pytest.mark.parametrize(
    ("to_sweep", "to_server"),
    [
        (signal.SIGTERM, signal.SIGHUP),
        pytest.param(signal.SIGHUP, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_all_processes_costs_no_checkpoint(
    tmp_path: Path, to_sweep: signal.Signals, to_server: signal.Signals
) -> None:
    process = command(tmp_path, "norm=bn", "batch=8", "data.limit=200", "epochs=100", "name=t")
    store = tmp_path / "runs" / "t"
    wait_for(functools.partial(moved, process, store, {}))
    _, server = at_work(store)
    os.kill(server, to_server)
    os.kill(process.pid, to_sweep)
    process.communicate(timeout=30)
    assert process.returncode == 130
    (cell,) = store.glob("bn-*")
    assert (cell / "checkpoint.pt").exists()
    assert "in epoch" in read_json(cell / "result.json")["reason"]


def test_a_users_exit_code_means_nothing_but_an_error(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    (tmp_path / "leave.py").write_text(BAD.replace("os._exit(3)", "os._exit(75)"))
    assert sweep("norm=leave.py:Exits", "batch=8", *SHORT) == 1
    (row,) = results()
    assert row["status"] == "error"
    assert "exit code 75" in row["reason"]


def test_a_cell_has_so_much_time_and_how_far_it_came_is_in_its_row(sweep: Sweep, results: Results) -> None:
    """One that goes on and on, and one that hangs in a step."""
    grid = ("norm=bn,bad.py:Endless", "batch=2", "steps=100000", "data.limit=200", "cell_timeout=2", "slots=2")
    assert sweep(*grid) == 1
    found = by_norm(results())
    assert [row["status"] for row in found.values()] == ["timeout"] * 2
    assert all("cell_timeout=2" in row["reason"] for row in found.values())
    assert int(found["bn"]["step"]) > 50
    assert float(found["bn"]["last_loss"]) > 0
