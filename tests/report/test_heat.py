"""The heat map: every number in its box, readable, and what has none told."""

import legible
import numpy as np
import pytest
from made import BATCHES, LONG, NORMS, TOLD, spots
from matplotlib.collections import PolyCollection

from normbench.report import heat
from normbench.report.frame import Spot

MADE = {
    "three": spots(),
    "31": spots(NORMS, BATCHES),
    "long": spots(LONG, tuple(2**k for k in range(14)), ("resnet8 · cifar10", "resnet20 · cifar10")),
    "one batch": spots(batches=(8,)),
    "equal": [Spot("", norm, 2, (90.0,), {}) for norm in ("bn", "gn")],
    "broken down": [*spots(), *(Spot("", "none", b, (10.0,), {}) for b in (2, 8, 32)), Spot("", "ln", 2, (100.0,), {})],
    "failed": [
        *spots(NORMS[:4], BATCHES),
        Spot("", "syncbn", 2, (), {"diverged": 2}),
        Spot("", "syncbn", 4, (), {"timeout": 2}),
        Spot("", "syncbn", 8, (), {"interrupted": 2}),
        Spot("", "syncbn", 16, (), {"oom": 1, "killed": 2}),
        Spot("", "syncbn", 32, (91.0,), {"killed": 1}),
    ],
}


def drawn(made):
    return legible.read(lambda: heat.figure("first", made, TOLD))


def boxes(figure):
    """(left, top, right, bottom) and colour of every box, in inches; the bar of colours is not among them."""
    some = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)][:-1]
    found = []
    for collection in some:
        corners = [path.vertices for path in collection.get_paths()]
        colours = collection.get_facecolors()
        found += [(c[:, 0].min(), c[:, 1].min(), c[:, 0].max(), c[:, 1].max(), colours[k % len(colours)])
                  for k, c in enumerate(corners)]  # fmt: skip
    return found


def test_it_is_the_same_every_time():
    assert heat.draw("first", MADE["failed"], TOLD) == heat.draw("first", MADE["failed"], TOLD)


def luminance(colour):
    rgb = np.asarray(colour[:3])
    return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("name", MADE)
def test_it_is_legible_and_every_entry_has_its_box_row_and_column(name):
    figure, texts = drawn(MADE[name])
    where = boxes(figure)
    assert len(where) == len(MADE[name])
    for spot in MADE[name]:
        if spot.values and name in ("three", "31"):
            (row,) = {t.get_position()[1] for t in texts if t.get_text() == spot.line}
            (column,) = {t.get_position()[0] for t in texts if t.get_text() == str(spot.batch)}
            (inside,) = [t for t in texts if t.get_position() == pytest.approx((column, row))]
            assert inside.get_text() == f"{spot.mean:.1f}"
            assert sum(b[0] < column < b[2] and b[1] < row < b[3] for b in where) == 1


@pytest.mark.parametrize("name", ["three", "broken down"])
def test_numbers_are_readable_on_their_box_and_better_is_brighter(name):
    figure, texts = drawn(MADE[name])
    bright = {}
    for left, top, right, bottom, colour in boxes(figure):
        (inside,) = [t for t in texts
                     if left < t.get_position()[0] < right and top < t.get_position()[1] < bottom]  # fmt: skip
        light, ink = luminance(colour), 0.0 if inside.get_color() == "black" else 1.0
        assert (max(light, ink) + 0.05) / (min(light, ink) + 0.05) >= 4.5
        bright[float(inside.get_text())] = light
    order = [bright[value] for value in sorted(bright)]
    assert order == sorted(order)


def test_what_has_no_result_is_hatched_and_named():
    figure, texts = drawn(MADE["failed"])
    words = [text.get_text() for text in texts]
    hatched = [c for c in figure.axes[0].collections if c.get_hatch()]
    assert sum(len(c.get_paths()) for c in hatched) == 4
    assert {"diverged", "timeout", "int.", "killed", "91.0°"} <= set(words)
    told = " ".join(words)
    assert "hatched: no result (int. interrupted)" in told
    assert "° not from every seed" in told


def test_the_best_is_bold_as_in_the_table():
    made = [Spot("", "bn", 2, (90.0,), {}), Spot("", "gn", 2, (91.0,), {}, best=True)]
    _, texts = drawn(made)
    assert {t.get_text(): t.get_weight() for t in texts if t.get_text() in ("90.0", "91.0")} == {
        "90.0": "normal",
        "91.0": "bold",
    }


def test_a_single_box_or_no_result_is_no_picture():
    assert heat.draw("first", [Spot("", "bn", 2, (90.0,), {})], []) == {}
    assert heat.draw("first", [Spot("", norm, 2, (), {"oom": 1}) for norm in ("bn", "gn")], []) == {}
    assert heat.draw("first", [], []) == {}
