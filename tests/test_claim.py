"""Who works on a cell: one living process, not a later one of the same number, on this machine or another."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from normbench import claim
from normbench.files import read_json, write_json

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a process was born")


def test_an_attempt_is_claimed_once(tmp_path: Path) -> None:
    path = claim.take(tmp_path, 1, {"known": 1})
    assert path is not None
    assert read_json(path)["known"] == 1
    assert claim.take(tmp_path, 1, {}) is None
    assert [found.name for found in tmp_path.iterdir()] == ["running-1.json"]
    assert claim.alive(path)


def test_what_a_dead_process_held_is_gone_on_with_under_the_next_number(tmp_path: Path) -> None:
    script = "from pathlib import Path; from normbench import claim; claim.take(Path('.'), 1, {})"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    number, path = claim.newest(tmp_path)
    assert number == 1
    assert path is not None
    assert not claim.alive(path)
    assert claim.take(tmp_path, 2, {}) is not None
    assert [found.name for found in tmp_path.iterdir()] == ["running-2.json"]


def test_who_comes_late_gets_nothing(tmp_path: Path) -> None:
    """He saw attempt 1 dead; meanwhile somebody made attempt 3, and the files of 1 and 2 are gone."""
    assert claim.take(tmp_path, 3, {}) is not None
    assert claim.take(tmp_path, 2, {}) is None
    assert [found.name for found in tmp_path.iterdir()] == ["running-3.json"]


def _take(folder: Path, start: float) -> bool:
    time.sleep(max(0, start - time.time()))
    return claim.take(folder, 2, {}) is not None


def test_of_many_that_find_it_dead_one_goes_on(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        for round_ in range(20):
            folder = tmp_path / str(round_)
            folder.mkdir()
            write_json(folder / "running-1.json", {**claim.process(), "born": "1"})
            won = pool.starmap(_take, [(folder, time.time() + 0.01)] * 8)
            assert sum(won) == 1


@LINUX
def test_a_later_process_of_the_same_number_is_another(tmp_path: Path) -> None:
    write_json(tmp_path / "running-1.json", {**claim.process(), "born": "1"})
    assert not claim.alive(tmp_path / "running-1.json")


def test_a_process_that_nobody_asked_how_it_ended_is_dead(tmp_path: Path) -> None:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    write_json(tmp_path / "running-1.json", claim.process(pid))
    assert not claim.alive(tmp_path / "running-1.json")
    os.waitpid(pid, 0)


def test_on_another_machine_signs_of_life_count(tmp_path: Path) -> None:
    path = tmp_path / "running-1.json"
    write_json(path, {**claim.process(), "host": "another"})
    assert claim.alive(path)
    silent = time.time() - claim.STALE - 1
    os.utime(path, (silent, silent))
    assert not claim.alive(path)
    claim.beat(path)
    assert claim.alive(path)
    path.write_text("")  # damaged: nobody knows whose it is
    assert claim.alive(path)
    assert [found.name for found in tmp_path.iterdir()] == ["running-1.json"]


def test_what_is_gone_is_dead(tmp_path: Path) -> None:
    assert not claim.alive(tmp_path / "running-1.json")
    assert claim.newest(tmp_path / "nowhere") == (0, None)
