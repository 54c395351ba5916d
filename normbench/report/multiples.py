"""Top-1 against batch for more lines than one panel can tell apart: a small panel each, the others in grey behind.

The baseline stands in every panel, dashed, so that each line is read against it and against the crowd.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from normbench.report.canvas import WIDTH, canvas, head, settled, text_width, wrapped
from normbench.report.chosen import baseline, most
from normbench.report.frame import Spot, grouped
from normbench.report.look import QUIET, Style, bar, by_interval, key, reach, styled
from normbench.report.scales import BATCH, octaves, top1
from normbench.report.sheet import NUMBER, Box, Sheet, frame

PANELS = 48  # more lines than this stand in the table alone
SIZE, LINE = 7.0, 0.12  # points and inches of a panel's name
TALL, ACROSS, LEFT, RIGHT = 0.62, 0.1, 0.36, 0.08  # inches: a panel, between two, the margins
HEAD, FOOT, BELOW = 0.06, 0.3, 0.16  # inches: above and below the panels of a block, below all
CROWD, FAINT = "0.85", 0.5


def multiples(title: str, spots: list[Spot], told: list[str]) -> Figure:
    """Rows of panels in the order of the table, a block after the other, all with the same axes."""
    kept, left_out = most(spots, PANELS)
    blocks = {block: list(grouped(entries, "line")) for block, entries in grouped(kept, "block").items()}
    columns, tall = _columns([line for lines in blocks.values() for line in lines])
    rows = {block: -(-len(lines) // columns) for block, lines in blocks.items()}
    said, keys = settled(told), _keys(spots, kept, left_out)
    height = head(said) + sum(HEAD + n * tall + FOOT for n in rows.values()) + BELOW + 0.13 * len(keys)
    sheet, top = Sheet(canvas(title, said, height)), head(said)
    styles = styled(list(grouped(spots, "line")))
    for block, lines in blocks.items():
        everything = [spot for spot in spots if spot.block == block]
        boxes = _boxes(sheet, block, everything, lines, columns, tall, top)
        _crowd(sheet, everything, list(boxes.values()))
        for line, box in boxes.items():
            own = sorted((spot for spot in everything if spot.line == line), key=lambda spot: spot.batch)
            _panel(sheet, box, own, styles[line], by_interval(spots))
        top += HEAD + rows[block] * tall + FOOT
    sheet.text(WIDTH / 2, top - 0.1, BATCH, 8, ha="center", va="top")
    for k, line in enumerate(keys):
        sheet.text(WIDTH / 2, top + 0.07 + 0.13 * k, line, 7, ha="center", va="top", color=QUIET)
    return sheet.figure


def _columns(lines: Sequence[str]) -> tuple[int, float]:
    """How many panels stand side by side, and the inches of one with its name."""
    widest = max(text_width(line, SIZE) for line in lines)
    columns = next((count for count in (4, 3) if widest <= _wide(count)), 2)
    return columns, TALL + 0.12 + LINE * max(len(wrapped(line, SIZE, _wide(columns))) for line in lines)


def _wide(columns: int) -> float:
    return (WIDTH - LEFT - RIGHT - ACROSS * (columns - 1)) / columns


def _boxes(
    sheet: Sheet, block: str, spots: list[Spot], lines: list[str], columns: int, tall: float, top: float
) -> dict[str, Box]:
    """The panels of a block, and its name and that of the scale above them."""
    batches, wide = sorted(grouped(spots, "batch")), _wide(columns)
    x = octaves(batches, _some(batches, wide), side=(batches[-1] / batches[0]) ** 0.05)
    y = top1([value for spot in spots for value in spot.values] or [0.0], reach(spots), apart=0.22, count=3)
    sheet.text(0.06, top - 0.05, " · ".join(filter(None, (block, y.name))), 7.5)
    boxes = {}
    for k, line in enumerate(lines):
        row, column = divmod(k, columns)
        left, foot = LEFT + column * (wide + ACROSS), top + HEAD + (row + 1) * tall
        boxes[line] = Box(left, foot - TALL, wide, TALL, x, y)
    edges = [(k % columns == 0, k + columns >= len(lines)) for k in range(len(lines))]
    frame(sheet, [(box, *edge) for box, edge in zip(boxes.values(), edges, strict=True)])
    return boxes


def _some(batches: Sequence[int], width: float) -> list[int]:
    """Every batch, or every second …, so that the numbers have room."""
    step = 1
    while sum(text_width(str(batch), NUMBER) + 0.08 for batch in batches[::step]) > width:
        step += 1
    return list(batches[::step])


def _crowd(sheet: Sheet, spots: list[Spot], boxes: list[Box]) -> None:
    """The same in every panel: all lines of the block in grey, the baseline dashed."""
    places = [(box.left, box.top) for box in boxes]
    corner = Box(0, 0, boxes[0].width, boxes[0].height, boxes[0].x, boxes[0].y)
    lines = {line: _path(corner, own) for line, own in grouped(spots, "line").items()}
    sheet.stamp(list(lines.values()), places, edgecolors=CROWD, linewidths=FAINT, zorder=1)
    if base := baseline(spots):
        sheet.stamp([lines[base]], places, edgecolors="black", linewidths=0.7, linestyles=[(0, (3, 1.5))], zorder=2)


def _path(box: Box, spots: list[Spot]) -> np.ndarray:
    own = sorted(spots, key=lambda spot: spot.batch)
    return box.at([spot.batch for spot in own], [spot.mean for spot in own])


def _panel(sheet: Sheet, box: Box, spots: list[Spot], style: Style, intervals: bool) -> None:
    name = "\n".join(wrapped(spots[0].line, SIZE, box.width))
    sheet.text(box.left, box.top - 0.03, name, SIZE, va="bottom", color=style.colour)
    sheet.lines([_path(box, spots)], colors=style.colour, lw=1.2, zorder=3)
    for failed in (False, True):
        some = [spot for spot in spots if bool(spot.failed) == failed]
        sheet.signs(_path(box, some), **style.mark(hollow=failed, size=2.8))
    seeds = [(spot.batch, value) for spot in spots if spot.n > 1 for value in spot.values]
    sheet.signs(box.at([x for x, _ in seeds], [y for _, y in seeds]), **style.faint() | {"ms": 2})
    bars = [(spot, ends) for spot in spots if (ends := bar(spot, intervals))]
    strokes = [box.at(spot.batch, [spot.mean - down, spot.mean + up]) for spot, (down, up) in bars]
    sheet.lines(strokes, colors=style.colour, lw=0.8, zorder=3)
    none = [spot.batch for spot in spots if not spot.values]
    crosses = np.array([(x, box.foot - 0.04) for x, _ in box.at(none, box.y.low)])
    sheet.signs(crosses, marker="x", ls="", color=style.colour, ms=3.2, mew=1, zorder=5)


def _keys(spots: list[Spot], kept: list[Spot], left_out: int) -> list[str]:
    """The lines below all panels."""
    base = baseline(spots)
    signs = "; ".join(filter(None, (key(kept), f"dashed: {base}" if base else "", "grey: the others")))
    more = f"{left_out} more lines, all with a lower mean, stand in the table" if left_out else ""
    return [*wrapped(signs, 7, WIDTH - 0.2), *wrapped(more, 7, WIDTH - 0.2)]
