"""Axes against batch: a panel per block one above the other, log2 ticks, and where lines stand beside their batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normbench.report import scales
from normbench.report.canvas import WIDTH, canvas, head, wrapped
from normbench.report.look import GRID, QUIET

PANEL, GAP = 2.2, 0.36  # inches: a panel of lines, between panels
LEFT, RIGHT, BOTTOM, KEY = 0.56, 0.10, 0.40, 0.13  # inches: the margins, a line of small text
DODGE = 0.075  # inches between the means that lines have at one batch


def panels(title: str, told: list[str], blocks: list[str], foot: float, room: float) -> tuple[Figure, list[Axes]]:
    """A figure with an axes per block above ``foot`` inches, with ``room`` inches at their right."""
    titled = 0.16 if any(blocks) else 0.0
    height = head(told) + foot + len(blocks) * (PANEL + titled + GAP) - GAP
    figure = canvas(title, told, height)
    feet = [foot + k * (PANEL + titled + GAP) for k in reversed(range(len(blocks)))]
    box = (LEFT / WIDTH, (WIDTH - LEFT - room) / WIDTH)
    made = [figure.add_axes((box[0], y / height, box[1], PANEL / height)) for y in feet]
    for axes, block in zip(made, blocks, strict=True):
        axes.set_title(block, size=8, loc="left", pad=4)
    return figure, made


def batch_axis(axes: Axes, batches: Sequence[int], lines: int, *, beside: bool) -> list[float]:
    """Make x the batch (in order), on a log2 scale.

    Returns for each of so many lines the factor by which its points stand beside their batch; 1 unless ``beside``.
    """
    side = 1.07 * (batches[-1] / batches[0]) ** 0.04 if len(batches) > 1 else 2.0
    scales.octaves(batches, side=side).apply(axes, "x")
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    asides = _dodged(axes, batches, lines) if beside and lines > 1 else [1.0] * lines
    axes.set_xlim(batches[0] / side * min(asides), batches[-1] * side * max(asides))
    return asides


def _dodged(axes: Axes, batches: Sequence[int], count: int) -> list[float]:
    between = min((math.log2(b / a) for a, b in itertools.pairwise(batches)), default=1.0)
    step = min(DODGE * octaves(axes), 0.6 * between / (count - 1))
    return [2 ** (step * (k - (count - 1) / 2)) for k in range(count)]


def octaves(axes: Axes) -> float:
    """Octaves of the batch per inch."""
    (low, high), box = axes.get_xlim(), axes.get_window_extent()
    return math.log2(high / low) * axes.get_figure(root=True).dpi / box.width  # type: ignore[union-attr]


def wrapped_key(text: str) -> list[str]:
    """What signs mean, as lines below the name of the x axis; each takes ``KEY`` inches."""
    return wrapped(text, 7, WIDTH - LEFT) if text else []


def below(axes: Axes, lines: Sequence[str]) -> None:
    """Small lines below the name of the x axis."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    foot = axes.get_position().y0 * figure.get_figheight()
    for k, line in enumerate(lines):
        y = (foot - BOTTOM + 0.04 - KEY * k) / figure.get_figheight()
        figure.text((WIDTH + LEFT - RIGHT) / 2 / WIDTH, y, line, size=7, ha="center", va="top", color=QUIET)
