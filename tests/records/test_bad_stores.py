"""Damaged stores: each fault is said by name, and nothing else is lost."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from normbench import records, report
from normbench.errors import StoreError
from normbench.records.merge import merge
from normbench.report import epochs, frame, table
from normbench.report.__main__ import main

NORMS = ("bn", "frn", "gn")


def content(norm: str, seed: int, top1: float) -> dict[str, Any]:
    config = {
        "arch": "resnet8", "data": "digits", "norm": norm, "batch": 8, "workers": 1, "seed": seed, "epochs": 2,
        "lr": 0.1, "data.source": "5b2e9939",
    }  # fmt: skip
    measured = {"top1": top1, "top5": 99.0, "loss": 0.1, "epoch": 2, "step": 10, "split": "test", "eval_count": 359}
    end = {"status": "ok", "reason": "", **measured, "config": config, "changed": ["seed"], "ended": 1.0}
    return {"schema": 1, "cell_id": f"{norm}-b8-s{seed}-0123456789", **end}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sweep of three normalizers and two seeds: bn 90.0 and 91.0, frn 92.0 and 93.0, gn 94.0 and 95.0."""
    made = tmp_path / "runs" / "first"
    made.mkdir(parents=True)
    (made / "store.json").write_text('{"schema": 1}\n')
    top1 = iter(range(90, 96))
    for norm in NORMS:
        for seed in (0, 1):
            put(made, content(norm, seed, float(next(top1))))
    return made


def put(folder: Path, result: dict[str, Any], name: str = "") -> Path:
    place = folder / (name or result["cell_id"])
    place.mkdir()
    config = result["config"]
    groups = {key: {"name": config[key]} for key in ("arch", "data", "norm")}
    scalars = {key: value for key, value in config.items() if key not in groups and "." not in key}
    (place / "config.yaml").write_text(json.dumps(groups | scalars))  # JSON is YAML
    rows = [{"epoch": epoch, "step": 5 * epoch, "top1": 10.0 * epoch} for epoch in (1, 2)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "result.json").write_text(json.dumps(result))
    return place


def cell(folder: Path, norm: str = "gn", seed: int = 0) -> Path:
    return folder / f"{norm}-b8-s{seed}-0123456789"


def change(place: Path, **keys: Any) -> None:
    """Set keys of a result, and with a leading ``config__`` of its configuration; None takes them away."""
    held = json.loads((place / "result.json").read_text())
    for key, value in keys.items():
        part = held["config"] if key.startswith("config__") else held
        part[key.removeprefix("config__")] = value
        if value is None:
            del part[key.removeprefix("config__")]
    (place / "result.json").write_text(json.dumps(held))


class Told:
    """What a report says: rows of results.csv by cell, the table's texts by line, the notes, all epochs."""

    def __init__(self, folder: Path) -> None:
        found = records.read(folder)
        cells = frame.make(folder, found.rows)
        self.epochs, more = epochs.read(folder)
        made = table.make("first", cells, frame.spots(cells))
        self.notes = [*made.notes, *found.problems, *more]
        self.table = {line: texts[0][0] for _, lines in made.blocks for line, texts in lines}
        self.rows = {row["cell_id"]: row for row in csv.DictReader(io.StringIO(records.to_csv(found.rows)))}

    def note(self, start: str) -> str:
        (found,) = (note for note in self.notes if note.startswith(start))
        return found

    def epochs_of(self, place: Path) -> list[int]:
        pairs = zip(self.epochs["cell_id"], self.epochs["epoch"], strict=True)
        return [epoch for name, epoch in pairs if name == place.name]


WHOLE = {"bn": "90.5 ± 0.7 (2)", "frn": "92.5 ± 0.7 (2)", "gn": "94.5 ± 0.7 (2)"}


def test_a_whole_store_has_nothing_to_say(folder: Path) -> None:
    told = Told(folder)
    assert told.table == WHOLE
    assert records.read(folder).problems == []
    assert [row["status"] for row in told.rows.values()] == ["ok"] * 6


@pytest.mark.parametrize(
    ("rows", "numbers", "lost"),
    [
        (b'{"epoch": 1}\n{"epoch": 2, "st', [1], 1),
        (b'{"epoch": 1}\nrubbish\n{"epoch": 2}\n', [1, 2], 1),
        (b'{"epoch": 1}\n\xff\xfe\xfa\n5\nnull\n[1]\n"x"\n{"epoch": 2}\n', [1, 2], 5),
        (b'{"epoch": 1, "a": [{}\n{}]}\n{"epoch": 2}\n', [2], 2),
        (b'{"epoch": 1}\n' + b"\0" * 100 + b"\n", [1], 1),
        (b'{"epoch": 1}\n' + b"[" * 100_000 + b"\n", [1], 1),
        (b'\n\n{"epoch": 1}\r\n', [1], 0),
        (b"", [], 0),
    ],
)
def test_rows_that_cannot_be_read_cost_no_other_rows(folder: Path, rows: bytes, numbers: list[int], lost: int) -> None:
    place = cell(folder)
    (place / "rows.jsonl").write_bytes(rows)
    assert [row["epoch"] for row in records.epochs(place)] == numbers
    told = Told(folder)
    assert told.table == WHOLE
    assert told.epochs_of(place) == numbers
    assert len(told.epochs["epoch"]) == 10 + len(numbers)
    said = [note for note in told.notes if "rows.jsonl" in note]
    assert said == ([f"cells with lines in rows.jsonl that cannot be read (1): {place.name} ({lost})"] if lost else [])


