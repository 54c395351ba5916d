"""Which stored cell stands where, what is said of its protocol, and what is said where there is none."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from normbench import grid
from normbench.errors import StoreError
from normbench.grid.paper import load
from normbench.paper import compare, table
from normbench.paper.compare import Row
from normbench.paper.table import Comparison, write
from normbench.report import look

CONFIGS = grid.Configs()
Save = Callable[..., None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "store.json").write_text('{"schema": 1}\n')
    return tmp_path


@pytest.fixture
def save(folder: Path) -> Save:
    """``save("gn", "BN", 2, top1=66.0, steps=20)``: a cell of the paper's protocol, with these keys changed."""
    count = iter(range(1000))

    def write(
        name: str,
        line: str,
        batch: int,
        top1: float | None = None,
        status: str = "ok",
        scale: float = 1.0,
        **changed: Any,
    ) -> None:
        paper = load(name, CONFIGS)
        flat = grid.line_cell(paper, paper.line(line, batch), batch, scale, CONFIGS).flat()
        flat |= {key.replace("__", "."): value for key, value in changed.items()}
        cell = folder / f"{flat['norm']}-b{batch}-{next(count):03d}"
        cell.mkdir()
        (cell / "config.yaml").write_text("made: up\n")
        result = {"schema": 1, "cell_id": cell.name, "status": status, "top1": top1, "split": "test"}
        (cell / "result.json").write_text(json.dumps({**result, "config": flat, "changed": []}))

    return write


def rows(name: str, folder: Path, scale: float = 1.0) -> dict[tuple[str, int], Row]:
    return {(row.line, row.batch): row for row in compare.compared(load(name, CONFIGS), folder, scale, CONFIGS)[0]}


def text(name: str, folder: Path, scale: float = 1.0) -> Comparison:
    paper = load(name, CONFIGS)
    return Comparison(paper, scale, folder, *compare.compared(paper, folder, scale, CONFIGS))


def test_ours_stands_beside_theirs_with_the_difference(folder: Path, save: Save) -> None:
    for seed, top1 in enumerate((66.0, 66.4)):
        save("gn", "BN", 2, top1, seed=seed)
    row = rows("gn", folder)["BN", 2]
    assert (row.ours, row.difference, row.differs, row.states) == (pytest.approx(66.2), pytest.approx(0.9), (), [])
    assert row.sd == pytest.approx(math.sqrt(0.08))
    line = next(line for line in text("gn", folder).lines() if line[:2] == ("BN", "2 × 8"))
    assert line == ("BN", "2 × 8", "65.3", "66.20 ± 0.28 (2)", "+0.90", "")


def test_without_a_store_every_entry_is_not_run(tmp_path: Path) -> None:
    found = rows("bgn", tmp_path / "nothing")
    assert {place: row.states for place, row in found.items()} == {("BN", 2): ["not run"], ("BGN", 2): ["not run"]}
    assert rows("frn-inception", tmp_path)["BN", 2].states == ["not recovered", "not run"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"epochs": None, "steps": 20}, "steps 20 (epochs 100)"),
        ({"data": "folder", "data__root": "x.tar.xz"}, "other pictures: data folder (imagenet)"),
        ({"workers": 1, "lr": 0.0125}, "workers 1 (8)"),
        ({"recipe": "quick", "lr": 0.3}, "recipe quick (gn_paper)"),
        ({"arch": "resnet18"}, "arch resnet18 (resnet50)"),
        ({"norm__eps": 0.1}, "norm.eps 0.1 (none)"),
        ({"amp": "bfloat16"}, "amp bfloat16 (none)"),
        ({"data__limit": 500}, "data.limit 500 (none)"),
    ],
)
def test_what_is_not_the_papers_protocol_is_told(folder: Path, save: Save, changed: dict[str, Any], told: str) -> None:
    save("gn", "BN", 2, 60.0, **changed)
    row = rows("gn", folder)["BN", 2]
    assert told in row.differs
    comparison = text("gn", folder)
    assert next(line for line in comparison.lines() if line[3] == "60.00")[-1] == "reduced [1]"
    assert any(note.startswith("[1] ") and told in note for note in comparison.notes())
    assert any("1 of these have both numbers, 0 of them in the paper's protocol" in note for note in comparison.notes())


