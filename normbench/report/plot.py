"""Top-1 against batch, one line per line of the table, as PNG and SVG for a column of text. The same bytes every time.

Means are drawn, every seed faintly beside them. A mean over fewer seeds than were started has a hollow marker; a spot
without any result is a cross at the foot of the plot, in its line's colour. One batch alone becomes a dot plot. Where
errors differ more than eightfold the axis is logarithmic in the error, so that a normalizer that breaks down and the
tenths between those that do not can both be seen.
"""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from normbench.report.frame import Spot, grouped
from normbench.report.look import FONT, GRID, QUIET, Style, scale, styled, ticks

WIDTH, PANEL, ROW, GAP = 4.6, 2.2, 0.2, 0.36  # inches: the figure, a panel of lines, a row of dots, between panels
LEFT, RIGHT, TOP, BOTTOM, KEY = 0.56, 0.10, 0.30, 0.44, 0.16  # inches: the margins, a line of small text
DIRECT = 8  # more lines than this get a legend instead of labels at their ends
PITCH = 9.2  # points between labels


def draw(title: str, spots: list[Spot]) -> dict[str, bytes]:
    """``{"png": …, "svg": …}`` of a table's spots (``frame.spots``)."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own style would change the bytes, and perhaps the colours
        matplotlib.rcParams.update(FONT)
        figure = _figure(title, spots)
        return {kind: _bytes(figure, kind) for kind in ("png", "svg")}


def _bytes(figure: Figure, kind: str) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=200, metadata={"Software": None} if kind == "png" else {"Date": None})
    return data.getvalue()


def _figure(title: str, spots: list[Spot]) -> Figure:
    if not any(spot.values for spot in spots):
        return _empty(title, spots)
    return _dots(title, spots) if len(grouped(spots, "batch")) == 1 else _lines(title, spots)


def _empty(title: str, spots: list[Spot]) -> Figure:
    """A plot that says that there is nothing to plot, and why."""
    figure = _canvas(title, 1.0)
    counts = sum((Counter(spot.failed) for spot in spots), Counter[str]())
    figure.text(0.5, 0.5, "no cell has a result", ha="center", size=9)
    why = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    figure.text(0.5, 0.4, why, ha="center", va="top", size=7.5, color=QUIET)
    return figure


def _canvas(title: str, height: float) -> Figure:
    """A figure with one small grey line at the top: a picture on its own must say what it shows."""
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    while _text_width(figure, title, 7.5) > WIDTH - 0.12:
        title = title[:-2].rstrip() + "…"
    figure.text(0.06 / WIDTH, 1 - 0.06 / height, title, va="top", size=7.5, color=QUIET)
    return figure


def _text_width(figure: Figure, label: str, size: float) -> float:
    """Inches."""
    text = figure.text(0, 0, label, size=size)
    width = text.get_window_extent().width / figure.dpi
    text.remove()
    return float(width)


# --- Several batches: lines


def _lines(title: str, spots: list[Spot]) -> Figure:
    """A panel per block, one above the other."""
    styles = styled(list(grouped(spots, "line")))
    failed = sorted({status for spot in spots for status in spot.failed})
    key = KEY if failed else 0.0
    figure, panels = _panels(title, list(grouped(spots, "block")), styles, key)
    for axes, block in zip(panels, grouped(spots, "block").values(), strict=True):
        _panel(axes, block, styles)
    panels[-1].set_xlabel("batch (images that share statistics)")
    if failed:
        hollow = ", ○ not from every seed" if any(spot.values and spot.failed for spot in spots) else ""
        _below(panels[-1], f"× no result{hollow} ({', '.join(failed)})")
    if len(styles) > DIRECT:
        _legend(figure, panels[0], styles)
    return figure


def _panels(title: str, blocks: list[str], styles: dict[str, Style], key: float) -> tuple[Figure, list[Axes]]:
    """Axes with room for the labels at their right, or for the legend at the foot."""
    titled = 0.16 if any(blocks) else 0.0
    legend = len(styles) > DIRECT
    foot = BOTTOM + key + (0.17 * -(-len(styles) // _legend_columns(styles)) + 0.06 if legend else 0)
    height = TOP + foot + len(blocks) * (PANEL + titled + GAP) - GAP
    figure = _canvas(title, height)
    room = RIGHT if legend else 0.22 + max(_text_width(figure, label, 8) for label in styles)
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
    scale(axes, [value for spot in spots for value in spot.values], "y")
    for line, entries in grouped(spots, "line").items():
        _line(axes, sorted(entries, key=lambda spot: spot.batch), styles[line])
    _crosses(axes, spots, styles)
    if len(styles) <= DIRECT:
        _name_ends(axes, spots, styles)


def _line(axes: Axes, spots: list[Spot], style: Style) -> None:
    """The line breaks where there is no result."""
    axes.plot([s.batch for s in spots], [s.mean for s in spots], color=style.colour, ls=style.dashes, lw=1.2, zorder=3)
    for spot in spots:
        axes.plot(spot.batch, spot.mean, **style.mark(hollow=bool(spot.failed)))
        if spot.n > 1:
            axes.plot([spot.batch] * len(spot.values), spot.values, **style.faint())


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
    ends = {line: max((s.batch, s.mean) for s in some if s.values) for line, some in grouped(spots, "line").items()
            if any(s.values for s in some)}  # fmt: skip
    pixels = {line: axes.transData.transform(end) for line, end in ends.items()}
    box, point = axes.get_window_extent(), axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    heights = apart({line: float(y) for line, (_, y) in pixels.items()}, PITCH * point, box.y0, box.y1)
    right, back = box.x1 + 4 * point, axes.transAxes.inverted().transform
    for line, (x, y) in pixels.items():
        colour, (u, v) = styles[line].colour, back((right, heights[line]))
        axes.text(u, v, line, color=colour, va="center_baseline", transform=axes.transAxes)
        if abs(heights[line] - y) > 3 * point or x < box.x1 - 30 * point:
            path = back([(x + 4 * point, y), (right - 2 * point, heights[line])])
            axes.plot(*path.T, color=colour, lw=0.5, alpha=0.6, clip_on=False, transform=axes.transAxes)


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


def _legend_columns(styles: dict[str, Style]) -> int:
    return max(1, min(6, int(4.2 / (0.42 + 0.068 * max(map(len, styles))))))


def _legend(figure: Figure, axes: Axes, styles: dict[str, Style]) -> None:
    handles = [
        axes.plot([], [], color=style.colour, ls=style.dashes, marker=style.marker, ms=4, lw=1.2, label=label)[0]
        for label, style in styles.items()
    ]
    figure.legend(
        handles=handles, loc="lower center", ncols=_legend_columns(styles), frameon=False, fontsize=7.5,
        handlelength=2.2, columnspacing=1.2, handletextpad=0.5, labelspacing=0.35, borderpad=0.2,
    )  # fmt: skip


# --- One batch: dots


def _dots(title: str, spots: list[Spot]) -> Figure:
    """Lines of the table from top to bottom, top-1 along x, the table's text at the right."""
    names = [f"{spot.block} {spot.line}".strip() for spot in spots]
    middle = ROW * max(len(spots), 2)
    height = TOP + middle + BOTTOM
    figure = _canvas(title, height)
    left = 0.2 + max(_text_width(figure, name, 7.5) for name in names)
    right = 0.2 + max(_text_width(figure, spot.text, 7.5) for spot in spots)
    axes = figure.add_axes((left / WIDTH, BOTTOM / height, 1 - (left + right) / WIDTH, middle / height))
    scale(axes, [value for spot in spots for value in spot.values], "x")
    axes.set_xlabel(f"{axes.get_xlabel()}, batch {spots[0].batch}")
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_yticks(range(len(spots)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(spots) - 0.5, -0.5)
    styles = styled(list(grouped(spots, "line")))
    for y, spot in enumerate(spots):
        _dot(axes, y, spot, styles[spot.line])
    return figure


def _dot(axes: Axes, y: float, spot: Spot, style: Style) -> None:
    beside = axes.get_yaxis_transform()
    axes.text(1.02, y, spot.text, va="center_baseline", size=7.5, color="0.25", transform=beside)
    axes.plot(spot.mean, y, **style.mark(hollow=bool(spot.failed), size=5))
    if spot.n > 1:
        axes.plot(spot.values, [y] * len(spot.values), **style.faint())