def test_a_missing_result_is_a_killed_cell_and_no_fault(folder: Path) -> None:
    (cell(folder) / "result.json").unlink()
    told = Told(folder)
    assert told.table == {**WHOLE, "gn": "95.0 (1/2, 1 killed)"}
    row = told.rows[cell(folder).name]
    assert (row["status"], row["batch"], row["epoch"], row["top1"]) == ("killed", "8", "2", "NaN")
    assert told.note("killed: ") == "killed: gn at batch 8 (seed 0) (its process ended without a result)"
    assert records.read(folder).problems == []


@pytest.mark.parametrize(
    "damage",
    [b'{"status": "ok", "top1": 9', b"[1, 2]", b"", b"null", b"\xff\xfe{}", b"{}", b'{"status": "ok", "config": []}',
     b'{"status": {}, "config": {}}', b"[" * 100_000],
)  # fmt: skip
def test_a_damaged_result_is_a_killed_cell_that_keeps_its_place(folder: Path, damage: bytes) -> None:
    (cell(folder) / "result.json").write_bytes(damage)
    told = Told(folder)
    assert told.table == {**WHOLE, "gn": "95.0 (1/2, 1 killed)"}
    assert told.rows[cell(folder).name]["reason"] == "its result.json cannot be read"
    assert told.note("cells without a result").endswith(f"(1): {cell(folder).name}")


def test_a_result_and_a_configuration_that_are_damaged_leave_the_cells_name(folder: Path) -> None:
    (cell(folder) / "result.json").write_bytes(b"\x00")
    (cell(folder) / "config.yaml").write_bytes(b"\xff: [")
    told = Told(folder)
    assert told.table == {**WHOLE, "gn": "95.0"}
    assert told.rows[cell(folder).name]["status"] == "killed"
    assert told.note("cells whose configuration").endswith(f"{cell(folder).name} (no norm and no batch and no seed)")


def test_a_result_without_its_configuration_file_is_a_cell(folder: Path) -> None:
    (cell(folder) / "config.yaml").unlink()
    assert Told(folder).table == WHOLE


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("config__batch", "8", "batch is '8', expected a whole number above 0"),
        ("config__batch", 0, "batch is 0, expected a whole number above 0"),
        ("config__batch", True, "batch is True, expected a whole number above 0"),
        ("config__batch", 10**400, "batch is 1" + 49 * "0" + "…"),
        ("config__norm", ["bn"], "norm is ['bn'], expected a name"),
        ("config__seed", 1.5, "seed is 1.5, expected a whole number"),
        ("config__lr", "fast", "lr is 'fast', expected a number"),
        ("config__seed", None, "no seed"),
        ("status", "fine", "status is 'fine', expected one of ok, diverged, oom, killed…"),
    ],
)
def test_a_configuration_of_the_wrong_types_is_left_out(folder: Path, key: str, value: Any, said: str) -> None:
    change(cell(folder), **{key: value})
    told = Told(folder)
    assert told.table == {**WHOLE, "gn": "95.0"}
    row = told.rows[cell(folder).name]
    assert (row["status"], row["top1"]) == ("unreadable", "NaN")
    assert row["reason"].startswith("its result.json: " + said[:40])
    assert told.note("cells whose configuration").endswith(f"left out (1): {cell(folder).name} ({said})")


@pytest.mark.parametrize("value", ["ninety", float("inf"), -float("inf"), 10**400, 250.0, [90], True])
def test_a_top1_that_is_none_is_no_top1(folder: Path, value: Any) -> None:
    change(cell(folder), top1=value)
    told = Told(folder)
    assert told.table == {**WHOLE, "gn": "95.0 (1/2, 1 no top-1)"}
    row = told.rows[cell(folder).name]
    assert (row["status"], row["top1"], row["top5"]) == ("ok", "NaN", "99.0")
    assert f"{cell(folder).name} (top1 is " in told.note("measurements left out")
    assert told.note("cells that ended ok").endswith(f"(1): {cell(folder).name}")


