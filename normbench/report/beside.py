"""Names beside their points: none covers another, a point or a line; from farther away a line leads to the point."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normbench.report.canvas import text_width

SIGN, THIN = 0.035, 0.008  # inches: half of a sign, half of what a line keeps free
Point = tuple[float, float]


@dataclass(frozen=True)
class Field:
    """Inches of a sheet: left, top, right, bottom."""

    x0: float
    y0: float
    x1: float
    y1: float

    def meets(self, other: Field) -> bool:
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1

    def holds(self, other: Field) -> bool:
        return self.x0 <= other.x0 and self.y0 <= other.y0 and other.x1 <= self.x1 and other.y1 <= self.y1

    def nearest(self, x: float, y: float) -> Point:
        """The point of it that is nearest to this one."""
        return min(max(x, self.x0), self.x1), min(max(y, self.y0), self.y1)


@dataclass(frozen=True)
class Label:
    """The middle of a name, and the end at it of the line that leads there, if it needs one."""

    middle: Point
    leader: Point | None


def around(
    wanted: Mapping[str, Point], signs: Sequence[Point], lines: Sequence[np.ndarray], room: Field, size: float
) -> dict[str, Label]:
    """Where names of ``size`` points stand, inside the ``room``; one that finds no place is left out.

    signs, lines: what no name may cover; lines are (points, 2). Each name takes the nearest free place, those in the
    thickest crowd first.
    """
    taken = [Field(x - SIGN, y - SIGN, x + SIGN, y + SIGN) for x, y in signs]
    taken += [field for line in lines for start, end in itertools.pairwise(line)
              for field in _along(tuple(start), tuple(end))]  # fmt: skip

    def crowd(name: str) -> float:
        x, y = wanted[name]
        return sum(1 / (0.05 + math.hypot(x - u, y - v)) for u, v in signs)

    placed: dict[str, Label] = {}
    for name in sorted(wanted, key=lambda name: (-crowd(name), name)):
        wide, tall = text_width(name, size) + 0.02, size * 1.15 / 72
        for x, y, far in _candidates(*wanted[name], wide, tall):
            field = Field(x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2)
            if room.holds(field) and not any(field.meets(other) for other in taken):
                leader = field.nearest(*wanted[name]) if far else None
                placed[name] = Label((x, y), leader)
                taken += [field, *(_along(wanted[name], leader) if leader else [])]
                break
    return placed


def _candidates(x: float, y: float, wide: float, tall: float) -> Iterator[tuple[float, float, bool]]:
    """Middles of a name around its point: beside it, above, below, and then farther and farther away."""
    yield from ((x + side * (0.05 + wide / 2), y, False) for side in (1, -1))
    yield from ((x, y + side * (0.045 + tall / 2), False) for side in (-1, 1))
    corners = ((1, -1), (-1, -1), (1, 1), (-1, 1))
    yield from ((x + a * (0.03 + wide / 2), y + b * (0.03 + tall / 2), False) for a, b in corners)
    for distance in (0.1, 0.15, 0.2, 0.28, 0.36, 0.46, 0.58, 0.7):
        for angle in (-45, -135, 45, 135, -20, -160, 20, 160, -75, -105, 75, 105):
            right, down = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            yield x + distance * right + math.copysign(wide / 2, right), y + distance * down, True


def _along(start: Point, end: Point) -> list[Field]:
    """Small fields along a line."""
    count = max(2, int(math.dist(start, end) / 0.03))
    places = zip(np.linspace(start[0], end[0], count), np.linspace(start[1], end[1], count), strict=True)
    return [Field(x - THIN, y - THIN, x + THIN, y + THIN) for x, y in places]
