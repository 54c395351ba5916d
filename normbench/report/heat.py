"""A heat map norm × batch of mean top-1: every number is written in its box, what has no result is hatched and named.

The boxes stand as in the table. The colours are cividis, as even and as plain to the colour-blind as to others; where
errors differ more than eightfold they follow the logarithm of the error, as the axis of the plot does.
"""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from normbench.report.canvas import WIDTH, canvas, head, rendered, settled, shortened, text_width, wrapped
from normbench.report.chosen import most
from normbench.report.frame import Spot, grouped
from normbench.report.look import QUIET
from normbench.report.scales import BATCH, Scale, numeral, top1
from normbench.report.sheet import GAP, TICK, Sheet

NAME = "heat"
LINES, COLUMNS = 60, 12  # more lines stand in the table alone; more batches go below, in a part of their own
ROW, LEFT, RIGHT, PART, BELOW = 0.165, 0.06, 0.06, 0.3, 0.46  # inches: a row, margins, above a part, below all
WORDS, VALUE, LEAST = 7.5, 7.0, 6.5  # points: names, numbers, the smallest of them
NAMES = 0.42  # the largest share of the width for names
SHORT = {"diverged": "div.", "interrupted": "int.", "killed": "kill.", "timeout": "time", "skipped": "skip.",
         "error": "err.", "no top-1": "none"}  # fmt: skip
PARTLY = "°"


def draw(title: str, spots: list[Spot], told: list[str]) -> dict[str, bytes]:
    """``{"png": …, "svg": …}``; nothing unless there are two boxes and a result."""
    if len(spots) < 2 or not any(spot.values for spot in spots):
        return {}
    return rendered(NAME, lambda: figure(title, spots, told))


def figure(title: str, spots: list[Spot], told: list[str]) -> Figure:
    """A map per block, below each other, with one scale of colours."""
    kept, left_out = most(spots, LINES)
    parts = [part for block in grouped(kept, "block").values() for part in _parts(block)]
    said = settled(told)
    rows = sum(len(grouped(part, "line")) for part in parts)
    keys = _keys(kept, left_out)
    sheet = Sheet(canvas(title, said, head(said) + rows * ROW + PART * len(parts) + BELOW + 0.13 * len(keys)))
    scale = _scale([spot.mean for spot in kept if spot.values])
    left = LEFT + 0.08 + min(max(text_width(spot.line, WORDS) for spot in kept), NAMES * WIDTH)
    top = head(said)
    for part in parts:
        top = _map(sheet, part, scale, left, top + PART)
    _bar(sheet, scale, left, top + 0.08)
    for k, line in enumerate(keys):
        sheet.text(WIDTH / 2, top + BELOW + 0.13 * k, line, 7, ha="center", va="top", color=QUIET)
    return sheet.figure