@pytest.mark.parametrize(
    "changed",
    [{"seed": 7}, {"device": "cuda"}, {"chunk": 2}, {"memory_format": "channels_last"}, {"data__root": "/data"},
     {"data__loaders": 4}, {"graph": True}, {"arch__source": "1a2b"}],
)  # fmt: skip
def test_where_and_how_it_ran_is_no_protocol(folder: Path, save: Save, changed: dict[str, Any]) -> None:
    save("gn", "BN", 2, 60.0, **changed)
    assert rows("gn", folder)["BN", 2].differs == ()


def test_a_cell_stands_on_the_line_it_differs_least_from(folder: Path, save: Save) -> None:
    save("hysts", "BN, multistep", 16, 50.0)
    save("hysts", "BN, cosine", 8, 40.0)
    found = rows("hysts", folder)
    assert [place for place, row in found.items() if row.values] == [("BN, cosine", 8), ("BN, multistep", 16)]
    assert found["BN, cosine", 8].differs == ()


def test_workers_tell_lines_apart(folder: Path, save: Save) -> None:
    save("sn", "SN, 1 GPU", 8, 30.0)
    assert [place for place, row in rows("sn", folder).items() if row.values] == [("SN, 1 GPU", 8)]


def test_runs_of_several_protocols_are_not_mixed(folder: Path, save: Save) -> None:
    save("gn", "BN", 2, 60.0)
    save("gn", "BN", 2, 10.0, epochs=None, steps=20)
    save("gn", "BN", 2, 12.0, epochs=None, steps=20, seed=1)
    row = rows("gn", folder)["BN", 2]
    assert (row.values, row.others) == ([60.0], 2)
    assert any("left out: 2 runs" in note for note in text("gn", folder).notes())


def test_failures_are_told_and_are_no_numbers(folder: Path, save: Save) -> None:
    save("gn", "BN", 2, status="diverged")
    save("gn", "BN", 4, 70.0)
    save("gn", "BN", 4, status="oom", seed=1)
    found = rows("gn", folder)
    assert found["BN", 2].states == ["1 diverged"]
    assert math.isnan(found["BN", 2].difference)
    assert (found["BN", 4].states, found["BN", 4].ours) == (["1 oom"], 70.0)


def test_what_nobody_published_has_a_place_too(folder: Path, save: Save) -> None:
    save("gn", "BN", 2, 60.0, norm="frn")
    save("gn", "BN", 64, 76.0)
    found = rows("gn", folder)
    assert (found["frn", 2].states, found["frn", 2].differs) == (["not published"], ())
    assert (found["BN", 64].states, found["BN", 64].ours) == (["not published"], 76.0)
    assert list(found)[-1] == ("frn", 2)


def test_a_scale_is_said_everywhere(folder: Path, save: Save) -> None:
    save("gn", "BN", 2, 20.0, scale=0.02)
    comparison = text("gn", folder, 0.02)
    assert rows("gn", folder, 0.02)["BN", 2].differs == ()
    assert "(scale 0.02)" in comparison.heading
    assert comparison.markdown().count("scale 0.02") >= 3
    assert {row["scale"] for row in comparison.data()} == {0.02}
    (ours,) = (row for row in comparison.data() if row["n"])
    assert ours["reduced"] == "scale 0.02 of epochs or steps"
    assert rows("gn", folder)["BN", 2].differs == ("epochs 2 (epochs 100)",)


def test_damaged_cells_cost_nothing_but_themselves(folder: Path, save: Save) -> None:
    save("gn", "BN", 2, 60.0)
    (folder / "half").mkdir()
    (folder / "half" / "config.yaml").write_text("norm: {name: [")
    (folder / "empty").mkdir()
    (folder / "empty" / "config.yaml").write_text("")
    assert rows("gn", folder)["BN", 2].values == [60.0]


def test_a_cell_that_is_not_done_is_known_by_its_config(folder: Path) -> None:
    import yaml

    cell = grid.read(["paper=gn", "norm=bn", "batch=2"]).cells[0].cell
    (folder / "killed").mkdir()
    (folder / "killed" / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(cell.nested()))))
    row = rows("gn", folder)["BN", 2]
    assert (row.states, row.differs) == (["1 not done"], ())


