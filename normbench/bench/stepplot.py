"""What ``step`` found: images per second and how many times the plain loop's, against the images of a step; bars of
where a step's time goes, as long as it takes beside the plain loop's. Of a single batch there are only the bars.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from normbench.bench.breakdown import PARTS
from normbench.bench.loops import PLAIN, LoopRow
from normbench.bench.plot import picture
from normbench.bench.sheet import two
from normbench.bench.statistics import BASELINE
from normbench.bench.steptable import TITLE
from normbench.report.canvas import shortened, text_width
from normbench.report.look import COLOURS, FONT, GRID, QUIET, Style, styled, ticks

WIDTH, LINES, BAR = 7.2, 2.0, 0.145  # inches: of the figure; height of the upper axes, of a bar
TOP, GAP, FOOT, SIDE = 0.56, 0.66, 0.76, 0.5  # inches: head, between the rows of axes, below the bars, beside the lines
BACK = {"boxstyle": "square,pad=0.1", "fc": "white", "lw": 0}  # of a number, so that no line crosses it
BETWEEN = 0.2  # inches between two axes of bars
FILLS = dict(zip(PARTS, ("orange", "blue", "vermillion", "green", "sky", "grey"), strict=True))
NAMED = {"python": "launch and Python", "norm": "norm and activation"}
# First digits of the ticks where the largest value is more than so many times the least.
DIGITS = ((12, (1, 2, 5)), (2, (1, 1.5, 2, 3, 5, 7)), (0, (1, 1.2, 1.5, 1.8, 2.2, 3, 4, 5, 6, 8)))
FIXED = {PLAIN: Style("0.45", "s", (0, (4, 1.5))), BASELINE: Style("0.45", "D", (0, (1, 1.2)))}


def draw(rows: Sequence[LoopRow], about: str) -> dict[str, bytes]:
    """``{"png": …, "svg": …}``; ``about``: the machine."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own style would change the bytes
        matplotlib.rcParams.update(FONT)
        figure = _figure([row for row in rows if row.measured], about)
        return {kind: picture(figure, kind) for kind in ("png", "svg")}


def _figure(rows: list[LoopRow], about: str) -> Figure:
    names = list(dict.fromkeys(row.name for row in rows))
    steps = sorted({row.images for row in rows})
    above = LINES + GAP if len(steps) > 1 else 0.2
    height = TOP + above + BAR * len(names) + FOOT
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    title = shortened(f"{TITLE} ({rows[0].network})", 9, WIDTH - 0.12)
    figure.text(0.06 / WIDTH, 1 - 0.06 / height, title, va="top", size=9)
    told = shortened(about, 7, WIDTH - 0.12)
    figure.text(0.06 / WIDTH, 1 - 0.23 / height, told, va="top", size=7, color=QUIET)
    styles = FIXED | styled([name for name in names if name not in FIXED])
    _bars(figure, height, rows, names, steps, styles)
    if len(steps) == 1:
        return figure
    half = (WIDTH - 2 * SIDE - 0.14) / 2
    for k, (value, label) in enumerate((("images_per_s", "images/s"), ("over_plain", "× plain loop"))):
        left = SIDE + k * (half + SIDE)
        axes = figure.add_axes((left / WIDTH, 1 - (TOP + LINES) / height, half / WIDTH, LINES / height))
        _lines(axes, rows, names, styles, value, label)
    return figure


