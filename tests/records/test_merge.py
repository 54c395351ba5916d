"""Stores put together: each cell once, its better end, nothing lost."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from normbench.errors import StoreError
from normbench.records import Store, __main__, cell_status
from normbench.records.merge import merge

KNOWN = {"config": {"arch": "resnet8", "data": "digits", "norm": "bn", "batch": 2, "seed": 0}, "changed": []}


def store(root: Path, name: str = "t", **cells: str) -> Store:
    made = Store(root, name)
    made.create()
    for cell_id, status in cells.items():
        attempt = made.begin(cell_id, {"batch": 2}, KNOWN)
        assert attempt is not None
        attempt.append_row({"epoch": 1, "step": 5})
        attempt.finish({"status": status, "reason": "", "ended": len(root.name), **KNOWN})
    return made


def statuses(folder: Path) -> dict[str, str]:
    with (folder / "results.csv").open() as file:
        return {row["cell_id"]: row["status"] for row in csv.DictReader(file)}


def test_two_machines_stores_become_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path / "one", a="ok", b="error")
    store(tmp_path / "two", b="ok", c="diverged")
    store(tmp_path / "two", "other", d="ok")
    words = ["merge", *(str(tmp_path / name) for name in ("one", "two")), "--into", str(tmp_path / "all")]
    assert __main__.main(words) == 0
    assert "4 new, 1 better, 0 kept cells" in capsys.readouterr().out
    assert statuses(tmp_path / "all" / "t") == {"a": "ok", "b": "ok", "c": "diverged"}
    assert statuses(tmp_path / "all" / "other") == {"d": "ok"}
    assert (tmp_path / "all" / "t" / "b" / "rows.jsonl").read_text()
    assert statuses(tmp_path / "all" / "t") == {"a": "ok", "b": "ok", "c": "diverged"}
    assert merge([tmp_path / "one"], tmp_path / "all") == {"new": 0, "better": 0, "kept": 2}


def test_sweeps_are_put_into_a_sweep(tmp_path: Path) -> None:
    store(tmp_path, "a", x="ok")
    store(tmp_path, "b", y="ok")
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab") == {"new": 2, "better": 0, "kept": 0}
    assert statuses(tmp_path / "ab") == {"x": "ok", "y": "ok"}


def test_what_is_at_work_or_no_store_is_refused(tmp_path: Path) -> None:
    made = store(tmp_path, "a", x="ok")
    with pytest.raises(StoreError, match="not some of each"):
        merge([tmp_path, tmp_path / "a"], tmp_path / "b")
    with pytest.raises(StoreError, match="does not exist"):
        merge([tmp_path / "nowhere"], tmp_path / "b")
    assert made.begin("y", {"batch": 2}, KNOWN) is not None
    with pytest.raises(StoreError, match="is at work"):
        merge([tmp_path / "a"], tmp_path / "b")
    assert cell_status(tmp_path / "b" / "x") == "ok"


def test_what_auto_came_to_goes_along_unless_two_differ(tmp_path: Path) -> None:
    for name, chosen in (("a", "channels_last"), ("b", "channels_last"), ("c", "contiguous")):
        Store(tmp_path / name, "s").create()
        (tmp_path / name / "s" / ".choices").mkdir()
        values = {"values": {"memory_format": chosen, "amp": "none"}}
        (tmp_path / name / "s" / ".choices" / "resnet8-2-1.json").write_text(json.dumps(values))
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    assert "channels_last" in (tmp_path / "ab" / "s" / ".choices" / "resnet8-2-1.json").read_text()
    with pytest.raises(StoreError, match="cells of the two are not alike; merge them into different folders"):
        merge([tmp_path / "c"], tmp_path / "ab")


def test_a_good_cell_is_not_given_for_a_damaged_one(tmp_path: Path) -> None:
    """Another schema is refused before anything is copied; a result without a norm is worth less than any."""
    store(tmp_path / "one", a="ok", b="diverged")
    store(tmp_path / "three", a="ok", b="ok")
    path = tmp_path / "three" / "t" / "b" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": {"batch": 2, "seed": 0}}))
    assert merge([tmp_path / "three"], tmp_path / "one") == {"new": 0, "better": 1, "kept": 1}
    assert statuses(tmp_path / "one" / "t")["b"] == "diverged"
    (tmp_path / "three" / "t" / "store.json").write_text('{"schema": 99}')
    with pytest.raises(StoreError, match="schema 99"):
        merge([tmp_path / "one", tmp_path / "three"], tmp_path / "all")
    assert not (tmp_path / "all").exists()
