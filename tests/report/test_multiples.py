"""A panel for every line, where there are many."""

import legible
import numpy as np
import pytest
from made import BATCHES, LONG, NORMS, TOLD, spots

from normbench.report import plot
from normbench.report.frame import Spot


def drawn(made, told=()):
    """The figure, its texts, and what they say."""
    figure, texts = legible.read(lambda: plot._figure("first", made, list(told)))
    return figure, texts, {text.get_text() for text in texts}


@pytest.mark.parametrize("blocks", [("",), ("resnet8 · digits", "resnet20 · digits")])
def test_31_lines_are_legible_and_each_has_its_panel(blocks):
    norms = NORMS if blocks == ("",) else NORMS[:11]
    made = spots(norms, BATCHES, blocks)
    *_, words = drawn(made, TOLD)
    assert {*norms, *blocks[1:]} <= {word.removesuffix(" · top-1 (%)") for word in words}
    assert "mean, s.d. over seeds, every seed; dashed: bn; grey: the others" in words


def test_long_names_are_legible():
    *_, words = drawn(spots([f"{name} option={k}" for k in range(4) for name in LONG]))
    assert "\n".join(["my_own_normalizers.py:Whitening0", "limit=200 num_groups=16 option=0"]) in words


def inches(figure, texts, name):
    """The places of the line below a name: its own, in the colour of the name."""
    axes, (label,) = figure.axes[0], [t for t in texts if t.get_text() == name]
    left, top = label.get_position()
    paths = [path for some in axes.collections if tuple(some.get_linewidths()) == (1.2,)
             for path in (one.vertices for one in some.get_paths())]  # fmt: skip
    return next(p for p in paths if left - 0.01 < p[0][0] < left + 0.3 and top < np.nanmax(p[:, 1]) < top + 0.75)


def test_points_stand_at_the_numbers_of_the_axes():
    made = [Spot("", f"norm{k:02}", batch, (value,), {}) for k in range(12) for batch, value in
            ((2, 90.0 + k / 4), (8, 94.0), (32, 96.0))]  # fmt: skip
    figure, texts, _ = drawn(made)
    one = inches(figure, texts, "norm00")
    assert min(abs(t.get_position()[1] - one[1, 1]) for t in texts if t.get_text() == "94") < 1e-6
    assert min(abs(t.get_position()[0] - one[1, 0]) for t in texts if t.get_text() == "8") < 1e-6
    # Higher is better, and upwards.
    assert one[0, 1] > one[1, 1] > one[2, 1]


def test_a_line_breaks_and_has_a_cross_where_there_is_no_result():
    made = [s if (s.line, s.batch) != ("norm03", 8) else Spot("", "norm03", 8, (), {"oom": 2})
            for s in spots([f"norm{k:02}" for k in range(12)])]  # fmt: skip
    figure, texts, words = drawn(made)
    assert np.isnan(inches(figure, texts, "norm03")).any(axis=1).tolist() == [False, True, False]
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert sum(len(line.get_xdata()) for line in crosses) == 1
    assert any("× no result (oom)" in text for text in words)


def test_of_very_many_lines_the_best_are_shown_and_the_rest_counted():
    made = spots([f"norm{k:03}" for k in range(100)])
    *_, words = drawn(made)
    assert {"norm099", "norm052"} <= set(words)
    assert "norm051" not in words
    assert "52 more lines, all with a lower mean, stand in the table" in words
