"""Top-1 against batch, one line per line of the table, as PNG and SVG for a column of text. The same bytes every time.

Means are drawn, every seed faintly beside them. A mean over fewer seeds than were started has a hollow marker; a cell
without any result is a cross at the foot of the plot, in its line's colour. One batch alone becomes a dot plot. Where
errors differ more than eightfold the axis is logarithmic in the error, so that a normalizer that breaks down and the
tenths between those that do not can both be seen.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

# Okabe & Ito's colours, safe for the colour-blind; their yellow is too pale for a line on white, so grey stands for it.
COLOURS = {
    "black": "#000000",
    "vermillion": "#D55E00",
    "blue": "#0072B2",
    "green": "#009E73",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "orange": "#E69F00",
    "grey": "#8C8C8C",
}
# The same normalizer in the same colour in every plot; whoever is not named takes a colour that is free.
HOME = {
    "bn": "black", "bgn": "vermillion", "frn": "blue", "gn": "green",
    "in": "purple", "ln": "sky", "pn": "orange", "none": "grey",
}  # fmt: skip
MARKERS = "osD^vP*X<>ph"
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
WIDTH, HEIGHT, GAP = 4.6, 2.9, 0.36  # inches: the figure, one panel's axes with their ticks, between panels
LEFT, RIGHT, TOP, BOTTOM = 0.56, 0.10, 0.14, 0.44  # margins in inches
DIRECT = 8  # more lines than this get a legend
FOLD = 8  # a larger ratio of errors makes the axis logarithmic
FONT = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "xtick.major.width": 0.6,
    "ytick.major.width": 0.6, "xtick.major.size": 3, "ytick.major.size": 3, "svg.hashsalt": "normbench",
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    colour: str
    marker: str
    dashes: object


def draw(title: str, frame: pd.DataFrame, summary: pd.DataFrame) -> dict[str, bytes]:
    """``{"png": …, "svg": …}`` of a frame (``frame.read``) and its summary."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own style would change the bytes, and perhaps the colours
        matplotlib.rcParams.update(FONT)
        figure = _figure(title, frame, summary)
        return {kind: _bytes(figure, kind) for kind in ("png", "svg")}


def _bytes(figure: Figure, kind: str) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=200, metadata={"Software": None} if kind == "png" else {"Date": None})
    return data.getvalue()


