"""Top-1 against batch for more lines than one panel can tell apart: a small panel each, the others in grey behind.

The baseline stands in every panel, dashed, so that each line is read against it and against the crowd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from normbench.report.canvas import WIDTH, axes_at, canvas, head, settled, text_width, wrapped, write_at
from normbench.report.chosen import baseline, most
from normbench.report.frame import Spot, grouped
from normbench.report.look import QUIET, Style, bar, by_interval, key, reach, scale, styled, ticks

PANELS = 48  # more lines than this stand in the table alone
SIZE, LINE = 7.0, 0.125  # points and inches of a panel's name, points of a number
TALL, ACROSS, LEFT, RIGHT = 0.62, 0.1, 0.36, 0.08  # inches: a panel, between two, the margins
HEAD, FOOT, BELOW = 0.22, 0.2, 0.46  # inches: above and below the panels of a block, below all
CROWD, FAINT = "0.84", 0.6


def multiples(title: str, spots: list[Spot], told: list[str]) -> Figure:
    """Rows of panels in the order of the table, a block after the other, all with the same axes."""
    kept, left_out = most(spots, PANELS)
    blocks = {block: list(grouped(entries, "line")) for block, entries in grouped(kept, "block").items()}
    columns, tall = _columns([line for lines in blocks.values() for line in lines])
    rows = {block: -(-len(lines) // columns) for block, lines in blocks.items()}
    said, top = settled(told), head(settled(told)) - 0.16
    figure = canvas(title, said, top + sum(HEAD + n * tall + FOOT for n in rows.values()) + BELOW)
    for block, lines in blocks.items():
        _block(figure, [spot for spot in spots if spot.block == block], lines, columns, tall, top)
        top += HEAD + rows[block] * tall + FOOT
    _key(figure, spots, kept, left_out, top)
    return figure


def _columns(lines: Sequence[str]) -> tuple[int, float]:
    """How many panels stand side by side, and the inches of one with its name."""
    widest = max(text_width(line, SIZE) for line in lines)
    columns = next((count for count in (4, 3) if widest <= _wide(count)), 2)
    return columns, TALL + 0.07 + LINE * max(len(wrapped(line, SIZE, _wide(columns))) for line in lines)


def _wide(columns: int) -> float:
    return (WIDTH - LEFT - RIGHT - ACROSS * (columns - 1)) / columns


def _block(figure: Figure, spots: list[Spot], lines: list[str], columns: int, tall: float, top: float) -> None:
    """``spots``: of all lines of the block; ``lines``: those that have a panel."""
    styles, entries = styled(list(grouped(spots, "line"))), grouped(spots, "line")
    base, wide = entries.get(baseline(spots) or ""), _wide(columns)
    for k, line in enumerate(lines):
        row, column = divmod(k, columns)
        place = (LEFT + column * (wide + ACROSS), top + HEAD + (row + 1) * tall - TALL)
        axes = axes_at(figure, *place, wide, TALL)
        _axes(axes, spots, left=column == 0, bottom=k + columns >= len(lines))
        if k == 0:
            name = " · ".join(part for part in (spots[0].block, axes.get_ylabel()) if part)
            write_at(figure, 0.06, top, name, 7.5)
        axes.set_ylabel("")
        axes.set_title("\n".join(wrapped(line, SIZE, wide)), size=SIZE, pad=2, loc="left", color=styles[line].colour)
        _crowd(axes, entries, base)
        _own(axes, sorted(entries[line], key=lambda spot: spot.batch), styles[line], by_interval(spots))


def _axes(axes: Axes, spots: list[Spot], *, left: bool, bottom: bool) -> None:
    batches = sorted(grouped(spots, "batch"))
    axes.set_xscale("log", base=2)
    side = (batches[-1] / batches[0]) ** 0.07
    axes.set_xlim(batches[0] / side, batches[-1] * side)
    ticks(axes.xaxis, _some(batches, axes.get_position().width * WIDTH))
    scale(axes, [value for spot in spots for value in spot.values], "y", reach(spots), small=True)
    axes.tick_params(labelsize=6.5, pad=1.5, length=2, labelleft=left, labelbottom=bottom)


def _some(batches: Sequence[int], width: float) -> list[int]:
    """Every batch, or every second …, so that the numbers have room."""
    step = 1
    while sum(text_width(str(batch), 6.5) + 0.08 for batch in batches[::step]) > width:
        step += 1
    return list(batches[::step])


def _crowd(axes: Axes, entries: Mapping[str, list[Spot]], base: list[Spot] | None) -> None:
    axes.add_collection(LineCollection([_path(own) for own in entries.values()], colors=CROWD, lw=FAINT, zorder=1))
    if base:
        axes.plot(*zip(*_path(base), strict=True), color="black", lw=0.7, ls=(0, (3, 1.5)), zorder=2)


def _path(spots: list[Spot]) -> list[tuple[float, float]]:
    return [(spot.batch, spot.mean) for spot in sorted(spots, key=lambda spot: spot.batch)]


def _own(axes: Axes, spots: list[Spot], style: Style, intervals: bool) -> None:
    axes.plot(*zip(*_path(spots), strict=True), color=style.colour, lw=1.2, zorder=3)
    for failed in (False, True):
        some = [(spot.batch, spot.mean) for spot in spots if spot.values and bool(spot.failed) == failed]
        axes.plot([x for x, _ in some], [y for _, y in some], **style.mark(hollow=failed, size=2.8))
    seeds = [(spot.batch, value) for spot in spots if spot.n > 1 for value in spot.values]
    axes.plot([x for x, _ in seeds], [y for _, y in seeds], **style.faint() | {"ms": 2})
    bars = [(spot.batch, spot.mean, *ends) for spot in spots if (ends := bar(spot, intervals))]
    if bars:
        x, y, down, up = zip(*bars, strict=True)
        axes.errorbar(x, y, yerr=[down, up], **style.bar() | {"capsize": 0})
    none = [spot.batch for spot in spots if not spot.values]
    foot = axes.get_xaxis_transform()
    axes.plot(none, [0.06] * len(none), "x", color=style.colour, ms=3.2, mew=1, clip_on=False, zorder=5, transform=foot)


def _key(figure: Figure, spots: list[Spot], kept: list[Spot], left_out: int, top: float) -> None:
    base = baseline(spots)
    signs = (key(kept), f"dashed: {base}" if base else "", "grey: the others")
    write_at(figure, WIDTH / 2, top, "batch (images that share statistics)", 8, ha="center")
    write_at(figure, WIDTH / 2, top + 0.16, "; ".join(filter(None, signs)), 7, ha="center", color=QUIET)
    if left_out:
        more = f"{left_out} more lines, all with a lower mean, stand in the table"
        write_at(figure, WIDTH / 2, top + 0.29, more, 7, ha="center", color=QUIET)
