"""auto from end to end: measured once for all normalizers and slots, told in every record, the same on the next run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from normbench import checkpoint, choices, grid
from normbench.choices import Choice, Question
from normbench.files import read_json, write_json
from normbench.launch.choosing import Choosing
from normbench.launch.places import Places
from normbench.preflight import Planned, Preflight
from normbench.records import Store

Sweep = Callable[..., int]
Results = Callable[..., list[dict[str, str]]]

AUTO = ("memory_format=auto", "amp=auto")
SHORT = ("batch=8", "data.limit=40", "epochs=1", "name=t")


def plan(*overrides: str) -> list[Planned]:
    return Preflight().plan(grid.read(overrides), Store("runs", "t"))


def choices_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob("runs/t/.choices/*.json")}


def plant(folder: Path, item: Planned, **values: str) -> Path:
    """The answer that another process has left for a cell."""
    asked = choices.of_format(item.cell, item.description)
    assert asked is not None
    choices.keep(choices.path_in(folder, asked), asked, Choice(values, {choices.label(values): 1.0}, {}))
    return choices.path_in(folder, asked)


def test_it_is_measured_once_and_stands(
    sweep: Sweep, results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("norm=bn,gn", *AUTO, *SHORT, "slots=2")
    assert sweep(*words, "plan=true") == 0
    assert "format auto for resnet8, 8 images a step: measured at the start" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    assert sweep(*words) == 0
    assert capsys.readouterr().out.count("format auto for") == 1
    (path,) = before = choices_of(tmp_path)
    chosen, stamp = read_json(path), path.stat().st_mtime_ns
    rows = results("t")
    assert {row["norm"]: row["status"] for row in rows} == {"bn": "ok", "gn": "ok"}
    for row in rows:
        assert (row["memory_format"], row["amp"]) == ("auto", "auto")
        assert (row["chosen_memory_format"], row["chosen_amp"]) == tuple(chosen["values"].values())
        cell = tmp_path / "runs" / "t" / row["cell_id"]
        for name in ("result.json", "provenance.json"):
            assert read_json(cell / name)["choices"]["format"]["times_ms"] == chosen["times_ms"]
        assert "memory_format: auto" in (cell / "config.yaml").read_text()
    assert sweep("norm=bn,gn,frn", *words[1:]) == 0
    assert choices_of(tmp_path) == before
    assert path.stat().st_mtime_ns == stamp
    # Another sweep takes it from the user's cache, and its cells have the same ids.
    assert sweep("norm=bn", *AUTO, *SHORT[:-1], "name=u") == 0
    (copy,) = tmp_path.glob("runs/u/.choices/*.json")
    assert copy.read_bytes() == before[path]
    assert [row["cell_id"] for row in results("u")] == [row["cell_id"] for row in rows if row["norm"] == "bn"]


def test_what_another_process_chose_is_taken_and_is_what_the_cell_trains_with(
    sweep: Sweep, results: Results, tmp_path: Path
) -> None:
    """The weights at the end are those of a cell that was given the same."""
    (item,) = plan("norm=bn", *AUTO, *SHORT)
    plant(tmp_path / "runs" / "t", item, memory_format="channels_last", amp="bfloat16")
    assert sweep("norm=bn", *AUTO, *SHORT) == 0
    assert sweep("norm=bn", "memory_format=channels_last", "amp=true", *SHORT) == 0
    assert sweep("norm=bn", *SHORT) == 0
    ends = {
        (found["config"]["memory_format"], found["config"]["amp"]): found["weights"]
        for found in map(read_json, tmp_path.glob("runs/t/*/result.json"))
    }
    assert ends["auto", "auto"] == ends["channels_last", "bfloat16"] != ends["contiguous", "none"]
    rows = {row["amp"]: row for row in results("t")}
    assert (rows["auto"]["chosen_memory_format"], rows["auto"]["chosen_amp"]) == ("channels_last", "bfloat16")
    assert (rows["none"]["chosen_memory_format"], rows["none"]["chosen_amp"]) == ("", "")


def test_a_checkpoint_of_another_choice_is_not_gone_on_from(sweep: Sweep, tmp_path: Path) -> None:
    (item,) = plan("norm=bn", *AUTO, *SHORT)
    plant(tmp_path / "runs" / "t", item, memory_format="contiguous", amp="none")
    cell = tmp_path / "runs" / "t" / item.cell_id
    cell.mkdir()
    checkpoint.save(cell / "checkpoint.pt", {"cell": cell.name, "chosen": {"memory_format": "contiguous"}})
    assert sweep("norm=bn", *AUTO, *SHORT) == 0
    assert "is of {'memory_format': 'contiguous'}, not of" in (cell / "log.txt").read_text()


def test_a_fixed_number_of_threads_is_taken(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    assert sweep("norm=bn", *SHORT, "threads=2") == 0
    (found,) = map(read_json, tmp_path.glob("runs/t/*/provenance.json"))
    assert found["threads"] == 2
    assert "chosen_threads" not in results("t")[0]


@pytest.mark.parametrize("threads", ["many", "0", "2.5", "-1"])
def test_bad_threads_are_said(sweep: Sweep, capsys: pytest.CaptureFixture[str], threads: str) -> None:
    assert sweep("norm=bn", *SHORT, f"threads={threads}") == 2
    assert f"threads: got {threads}, expected a whole number from 1, auto or null" in capsys.readouterr().err


class Asked:
    """Measures nothing: counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int | None]] = []

    def __call__(self, item: Planned, question: Question, threads: int | None) -> Choice:
        self.asked.append((question.what, threads))
        best = question.candidates()[-1]
        return Choice(best, {choices.label(best): 1.0}, {"threads": threads})


