"""Top-1 at one batch: the lines of the table from top to bottom, top-1 along x, the table's text at the right."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normbench.report.canvas import AXES, WIDTH, canvas, head, settled, shortened, text_width
from normbench.report.frame import Spot, grouped
from normbench.report.look import GRID, Style, bar, by_interval, key, reach, styled
from normbench.report.panel import BOTTOM, KEY, below, wrapped_key
from normbench.report.scales import top1

ROW, STACKED = 0.2, 0.36  # inches: a row, one with its name above it
SIZE = 7.5


def dots(title: str, spots: list[Spot], told: list[str]) -> Figure:
    """Names stand at the left, or above their rows where they would take the axes' room."""
    names = [f"{spot.block} {spot.line}".strip() for spot in spots]
    left = 0.2 + max(text_width(name, SIZE) for name in names)
    right = 0.2 + max(text_width(spot.text, SIZE) for spot in spots)
    beside = left + right <= (1 - AXES) * WIDTH
    lines, middle = settled(told), (ROW if beside else STACKED) * max(len(spots), 2)
    said = wrapped_key(key(spots))
    bottom = BOTTOM + KEY * len(said)
    height = head(lines) + middle + bottom
    figure = canvas(title, lines, height)
    x, width = (left, WIDTH - left - right) if beside else (0.15, WIDTH - 0.3)
    axes = figure.add_axes((x / WIDTH, bottom / height, width / WIDTH, middle / height))
    top1([value for spot in spots for value in spot.values], reach(spots), apart=0.14).apply(axes, "x")
    axes.set_xlabel(f"{axes.get_xlabel()}, batch {spots[0].batch}")
    below(axes, said)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_yticks(range(len(spots)), names if beside else [""] * len(spots))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(spots) - (0.5 if beside else 0.7), -0.5 if beside else -0.7)
    styles = styled(list(grouped(spots, "line")))
    for y, (name, spot) in enumerate(zip(names, spots, strict=True)):
        _dot(axes, y, spot, styles[spot.line], by_interval(spots))
        if beside:
            _write(axes, 1.02, y, spot.text, "left")
        else:
            _write(axes, 1, y - 0.4, spot.text, "right")
            _write(axes, 0.01, y - 0.4, shortened(name, SIZE, width - text_width(spot.text, SIZE) - 0.15), "left")
    return figure


def _write(axes: Axes, x: float, y: float, text: str, side: str) -> None:
    beside = axes.get_yaxis_transform()
    axes.text(x, y, text, va="center_baseline", ha=side, size=SIZE, color="0.25", transform=beside)


def _dot(axes: Axes, y: float, spot: Spot, style: Style, intervals: bool) -> None:
    axes.plot(spot.mean, y, **style.mark(hollow=bool(spot.failed), size=5))
    if spot.n > 1:
        axes.plot(spot.values, [y + 0.2] * len(spot.values), **style.faint())
    if ends := bar(spot, intervals):
        axes.errorbar(spot.mean, y, xerr=[[ends[0]], [ends[1]]], **style.bar())
