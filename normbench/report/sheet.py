"""Many small panels on one sheet, in inches on a single axes: matplotlib takes 50 ms for every axes of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.transforms import Affine2D

from normbench.report.canvas import WIDTH
from normbench.report.look import GRID, numeral
from normbench.report.scales import Scale, Values

NUMBER = 6.5  # points of the numbers at an axis
TICK, GAP = 0.025, 0.045  # inches: a tick, from an axis to its numbers


class Sheet:
    """A figure on which everything is placed in inches from the left and from the top."""

    def __init__(self, figure: Figure) -> None:
        self.figure, tall = figure, figure.get_figheight()
        self.axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(tall, 0))
        self.axes.axis("off")

    def text(self, x: float, y: float, text: str, size: float, **options: Any) -> None:
        self.axes.text(x, y, text, size=size, **{"va": "center_baseline", **options})

    def lines(self, paths: Iterable[np.ndarray], **options: Any) -> None:
        """paths: (points, 2) each; options as of a LineCollection."""
        kept = [path for path in paths if len(path)]
        if kept:
            self.axes.add_collection(LineCollection(kept, **options), autolim=False)

    def signs(self, places: np.ndarray, **options: Any) -> None:
        """places: (points, 2); options as of ``Axes.plot``."""
        if len(places):
            self.axes.plot(*places.T, scalex=False, scaley=False, **options)

    def stamp(self, paths: Sequence[np.ndarray], places: Sequence[tuple[float, float]], **options: Any) -> None:
        """The same paths at every one of ``places``, kept once in an SVG."""
        whole = Path.make_compound_path(*(Path(path) for path in paths if len(path)))
        inches = Affine2D().scale(1, -1) + self.figure.dpi_scale_trans
        once = PathCollection(
            [whole], offsets=places, offset_transform=self.axes.transData, facecolors="none", **options
        )
        once.set_transform(inches)
        self.axes.add_collection(once, autolim=False)


@dataclass(frozen=True)
class Box:
    """A panel so many inches from the left and the top of a sheet."""

    left: float
    top: float
    width: float
    height: float
    x: Scale
    y: Scale

    def at(self, x: Values, y: Values) -> np.ndarray:
        """(points, 2): where these values stand on the sheet; NaN, which breaks a line, where there is no number."""
        right, up = np.broadcast_arrays(self.x.share(x), self.y.share(y))
        return np.stack([self.left + self.width * right, self.top + self.height * (1 - up)], axis=-1).reshape(-1, 2)

    @property
    def foot(self) -> float:
        return self.top + self.height


def frame(sheet: Sheet, boxes: Sequence[tuple[Box, bool, bool]]) -> None:
    """Axes, ticks and grid of boxes, with numbers at the left and below where it is so said."""
    strokes, grid = [], []
    for box, left, below in boxes:
        right = box.left + box.width
        strokes.append(np.array([(box.left, box.top), (box.left, box.foot), (right, box.foot)]))
        for tick, (_, y) in zip(box.y.ticks, box.at(box.x.low, box.y.ticks), strict=True):
            strokes.append(np.array([(box.left - TICK, y), (box.left, y)]))
            grid.append(np.array([(box.left, y), (right, y)]))
            if left:
                sheet.text(box.left - GAP, y, numeral(tick), NUMBER, ha="right")
        for tick, (x, _) in zip(box.x.ticks, box.at(box.x.ticks, box.y.low), strict=True):
            strokes.append(np.array([(x, box.foot), (x, box.foot + TICK)]))
            if below:
                sheet.text(x, box.foot + GAP, numeral(tick), NUMBER, ha="center", va="top")
    sheet.lines(grid, colors=GRID, lw=0.5, zorder=0)
    sheet.lines(strokes, colors="black", lw=0.6, zorder=2.5)