def test_threads_come_first_and_each_question_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Places, "threads", 4)
    measure, notes = Asked(), list[str]()
    choosing = Choosing(tmp_path, Places(2, 1), "auto", notes.append, measure)
    items = plan("norm=bn,gn", *AUTO, "seed=0,1", *SHORT)
    found = [choosing.of(item) for item in items]
    assert measure.asked == [("threads", None), ("format", 4)]
    assert all(one is not None and one.threads == 4 and one.values["amp"] == "bfloat16" for one in found)
    assert [note.split()[0] for note in notes] == ["threads", "format"]
    # Fewer cores for each: a question of threads of its own, and the same format, which changes numbers.
    monkeypatch.setattr(Places, "threads", 2)
    again = Choosing(tmp_path, Places(4, 1), "auto", notes.append, measure)
    one = again.of(items[0])
    assert one is not None
    assert (one.threads, one.values["amp"]) == (2, "bfloat16")
    assert measure.asked[2:] == [("threads", None)]


def test_a_broken_file_is_said_and_measured_again(tmp_path: Path) -> None:
    (item,) = plan("norm=bn", *AUTO, *SHORT)
    path = plant(tmp_path, item, memory_format="contiguous", amp="none")
    write_json(path, {**json.loads(path.read_text()), "schema": 0})
    measure, notes = Asked(), list[str]()
    choosing = Choosing(tmp_path, Places(1, 1), None, notes.append, measure)
    assert "it is measured again" in choosing.told([item])[0]
    assert choosing.of(item) is not None
    assert measure.asked == [("format", None)]
    assert "damaged, or answers another question; it is measured again" in notes[0]
    assert read_json(path)["values"]["amp"] == "bfloat16"


def test_stopped_while_it_is_measured_nothing_is_kept(tmp_path: Path) -> None:
    (item,) = plan("norm=bn", *AUTO, *SHORT)
    choosing = Choosing(tmp_path, Places(1, 1), None, measure=lambda *_: None)
    assert choosing.of(item) is None
    assert not list(tmp_path.rglob("*.json"))
    plain = dataclasses.replace(item, cell=dataclasses.replace(item.cell, amp="none", memory_format="contiguous"))
    found = choosing.of(plain)
    assert found is not None
    assert (found.values, found.threads, found.record) == ({}, None, {})
