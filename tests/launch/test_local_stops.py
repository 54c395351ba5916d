"""A sweep that is stopped, killed or runs out of disk loses nothing: the same command goes on from there."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bad_cells import BAD, SHORT, Results, Rows, Sweep, command, read, wait_for

from normbench import checkpoint, claim
from normbench.files import read_json
from normbench.records import cell_status, epochs
from normbench.sweep import main

# What may differ between a run that was stopped and one that was not.
TIMES = ("train_seconds", "images_per_s", "peak_memory_mib")
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
            "config.yaml", "rows.jsonl", "result.json", "provenance.json", "correct.npy",
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
    (tmp_path / "bad.py").write_text(BAD)
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
