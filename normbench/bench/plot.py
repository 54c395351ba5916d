"""Cost against size: a panel per contestant, time over nn.BatchNorm2d + ReLU against the bytes of the input.

Every dot is a shape at a batch, the median of its rounds; lines join geometric means of dots of about the same size.
The grey line, the same in all panels, is a copy of the input. Both axes are logarithmic and the same everywhere. Whole
training steps are drawn alike, against the batch.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter

from normbench.bench.results import Row
from normbench.bench.sheet import two
from normbench.bench.statistics import BASELINE, COPY, geo_mean
from normbench.bench.table import STEPS_TITLE, UNITS_TITLE
from normbench.report.canvas import shortened, text_width
from normbench.report.look import COLOURS, FONT, GRID, QUIET, ticks

WIDTH, PANEL = 7.2, 1.12  # inches: of the figure, height of a panel
LEFT, RIGHT, TOP, BOTTOM, GAP_X, GAP_Y = 0.52, 0.14, 1.0, 0.46, 0.16, 0.32  # inches
COLUMNS = 5
LOWEST = 0.1  # ratios of the copy below it are not drawn: they would leave the others no room
OCTAVES = 1.5  # of bytes that one point of a line stands for
COPIES = "0.72"  # grey
# Layout by colour, dtype by how it is drawn: told apart without colours too.
LOOKS: dict[str, dict[str, Any]] = {
    "contiguous float32": {"color": COLOURS["blue"], "marker": "o"},
    "contiguous bfloat16": {"color": COLOURS["sky"], "marker": "D"},
    "channels_last float32": {"color": COLOURS["vermillion"], "marker": "s"},
    "channels_last bfloat16": {"color": COLOURS["orange"], "marker": "^"},
}
SIZES = {2**7: "128 B", 2**10: "1 KiB", 2**13: "8 KiB", 2**16: "64 KiB", 2**19: "512 KiB",
         2**22: "4 MiB", 2**25: "32 MiB", 2**28: "256 MiB", 2**31: "2 GiB"}  # fmt: skip


def draw(rows: Sequence[Row], about: str, *, steps: bool = False) -> dict[str, bytes]:
    """``{"png": …, "svg": …}``; ``about``: the machine; ``steps``: whole training steps, against the batch."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own style would change the bytes
        matplotlib.rcParams.update(FONT)
        figure = _figure([row for row in rows if row.measured], about, steps)
        return {kind: picture(figure, kind) for kind in ("png", "svg")}


def picture(figure: Figure, kind: str) -> bytes:
    """The file, the same bytes every time."""
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=200, metadata={"Software": None} if kind == "png" else {"Date": None})
    return data.getvalue()


def _figure(rows: list[Row], about: str, steps: bool) -> Figure:
    names = [name for name in dict.fromkeys(row.name for row in rows) if name not in (BASELINE, COPY)]
    down = max(1, math.ceil(len(names) / COLUMNS))
    across = max(math.ceil(len(names) / down), 2)  # evenly filled
    height = TOP + down * (PANEL + GAP_Y) - GAP_Y + BOTTOM
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    _head(figure, height, rows, about, steps)
    panel = (WIDTH - LEFT - RIGHT - (across - 1) * GAP_X) / across
    for k, name in enumerate(names):
        line, column = divmod(k, across)
        foot = height - TOP - line * (PANEL + GAP_Y) - PANEL
        box = ((LEFT + column * (panel + GAP_X)) / WIDTH, foot / height, panel / WIDTH, PANEL / height)
        axes = figure.add_axes(box)
        _scales(axes, rows, steps, left=column == 0, bottom=k + across >= len(names))
        _panel(axes, [row for row in rows if row.name == name], [row for row in rows if row.name == COPY], steps)
    x = "batch" if steps else "bytes of the input"
    figure.text((LEFT + (WIDTH - LEFT - RIGHT) / 2) / WIDTH, 0.06 / height, x, ha="center", va="bottom")
    middle = (BOTTOM + (height - TOP - BOTTOM) / 2) / height
    figure.text(0.05 / WIDTH, middle, "time over nn.BatchNorm2d", rotation=90, ha="left", va="center")
    return figure


