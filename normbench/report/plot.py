"""Top-1 against batch, one line per line of the table, as PNG and SVG for a column of text. The same bytes every time.

Means are drawn with the interval of 95 % that belongs to each (their standard deviations where there is none), every
seed faintly beside them; lines that have seeds stand a little beside each other. A mean over fewer seeds than were
started has a hollow marker; a spot without any result is a cross at the foot of the plot, in its line's colour. One
batch alone becomes a dot plot, more lines than can be told apart become a panel each (``multiples``). Where errors
differ more than eightfold the axis is logarithmic in the error, so that a normalizer that breaks down and the tenths
between those that do not can both be seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normbench.report.canvas import canvas, rendered, settled
from normbench.report.dots import dots
from normbench.report.frame import Spot, grouped
from normbench.report.labels import Legend, end_room, fit_at_ends, name_ends
from normbench.report.look import QUIET, Style, bar, by_interval, key, reach, styled
from normbench.report.multiples import multiples
from normbench.report.panel import BOTTOM, KEY, LEFT, RIGHT, batch_axis, below, octaves, panels, wrapped_key
from normbench.report.scales import top1

NAME = "plot"
MANY = 10  # more lines than this are a panel each
SEEDS = 0.03  # inches from a mean to its seeds


def draw(title: str, spots: list[Spot], told: Sequence[str] = ()) -> dict[str, bytes]:
    """``{"png": …, "svg": …}`` of a table's spots (``frame.spots``); ``told``: its settings (``notes.settings``)."""
    return rendered(NAME, lambda: _figure(title, spots, list(told)))


def _figure(title: str, spots: list[Spot], told: list[str]) -> Figure:
    if not any(spot.values for spot in spots):
        return _empty(title, spots)
    if len(grouped(spots, "batch")) == 1:
        return dots(title, spots, told)
    return (multiples if len(grouped(spots, "line")) > MANY else _lines)(title, spots, told)


def _empty(title: str, spots: list[Spot]) -> Figure:
    """A plot that says that there is nothing to plot, and why."""
    figure = canvas(title, [], 1.0)
    counts = sum((Counter(spot.failed) for spot in spots), Counter[str]())
    figure.text(0.5, 0.5, "no cell has a result", ha="center", size=9)
    why = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    figure.text(0.5, 0.4, why, ha="center", va="top", size=7.5, color=QUIET)
    return figure


def _lines(title: str, spots: list[Spot], told: list[str]) -> Figure:
    """A panel per block, one above the other; labels at the lines' ends if they can stand there, else a legend."""
    styles = styled(list(grouped(spots, "line")))
    blocks = grouped(spots, "block")
    direct = fit_at_ends(styles, LEFT) and _all_end_at_the_right(spots)
    legend = None if direct else Legend(styles, _dead(spots))
    said = wrapped_key(key(spots))
    foot = BOTTOM + KEY * len(said) + (legend.height if legend else 0)
    figure, made = panels(title, settled(told), list(blocks), foot, RIGHT if legend else end_room(styles))
    for axes, block in zip(made, blocks.values(), strict=True):
        _panel(axes, block, styles, by_interval(spots))
        if not legend:
            name_ends(axes, _ends(block), styles)
    below(made[-1], said)
    if legend:
        legend.draw(figure)
    return figure


def _all_end_at_the_right(spots: list[Spot]) -> bool:
    """Whether every line has its last point at the right edge of its panel."""
    blocks = grouped(spots, "block").values()
    last = [(max(spot.batch for spot in block), entries) for block in blocks
            for entries in grouped(block, "line").values()]  # fmt: skip
    return all(any(spot.batch == batch and spot.values for spot in entries) for batch, entries in last)


def _dead(spots: list[Spot]) -> set[str]:
    """The lines without any result."""
    return {line for line, entries in grouped(spots, "line").items() if not any(spot.values for spot in entries)}


def _ends(spots: list[Spot]) -> dict[str, tuple[float, float]]:
    return {line: max((spot.batch, spot.mean) for spot in some if spot.values)
            for line, some in grouped(spots, "line").items()}  # fmt: skip


def _panel(axes: Axes, spots: list[Spot], styles: dict[str, Style], intervals: bool) -> None:
    lines = grouped(spots, "line")
    several = any(spot.n > 1 for spot in spots)
    asides = batch_axis(axes, sorted(grouped(spots, "batch")), len(lines), beside=several)
    if values := [value for spot in spots for value in spot.values]:
        top1(values, reach(spots)).apply(axes, "y")
    for (line, entries), aside in zip(lines.items(), asides, strict=True):
        _line(axes, sorted(entries, key=lambda spot: spot.batch), styles[line], aside, intervals)
    _crosses(axes, spots, styles)


def _line(axes: Axes, spots: list[Spot], style: Style, aside: float, intervals: bool) -> None:
    """The line breaks where there is no result."""
    places, seeds = [spot.batch * aside for spot in spots], 2 ** (SEEDS * octaves(axes))
    axes.plot(places, [s.mean for s in spots], color=style.colour, ls=style.dashes, lw=1.2, zorder=3)
    for hollow in (False, True):
        marked = [(x, spot.mean) for x, spot in zip(places, spots, strict=True) if bool(spot.failed) is hollow]
        axes.plot(*zip(*marked, strict=True) if marked else ([], []), **style.mark(hollow=hollow))
    faint = [(x * seeds, value) for x, spot in zip(places, spots, strict=True) if spot.n > 1 for value in spot.values]
    if faint:
        axes.plot(*zip(*faint, strict=True), **style.faint())
    bars = [(x, spot.mean, bar(spot, intervals)) for x, spot in zip(places, spots, strict=True)]
    if ends := [(x, mean, *reach) for x, mean, reach in bars if reach]:
        x, mean, below, above = zip(*ends, strict=True)
        axes.errorbar(x, mean, yerr=[below, above], **style.bar())


def _crosses(axes: Axes, spots: list[Spot], styles: dict[str, Style]) -> None:
    """Spots without any result, side by side at the foot of their batch."""
    for batch, failed in grouped([spot for spot in spots if not spot.values], "batch").items():
        step = min(0.12, 0.9 / len(failed))
        for k, spot in enumerate(failed):
            x = batch * 2 ** (step * (k - (len(failed) - 1) / 2))
            mark: dict[str, Any] = {"color": styles[spot.line].colour, "transform": axes.get_xaxis_transform()}
            axes.plot(x, 0.03, "x", ms=4, mew=1.1, clip_on=False, zorder=5, **mark)
