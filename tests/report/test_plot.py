"""The plots: there, the same bytes every time, and nothing left out."""

import io
import itertools

import matplotlib
import numpy as np
import pytest
from PIL import Image

from normbench.report import look, plot
from normbench.report.frame import Spot

NORMS = ("none", "bn", "ln", "in", "gn", "pn", "bgn", "frn", "brn", "gbn", "iebn", "sn")


def spots(norms=("bn", "gn", "bgn"), batches=(2, 8, 32), blocks=("",)):
    return [Spot(block, norm, batch, (90.0 + k + batch / 100, 90.5 + k), {})
            for block in blocks for k, norm in enumerate(norms) for batch in batches]  # fmt: skip


MADE = {
    "three": spots(),
    "twelve": spots(NORMS, tuple(2**k for k in range(1, 9))),
    "many": spots([f"norm{k}" for k in range(40)]),
    "one batch": spots(batches=(8,)),
    "one cell": [Spot("", "bn", 8, (97.25,), {})],
    "one spot of 100": [Spot("", "bn", 2, (100.0,), {}), Spot("", "bn", 4, (100.0,), {})],
    "blocks": spots(blocks=("resnet8", "resnet20")),
    "a block without results": [*spots(), *(Spot("other", "bn", batch, (), {"oom": 1}) for batch in (2, 4))],
    "failed": [Spot("", "bn", 2, (), {"diverged": 2}), Spot("", "gn", 2, (), {"oom": 1})],
    "partly": [*spots(), Spot("", "frn", 2, (90.0,), {"diverged": 2}), Spot("", "frn", 8, (), {"skipped": 3})],
    "chance": [*spots(), *(Spot("", "none", b, (10.0,), {}) for b in (2, 8, 32)), Spot("", "ln", 2, (100.0,), {})],
    "long title": spots(),
    "none": [],
}


@pytest.mark.parametrize("name", MADE)
def test_plots_are_drawn_alike_every_time(name):
    title = name * (30 if name == "long title" else 1)
    pictures = plot.draw(title, MADE[name])
    assert plot.draw(title, MADE[name]) == pictures
    with Image.open(io.BytesIO(pictures["png"])) as png:
        pixels = np.asarray(png.convert("L"))
    assert pixels.shape[1] == 920
    assert pixels.min() < 100
    assert pictures["svg"].startswith(b"<?xml")
    assert b"dc:date" not in pictures["svg"]


@pytest.mark.parametrize("name", ["three", "partly", "chance", "blocks", "twelve"])
def test_no_text_leaves_the_picture_or_covers_another(name):
    with matplotlib.rc_context():
        matplotlib.rcParams.update(look.FONT)
        figure = plot._figure(name, MADE[name])
        figure.canvas.draw()
        unseen = {tick.label1 for axes in figure.axes for tick in axes.yaxis.get_major_ticks()
                  if not axes.get_ylim()[0] <= tick.get_loc() <= axes.get_ylim()[1]}  # fmt: skip
        words = [t for t in figure.findobj(matplotlib.text.Text) if t.get_visible() and t.get_text().strip()]
        words = [t for t in words if t not in unseen]
        boxes = {f"{k} {t.get_text()}": t.get_window_extent() for k, t in enumerate(words)}
        assert all(t.get_size() >= 7 for t in words)
    page = figure.bbox
    assert [k for k, b in boxes.items() if b.x0 < 0 or b.y0 < 0 or b.x1 > page.x1 or b.y1 > page.y1] == []
    inner = {k: box.shrunk(0.9, 0.8) for k, box in boxes.items()}
    assert [(a, b) for a, b in itertools.combinations(inner, 2) if inner[a].overlaps(inner[b])] == []


def test_a_users_own_style_changes_nothing():
    plain = plot.draw("first", MADE["three"])
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20}):
        assert plot.draw("first", MADE["three"]) == plain
        assert matplotlib.rcParams["font.size"] == 20


def test_batches_are_the_ticks_of_a_log2_axis():
    axes = plot._figure("first", MADE["three"]).axes[0]
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "8", "32"]


def test_every_mean_stands_where_it_belongs():
    axes = plot._figure("first", MADE["three"]).axes[0]
    drawn = {(float(x), round(float(y), 6)) for line in axes.lines for x, y in zip(*line.get_data(), strict=True)}
    assert {(spot.batch, round(spot.mean, 6)) for spot in MADE["three"]} <= drawn


def test_lines_look_different_and_norms_keep_their_colours():
    styles = look.styled([f"norm{k}" for k in range(16)])
    assert len({(style.colour, style.marker, str(style.dashes)) for style in styles.values()}) == 16
    for names in (["bn", "gn"], ["gn", "frn", "bn", "other"]):
        assert look.styled(names)["bn"].colour == look.COLOURS["black"]
    assert look.styled(["gn num_groups=4", "gn"])["gn"].colour != look.COLOURS["green"]


@pytest.mark.parametrize("wanted", [[5, 5, 5], [0, 1, 2, 50], [99, 100, 100, 101], [3], []])
def test_labels_are_moved_apart_and_keep_their_order(wanted):
    heights = {str(k): float(height) for k, height in enumerate(wanted)}
    placed = plot.apart(heights, 9, 0, 100)
    order = sorted(heights, key=heights.__getitem__)
    assert all(placed[b] - placed[a] > 8.99 for a, b in itertools.pairwise(order))
    assert all(-1e-9 <= height <= 100 + 1e-9 for height in placed.values())