@pytest.mark.parametrize("value", [float("nan"), None])
def test_a_top1_that_is_missing_is_said(folder: Path, value: Any) -> None:
    change(cell(folder), top1=value)
    told = Told(folder)
    assert told.table == {**WHOLE, "gn": "95.0 (1/2, 1 no top-1)"}
    assert told.note("cells that ended ok").endswith(f"(1): {cell(folder).name}")


@pytest.mark.parametrize("keys", [{"sites": "seven"}, {"step": 1.5}, {"loss": "low"}, {"eval_count": -3}])
def test_another_measurement_of_the_wrong_type_costs_itself_alone(folder: Path, keys: dict[str, Any]) -> None:
    change(cell(folder), **keys)
    told = Told(folder)
    assert told.table == WHOLE
    assert told.rows[cell(folder).name][next(iter(keys))] == "NaN"
    assert cell(folder).name in told.note("measurements left out")


def test_keys_that_are_missing_cost_nothing_else(folder: Path) -> None:
    change(cell(folder), changed=None, reason=None, top5=None, ended=None, cell_id=None, schema=None)
    assert Told(folder).table == WHOLE
    assert records.read(folder).problems == []


def test_a_copied_cell_is_no_second_seed(folder: Path) -> None:
    shutil.copytree(cell(folder), folder / "copy")
    told = Told(folder)
    assert told.table == WHOLE
    name = cell(folder).name
    assert told.note("cells that are there twice").endswith(f"left out (1): copy ({name} is kept)")
    row = told.rows["copy"]
    assert (row["status"], row["reason"], row["top1"]) == ("duplicate", f"the same cell as {name}", "NaN")
    assert told.rows[name]["status"] == "ok"


def test_of_a_configuration_in_two_folders_the_better_end_counts(folder: Path) -> None:
    other = content("gn", 0, 50.0) | {
        "cell_id": "gn-b8-s0-aaaaaaaaaa",
        "status": "error",
        "reason": "gone",
        "ended": 9.0,
    }
    put(folder, other)
    later = content("bn", 1, 97.0) | {"cell_id": "bn-b8-s1-bbbbbbbbbb", "ended": 9.0}
    later["config"] |= {"device": "cuda", "data.root": "/elsewhere"}  # where it ran tells no cells apart
    put(folder, later)
    told = Told(folder)
    assert told.table == {**WHOLE, "bn": "93.5 ± 4.9 (2)"}
    said = told.note("cells that are there twice, left out (2): ")
    assert f"gn-b8-s0-aaaaaaaaaa ({cell(folder).name} is kept)" in said
    assert f"{cell(folder, 'bn', 1).name} (bn-b8-s1-bbbbbbbbbb is kept)" in said


def test_a_renamed_cell_counts_and_is_said(folder: Path) -> None:
    cell(folder).rename(folder / "mine")
    told = Told(folder)
    assert told.table == WHOLE
    assert told.note("cells in a folder of another name").endswith(f"mine (result of {cell(folder).name})")
    assert told.rows["mine"]["status"] == "ok"


def test_a_cell_of_another_schema_is_left_out_by_name(folder: Path) -> None:
    change(cell(folder), schema=99)
    told = Told(folder)
    assert told.table == {**WHOLE, "gn": "95.0"}
    row = told.rows[cell(folder).name]
    assert (row["status"], row["top1"], row["norm"]) == ("unreadable", "NaN", "")
    assert row["reason"] == "its result.json has schema 99, this normbench reads schema 1"
    assert told.note("cells of another schema than 1").endswith(f"left out (1): {cell(folder).name} (schema 99)")


def test_a_store_of_another_schema_is_refused(folder: Path) -> None:
    (folder / "store.json").write_text('{"schema": 99}')
    with pytest.raises(StoreError, match="schema 99"):
        report.write(folder)
    assert not (folder / "results.csv").exists()


def test_a_store_where_no_cell_can_be_read_still_has_its_rows(folder: Path) -> None:
    for place in records.cells_of(folder):
        change(place, schema=99)
    told = Told(folder)
    assert told.table == {}
    assert [row["status"] for row in told.rows.values()] == ["unreadable"] * 6


def test_names_are_bounded(folder: Path) -> None:
    for k in range(40):
        put(folder, content("gn", 100 + k, 90.0) | {"schema": 99})
    said = Told(folder).note("cells of another schema")
    assert "left out (40): " in said
    assert said.endswith("and 32 more")
    assert len(said) < 500


def test_folders_that_are_no_cells_are_passed_over(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "notes").mkdir()
    (folder / "notes" / "todo.txt").write_text("more seeds\n")
    (folder / "wandb").mkdir()
    (folder / ".hidden").mkdir()
    (folder / "todo.txt").write_text("config.yaml\n")
    told = Told(folder)
    assert told.table == WHOLE
    assert told.note("folders that hold no cell").endswith("passed over (2): empty, notes")
    assert (folder / "notes" / "todo.txt").read_text() == "more seeds\n"


