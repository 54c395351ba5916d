"""``normbench.report.write`` and ``python -m normbench.report``."""

import os
import subprocess
import sys

import pytest

from normbench import report
from normbench.errors import StoreError
from normbench.report.__main__ import main

FILES = [
    "results.csv", "table.csv", "table.md", "table.tex", "results.parquet", "epochs.parquet", "plot.png", "plot.svg",
    "report.html",
]  # fmt: skip


def test_write(sweep, cell):
    folder = sweep([cell(98.1), cell(97.4, norm="gn")])
    made = report.write(folder)
    assert [path.name for path in made.paths] == [*FILES[:-1], "heat.png", "heat.svg", FILES[-1]]
    assert all(path.parent == folder and path.stat().st_size for path in made.paths)
    before = {path.name: path.read_bytes() for path in made.paths}
    assert {path.name: path.read_bytes() for path in report.write(folder).paths} == before
    assert not list(folder.glob(".*"))


def test_command_reports_on_every_sweep_of_a_store(sweep, cell, capsys):
    folders = [sweep([cell(98.1)], name) for name in ("first", "second", "reference")]
    assert main([str(folders[0].parent)]) == 0
    out = capsys.readouterr().out
    assert out.count("98.1") == 2
    assert f"wrote {folders[1]}/: {', '.join(FILES)}" in out
    assert [folder.name for folder in folders if (folder / "plot.png").exists()] == ["first", "second"]
    assert main([str(folders[2])]) == 0


def spoil(folder, how):
    if how == "missing":
        return folder.parent / "nothing"
    if how == "foreign":
        (folder / "store.json").unlink()
    if how == "schema":
        (folder / "store.json").write_text('{"schema": 99}')
    if how == "empty":
        for path in folder.glob("bn-*/*"):
            path.unlink()
    if how == "unwritable":
        (folder / "plot.png").mkdir()
    return folder


@pytest.mark.parametrize("how", ["missing", "foreign", "schema", "empty", "unwritable"])
def test_bad_folders_end_in_one_line(sweep, cell, capsys, how):
    folder = spoil(sweep([cell(98.1)]), how)
    assert main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(folder) in error
    assert "expected" in error or "read it with" in error
    with pytest.raises(StoreError):
        report.write(folder)


@pytest.mark.parametrize("content", ['{"schema": 99}', '{"sche'])
def test_one_bad_sweep_of_a_store_is_passed_over_with_a_word(sweep, cell, capsys, content):
    folders = [sweep([cell(98.1)], name) for name in ("first", "second")]
    (folders[0] / "store.json").write_text(content)
    assert main([str(folders[0].parent)]) == 0
    out = capsys.readouterr().out
    assert f"{folders[0]}" in out
    assert "was written with schema" in out
    assert (folders[1] / "plot.png").exists()


def test_nothing_is_written_if_one_folder_is_bad(sweep, cell, tmp_path):
    folder = sweep([cell(98.1)])
    assert main([str(folder), str(tmp_path / "nothing")]) == 2
    assert not (folder / "plot.png").exists()


def test_a_bare_command_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2


CHECK = """
import sys
from normbench.report.__main__ import main
assert "pandas" not in sys.modules and "matplotlib" not in sys.modules, "slow to start"
assert main([sys.argv[1]]) == 0
assert "torch" not in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""


def test_no_torch_and_a_quick_start(sweep, cell):
    folder = sweep([cell(98.1)])
    subprocess.run([sys.executable, "-W", "error", "-c", CHECK, str(folder)], check=True, timeout=60)


def test_a_reader_who_has_read_enough_is_no_error(sweep, cell):
    folders = [sweep([cell(98.1)], name) for name in ("first", "second")]
    command = [sys.executable, "-m", "normbench.report", str(folders[0].parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # before the first line is written
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0
    assert all((folder / "plot.png").exists() for folder in folders), "what was asked for is written all the same"


def test_a_terminal_without_the_letters_is_no_error(sweep, cell):
    command = [sys.executable, "-m", "normbench.report", str(sweep([cell(98.1, seed=0), cell(98.3, seed=1)]))]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "98.2 ? 0.1 (2)" in done.stdout
