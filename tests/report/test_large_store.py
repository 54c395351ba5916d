"""A report on a large store is quick, small and without torch; its files are the same bytes whoever makes them again."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from normbench import records

MAKE = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "large_store.py"))["make"]
SMALL = ("norm=bn,gn,frn", "batch=2,8", "seed=0,1", "epochs=3")
MIDDLE = ("norm=bn,gn,frn,ln,none", "batch=2,4,8,16,32,64,128,256", "seed=0,1,2,3,4", "epochs=20")

REPORT = """
import re, sys, time
from pathlib import Path
from normbench.report.__main__ import main
start = time.perf_counter()
assert main([sys.argv[1]]) == 0
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print("measured", time.process_time(), time.perf_counter() - start, int(peak) / 1024, "torch" in sys.modules)
"""
IMPORTS = """
import time, pandas, matplotlib.figure, pyarrow.parquet
print("measured", time.process_time())
"""


def measured(code: str, *arguments: str) -> list[str]:
    """What a process of its own prints behind ``measured``."""
    command = [sys.executable, "-c", code, *arguments]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
    return out[out.rindex("measured") :].split()[1:]


def test_a_store_of_200_cells_takes_little(tmp_path):
    assert MAKE(tmp_path / "first", MIDDLE) == 200
    seconds, _, peak, torch = measured(REPORT, str(tmp_path / "first"))
    (loading,) = measured(IMPORTS)  # beside it, so that a busy machine is slow for both
    assert torch == "False"
    assert float(peak) < 500, "MiB"
    assert float(seconds) < 10 * float(loading)


@pytest.mark.slow
def test_a_store_of_2000_cells_takes_ten_seconds_and_a_gibibyte_at_most(tmp_path):
    assert MAKE(tmp_path / "first") == 2000
    _, seconds, peak, torch = measured(REPORT, str(tmp_path / "first"))
    assert torch == "False"
    assert float(peak) < 1024, "MiB"
    assert float(seconds) < 10


def test_a_whole_store_is_read_without_yaml_and_rows_alone_where_a_result_is_missing(tmp_path, monkeypatch):
    MAKE(tmp_path / "first", SMALL, pictures=8)
    monkeypatch.setattr(yaml, "safe_load", None)
    opened = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.name) or read_bytes(path))
    assert len(records.rows(tmp_path / "first")) == 12
    assert opened == ["store.json"] + ["result.json"] * 12
    next(tmp_path.glob("first/*/result.json")).unlink()
    assert len(records.rows(tmp_path / "first")) == 12
    assert opened.count("rows.jsonl") == 1


# A machine where directories are listed in another order, and everything else that may differ does.
ELSEWHERE = """
import os, random, sys
scan, listing = os.scandir, os.listdir
class Shuffled:
    def __init__(self, path="."):
        with scan(path) as entries:
            self.entries = list(entries)
        random.shuffle(self.entries)
    def __iter__(self):
        return iter(self.entries)
    def __enter__(self):
        return self
    def __exit__(self, *error):
        pass
def shuffled(path="."):
    names = listing(path)
    random.shuffle(names)
    return names
os.scandir, os.listdir = Shuffled, shuffled
from normbench.report.__main__ import main
sys.exit(main([sys.argv[1]]))
"""
SURROUNDINGS = (
    {"LC_ALL": "C", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "1", "COLUMNS": "40"},
    {"LC_ALL": "C.UTF-8", "TZ": "America/New_York", "PYTHONHASHSEED": "2", "COLUMNS": "200", "OMP_NUM_THREADS": "2"},
)


def derived(folder: Path) -> dict[str, bytes]:
    """All that stands in a sweep's folder but its cells and its version, by name."""
    cells = {path.name for path in records.cells_of(folder)}
    files = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] not in cells]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != "store.json"}


def test_every_derived_file_can_be_made_again_to_the_byte(tmp_path):
    folder = tmp_path / "first"
    MAKE(folder, SMALL, pictures=100)
    made = []
    for surroundings in SURROUNDINGS:
        for name in derived(folder):
            (folder / name).unlink()
        env = {**os.environ, **surroundings}
        subprocess.run([sys.executable, "-c", ELSEWHERE, str(folder)], env=env, check=True, stdout=subprocess.DEVNULL)
        made.append(derived(folder))
    first, second = made
    kinds = {Path(name).suffix for name in first}
    assert kinds >= {".csv", ".md", ".tex", ".parquet", ".png", ".svg"}
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