def test_links_in_circles_are_no_cells(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    (folder / "self").symlink_to(".")
    (folder / "nowhere").symlink_to("gone")
    (cell(folder) / "rows.jsonl").unlink()
    (cell(folder) / "rows.jsonl").symlink_to("rows.jsonl")
    told = Told(folder)
    assert told.table == WHOLE
    assert told.note("folders that hold no cell").endswith("(1): self")
    assert "loop (" in told.note("folders that cannot be read (1): ")
    assert cell(folder).name in told.note("cells with lines in rows.jsonl")


def test_a_folder_where_a_file_should_be(folder: Path) -> None:
    for name in ("result.json", "rows.jsonl"):
        (cell(folder) / name).unlink()
        (cell(folder) / name).mkdir()
    told = Told(folder)
    assert told.table == {**WHOLE, "gn": "95.0 (1/2, 1 killed)"}
    assert told.note("cells without a result").endswith(cell(folder).name)
    assert told.note("cells with lines in rows.jsonl").endswith(f"{cell(folder).name} (1)")


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Called, it makes this process one that permissions hold for; root's tests take another user's rights on disk."""
    for place in (tmp_path, *tmp_path.parents):
        if place.stat().st_uid == os.getuid() and place != Path("/"):
            place.chmod(place.stat().st_mode | 0o755)
    yield lambda: os.seteuid(65534) if os.geteuid() == 0 else None
    if os.getuid() == 0:
        os.seteuid(0)


def test_what_may_not_be_read_is_said(folder: Path, as_nobody: Callable[[], None]) -> None:
    (cell(folder) / "result.json").chmod(0)
    cell(folder, "bn").chmod(0)
    as_nobody()
    found = records.read(folder)
    cell(folder, "bn").stat()
    statuses = {row["cell_id"]: (row["status"], row["reason"]) for row in found.rows}
    assert statuses[cell(folder).name] == ("killed", "its result.json cannot be read")
    assert statuses[cell(folder, "bn").name] == ("unreadable", "its folder cannot be read: Permission denied")
    assert [status for status, _ in statuses.values()].count("ok") == 4
    assert len(found.problems) == 2


NASTY = (
    "<script>alert(1)</script>", "a|b\n| c", "$x^{", "\\input{x}", "😀", "**bold** [l](http://x)", "\x1b[31mred",
    "{{7*7}}",    "\ud800", "=cmd()", "x" * 200, "\u202eevil", "%&#_~",
)  # fmt: skip


def test_a_name_is_a_name_in_every_file(folder: Path) -> None:
    for k, name in enumerate(NASTY):
        place = put(folder, content("gn", 10 + k, 80.0 + k))
        change(place, config__norm=name)
        change(put(folder, content("gn", 50 + k, 0.0)), status="error", reason=name)
    made = report.write(folder)
    told = Told(folder)
    assert len(told.table) == 3 + len(NASTY)
    assert told.table["bn"] == WHOLE["bn"]
    for k, name in enumerate(NASTY):
        norm = told.rows[cell(folder, seed=10 + k).name]["norm"]
        assert norm == name.replace("\ud800", "\ufffd").replace("\x1b", "\ufffd"), "no text file can hold these two"
    assert "\x1b" not in str(made)
    tables = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]
    bars = [line.replace("\\\\", "").replace("\\|", "").count("|") for line in tables]
    assert bars == [3] * (2 + 3 + len(NASTY))
    assert (folder / "table.tex").read_text().isascii()


def test_a_very_long_reason_is_cut_in_the_notes_and_whole_in_the_csv(folder: Path) -> None:
    change(cell(folder), status="error", reason="out of luck " * 10_000)
    told = Told(folder)
    assert len(told.note("error: ")) < 200
    assert told.rows[cell(folder).name]["reason"] == "out of luck " * 10_000


def test_a_folders_name_may_be_no_text(folder: Path) -> None:
    cell(folder).rename(os.fsdecode(os.fsencode(folder) + b"/gn-\xff\n"))
    told = Told(folder)
    assert told.table == WHOLE
    assert "gn-\\udcff" in told.rows
    assert "gn-\\udcff" in told.note("cells in a folder of another name")


def test_the_command_says_it_and_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(cell(folder), schema=99)
    (cell(folder, "bn") / "result.json").write_text("{")
    assert main([str(folder)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"cells of another schema than 1, left out (1): {cell(folder).name} (schema 99)" in out
    assert f"as their result.json cannot be read (1): {cell(folder, 'bn').name}" in out


def test_what_is_read_can_be_merged(folder: Path, tmp_path: Path) -> None:
    (cell(folder) / "result.json").write_text("[")
    (folder / "empty").mkdir()
    assert merge([folder], tmp_path / "all") == {"new": 6, "better": 0, "kept": 0}
