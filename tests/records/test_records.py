"""The store: real files, statuses, columns, damage."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from normbench import files, grid, records
from normbench.errors import StoreError
from normbench.records import Store


def config(**changed: object) -> dict[str, object]:
    flat = {"arch": "resnet8", "data": "digits", "norm": "bn", "recipe": "quick", "batch": 2, "workers": 1, "seed": 0}
    return {**flat, "epochs": 3, "lr": 0.1, "norm.num_groups": None, **changed}


def finished(store: Store, name: str, *, status: str = "ok", changed: tuple[str, ...] = (), **keys: object) -> None:
    known = {"config": config(**keys), "changed": list(changed)}
    attempt = store.begin(name, {"batch": 2}, known)
    assert attempt is not None
    attempt.append_row({"epoch": 1, "step": 5, "top1": 50.0})
    attempt.finish({"status": status, "reason": "", "top1": 97.5, "epoch": 1, **known})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "runs", "t")
    made.create()
    return made


def test_a_cell_goes_from_new_to_running_to_its_result(store: Store) -> None:
    assert store.status("a") == "new"
    attempt = store.begin("a", {"batch": 2}, {"config": config(), "changed": []})
    assert attempt is not None
    assert store.status("a") == "running"
    attempt.finish({"status": "ok", "config": config(), "changed": []})
    assert store.status("a") == "ok"
    assert not list(store.cell("a").glob("running*"))


def test_a_cell_whose_process_is_gone_is_killed_and_keeps_its_row(store: Store) -> None:
    script = f"""
from normbench.records import Store
store = Store({str(store.folder.parent)!r}, "t")
store.begin("a", {{}}, {{"config": {config(batch=8)!r}, "changed": []}}).append_row({{"epoch": 1, "step": 7}})
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert store.status("a") == "killed"
    (row,) = records.rows(store.folder)
    assert (row["status"], row["batch"], row["step"]) == ("killed", 8, 7)
    assert math.isnan(row["top1"])


def test_results_csv_has_the_promised_columns_and_nan_for_failures(store: Store) -> None:
    finished(store, "good")
    finished(store, "bad", status="diverged", batch=8)
    with store.write_results().open() as file:
        table = list(csv.DictReader(file))
    promised = (
        "cell_id status arch data norm batch workers seed epochs lr top1 top5 loss train_seconds images_per_s "
        "peak_memory_mib"
    )
    assert set(promised.split()) <= set(table[0])
    assert [(row["status"], row["top1"]) for row in table] == [("ok", "97.5"), ("diverged", "NaN")]


def test_a_key_that_was_set_or_differs_has_a_column_and_no_other(store: Store) -> None:
    finished(store, "a", changed=("norm.num_groups",), **{"norm.num_groups": 16, "steps": None, "amp": "none"})
    finished(store, "b", seed=1, **{"norm.num_groups": 16, "steps": None, "amp": "bfloat16"})
    extra = set(records.rows(store.folder)[0]) - set(records.COLUMNS)
    assert extra == {"norm.num_groups", "amp"}


def test_an_option_of_one_norm_alone_is_empty_for_the_others(store: Store) -> None:
    finished(store, "a", changed=("norm.num_groups",), norm="gn", **{"norm.num_groups": 16})
    finished(store, "b", norm="bn")
    found = {row["norm"]: row["norm.num_groups"] for row in records.rows(store.folder)}
    assert found == {"gn": 16, "bn": None}


def test_a_new_attempt_replaces_rows_and_result_and_counts_up(store: Store) -> None:
    finished(store, "a")
    attempt = store.begin("a", {}, {"config": config(), "changed": []})
    assert attempt is not None
    assert store.status("a") == "running"
    assert not (store.cell("a") / "result.json").exists()
    attempt.keep_rows(0)
    assert records.epochs(store.cell("a")) == []
    attempt.write_provenance({"torch": "2"})
    assert files.read_json(store.cell("a") / "provenance.json")["attempt"] == 2


def test_a_line_cut_short_is_left_out(store: Store) -> None:
    finished(store, "a")
    with (store.cell("a") / "rows.jsonl").open("a") as file:
        file.write('{"epoch": 2, "st')
    assert [row["epoch"] for row in records.epochs(store.cell("a"))] == [1]


def test_a_damaged_result_counts_as_killed(store: Store) -> None:
    finished(store, "a")
    (store.cell("a") / "result.json").write_text('{"status": "o')
    assert store.status("a") == "killed"
    assert [row["status"] for row in records.rows(store.folder)] == ["killed"]


def test_another_schema_is_refused_and_left_alone(store: Store) -> None:
    path = store.folder / "store.json"
    path.write_text('{"schema": 99}')
    with pytest.raises(StoreError, match=r"schema 99.*schema 1.*name="):
        Store(store.folder.parent, "t")
    with pytest.raises(StoreError, match="schema 99"):
        records.rows(store.folder)
    assert json.loads(path.read_text()) == {"schema": 99}


def test_a_folder_of_somebody_elses_results_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "results.csv").write_text("mine\n")
    with pytest.raises(StoreError, match=r"no store\.json"):
        Store(tmp_path, "t")


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="runs=FOLDER"):
        Store(tmp_path / "file", "t").create()


def test_sweeps_are_found_below_a_store_but_reference_only_when_named(tmp_path: Path) -> None:
    for name in ("a", "b", "reference"):
        Store(tmp_path, name).create()
    assert [path.name for path in records.sweeps(tmp_path)] == ["a", "b"]
    assert [path.name for path in records.sweeps(tmp_path / "reference")] == ["reference"]
    with pytest.raises(StoreError, match="does not exist"):
        records.sweeps(tmp_path / "nothing")


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["x.json"]


def test_numbers_that_json_cannot_hold_become_null(tmp_path: Path) -> None:
    files.write_json(tmp_path / "x", {"a": math.inf, "b": [math.nan, (1,)]})
    assert json.loads((tmp_path / "x").read_text()) == {"a": None, "b": [None, [1]]}


def test_what_is_no_store_is_told_apart(store: Store) -> None:
    finished(store, "a")
    for path, why in (
        (store.folder / "a" / "result.json", "is a file"),
        (store.folder / "a", "is a folder of the sweep"),
        (store.folder / "b", "does not exist"),
    ):
        with pytest.raises(StoreError, match=why):
            records.sweeps(path)
    (store.folder / "store.json").unlink()
    with pytest.raises(StoreError, match=r'has cells but no store.json; .* write \{"schema": 1\} into one'):
        records.sweeps(store.folder)


def test_a_table_of_options_is_the_same_with_and_without_its_result(tmp_path: Path) -> None:
    """From config.yaml, where the result is lost, BGN's groups by batch read as a result has them."""
    asked = grid.read(["norm=bgn", "batch=2"]).cells[0].cell
    store = Store(tmp_path / "runs", "t")
    store.create()
    for name in ("a", "b"):
        attempt = store.begin(name, asked.nested(), {"config": asked.flat(), "changed": []})
        assert attempt is not None
        attempt.finish({"status": "ok", "reason": "", "config": asked.flat(), "changed": []})
    (store.cell("b") / "result.json").write_text("damaged")
    found = {cell["cell_id"]: cell["config"] for cell in records.read_cells(store.folder)[0]}
    assert found["b"] == {key: value for key, value in files.plain(found["a"]).items() if value is not None}
