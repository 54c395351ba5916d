"""However a cell ends, it is a row with its status and reason, and the others go on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_cells import BAD, SHORT, Results, Sweep, by_norm, wait_for

from normbench.files import read_json


@pytest.fixture(autouse=True)
def _bad(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD)


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
