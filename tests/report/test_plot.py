"""The plots: there, the same bytes every time, and nothing left out."""

import io
from dataclasses import replace

import legible
import matplotlib
import numpy as np
import pytest
from PIL import Image

from normbench.report import look, plot
from normbench.report.frame import Spot

NORMS = ("none", "bn", "ln", "in", "gn", "pn", "bgn", "frn", "brn", "gbn", "iebn", "sn")


REGISTERED = {*look.HOME, *look.DASHED}


def spots(norms=("bn", "gn", "bgn"), batches=(2, 8, 32), blocks=("",)):
    return [Spot(block, norm, batch, (90.0 + k + batch / 100, 90.5 + k), {})
            for block in blocks for k, norm in enumerate(norms) for batch in batches]  # fmt: skip


MADE = {
    "three": spots(),
    "ten": spots(NORMS[:10], tuple(2**k for k in range(1, 9))),
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
    "ends early": [*spots(), Spot("", "frn", 2, (91.0,), {})],
    "long labels": spots([f"my_own_normalizers.py:Whitening{k} limit=200 num_groups=16" for k in range(3)]),
    "long, one batch": spots([f"my_own_normalizers.py:Whitening{k} limit=200 num_groups=16" for k in range(3)], (8,)),
    "broken down": [*spots(), *(Spot("", "none", b, (30.0,), {}) for b in (2, 8, 32)), Spot("", "ln", 2, (99.4,), {})],
    "long title": spots(),
    "none": [],
}


TOLD = ["throughout: workers 8, recipe adamw, steps 5, data.limit 200", "gn: num_groups 4, eps 0.001"]


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


@pytest.mark.parametrize("name", [name for name in MADE if name not in ("long title", "failed", "none")])
def test_no_text_leaves_the_picture_or_covers_another(name):
    legible.read(lambda: plot._figure(name, MADE[name], TOLD))


def test_a_users_own_style_changes_nothing():
    plain = plot.draw("first", MADE["three"])
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20}):
        assert plot.draw("first", MADE["three"]) == plain
        assert matplotlib.rcParams["font.size"] == 20


def test_batches_are_the_ticks_of_a_log2_axis():
    axes = plot._figure("first", MADE["three"], []).axes[0]
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "8", "32"]


def points(axes):
    return [(float(x), float(y)) for line in axes.lines for x, y in zip(*line.get_data(), strict=True)]


def test_every_mean_stands_beside_its_batch_and_no_two_in_one_place():
    axes = plot._figure("first", MADE["three"], []).axes[0]
    means = [[(x, y) for x, y in points(axes) if abs(y - spot.mean) < 1e-6] for spot in MADE["three"]]
    assert all(any(spot.batch / 1.3 < x < spot.batch * 1.3 for x, _ in near)
               for spot, near in zip(MADE["three"], means, strict=True))  # fmt: skip
    for batch in (2, 8, 32):
        places = [near[0][0] for spot, near in zip(MADE["three"], means, strict=True) if spot.batch == batch]
        assert len(set(places)) == 3


def test_without_seeds_a_mean_stands_at_its_batch():
    alone = [Spot("", norm, batch, (90.0 + k,), {}) for k, norm in enumerate(("bn", "gn")) for batch in (2, 8)]
    found = points(plot._figure("first", alone, []).axes[0])
    assert {(spot.batch, spot.mean) for spot in alone} <= set(found)


def spans(axes):
    """From where to where bars reach."""
    bars = [segment for some in axes.collections for segment in some.get_segments()]
    return {(round(float(a[1]), 4), round(float(b[1]), 4)) for a, b in bars}


def test_seeds_are_drawn_with_their_standard_deviation():
    axes = plot._figure("first", MADE["three"], []).axes[0]
    assert {(round(s.mean - s.sd, 4), round(s.mean + s.sd, 4)) for s in MADE["three"]} <= spans(axes)
    faint = [line for line in axes.lines if line.get_alpha()]
    assert sum(len(line.get_xdata()) for line in faint) == sum(len(s.values) for s in MADE["three"])
    assert all(line.get_alpha() >= 0.35 for line in faint)


