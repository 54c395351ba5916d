"""A heat map norm × batch of mean top-1: every number is written in its box, what has no result is hatched and named.

The boxes stand as in the table. The colours are cividis, as even and as plain to the colour-blind as to others; where
errors differ more than eightfold they follow the logarithm of the error, as the axis of the plot does.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from normbench.report.canvas import WIDTH, canvas, head, rendered, settled, shortened, text_width, wrapped
from normbench.report.chosen import most
from normbench.report.frame import Spot, grouped
from normbench.report.look import QUIET, numeral
from normbench.report.scales import BATCH, Scale, top1
from normbench.report.sheet import GAP, TICK, Sheet

NAME = "heat"
LINES, COLUMNS = 60, 12  # more lines stand in the table alone; more batches go below, in a part of their own
ROW, LINE, LEFT, RIGHT = 0.165, 0.115, 0.06, 0.06  # inches: a row, one more line of its name, margins
PART, BELOW = 0.26, 0.46  # inches: above a part, below all
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
    said, most_batches = settled(told), max(len(grouped(part, "batch")) for part in parts)
    names = {spot.line: wrapped(spot.line, WORDS, NAMES * WIDTH) for spot in kept}
    left = LEFT + 0.08 + max(text_width(text, WORDS) for lines in names.values() for text in lines)
    shape = _Shape(
        left, (WIDTH - RIGHT - left) / max(most_batches, 4), ROW + LINE * (max(map(len, names.values())) - 1)
    )
    rows = sum(len(grouped(part, "line")) for part in parts)
    keys = _keys(kept, left_out, shape)
    height = head(said) - 0.1 + rows * shape.row + PART * len(parts) + BELOW + 0.13 * len(keys)
    sheet, top = Sheet(canvas(title, said, height)), head(said) - 0.1
    scale = _scale([spot.mean for spot in kept if spot.values])
    for part in parts:
        top = _map(sheet, part, names, shape, scale, top + PART)
    _bar(sheet, scale, left, max(left + most_batches * shape.wide, left + 1.5), top + 0.08)
    for k, line in enumerate(keys):
        sheet.text(WIDTH / 2, top + BELOW + 0.13 * k, line, 7, ha="center", va="top", color=QUIET)
    return sheet.figure


@dataclass(frozen=True)
class _Shape:
    """Inches: where the boxes begin, and how wide and tall each of them is."""

    left: float
    wide: float
    row: float


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


def _map(
    sheet: Sheet, spots: list[Spot], names: dict[str, list[str]], shape: _Shape, scale: Scale, top: float
) -> float:
    """Returns where it ends."""
    lines, batches = list(grouped(spots, "line")), sorted(grouped(spots, "batch"))
    left, wide, row = shape.left, shape.wide, shape.row
    if spots[0].block:
        sheet.text(LEFT, top - 0.08, shortened(spots[0].block, WORDS, left - 0.1), WORDS, weight="bold")
    for k, batch in enumerate(batches):
        sheet.text(left + (k + 0.5) * wide, top - 0.08, str(batch), WORDS, ha="center")
    for k, line in enumerate(lines):
        name = "\n".join(names[line])
        sheet.text(left - 0.08, top + (k + 0.5) * row, name, WORDS, ha="right", va="center", linespacing=1.0)
    places = [(left + batches.index(spot.batch) * wide, top + lines.index(spot.line) * row) for spot in spots]
    _boxes(sheet, [(spot, *place) for spot, place in zip(spots, places, strict=True)], shape, scale)
    return top + len(lines) * row


def _boxes(sheet: Sheet, placed: list[tuple[Spot, float, float]], shape: _Shape, scale: Scale) -> None:
    """Numbers in black or white, whichever is easier to read; hatched where there is none."""
    full = [(spot, x, y) for spot, x, y in placed if spot.values]
    none = [(spot, x, y) for spot, x, y in placed if not spot.values]
    colours = colormaps["cividis"](scale.share([spot.mean for spot, _, _ in full]))
    _fill(sheet, [(x, y) for _, x, y in full], shape, facecolors=colours, edgecolors="white", lw=0.8)
    _fill(sheet, [(x, y) for _, x, y in none], shape, facecolors="white", edgecolors="0.8", hatch="/////", lw=0.8)
    size, digits = VALUE if shape.wide > 0.34 else LEAST, 1 if shape.wide > 0.27 else 0
    for (spot, x, y), colour in zip(full, colours, strict=True):
        look = {"color": readable(colour), "weight": "bold" if spot.best else "normal"}
        text = f"{spot.mean:.{digits}f}" + PARTLY * bool(spot.failed)
        sheet.text(x + shape.wide / 2, y + shape.row / 2, text, size, ha="center", **look)
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    for spot, x, y in none:
        word = named(spot, shape.wide - 0.03)
        sheet.text(x + shape.wide / 2, y + shape.row / 2, word, LEAST, ha="center", color="0.15", bbox=ground)


def _fill(sheet: Sheet, corners: list[tuple[float, float]], shape: _Shape, **options: Any) -> None:
    wide, row = shape.wide, shape.row
    boxes = [[(x, y), (x + wide, y), (x + wide, y + row), (x, y + row)] for x, y in corners]
    if boxes:
        sheet.axes.add_collection(PolyCollection(boxes, **options), autolim=False)


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


def _bar(sheet: Sheet, scale: Scale, left: float, right: float, top: float) -> None:
    """What the colours mean, as a bar below the map."""
    tall, steps = 0.08, 128
    edges = np.linspace(left, right, steps + 1)
    boxes = [[(a, top), (b, top), (b, top + tall), (a, top + tall)] for a, b in itertools.pairwise(edges)]
    colours = colormaps["cividis"](np.linspace(0, 1, steps))
    sheet.axes.add_collection(PolyCollection(boxes, facecolors=colours, edgecolors="face", lw=0.2), autolim=False)
    for tick, share in zip(scale.ticks, scale.share(scale.ticks), strict=True):
        x = left + (right - left) * float(share)
        sheet.lines([np.array([(x, top + tall), (x, top + tall + TICK)])], colors="black", lw=0.6)
        sheet.text(x, top + tall + GAP, numeral(tick), LEAST, ha="center", va="top")
    sheet.text(right, top + tall + GAP + 0.12, scale.name, LEAST, ha="right", va="top")


def _keys(spots: list[Spot], left_out: int, shape: _Shape) -> list[str]:
    none = [spot for spot in spots if not spot.values]
    said = {status: named(spot, shape.wide - 0.03) for spot in none for status in spot.failed if len(spot.failed) == 1}
    shorts = ", ".join(f"{short} {status}" for status, short in sorted(said.items()) if short != status)
    parts = (
        f"columns: {BATCH}",
        "mean top-1 over seeds" if any(spot.n > 1 for spot in spots) else "",
        "bold: best of its batch" if any(spot.best for spot in spots) else "",
        "hatched: no result" + (f" ({shorts})" if shorts else "") if none else "",
        f"{PARTLY} not from every seed" if any(spot.values and spot.failed for spot in spots) else "",
        f"{left_out} more lines, all with a lower mean, stand in the table" if left_out else "",
    )
    return wrapped("; ".join(filter(None, parts)), 7, WIDTH - 0.2)
