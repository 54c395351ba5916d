"""Lines below a table that the table's own tests do not show."""

import pytest

from normbench.report import frame, notes, statistics


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
