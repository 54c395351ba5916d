"""What the table's cells went through."""

import numpy as np
from made import lived, table

from normbench import report
from normbench.report import epochs, histories


def past(folder):
    cells, _ = table(folder)
    return histories.collect(cells, epochs.read(folder)[0])


def test_means_are_over_whole_seeds_and_the_epochs_they_share(sweep, cell):
    folder = lived(sweep([cell(90.0, seed=s) for s in (0, 1)] + [cell(status="diverged", seed=2)]))
    short = next(folder.glob("*-s1-*/rows.jsonl"))
    short.write_text("".join(short.read_text().splitlines(keepends=True)[:4]))
    (history,) = past(folder).values()
    assert [len(seed) for seed in history.whole] == [6, 4]
    assert [len(seed) for seed in history.cut] == [3]
    expected = [(e, 90.5 + e, 2.0 / e) for e in range(1, 5)]
    np.testing.assert_allclose(history.mean(), expected)


def test_impossible_numbers_are_passed_over_and_said(sweep, cell):
    folder = lived(sweep([cell(90.0)]))
    path = next(folder.glob("*/rows.jsonl"))
    lines = path.read_text().splitlines()
    odd = [f'{{"epoch": 3, "top1": 1{"0" * 400}, "train_loss": 1e308}}', f'{{"epoch": 1{"0" * 400}, "top1": 1.0}}']
    path.write_text("\n".join([*lines[:2], *odd, '{"epoch": 4, "top1": 50, "train_loss": Infinity}']))
    columns, problems = epochs.read(folder)
    assert columns["top1"] == [91.0, 92.0, None, 1.0, 50]
    assert columns["train_loss"] == [2.0, 1.0, None, None, None]
    assert any("cannot be right" in line for line in problems)
    report.write(folder)


def test_damaged_rows_are_passed_over(sweep, cell):
    folder = lived(sweep([cell(90.0)]))
    path = next(folder.glob("*/rows.jsonl"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], '{"epoch": "two"}', '{"epoch": 2, "top1": 50}', lines[1], "[3]", '{"epo']))
    (history,) = past(folder).values()
    np.testing.assert_allclose(history.whole[0], [(1, 91.0, 2.0), (2, 92.0, 1.0)])