def _parts(spots: list[Spot]) -> list[list[Spot]]:
    """Some of the batches each."""
    batches = sorted(grouped(spots, "batch"))
    count = -(-len(batches) // COLUMNS)
    size = -(-len(batches) // count)
    some = [set(batches[k : k + size]) for k in range(0, len(batches), size)]
    return [[spot for spot in spots if spot.batch in these] for these in some]


def _scale(means: list[float]) -> Scale:
    """From the lowest to the highest mean."""
    found = top1(means, apart=0.11)
    low, high = min(means), max(means)
    if high - low < 0.1:
        low, high = low - 0.05, high + 0.05
    ticks = tuple(tick for tick in found.ticks if low <= tick <= high)
    return Scale(found.forward, found.inverse, low, high, ticks, found.name)


def _map(sheet: Sheet, spots: list[Spot], scale: Scale, left: float, top: float) -> float:
    """Returns where it ends."""
    lines, batches = list(grouped(spots, "line")), sorted(grouped(spots, "batch"))
    wide = (WIDTH - RIGHT - left) / max(len(batches), 4)
    if spots[0].block:
        sheet.text(LEFT, top - 0.08, shortened(spots[0].block, WORDS, left - 0.1), WORDS, weight="bold")
    for k, batch in enumerate(batches):
        sheet.text(left + (k + 0.5) * wide, top - 0.08, str(batch), WORDS, ha="center")
    for k, line in enumerate(lines):
        name = shortened(line, WORDS, left - LEFT - 0.08)
        sheet.text(left - 0.08, top + (k + 0.5) * ROW, name, WORDS, ha="right")
    boxes = {id(spot): (left + batches.index(spot.batch) * wide, top + lines.index(spot.line) * ROW) for spot in spots}
    _boxes(sheet, [(spot, *boxes[id(spot)]) for spot in spots], wide, scale)
    return top + len(lines) * ROW


def _boxes(sheet: Sheet, placed: list[tuple[Spot, float, float]], wide: float, scale: Scale) -> None:
    """Numbers in black or white, whichever is easier to read; hatched where there is none."""
    full = [(spot, x, y) for spot, x, y in placed if spot.values]
    none = [(spot, x, y) for spot, x, y in placed if not spot.values]
    colours = colormaps["cividis"](scale.share([spot.mean for spot, _, _ in full]))
    _fill(sheet, [(x, y) for _, x, y in full], wide, facecolors=colours, edgecolors="white", lw=0.8)
    hatched = {"facecolors": "white", "edgecolors": "0.8", "hatch": "/////", "lw": 0.8}
    _fill(sheet, [(x, y) for _, x, y in none], wide, **hatched)
    size = VALUE if wide > 0.34 else LEAST
    for (spot, x, y), colour in zip(full, colours, strict=True):
        text = f"{spot.mean:.1f}" if wide > 0.27 else f"{spot.mean:.0f}"
        _write(sheet, x + wide / 2, y, text + PARTLY * bool(spot.failed), size, readable(colour), spot.best)
    for spot, x, y in none:
        word = named(spot, wide - 0.03)
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        sheet.text(x + wide / 2, y + ROW / 2, word, LEAST, ha="center", color="0.15", bbox=ground)


def _fill(sheet: Sheet, corners: list[tuple[float, float]], wide: float, **options: object) -> None:
    boxes = [[(x, y), (x + wide, y), (x + wide, y + ROW), (x, y + ROW)] for x, y in corners]
    if boxes:
        sheet.axes.add_collection(PolyCollection(boxes, **options), autolim=False)


def _write(sheet: Sheet, x: float, y: float, text: str, size: float, colour: str, bold: bool) -> None:
    sheet.text(x, y + ROW / 2, text, size, ha="center", color=colour, weight="bold" if bold else "normal")


def named(spot: Spot, width: float) -> str:
    """How a spot without any result ended, in so many inches: ``diverged``, ``div.``; the commonest way of several."""
    status = max(sorted(spot.failed), key=lambda status: spot.failed[status], default="none")
    word = status if text_width(status, LEAST) <= width else SHORT.get(status, status)
    return shortened(word, LEAST, width)


def readable(colour: np.ndarray) -> str:
    """Black or white, by the contrast of WCAG 2 with ``colour``: the higher of the two is never below 4.5."""
    rgb = np.asarray(colour[:3], dtype=float)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"


def _bar(sheet: Sheet, scale: Scale, left: float, top: float) -> None:
    """What the colours mean, as a bar below the map."""
    right, tall, steps = WIDTH - RIGHT, 0.08, 128
    edges = np.linspace(left, right, steps + 1)
    boxes = [[(a, top), (b, top), (b, top + tall), (a, top + tall)] for a, b in zip(edges, edges[1:], strict=False)]
    colours = colormaps["cividis"](np.linspace(0, 1, steps))
    sheet.axes.add_collection(PolyCollection(boxes, facecolors=colours, edgecolors="face", lw=0.2), autolim=False)
    for tick, share in zip(scale.ticks, scale.share(scale.ticks), strict=True):
        x = left + (right - left) * float(share)
        sheet.lines([np.array([(x, top + tall), (x, top + tall + TICK)])], colors="black", lw=0.6)
        sheet.text(x, top + tall + GAP, numeral(tick), LEAST, ha="center", va="top")
    name = shortened(scale.name, LEAST, WIDTH - 0.2)
    sheet.text(right, top + tall + GAP + 0.12, name, LEAST, ha="right", va="top")


def _keys(spots: list[Spot], left_out: int) -> list[str]:
    shorts = {status: SHORT[status] for spot in spots if not spot.values for status in spot.failed if status in SHORT}
    parts = (
        f"columns: {BATCH}",
        "mean top-1 over seeds" if any(spot.n > 1 for spot in spots) else "",
        "bold: best of its batch" if any(spot.best for spot in spots) else "",
        f"hatched: no result ({', '.join(f'{short} {status}' for status, short in shorts.items())})" if shorts else "",
        f"{PARTLY} not from every seed" if any(spot.values and spot.failed for spot in spots) else "",
        f"{left_out} more lines, all with a lower mean, stand in the table" if left_out else "",
    )
    return wrapped("; ".join(filter(None, parts)), 7, WIDTH - 0.2)
