"""The published study: its table is what its cells come to, and the README shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from normbench import records
from normbench.report import epochs, frame, statistics, table

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "runs" / "reference"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    found = records.read(FOLDER)
    assert found.problems == epochs.read(FOLDER)[1] == []
    return found.rows


def test_every_cell_is_there_and_ok(rows: list[dict[str, object]]) -> None:
    assert {(row["norm"], row["batch"], row["seed"]) for row in rows} == {
        (norm, batch, seed)
        for norm in ("bn", "brn", "mabn", "bgn", "gn", "ln", "frn", "evonorm_s0")
        for batch in (2, 8, 32, 128)
        for seed in (0, 1)
    }
    assert {(row["status"], int(str(row["batch"])) * int(str(row["workers"]))) for row in rows} == {("ok", 128)}


def test_what_takes_images_alone_has_one_result_at_every_batch(rows: list[dict[str, object]]) -> None:
    for norm in ("gn", "ln", "frn", "evonorm_s0"):
        assert len({row["top1"] for row in rows if row["norm"] == norm}) == 2  # a seed each


def test_the_published_table_is_what_the_cells_come_to_and_what_the_readme_shows() -> None:
    cells = frame.read(FOLDER)
    made = table.make("reference", cells, statistics.judged(FOLDER, cells, frame.spots(cells))).markdown()
    assert made == (FOLDER / "table.md").read_text()
    lines = [line for line in made.splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + 8
    readme = (ROOT / "README.md").read_text().splitlines()
    assert set(lines) <= set(readme)


def test_nothing_of_the_machine_it_ran_on_is_told() -> None:
    """No path from the root of a file system stands in any file."""
    rooted = re.compile(rb"""(?:^|[\s"'=,(\[])/(?!/)[\w.-]+/[\w.-]+""", re.MULTILINE)
    assert rooted.search(b'{"data.root": "/anywhere/pictures"}')
    for path in (path for path in FOLDER.rglob("*") if path.is_file()):
        assert not rooted.search(path.read_bytes()), path
