"""The difference to a paper."""

import legible
import pytest
from made import NORMS

from normbench.report import apart
from normbench.report.apart import Difference


def rows(norms=("bn", "gn", "bgn"), batches=(2, 4, 8), reduced=False):
    made = []
    for k, norm in enumerate(norms):
        for j, batch in enumerate(batches):
            ours = 70.0 + k - j
            made.append(
                Difference(norm, norm, batch, ours, None if norm == "gn" else (ours - 0.5, ours + 0.75), 71.0, reduced)
            )
    return made


MADE = {"three": rows(), "reduced": rows(reduced=True), "many": rows(NORMS[:14]), "one": rows(("bn",), (2,)),
        "ends early": [*rows(), Difference("frn", "frn", 2, 30.0, None, 60.0, True)]}  # fmt: skip


def drawn(name):
    figure, texts = legible.read(lambda: apart.figure("BGN, table 1", MADE[name]))
    return figure, [text.get_text() for text in texts]


@pytest.mark.parametrize("name", MADE)
def test_it_is_legible_with_a_line_at_zero(name):
    figure, words = drawn(name)
    (axes,) = figure.axes
    assert [0, 0] in [list(line.get_ydata()) for line in axes.lines]
    assert axes.get_ylim()[0] < 0 < axes.get_ylim()[1]
    legend = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert {row.norm for row in MADE[name]} <= {*words, *legend}


def test_points_are_ours_minus_theirs_and_bars_the_interval():
    (axes,) = drawn("three")[0].axes
    points = {round(float(y), 6) for line in axes.lines if len(line.get_ydata()) == 1 for y in line.get_ydata()}
    assert {row.ours - 71.0 for row in MADE["three"]} <= points
    bars = [segment for some in axes.collections for segment in some.get_segments()]
    spans = {(round(float(a[1]), 6), round(float(b[1]), 6)) for a, b in bars}
    assert spans == {(r.interval[0] - 71.0, r.interval[1] - 71.0) for r in MADE["three"] if r.interval}


def test_a_reduced_protocol_is_hollow_and_said():
    for name, face in (("reduced", "white"), ("three", None)):
        figure, words = drawn(name)
        marks = [line for line in figure.axes[0].lines if len(line.get_ydata()) == 1 and line.get_clip_on() is False]
        hollow = [line for line in marks if line.get_markerfacecolor() == "white"]
        assert bool(hollow) == (face == "white")
        assert any("hollow: reduced protocol" in word for word in words) == (face == "white")


def test_the_bytes_are_the_same_and_no_row_is_no_picture():
    assert apart.draw("x", MADE["three"]) == apart.draw("x", MADE["three"])
    assert apart.draw("x", []) == {}
