"""Top-1 against batch, one line per line of the table, as PNG and SVG for a column of text. The same bytes every time.

Means with their standard deviations are drawn, every seed faintly beside them; lines that have seeds stand a little
beside each other. A mean over fewer seeds than were started has a hollow marker; a spot without any result is a cross
at the foot of the plot, in its line's colour. One batch alone becomes a dot plot. Where errors differ more than
eightfold the axis is logarithmic in the error, so that a normalizer that breaks down and the tenths between those that
do not can both be seen.
"""

from __future__ import annotations

import io
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from normbench.report.canvas import AXES, WIDTH, canvas, head, settled, text_width, wrapped
from normbench.report.dots import dots
from normbench.report.frame import Spot, grouped
from normbench.report.look import FONT, GRID, QUIET, Style, reach, scale, styled, ticks

PANEL, GAP = 2.2, 0.36  # inches: a panel of lines, between panels
LEFT, RIGHT, BOTTOM, KEY = 0.56, 0.10, 0.44, 0.16  # inches: the margins, a line of small text
DIRECT = 8  # more lines than this get a legend instead of labels at their ends
PITCH = 9.2  # points between labels
DODGE, SEEDS = 0.075, 0.03  # inches between the means that lines have at one batch; from a mean to its seeds
HANDLE, LEGEND, LEGEND_ROW = 0.46, 7.5, 0.165  # inches beside a label in the legend, its points, inches a line