def _lines(axes: Axes, rows: list[LoopRow], names: list[str], styles: dict[str, Style], value: str, label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for name in names:
        own = [row for row in rows if row.name == name and math.isfinite(getattr(row, value))]
        places, values = [row.images for row in own], [getattr(row, value) for row in own]
        style = styles[name]
        axes.plot(places, values, color=style.colour, ls=style.dashes, marker=style.marker, lw=1.1, ms=3.5, mew=0)
        if value == "over_plain":
            for row in own:
                axes.plot([row.images] * 2, [row.over_plain_q25, row.over_plain_q75], color=style.colour, lw=0.7)
    images = sorted({row.images for row in rows})
    axes.set_xlim(images[0] / 1.25, images[-1] * 1.25)
    ticks(axes.xaxis, images)
    ends = (value, "over_plain_q25", "over_plain_q75") if value == "over_plain" else (value,)
    found = [getattr(row, end) for row in rows for end in ends if math.isfinite(getattr(row, end))]
    if found:
        _round(axes, min(found), max(found))
    axes.set_xlabel("images of a step")
    axes.set_title(label, size=8, loc="left", pad=3)
    axes.grid(axis="y", color=GRID, linewidth=0.6)


def _round(axes: Axes, low: float, high: float) -> None:
    """Limits a little beyond the values; round numbers as ticks, fewer where many would fit."""
    low, high = low / 1.12, high * 1.12
    axes.set_ylim(low, high)
    digits = next(digits for span, digits in DIGITS if high / low > span)
    places = [digit * 10.0**power for power in range(-3, 7) for digit in digits]
    ticks(axes.yaxis, [place for place in places if low <= place <= high])


def _bars(
    figure: Figure, height: float, rows: list[LoopRow], names: list[str], steps: list[int], styles: dict[str, Style]
) -> None:
    """An axes per images of a step, a bar per loop, the parts of its step in the order of the table."""
    names_width = max(text_width(name, 7) for name in names) + 0.24
    across = (WIDTH - names_width - 0.14 - BETWEEN * (len(steps) - 1)) / len(steps)
    longest = max([1.0, *(1 / row.over_plain for row in rows if math.isfinite(row.over_plain))])
    for k, images in enumerate(steps):
        left = names_width + k * (across + BETWEEN)
        box = (left / WIDTH, FOOT / height, across / WIDTH, BAR * len(names) / height)
        axes = figure.add_axes(box)
        for line, name in enumerate(names):
            own = next((row for row in rows if (row.name, row.images) == (name, images)), None)
            if own is not None and math.isfinite(own.over_plain):
                _bar(axes, line, own)
            if k == 0:
                _name(axes, line, name, styles[name], signed=len(steps) > 1)
        workers = max(row.workers for row in rows)
        title = f"{images} images" + (f", {images // workers} × {workers}" if workers > 1 else "")
        axes.set_title(title, size=7.5, loc="left", pad=3)
        axes.set(xlim=(0, longest / (1 - 0.3 / across)), ylim=(len(names) - 0.4, -0.6))
        axes.set_yticks([])
        axes.tick_params(axis="x", labelsize=6.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6 if len(steps) < 3 else 4, prune="upper"))
        axes.axvline(1, color="black", lw=0.6, zorder=1)
        axes.spines["left"].set_visible(False)
    middle = (names_width + (WIDTH - names_width - 0.14) / 2) / WIDTH
    figure.text(middle, 0.43 / height, "time of a step over the plain loop's", ha="center", va="bottom")
    said = "at the right of a bar: time over that of the untouched network in the same loop, nn.BatchNorm2d"
    figure.text(0.06 / WIDTH, 0.27 / height, said, size=7, color=QUIET, va="bottom")
    figure.legend(
        handles=[Patch(color=COLOURS[FILLS[part]], label=NAMED.get(part, part)) for part in PARTS],
        loc="lower left", bbox_to_anchor=(0.0, 0.0), ncols=len(PARTS), frameon=False, fontsize=7.5,
        handlelength=0.9, columnspacing=1.2, handletextpad=0.4, borderpad=0.3,
    )  # fmt: skip


def _bar(axes: Axes, line: int, row: LoopRow) -> None:
    start, length = 0.0, 1 / row.over_plain
    if math.isfinite(row.ratio) and row.kind == "norm":
        axes.annotate(
            two(row.ratio), (length, line), (2, 0), textcoords="offset points", size=6, va="center", bbox=BACK
        )
    if not math.isfinite(row.data):  # not profiled on this device
        axes.barh(line, length, height=0.72, color="0.8")
        return
    for part in PARTS:
        share = getattr(row, part)
        axes.barh(line, share * length, left=start, height=0.72, color=COLOURS[FILLS[part]], lw=0, zorder=2)
        start += share * length


def _name(axes: Axes, line: int, name: str, style: Style, *, signed: bool) -> None:
    """The loop's name, ``signed`` with the sign of its line above: the legend of the lines too."""
    where = axes.get_yaxis_transform()
    width = axes.get_window_extent().width / axes.figure.dpi
    axes.text(-(0.20 if signed else 0.05) / width, line, name, size=7, ha="right", va="center", transform=where)
    if not signed:
        return
    mark = Line2D(
        [-0.15 / width, -0.03 / width], [line, line], color=style.colour, marker=style.marker, ms=3, lw=1.1, mew=0,
        ls=style.dashes, markevery=[0], transform=where, clip_on=False,
    )  # fmt: skip
    axes.add_line(mark)