def test_markdown_and_data_hold_every_entry(folder: Path, save: Save) -> None:
    save("online-cifar10", "BN", 128, 92.5)
    comparison = text("online-cifar10", folder)
    lines = comparison.markdown().splitlines()
    assert "| BN | 128 × 1 | 92.2 ± 0.22 | 92.50 | +0.30 | 4 of 5 seeds not run |" in lines
    assert any("1 of these have both numbers, 0 of them in the paper's protocol" in line for line in lines)
    assert sum(line.startswith("| ") for line in lines) == 2 + 5
    found = {row["line"]: row for row in comparison.data()}
    assert (found["BN"]["theirs"], found["BN"]["theirs_std"], found["BN"]["confidence"]) == (92.2, 0.22, "high")
    assert found["BN"]["difference"] == pytest.approx(0.3)
    assert math.isnan(found["LN"]["ours"])


def test_a_folder_that_cannot_be_written_is_said(folder: Path) -> None:
    comparison = Comparison(load("bgn", CONFIGS), 1.0, folder / "nothing" / "here", text("bgn", folder).rows)
    with pytest.raises(StoreError, match="cannot write"):
        table.write(comparison)


def test_a_damaged_store_is_read_by_the_stores_rules(folder: Path, save: Save) -> None:
    """What is there twice counts once, what cannot be read not at all; both are said."""
    save("gn", "BN", 2, 66.0)
    (whole,) = folder.glob("bn-*")
    shutil.copytree(whole, folder / "copy")
    for k, wrong in enumerate(({"schema": 99}, {"top1": "many"}, {"config": [1]}, {"top1": 1e400})):
        save("gn", "BN", 2, 60.0, seed=k + 1)
        path = max(folder.glob("bn-*")) / "result.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    save("gn", "BN", 2, 60.0, seed=9, workers=0)
    comparison = text("gn", folder)
    row = next(row for row in comparison.rows if (row.line, row.batch) == ("BN", 2))
    assert row.values == [66.0]
    said = " ".join(comparison.notes())
    for word in ("there twice", "another schema", "cannot be right", "configuration cannot be used"):
        assert word in said


def test_a_run_that_fits_no_line_is_counted(folder: Path, save: Save) -> None:
    """A table whose every step has 256 images: batch 3 does not divide them."""
    save("mabn", "MABN", 2, 60.0)
    (path,) = folder.glob("*/result.json")
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "config": {**result["config"], "batch": 3}}))
    assert (
        "left out: 1 runs in this folder whose batch does not divide the images of a step"
        in text("mabn", folder).notes()
    )


def test_what_was_asked_for_and_is_published_nowhere_is_a_row(folder: Path) -> None:
    paper = load("gn", CONFIGS)
    rows, _ = compare.compared(paper, folder, 1.0, CONFIGS, [(paper.added("bgn"), 4)])
    assert [row.states for row in rows if (row.line, row.batch) == ("bgn", 4)] == [["not published", "not run"]]


def test_a_picture_of_an_earlier_comparison_goes(folder: Path, save: Save) -> None:
    """And a line has its normalizer's colour, whatever the paper calls it."""
    save("gn", "GN", 2, 66.0)
    assert {path.name for path in write(text("gn", folder))} >= {"paper.png", "paper.svg"}
    assert look.COLOURS["green"].lower() in (folder / "paper.svg").read_text()
    assert look.COLOURS["vermillion"].lower() not in (folder / "paper.svg").read_text()
    (path,) = folder.glob("gn-*/result.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "diverged", "top1": None}))
    write(text("gn", folder))
    assert not list(folder.glob("paper.*g"))


def test_the_interval_is_the_reports(folder: Path, save: Save) -> None:
    for seed, top1 in enumerate((66.0, 66.4, 66.1)):
        save("gn", "BN", 2, top1, seed=seed)
    found = compare.with_intervals(text("gn", folder).rows, folder)
    row = next(row for row in found if (row.line, row.batch) == ("BN", 2))
    assert row.interval is not None
    assert row.interval[0] < row.ours < row.interval[1]
