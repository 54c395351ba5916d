"""table.csv: the table's entries as data."""

import csv

import pandas as pd

from normbench import report


def read(folder):
    report.write(folder)
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_per_entry_and_every_number_in_its_own_column(sweep, cell):
    grid = [cell(top1, batch=2, seed=seed) for seed, top1 in enumerate((90.0, 91.0))]
    grid += [cell(95.0, norm="gn", batch=batch, norm__num_groups=4) for batch in (2, 8)]
    first, second, third = read(sweep(grid))
    assert list(first) == [
        "line", "arch", "data", "norm", "batch", "workers", "epochs", "lr", "norm.num_groups",
        "top1_mean", "top1_sd", "n", "failed", "status", "reason", "best", "top1_low", "top1_high", "level",
        "baseline", "pairs", "difference", "difference_low", "difference_high", "p", "p_holm", "family", "verdict",
        "seed_sd", "picture_sd", "residual_sd", "pooled",
    ]  # fmt: skip
    assert (first["line"], first["batch"], first["n"], first["failed"]) == ("bn", "2", "2", "0")
    assert (first["top1_mean"], first["top1_sd"]) == ("90.5", "0.707107")
    assert [row["norm.num_groups"] for row in (first, second, third)] == ["", "4", "4"]
    assert (second["top1_sd"], second["n"]) == ("NaN", "1")
    assert [row["batch"] for row in (first, second, third)] == ["2", "2", "8"]


def test_what_failed_is_counted_and_explained(sweep, cell):
    end = {"status": "diverged", "reason": "loss is nan,\nat step 3"}
    (row,) = read(sweep([cell(90.0), cell(seed=1, **end), cell(seed=2, **end)]))
    assert (row["n"], row["failed"], row["status"]) == ("1", "2", "2 diverged")
    assert row["reason"] == "loss is nan, at step 3"
    assert row["best"] == "false"


def test_the_best_are_marked(sweep, cell):
    assert [row["best"] for row in read(sweep([cell(90), cell(95, norm="gn")]))] == ["false", "true"]


def test_pandas_reads_numbers(sweep, cell):
    folder = sweep([cell(90.5), cell(status="oom", norm="gn"), cell(91.5, seed=1)])
    report.write(folder)
    table = pd.read_csv(folder / "table.csv")
    assert all(table[column].dtype.kind in "if" for column in ("batch", "top1_mean", "top1_sd", "n", "failed", "lr"))
    assert table["top1_mean"].isna().tolist() == [False, True]
