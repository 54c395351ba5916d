"""Who works on a cell: one living process, not a later one of the same number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from normbench import claim
from normbench.files import write_json

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a process was born")


def test_a_cell_is_taken_once(tmp_path: Path) -> None:
    assert claim.take(tmp_path / "c", claim.process())
    assert not claim.take(tmp_path / "c", claim.process())
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_what_a_dead_process_held_is_taken_over(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    write_json(tmp_path / "c", {"pid": int(done.stdout)})
    assert claim.take(tmp_path / "c", claim.process())


@LINUX
@pytest.mark.parametrize("other", [{"born": "1"}, {"boot": "another"}])
def test_a_later_process_of_the_same_number_is_another(tmp_path: Path, other: dict[str, str]) -> None:
    write_json(tmp_path / "c", {**claim.process(), **other})
    assert claim.take(tmp_path / "c", claim.process())


def test_this_process_is_alive_and_nonsense_is_not() -> None:
    assert claim.alive(claim.process())
    assert claim.alive({"pid": os.getpid()})
    assert not claim.alive({})
    assert not claim.alive({"pid": "1"})