def _head(figure: Figure, height: float, rows: list[Row], about: str, steps: bool) -> None:
    """Title, machine, what the colours and lines mean."""
    title = STEPS_TITLE if steps else UNITS_TITLE
    if steps:
        title += f" ({', '.join(dict.fromkeys(row.network for row in rows))})"
    figure.text(0.06 / WIDTH, 1 - 0.06 / height, shortened(title, 9, WIDTH - 0.12), va="top", size=9)
    figure.text(0.06 / WIDTH, 1 - 0.23 / height, shortened(about, 7, WIDTH - 0.12), va="top", size=7, color=QUIET)
    columns = [column for column in LOOKS if any(row.column == column for row in rows)]
    _key(
        figure, 1 - 0.33 / height, [Line2D([], [], lw=1.1, ms=3.5, label=column, **LOOKS[column]) for column in columns]
    )
    lines = [Line2D([], [], color="black", lw=0.8, label="nn.BatchNorm2d" if steps else "nn.BatchNorm2d + ReLU")]
    if any(row.name == COPY for row in rows):
        lines.append(Line2D([], [], color=COPIES, lw=1.1, label="a copy of the input"))
    _key(figure, 1 - 0.50 / height, lines)
    said: dict[str, Any] = {"size": 7, "color": QUIET, "ha": "right", "va": "top"}
    figure.text(1 - RIGHT / WIDTH, 1 - 0.60 / height, "at the right of a name: the geometric mean of its dots", **said)


def _key(figure: Figure, top: float, handles: list[Line2D]) -> None:
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.0, top), ncols=len(handles), frameon=False,
        fontsize=7.5, handlelength=1.8, columnspacing=1.4, handletextpad=0.4, borderpad=0.3,
    )  # fmt: skip


def _scales(axes: Axes, rows: list[Row], steps: bool, *, left: bool, bottom: bool) -> None:
    """The same limits in every panel; numbers at the left and at the foot only."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    _scale_sizes(axes, [_size(row, steps) for row in rows], steps)
    ratios = [max(row.ratio, LOWEST) if row.name == COPY else row.ratio for row in rows if row.name != BASELINE]
    low, high = min([*ratios, 0.5]) / 1.15, max([*ratios, 2.0]) * 1.15
    axes.set_ylim(low, high)
    powers = [k for k in range(-12, 13) if low <= 2.0**k <= high]
    powers = [k for k in powers if k % math.ceil(len(powers) / 6) == 0]
    ticks(axes.yaxis, [2.0**k for k in powers])
    axes.yaxis.set_major_formatter(FixedFormatter([f"{2**k}" if k >= 0 else f"1/{2**-k}" for k in powers]))
    axes.tick_params(axis="x", labelsize=6.5, labelbottom=bottom)
    axes.tick_params(axis="y", labelsize=7, labelleft=left)
    axes.grid(axis="y", color=GRID, linewidth=0.6)


def _scale_sizes(axes: Axes, sizes: list[float], steps: bool) -> None:
    """Bytes get as many round numbers as have room, batches their own."""
    low, high = min(sizes), max(sizes)
    side = 2 ** (0.04 * math.log2(high / low) + 0.3)
    axes.set_xlim(low / side, high * side)
    if steps:
        ticks(axes.xaxis, sorted(set(sizes)))
        return
    there = [place for place in SIZES if low / side <= place <= high * side]
    places = there[:: math.ceil(len(there) / 3)] if there else []
    ticks(axes.xaxis, places)
    axes.xaxis.set_major_formatter(FixedFormatter([SIZES[place] for place in places]))


def _panel(axes: Axes, rows: list[Row], copies: list[Row], steps: bool) -> None:
    axes.axhline(1, color="black", lw=0.8, zorder=2)
    if copies:
        axes.plot(*_line(copies, steps), color=COPIES, lw=1.1, zorder=1)
    for column, look in LOOKS.items():
        own = [row for row in rows if row.column == column]
        if own:
            places = [_size(row, steps) for row in own]
            axes.plot(places, [row.ratio for row in own], ls="", ms=2.2, mew=0, alpha=0.4, zorder=3, **look)
            axes.plot(*_line(own, steps), lw=1.1, ms=3, mew=0, zorder=4, **look)
    mean = two(geo_mean(row.ratio for row in rows))
    width = axes.get_window_extent().width / axes.figure.dpi - text_width(mean, 7.5) - 0.08
    size = next((size for size in (8, 7, 6.3) if text_width(rows[0].name, size) <= width), 6.3)
    axes.set_title(shortened(rows[0].name, size, width), size=size, loc="left", pad=3)
    axes.text(1, 1.03, mean, size=7.5, ha="right", va="bottom", color=QUIET, transform=axes.transAxes)


def _size(row: Row, steps: bool) -> float:
    return row.N if steps else row.mib * 2**20


def _line(rows: Sequence[Row], steps: bool) -> tuple[list[float], list[float]]:
    """Sizes and ratios: geometric means over rows of about the same size."""
    bins: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        bins[round(math.log2(_size(row, steps)) / (0.01 if steps else OCTAVES))].append(row)
    some = [rows for _, rows in sorted(bins.items())]
    places = [geo_mean(_size(row, steps) for row in rows) for rows in some]
    return places, [geo_mean(row.ratio for row in rows) for rows in some]