def read(made):
    figure, texts = legible.read(lambda: plot._figure("first", made, []))
    return figure, [text.get_text() for text in texts]


def test_bars_are_intervals_where_there_are_intervals():
    first, *others = [replace(spot, interval=(spot.mean - 1, spot.mean + 0.5)) for spot in MADE["three"]]
    made = [replace(first, interval=None), *others]
    figure, words = read(made)
    assert {(round(s.mean - 1, 4), round(s.mean + 0.5, 4)) for s in others} == spans(figure.axes[0])
    assert "mean, 95 % interval, every seed" in words
    one = [replace(spot, interval=(spot.mean - 1, spot.mean + 1)) for spot in MADE["one batch"]]
    assert "mean, 95 % interval, every seed" in read(one)[1]
    assert "mean, s.d. over seeds, every seed" in read(MADE["three"])[1]


@pytest.mark.parametrize("name", ["three", "one batch", "partly", "long labels"])
def test_axes_keep_their_room_and_every_line_its_name(name):
    figure = plot._figure(name, MADE[name], TOLD)
    assert all(axes.get_position().width >= 0.6 for axes in figure.axes)


@pytest.mark.parametrize("name", [name for name in MADE if any(spot.values for spot in MADE[name])])
def test_every_line_has_its_name(name):
    figure = plot._figure(name, MADE[name], TOLD)
    words = " ".join(" ".join(t.get_text().split()) for t in figure.findobj(matplotlib.text.Text))
    assert all(spot.line in words for spot in MADE[name])


@pytest.mark.parametrize("name", ["ends early", "partly", "long labels", "ten"])
def test_where_a_label_cannot_stand_at_its_line_there_is_a_legend(name):
    figure = plot._figure(name, MADE[name], [])
    assert len(figure.legends) == 1
    assert not [line for axes in figure.axes for line in axes.lines if line.get_transform() == axes.transAxes]


def test_a_line_without_any_result_has_a_cross_in_the_legend():
    (legend,) = plot._figure("first", [*MADE["three"], Spot("", "frn", 2, (), {"oom": 1})], []).legends
    marks = {text.get_text(): line.get_marker()
             for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}  # fmt: skip
    assert marks["frn (no result)"] == "x"


@pytest.mark.parametrize("name", ["broken down", "chance"])
def test_ticks_of_the_log_scale_enclose_the_values(name):
    axes = plot._figure(name, MADE[name], []).axes[0]
    assert "log scale" in axes.get_ylabel()
    values = [value for spot in MADE[name] for value in spot.values]
    places = axes.get_yticks()
    assert places[0] <= min(values) <= max(values) <= places[-1]
    assert axes.get_ylim()[0] <= places[0]
    assert places[-1] <= axes.get_ylim()[1]


def test_settings_stand_under_the_title_if_they_fit():
    def head(told):
        return " ".join(text.get_text() for text in plot._figure("first", MADE["three"], told).texts)

    assert "; ".join(TOLD) in head(TOLD)
    many = head(["xxx " * 250, *(f"recipe.option{k} {k}" for k in range(100))])
    assert "xxx" not in many
    assert "recipe.option0 0; recipe.option1 1" in many
    assert "option99" not in many


def test_lines_look_different_and_norms_keep_their_colours():
    styles = look.styled([f"norm{k}" for k in range(40)])
    assert len({(style.colour, str(style.dashes)) for style in styles.values()}) == 40
    assert len({(style.colour, style.marker) for style in list(styles.values())[:16]}) == 16
    for names in (["bn", "gn", "brn"], ["gn", "brn", "frn", "bn", "other"]):
        assert look.styled(names)["bn"].colour == look.COLOURS["black"]
        assert look.styled(names)["brn"] == look.styled(["brn"])["brn"]
    assert len({(style.colour, str(style.dashes)) for style in look.styled(list(REGISTERED)).values()}) == 31
    assert all(look.styled([name])[name] == style for name, style in look.styled(list(REGISTERED)).items())
    assert len(look.styled([f"norm{k}" for k in range(200)])) == 200
    assert look.styled(["gn num_groups=4", "gn"])["gn"].colour != look.COLOURS["green"]
