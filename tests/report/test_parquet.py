"""results.parquet and epochs.parquet: the numbers of the store, typed, under a version."""

from __future__ import annotations

import csv
import io
import json
import math

import pandas as pd
import pyarrow.parquet as pq
import pytest

from normbench import records
from normbench.errors import StoreError
from normbench.report import epochs, parquet


def row(epoch, **more):
    return {"epoch": epoch, "step": 5 * epoch, "lr": 0.1, "train_loss": 1 / epoch, "top1": 50.0 + epoch, **more}


@pytest.fixture
def folder(sweep, cell):
    grid = [cell(90.5), cell(95.0, norm="gn", norm__num_groups=4, seed=1, amp="bf16"), cell(status="oom", norm="frn")]
    made = sweep([*grid, cell(91.0, norm="mine", norm__mode=[1, 2], amp="none"), cell(92.0, norm="my", norm__mode="a")])
    for k, place in enumerate(records.cells_of(made)):
        (place / "rows.jsonl").write_text("".join(json.dumps(row(epoch)) + "\n" for epoch in range(1, 3 + k)))
    rows = records.rows(made)
    (made / "results.csv").write_text(records.to_csv(rows))
    (made / "results.parquet").write_bytes(parquet.results(rows))
    (made / "epochs.parquet").write_bytes(parquet.epochs(epochs.read(made)[0]))
    return made


def test_the_cells_are_those_of_the_csv(folder):
    frame = parquet.read(folder / "results.parquet")
    with (folder / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(frame.columns) == list(table[0])
    assert frame["cell_id"].tolist() == [row["cell_id"] for row in table]
    for column in ("batch", "top1", "lr", "seed", "loss"):
        found = [math.nan if pd.isna(value) else float(value) for value in frame[column]]
        assert found == pytest.approx([float(row[column]) for row in table], nan_ok=True)
    assert frame["norm.mode"].tolist() == [row["norm.mode"] if row["norm.mode"] else pd.NA for row in table]


def test_the_columns_have_types(folder):
    types = parquet.read(folder / "results.parquet").dtypes.map(str)
    assert (types[["batch", "workers", "seed", "epochs", "epoch", "norm.num_groups"]] == "Int64").all()
    assert (types[["top1", "loss", "lr", "gap", "peak_memory_mib"]] == "float64").all()
    assert types[["cell_id", "status", "reason", "norm", "norm.mode", "amp"]].str.startswith("str").all()


def test_the_types_do_not_hang_on_what_is_missing(sweep, cell):
    file = io.BytesIO(parquet.results(records.rows(sweep([cell(status="error", reason="gone")]))))
    types = {field.name: str(field.type) for field in pq.read_schema(file)}
    assert (types["top1"], types["epoch"]) == ("double", "int64")
    assert types["execution"].endswith("string")


@pytest.mark.parametrize(
    ("values", "kind", "held"),
    [
        ([True, None, False], "boolean", [True, pd.NA, False]),
        ([1, None, 2], "Int64", [1, pd.NA, 2]),
        ([1, 2.5, None], "float64", [1.0, 2.5, math.nan]),
        ([1, True], "string", ["1", "true"]),
        (["a", 1, 0.5, None], "string", ["a", "1", "0.5", pd.NA]),
        ([[1, 2], "b"], "string", ["[1, 2]", "b"]),
        ([2**70, 1], "string", [str(2**70), "1"]),
        ([None, None], "string", [pd.NA, pd.NA]),
    ],
)
def test_an_option_has_the_narrowest_type_that_holds_it(tmp_path, values, kind, held):
    rows = [{"cell_id": str(k), "norm.x": value} for k, value in enumerate(values)]
    (tmp_path / "x.parquet").write_bytes(parquet.results(rows))
    found = parquet.read(tmp_path / "x.parquet")["norm.x"]
    assert str(found.dtype) == kind
    assert [str(value) for value in found] == [str(value) for value in held]


def test_the_epochs_are_those_of_the_rows(folder):
    frame = parquet.read(folder / "epochs.parquet")
    assert list(frame.columns) == ["cell_id", *epochs.COLUMNS]
    assert len(frame) == 2 + 3 + 4 + 5 + 6
    places = records.cells_of(folder)
    assert frame["cell_id"].unique().tolist() == [place.name for place in places]
    last = frame[frame["cell_id"] == places[-1].name]
    assert last["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    assert last["train_loss"].tolist() == pytest.approx([1 / epoch for epoch in range(1, 7)])
    assert last["loss"].isna().all()


def test_rows_with_other_keys_are_kept_and_have_their_columns(sweep, cell, tmp_path):
    folder = sweep([cell(90.5), cell(91.5, seed=1)])
    first, second = records.cells_of(folder)
    (first / "rows.jsonl").write_text(json.dumps(row(1)) + "\n" + json.dumps(row(2, note="late", rho=0.5)) + "\n")
    (second / "rows.jsonl").write_text(json.dumps({"rho": "x", "cell_id": "no", **row(1), "top1": "ninety"}) + "\n")
    columns, problems = epochs.read(folder)
    assert problems == []
    (tmp_path / "e.parquet").write_bytes(parquet.epochs(columns))
    frame = parquet.read(tmp_path / "e.parquet")
    assert frame["note"].fillna("").tolist() == ["", "late", ""]
    assert frame["rho"].fillna("").tolist() == ["", "0.5", "x"]
    assert frame["top1"].isna().tolist() == [False, False, True]
    assert frame["cell_id"].tolist() == [first.name, first.name, second.name]


def test_pandas_alone_reads_them(folder):
    frame = pd.read_parquet(folder / "results.parquet")
    assert frame.loc[frame["status"] == "ok", "top1"].mean() == pytest.approx((90.5 + 95 + 91 + 92) / 4)
    assert str(frame["batch"].dtype) == "Int64"


def test_the_version_is_in_the_file(folder):
    held = {name: pq.read_schema(folder / f"{name}.parquet").metadata for name in ("results", "epochs")}
    assert {name: held[name][b"normbench.table"].decode() for name in held} == {
        "results": "results",
        "epochs": "epochs",
    }
    assert {metadata[b"normbench.schema"] for metadata in held.values()} == {b"1"}


def test_another_version_and_other_files_are_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(StoreError, match=r"cannot read .*csv.*make it again"):
        parquet.read(folder / "results.csv")
    with pytest.raises(StoreError, match=r"cannot read .*none"):
        parquet.read(tmp_path / "none.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(StoreError, match=r"no normbench\.schema"):
        parquet.read(tmp_path / "a.parquet")
    monkeypatch.setattr(parquet, "SCHEMA", 2)
    with pytest.raises(StoreError, match="has schema 1, this normbench reads schema 2; make it again"):
        parquet.read(folder / "results.parquet")