def _figure(title: str, frame: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    if not summary["n_ok"].sum():
        return _empty(title, frame)
    return _dots(title, frame, summary) if summary["batch"].nunique() == 1 else _lines(title, frame, summary)


def _empty(title: str, frame: pd.DataFrame) -> Figure:
    """A plot that says that there is nothing to plot, and why."""
    figure = _canvas(1.5)
    counts = ", ".join(f"{count} {status}" for status, count in frame["status"].value_counts().sort_index().items())
    figure.text(0.5, 0.62, "no cell has a result", ha="center", size=9)
    figure.text(0.5, 0.42, f"{title}\n{counts}", ha="center", va="top", size=7.5, color="0.35")
    return figure


def _canvas(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    return figure


# --- Several batches: lines


def _lines(title: str, frame: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    styles = styled(list(dict.fromkeys(summary["line"])))
    figure, panels, legend = _panels(title, summary, styles)
    for axes, (block, means) in zip(panels, summary.groupby("block", sort=False), strict=True):
        seeds = frame[(frame["block"] == block) & (frame["line"] != "")]
        _panel(axes, seeds, means, styles)
        if block:
            axes.set_title(str(block), size=8, loc="left", pad=4)
    panels[-1].set_xlabel("batch (images that share statistics)")
    _say_failures(panels[-1], frame)
    if legend:
        _legend(figure, panels[0], styles)
    return figure


def _panels(title: str, summary: pd.DataFrame, styles: dict[str, Style]) -> tuple[Figure, list[Axes], bool]:
    """The figure and an axes per block, stacked, with room for labels at the right or a legend at the foot."""
    count, legend = summary["block"].nunique(), len(styles) > DIRECT
    titled = 0.16 if any(summary["block"]) else 0.0
    foot = BOTTOM + (0.17 * _legend_rows(styles) + 0.12 if legend else 0)
    panel = HEIGHT - TOP - BOTTOM
    height = TOP + foot + count * (panel + titled) + (count - 1) * GAP
    figure = _canvas(height)
    room = RIGHT if legend else _label_room(figure, styles)
    spots = [(height - TOP - (k + 1) * (panel + titled) - k * GAP) / height for k in range(count)]
    box = (LEFT / WIDTH, (WIDTH - LEFT - room) / WIDTH)
    return figure, [figure.add_axes((box[0], y, box[1], panel / height)) for y in spots], legend


def _label_room(figure: Figure, styles: dict[str, Style]) -> float:
    """Inches that the longest label at a line's end needs."""
    return max(_text_width(figure, label) for label in styles) + 0.22


def _text_width(figure: Figure, label: str, size: float = 8) -> float:
    text = figure.text(0, 0, label, size=size)
    width = text.get_window_extent(figure.canvas.get_renderer()).width / figure.dpi  # type: ignore[attr-defined]
    text.remove()
    return float(width)


def _panel(axes: Axes, seeds: pd.DataFrame, means: pd.DataFrame, styles: dict[str, Style]) -> None:
    """One block's lines."""
    batches = sorted(means["batch"].unique())
    axes.set_xscale("log", base=2)
    axes.xaxis.set(major_locator=FixedLocator(batches), major_formatter=FixedFormatter([str(b) for b in batches]))
    axes.xaxis.set_minor_locator(NullLocator())
    side = 2 ** (0.04 * np.log2(batches[-1] / batches[0]) + 0.1) if len(batches) > 1 else 2**0.5
    axes.set_xlim(batches[0] / side, batches[-1] * side)
    _scale_y(axes, _top1(seeds).dropna())
    for line, cells in means.groupby("line", sort=False):
        _line(axes, seeds[seeds["line"] == line], cells.sort_values("batch"), styles[str(line)])
    _crosses(axes, means, styles)
    if len(styles) <= DIRECT:
        _name_ends(axes, means, styles)


def _top1(seeds: pd.DataFrame) -> pd.Series:
    return pd.to_numeric(seeds["top1"], errors="coerce").where(seeds["status"] == "ok")


def _line(axes: Axes, seeds: pd.DataFrame, cells: pd.DataFrame, style: Style) -> None:
    if cells["n"].max() > 1:
        ink = {"color": style.colour, "alpha": 0.35, "linewidths": 0}
        axes.scatter(list(seeds["batch"]), list(_top1(seeds)), s=7, marker=style.marker, **ink)
    x, y = list(cells["batch"]), list(cells["mean"])
    axes.plot(x, y, color=style.colour, linestyle=style.dashes, linewidth=1.2, zorder=3)
    whole = (cells["n_ok"] == cells["n"]).to_numpy()
    for faces, these in ((style.colour, whole), ("white", ~whole)):
        spots = np.where(these, y, np.nan)
        axes.plot(x, spots, style.marker, ms=4, color=style.colour, mfc=faces, mew=0.8, zorder=4)


def _scale_y(axes: Axes, values: pd.Series) -> None:
    """Linear in top-1, or logarithmic in the error where errors differ more than ``FOLD``-fold."""
    axes.set_ylabel("top-1 (%)")
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    error = (100 - values).clip(lower=0)
    least = max(float(error[error > 0].min()) / 2, 0.01) if (error > 0).any() else 1.0
    if error.max() <= FOLD * max(float(error.min()), least):
        span = max(float(values.max() - values.min()), 1.0)
        axes.set_ylim(values.min() - 0.12 * span, min(values.max() + 0.08 * span, 100 + 0.02 * span))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, min_n_ticks=3))
        return
    _scale_error(axes, least, float(error.min()), float(error.max()))


def _scale_error(axes: Axes, least: float, smallest: float, largest: float) -> None:
    """Equal steps for equal ratios of the error; an error below ``least`` (100 %) is drawn at it."""

    def forward(top1: np.ndarray) -> np.ndarray:
        return -np.log10(np.maximum(100 - np.asarray(top1, dtype=float), least))

    def inverse(place: np.ndarray) -> np.ndarray:
        return 100 - 10 ** -np.asarray(place, dtype=float)

    axes.set_yscale("function", functions=(forward, inverse))
    axes.set_ylim(100 - min(largest * 1.25, 130), 100 - max(smallest / 1.2, least))
    low, high = axes.get_ylim()
    nice = [0, 50, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.98]
    ticks = [tick for tick in nice if low <= tick <= high]
    axes.yaxis.set(major_locator=FixedLocator(ticks), major_formatter=FixedFormatter([f"{tick:g}" for tick in ticks]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("top-1 (%), log scale of the error")


def _crosses(axes: Axes, means: pd.DataFrame, styles: dict[str, Style]) -> None:
    """Cells without any result, side by side at the foot of their batch."""
    foot = axes.get_xaxis_transform()
    for batch, cells in means[means["n_ok"] == 0].groupby("batch"):
        step = 0.12 * (1 if len(cells) < 8 else 8 / len(cells))
        for k, line in enumerate(cells["line"]):
            x = float(batch) * 2 ** (step * (k - (len(cells) - 1) / 2))
            axes.plot(x, 0.03, "x", ms=4, mew=1.1, color=styles[line].colour, transform=foot, clip_on=False, zorder=5)


def _say_failures(axes: Axes, frame: pd.DataFrame) -> None:
    """The key to crosses and hollow markers, right below the x axis, only where there are any."""
    failed = sorted(set(frame.loc[frame["status"] != "ok", "status"]))
    if failed:
        axes.text(1, -0.155, f"× no result, ○ not every seed: {', '.join(failed)}", size=7, color="0.35",
                  ha="right", va="top", transform=axes.transAxes)  # fmt: skip


def _name_ends(axes: Axes, means: pd.DataFrame, styles: dict[str, Style]) -> None:
    """Each line's label at the right of its last point, moved apart where they would overlap."""
    ends = means[means["n_ok"] > 0].groupby("line", sort=False).tail(1)
    to_points = axes.transData.transform
    spots = {row.line: to_points((row.batch, row.mean)) for row in ends.itertuples()}
    box, scale = axes.get_window_extent(), axes.figure.dpi / 72
    heights = _apart({line: spot[1] for line, spot in spots.items()}, 9.2 * scale, box.y0, box.y1)
    x = box.x1 + 4 * scale
    back = axes.transData.inverted().transform
    for line, (end, y) in spots.items():
        colour = styles[line].colour
        text_at = axes.transAxes.inverted().transform((x, heights[line]))
        axes.text(*text_at, line, color=colour, va="center_baseline", transform=axes.transAxes, size=8)
        if abs(heights[line] - y) > 3 * scale or end < box.x1 - 30 * scale:
            path = back([(end + 4 * scale, y), (x - 2 * scale, heights[line])])
            axes.plot(*path.T, color=colour, linewidth=0.5, alpha=0.6, clip_on=False, scalex=False, scaley=False)


def _apart(heights: dict[str, float], least: float, low: float, high: float) -> dict[str, float]:
    """Heights at least ``least`` apart, in the same order, as near as can be to those wanted.

    Neighbours that are too close join into a stack around the mean of what its members want.
    """
    stacks: list[list[str]] = []
    for name in sorted(heights, key=lambda name: heights[name]):
        stacks.append([name])
        while len(stacks) > 1 and _foot(stacks[-1], heights, least) < _foot(stacks[-2], heights, least) + least * len(stacks[-2]):
            stacks[-2:] = [stacks[-2] + stacks[-1]]
    placed = {name: _foot(stack, heights, least) + k * least for stack in stacks for k, name in enumerate(stack)}
    lift = max(0.0, low - min(placed.values())) - max(0.0, max(placed.values()) - high)
    return {name: height + lift for name, height in placed.items()}


def _foot(stack: list[str], heights: dict[str, float], least: float) -> float:
    return sum(heights[name] for name in stack) / len(stack) - least * (len(stack) - 1) / 2


def _legend_columns(styles: dict[str, Style]) -> int:
    return max(1, min(6, int(4.2 / (0.42 + 0.068 * max(len(label) for label in styles)))))


def _legend_rows(styles: dict[str, Style]) -> int:
    return -(-len(styles) // _legend_columns(styles))


def _legend(figure: Figure, axes: Axes, styles: dict[str, Style]) -> None:
    handles = [
        axes.plot([], [], color=s.colour, linestyle=s.dashes, marker=s.marker, ms=4, linewidth=1.2, label=label)[0]
        for label, s in styles.items()
    ]
    figure.legend(
        handles=handles, loc="lower center", ncols=_legend_columns(styles), frameon=False, fontsize=7.5,
        handlelength=2.2, columnspacing=1.2, handletextpad=0.5, labelspacing=0.35, borderpad=0.2,
    )  # fmt: skip


# --- One batch: dots


def _dots(title: str, frame: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Lines of the table from top to bottom, top-1 along x."""
    rows = [(" ".join(part for part in (row.block, row.line) if part), row) for row in summary.itertuples()]
    figure = _canvas(0.62 + 0.19 * len(rows) + 0.05)
    left = max(_text_width(figure, label) for label, _ in rows) + 0.2
    figure.subplots_adjust(left / WIDTH, 0.46 / figure.get_figheight(), 1 - 0.5 / WIDTH, 1 - 0.1 / figure.get_figheight())
    axes = figure.add_subplot()
    styles = styled(list(dict.fromkeys(summary["line"])))
    for y, (_, row) in enumerate(rows):
        seeds = frame[(frame["line"] == row.line) & (frame["block"] == row.block)]
        _dot(axes, y, row, _top1(seeds).dropna(), styles[row.line])
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.08)
    axes.set_xlabel(f"top-1 (%) at batch {summary['batch'].iloc[0]}")
    return figure


def _dot(axes: Axes, y: float, row: object, seeds: pd.Series, style: Style) -> None:
    at_edge = {"transform": axes.get_yaxis_transform(), "va": "center", "size": 7.5, "color": "0.25"}
    words = row.text if row.n_ok == 0 else f"{row.mean:.1f}"  # type: ignore[attr-defined]
    axes.text(1.02 if row.n_ok else 0.02, y, words, **at_edge)  # type: ignore[attr-defined]
    if len(seeds) > 1:
        axes.scatter(list(seeds), [y] * len(seeds), s=8, marker=style.marker, color=style.colour, alpha=0.35, linewidths=0)
    face = style.colour if row.n_ok == row.n else "white"  # type: ignore[attr-defined]
    axes.plot(row.mean, y, style.marker, ms=5, color=style.colour, mfc=face, mew=0.8, zorder=4)  # type: ignore[attr-defined]


def styled(lines: list[str]) -> dict[str, Style]:
    """A colour and a marker per line: its home's if free, else the next; dashes once colours run out."""
    homes = _homes(lines)
    free = iter([c for c in COLOURS if c not in homes.values()])
    return {line: _style(k, homes.get(line), free, k) for k, line in enumerate(lines)}


def _homes(lines: list[str]) -> dict[str, str]:
    """The first line of each normalizer that has a colour of its own."""
    found: dict[str, str] = {}
    for line in lines:
        home = HOME.get(line.split(" ")[0])
        if home and home not in found.values():
            found[line] = home
    return found


def _style(k: int, home: str | None, free: Iterator[str], extra: int) -> Style:
    colour = home or next(free, None)
    if colour:
        return Style(COLOURS[colour], MARKERS[k % len(MARKERS)], DASHES[0])
    again = list(COLOURS)[extra % len(COLOURS)]
    return Style(COLOURS[again], MARKERS[k % len(MARKERS)], DASHES[1 + extra // len(COLOURS) % 2])