def draw(title: str, spots: list[Spot], told: Sequence[str] = ()) -> dict[str, bytes]:
    """``{"png": …, "svg": …}`` of a table's spots (``frame.spots``); ``told``: its settings (``notes.settings``)."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own style would change the bytes, and perhaps the colours
        matplotlib.rcParams.update(FONT)
        figure = _figure(title, spots, list(told))
        return {kind: _bytes(figure, kind) for kind in ("png", "svg")}


def _bytes(figure: Figure, kind: str) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=200, metadata={"Software": None} if kind == "png" else {"Date": None})
    return data.getvalue()


def _figure(title: str, spots: list[Spot], told: list[str]) -> Figure:
    if not any(spot.values for spot in spots):
        return _empty(title, spots)
    return (dots if len(grouped(spots, "batch")) == 1 else _lines)(title, spots, told)


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
    legend = None if _ends_can_be_named(spots, styles) else _Legend(spots, styles)
    key = _key(spots)
    foot = BOTTOM + (KEY if key else 0) + (legend.height if legend else 0)
    room = RIGHT if legend else _end_room(styles)
    figure, panels = _panels(title, settled(told), list(blocks), foot, room)
    for axes, block in zip(panels, blocks.values(), strict=True):
        _panel(axes, block, styles)
        if not legend:
            _name_ends(axes, block, styles)
    panels[-1].set_xlabel("batch (images that share statistics)")
    _below(panels[-1], key)
    if legend:
        legend.draw(figure)
    return figure


def _ends_can_be_named(spots: list[Spot], styles: dict[str, Style]) -> bool:
    """Few lines with short labels, and every one of them has its last point at the right edge of its panel."""
    if len(styles) > DIRECT or LEFT + _end_room(styles) > (1 - AXES) * WIDTH:
        return False
    blocks = grouped(spots, "block").values()
    last = [(max(spot.batch for spot in block), entries) for block in blocks
            for entries in grouped(block, "line").values()]  # fmt: skip
    return all(any(spot.batch == batch and spot.values for spot in entries) for batch, entries in last)


def _end_room(styles: dict[str, Style]) -> float:
    return 0.22 + max(text_width(label, 8) for label in styles)


def _key(spots: list[Spot]) -> str:
    """What the signs mean."""
    failed = sorted({status for spot in spots for status in spot.failed})
    parts = (
        "mean ± s.d. over seeds" if any(len(spot.values) > 1 for spot in spots) else "",
        f"× no result ({', '.join(failed)})" if any(not spot.values for spot in spots) else "",
        "○ not from every seed" if any(spot.values and spot.failed for spot in spots) else "",
    )
    return "; ".join(part for part in parts if part)


def _panels(title: str, told: list[str], blocks: list[str], foot: float, room: float) -> tuple[Figure, list[Axes]]:
    """Axes above ``foot`` inches, with ``room`` inches at their right."""
    titled = 0.16 if any(blocks) else 0.0
    height = head(told) + foot + len(blocks) * (PANEL + titled + GAP) - GAP
    figure = canvas(title, told, height)
    feet = [foot + k * (PANEL + titled + GAP) for k in reversed(range(len(blocks)))]
    box = (LEFT / WIDTH, (WIDTH - LEFT - room) / WIDTH)
    panels = [figure.add_axes((box[0], y / height, box[1], PANEL / height)) for y in feet]
    for axes, block in zip(panels, blocks, strict=True):
        axes.set_title(block, size=8, loc="left", pad=4)
    return figure, panels


def _panel(axes: Axes, spots: list[Spot], styles: dict[str, Style]) -> None:
    batches = sorted(grouped(spots, "batch"))
    axes.set_xscale("log", base=2)
    ticks(axes.xaxis, batches)
    side = 1.07 * (batches[-1] / batches[0]) ** 0.04 if len(batches) > 1 else 2.0
    axes.set_xlim(batches[0] / side, batches[-1] * side)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    scale(axes, [value for spot in spots for value in spot.values], "y", reach(spots))
    lines = grouped(spots, "line")
    asides = _dodged(axes, spots)
    axes.set_xlim(batches[0] / side * min(asides), batches[-1] * side * max(asides))
    for (line, entries), aside in zip(lines.items(), asides, strict=True):
        _line(axes, sorted(entries, key=lambda spot: spot.batch), styles[line], aside)
    _crosses(axes, spots, styles)


def _dodged(axes: Axes, spots: list[Spot]) -> list[float]:
    """Per line the factor by which its points stand beside their batch: 1 where no spot has several seeds."""
    count, batches = len(grouped(spots, "line")), sorted(grouped(spots, "batch"))
    if count < 2 or all(spot.n == 1 for spot in spots):
        return [1.0] * count
    between = min((math.log2(b / a) for a, b in itertools.pairwise(batches)), default=1.0)
    step = min(DODGE * _octaves(axes), 0.6 * between / (count - 1))
    return [2 ** (step * (k - (count - 1) / 2)) for k in range(count)]


def _octaves(axes: Axes) -> float:
    """Octaves of the batch per inch."""
    (low, high), box = axes.get_xlim(), axes.get_window_extent()
    return math.log2(high / low) * axes.get_figure(root=True).dpi / box.width  # type: ignore[union-attr]


def _line(axes: Axes, spots: list[Spot], style: Style, aside: float) -> None:
    """The line breaks where there is no result."""
    places, seeds = [spot.batch * aside for spot in spots], 2 ** (SEEDS * _octaves(axes))
    axes.plot(places, [s.mean for s in spots], color=style.colour, ls=style.dashes, lw=1.2, zorder=3)
    for x, spot in zip(places, spots, strict=True):
        axes.plot(x, spot.mean, **style.mark(hollow=bool(spot.failed)))
        if spot.n > 1:
            axes.plot([x * seeds] * len(spot.values), spot.values, **style.faint())
        if len(spot.values) > 1:
            axes.errorbar(x, spot.mean, yerr=spot.sd, **style.bar())


def _crosses(axes: Axes, spots: list[Spot], styles: dict[str, Style]) -> None:
    """Spots without any result, side by side at the foot of their batch."""
    for batch, failed in grouped([spot for spot in spots if not spot.values], "batch").items():
        step = min(0.12, 0.9 / len(failed))
        for k, spot in enumerate(failed):
            x = batch * 2 ** (step * (k - (len(failed) - 1) / 2))
            mark: dict[str, Any] = {"color": styles[spot.line].colour, "transform": axes.get_xaxis_transform()}
            axes.plot(x, 0.03, "x", ms=4, mew=1.1, clip_on=False, zorder=5, **mark)


def _below(axes: Axes, text: str) -> None:
    """A small line below the name of the x axis."""
    drop = -(BOTTOM - 0.06) / PANEL
    axes.text(0.5, drop, text, size=7, ha="center", va="top", color=QUIET, transform=axes.transAxes)


def _name_ends(axes: Axes, spots: list[Spot], styles: dict[str, Style]) -> None:
    """Each line's label at the right of its last point, moved apart where labels would overlap."""
    ends = {line: max((s.batch, s.mean) for s in some if s.values)
            for line, some in grouped(spots, "line").items()}  # fmt: skip
    pixels = {line: axes.transData.transform(end) for line, end in ends.items()}
    box, point = axes.get_window_extent(), axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    heights = apart({line: float(y) for line, (_, y) in pixels.items()}, PITCH * point, box.y0, box.y1)
    right, back = box.x1 + 4 * point, axes.transAxes.inverted().transform
    for line, (x, y) in pixels.items():
        colour, (u, v) = styles[line].colour, back((right, heights[line]))
        axes.text(u, v, line, color=colour, va="center_baseline", transform=axes.transAxes)
        if abs(heights[line] - y) > 3 * point:
            path = back([(x + 4 * point, y), (right - point, heights[line])])
            axes.plot(*path.T, color="0.6", lw=0.6, ls=":", clip_on=False, transform=axes.transAxes)


