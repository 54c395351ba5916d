"""Lines below a table that the table's own tests do not show."""

import numpy as np
import pytest
from made import lived

from normbench import report
from normbench.records import Problems, correct
from normbench.report import epochs, frame, notes, statistics


def said(folder, baseline=None):
    cells = frame.read(folder)
    return notes.notes(cells, statistics.judged(folder, cells, frame.spots(cells), baseline))


@pytest.mark.parametrize(("flips", "told"), [(0, False), (2, False), (10, False), (11, True)])
def test_a_line_that_depends_on_its_evaluation_batch_is_told(sweep, cell, flips, told):
    """A few pictures in 10,000 may flip by rounding."""
    grid = [cell(90.0 + k, norm=norm, seed=k) | {"eval_flips": 0, "eval_count": 10_000}
            for norm in ("bn", "mine.py:Mine") for k in (0, 1)]  # fmt: skip
    grid[2]["eval_flips"] = flips
    expected = f"mine.py:Mine: {flips} of 10000 pictures are right or wrong by the evaluation batch they are in"
    assert any(line.startswith(expected) for line in said(sweep(grid))) == told


def test_a_baseline_that_is_several_lines_is_said(sweep, cell):
    grid = [cell(90.0 + seed, seed=seed, norm__momentum=momentum) for seed in (0, 1, 2) for momentum in (0.1, 0.9)]
    grid += [cell(91.0 + seed, norm="gn", seed=seed) for seed in (0, 1, 2)]
    folder = sweep(grid)
    line = "no comparison, as bn is 2 lines: baseline='bn momentum=0.1', say, chooses one"
    assert line in said(folder)
    assert line not in said(folder, "bn momentum=0.1")
    assert line not in said(sweep([cell(90.0), cell(91.0, norm="gn")], "plain"))


def test_a_sweep_without_the_usual_baseline_is_said(sweep, cell):
    cells = [cell(90.0 + seed, norm=norm, seed=seed) for norm in ("gn", "ln") for seed in (0, 1, 2)]
    assert any(line.startswith("no comparison, as no line is bn: ") for line in said(sweep(cells)))


def test_correctness_that_contradicts_its_top1_is_said(sweep, cell):
    cells = [cell(50.0 + 10 * k, norm=norm, seed=seed) | {"eval_count": 10}
             for k, norm in enumerate(("bn", "gn")) for seed in (0, 1, 2)]  # fmt: skip
    folder = sweep(cells)
    for path in folder.glob("*/result.json"):
        correct.write(path.parent, np.arange(10) < 5)  # gn's say 60 %
    unused = Problems()
    frame_ = frame.read(folder)
    statistics.judged(folder, frame_, frame.spots(frame_), None, unused)
    (line,) = unused.told()
    assert line.startswith("cells whose correct.npy cannot be used: not paired by picture (3): gn-")
    assert "top-1 says 6 pictures, it 5" in line
    report.write(folder)
    assert "not paired by picture (3)" in (folder / "table.md").read_text()


def test_a_missing_file_of_rows_is_said_where_others_have_theirs(sweep, cell):
    folder = lived(sweep([cell(90.0, seed=seed) for seed in (0, 1)]))
    assert epochs.read(folder)[1] == []
    next(folder.glob("*-s1-*/rows.jsonl")).unlink()
    (line,) = epochs.read(folder)[1]
    assert line.startswith("cells whose rows.jsonl is missing (1): bn-b8-s1")
