"""Top-1 against what it costs: the time of a step, and the memory at its peak where that was measured.

A row of panels per batch, a point per line of the table. The thin grey stair joins those that nothing beats in both.
Times are of one machine; what another ran is left out, and said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from normbench.report.beside import Field, around
from normbench.report.canvas import WIDTH, canvas, head, rendered, settled, shortened, wrapped
from normbench.report.chosen import baseline, evenly, more
from normbench.report.costs import Cost, Costs, front, measure, told
from normbench.report.frame import Spot, grouped
from normbench.report.look import QUIET, Style, styled
from normbench.report.scales import Scale, logarithmic, top1
from normbench.report.sheet import Box, Sheet, frame

NAME = "cost"
ROWS, NAMED = 3, 8  # rows of panels at most; lines with a name in each, where there are more
LEFT, RIGHT, GAP, TALL, ABOVE, UNDER = 0.46, 0.14, 0.16, 1.25, 0.17, 0.34  # inches: margins, panels
SIZE = 7.0
MEASURES: dict[str, Callable[[Cost], float]] = {
    "step time (ms)": lambda cost: cost.step_ms,
    "peak memory (MiB)": lambda cost: cost.memory_mib,
}


@dataclass(frozen=True)
class _Row:
    block: str
    batch: int
    costs: Costs

    def points(self, measure: str) -> dict[str, tuple[float, float]]:
        """(cost, top-1) of every line that has both."""
        found = {cost.spot.line: (MEASURES[measure](cost), cost.spot.mean) for cost in self.costs.costs}
        return {line: point for line, point in found.items() if math.isfinite(point[0])}


def draw(
    title: str, folder: Path, frame: pd.DataFrame, spots: list[Spot], told: Sequence[str] = ()
) -> dict[str, bytes]:
    """``{"png": …, "svg": …}``; nothing unless two lines can be compared somewhere."""
    rows, left_out = _rows(folder, frame, spots)
    measures = [name for name in MEASURES if any(len(row.points(name)) > 1 for row in rows)]
    if not measures:
        return {}
    return rendered(NAME, lambda: figure(title, rows, measures, spots, list(told), left_out))


def _rows(folder: Path, frame: pd.DataFrame, spots: list[Spot]) -> tuple[list[_Row], int]:
    """Some batches of each block, among those at which at least two lines have a result; how many more there are."""
    rows, count = list[_Row](), 0
    blocks = grouped(spots, "block")
    for place, (block, own) in enumerate(blocks.items()):
        batches = grouped([spot for spot in own if spot.values], "batch")
        able = sorted(batch for batch, there in batches.items() if len(there) > 1)
        count += len(able)
        if place < 2 * ROWS:
            some = evenly(able, max(ROWS // min(len(blocks), 2 * ROWS), 1))
            rows += [_Row(block, batch, measure(folder, frame, batches[batch])) for batch in some]
    return rows, count - len(rows)


def figure(
    title: str, rows: list[_Row], measures: list[str], spots: list[Spot], said: list[str], left_out: int = 0
) -> Figure:
    """A row of panels per batch, a panel per measure; so many batches, block by block, are left out."""
    lines, keys = settled(said), _keys(rows, measures, left_out)
    height = head(lines) - 0.1 + len(rows) * (ABOVE + TALL + UNDER) + 0.13 * len(keys)
    sheet, top = Sheet(canvas(title, lines, height)), head(lines) - 0.1
    styles = styled(list(grouped(spots, "line")))
    for row in rows:
        _draw_row(sheet, row, measures, styles, baseline(spots), top)
        top += ABOVE + TALL + UNDER
    for k, line in enumerate(keys):
        sheet.text(WIDTH / 2, top + 0.02 + 0.13 * k, line, 7, ha="center", va="top", color=QUIET)
    return sheet.figure


def _draw_row(
    sheet: Sheet, row: _Row, measures: list[str], styles: dict[str, Style], base: str | None, top: float
) -> None:
    wide = (WIDTH - LEFT - RIGHT - GAP * (len(measures) - 1)) / len(measures)
    name = " · ".join(filter(None, (row.block, f"batch {row.batch}")))
    sheet.text(LEFT, top + ABOVE - 0.04, shortened(name, SIZE, WIDTH - LEFT - RIGHT), SIZE, va="bottom")
    y = _top1(row, measures)
    sheet.text(0.1, top + ABOVE + TALL / 2, "top-1 (%)", SIZE, rotation=90, ha="center", va="center")
    boxes = []
    for k, what in enumerate(measures):
        points = row.points(what)
        left = LEFT + k * (wide + GAP)
        if len(points) < 2:
            sheet.text(left + wide / 2, top + ABOVE + TALL / 2, "not measured", SIZE, ha="center", color=QUIET)
            continue
        costs = [cost for cost, _ in points.values()]
        low, high = min(costs), max(max(costs), min(costs) * 1.25)
        side = (high / low) ** 0.12
        box = Box(left, top + ABOVE, wide, TALL, logarithmic(low / side, high * side, what), y)
        boxes.append((box, k == 0, True))
        sheet.text(left + wide / 2, box.foot + 0.23, what, SIZE, ha="center")
        _points(sheet, box, points, styles, base)
    frame(sheet, boxes)


def _top1(row: _Row, measures: list[str]) -> Scale:
    return top1([y for what in measures for _, y in row.points(what).values()] or [50.0], apart=0.12, count=4)


def _points(
    sheet: Sheet, box: Box, points: dict[str, tuple[float, float]], styles: dict[str, Style], base: str | None
) -> None:
    best = front(points)
    places = {line: (float(x), float(y)) for line, point in points.items() for x, y in box.at(*point)}
    stair = [places[best[0]]]
    for line in best[1:]:
        stair += [(places[line][0], stair[-1][1]), places[line]]
    sheet.lines([np.array(stair)], colors="0.75", lw=0.7, zorder=1)
    lines = _named(points, best, base)
    for line, place in places.items():
        if line in lines:
            sheet.signs(np.array([place]), **styles[line].mark(size=4))
        else:
            sheet.signs(np.array([place]), marker="o", ls="", ms=2.4, color="0.7", mew=0, zorder=2)
    room = Field(box.left + 0.02, box.top - 0.02, box.left + box.width + 0.06, box.foot - 0.02)
    wanted = {line: places[line] for line in lines}
    for line, label in around(wanted, list(places.values()), [np.array(stair)], room, SIZE).items():
        sheet.text(*label.middle, line, SIZE, ha="center", color=styles[line].colour, zorder=6)
        if label.leader:
            sheet.lines([np.array([places[line], label.leader])], colors="0.6", lw=0.5, zorder=1.5)


def _named(points: dict[str, tuple[float, float]], best: list[str], base: str | None) -> list[str]:
    """All lines, or of many the baseline, those that nothing beats and the worst, as far as there is room."""
    if len(points) <= NAMED:
        return list(points)
    worst = min(points, key=lambda line: points[line][1])
    dearest = max(points, key=lambda line: points[line][0])
    first = [base] if base in points else []
    return list(dict.fromkeys([*first, *best[::-1], worst, dearest]))[:NAMED]


def _keys(rows: list[_Row], measures: list[str], left_out: int) -> list[str]:
    """The lines below all panels."""
    machines = sorted({told(row.costs.machine) for row in rows})
    elsewhere = {f"{line} at batch {row.batch}": None for row in rows for line in row.costs.elsewhere}
    many = any(len(row.points(name)) > NAMED for row in rows for name in measures)
    error = any("error" in _top1(row, measures).name for row in rows)
    parts = (
        f"as trained on {' and '.join(machines)}: on another machine times differ",
        "grey stair: nothing beats these in both",
        "grey dots: other lines" if many else "",
        "top-1 on the log scale of the error" if error else "",
        more(left_out, "batch"),
        f"left out, as another machine ran them: {', '.join(elsewhere)}" if elsewhere else "",
    )
    return wrapped("; ".join(filter(None, parts)), 7, WIDTH - 0.2)