def apart(heights: dict[str, float], least: float, low: float, high: float) -> dict[str, float]:
    """Heights at least ``least`` apart, in the same order, as near as can be to those wanted.

    Neighbours that are too close join into a stack around the mean of what its members want. Where all do not fit
    between ``low`` and ``high`` they may stand above it.
    """

    def foot(stack: list[str]) -> float:
        return sum(heights[name] for name in stack) / len(stack) - least * (len(stack) - 1) / 2

    stacks: list[list[str]] = []
    for name in sorted(heights, key=lambda name: heights[name]):
        stacks.append([name])
        while len(stacks) > 1 and foot(stacks[-1]) < foot(stacks[-2]) + least * len(stacks[-2]):
            stacks[-2:] = [stacks[-2] + stacks[-1]]
    placed = {name: foot(stack) + k * least for stack in stacks for k, name in enumerate(stack)}
    down = max(0.0, max(placed.values(), default=high) - high)
    placed = {name: height - down for name, height in placed.items()}
    up = max(0.0, low - min(placed.values(), default=low))
    return {name: height + up for name, height in placed.items()}


class _Legend:
    """The lines and their labels at the foot of the figure, in as many columns as have room."""

    def __init__(self, spots: list[Spot], styles: dict[str, Style]) -> None:
        lines = grouped(spots, "line")
        dead = {line for line, entries in lines.items() if not any(spot.values for spot in entries)}
        said = {line: f"{line} (no result)" if line in dead else line for line in styles}
        self.labels = {line: wrapped(text, LEGEND, WIDTH - HANDLE - 0.3) for line, text in said.items()}
        widest = max(text_width(text, LEGEND) for texts in self.labels.values() for text in texts)
        self.columns = min(max(1, int((WIDTH - 0.2) / (widest + HANDLE + 0.12))), len(styles))
        rows = -(-len(styles) // self.columns)
        self.columns = -(-len(styles) // rows)  # the same rows, evenly filled
        self.height = LEGEND_ROW * rows * max(map(len, self.labels.values())) + 0.06
        self.styles, self.dead = styles, dead

    def draw(self, figure: Figure) -> None:
        handles = [self._handle(line, style) for line, style in self.styles.items()]
        figure.legend(
            handles=handles, loc="lower center", ncols=self.columns, frameon=False, fontsize=LEGEND,
            handlelength=2.6, columnspacing=1.2, handletextpad=0.5, labelspacing=0.35, borderpad=0.2,
        )  # fmt: skip

    def _handle(self, line: str, style: Style) -> Line2D:
        label = "\n".join(self.labels[line])
        if line in self.dead:
            return Line2D([], [], color=style.colour, ls="", marker="x", ms=4, mew=1.1, label=label)
        return Line2D([], [], color=style.colour, ls=style.dashes, marker=style.marker, ms=4, lw=1.2, label=label)
