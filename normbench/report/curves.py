"""Learning curves: top-1 and the training loss against the epoch, a panel per batch, one line per line of the table.

The mean over seeds is drawn, every seed faintly behind it; what ended early stops at a cross. Of many lines those that
tell most (``chosen.telling``) are in colour, the others in grey.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.figure import Figure

from normbench.report.canvas import WIDTH, canvas, head, rendered, settled, shortened, text_width, wrapped
from normbench.report.chosen import evenly, more, telling
from normbench.report.frame import Spot, grouped
from normbench.report.histories import History, Place
from normbench.report.labels import Legend, spread
from normbench.report.look import QUIET, Style, styled
from normbench.report.scales import Scale, linear, logarithmic, top1
from normbench.report.sheet import Box, Sheet, frame

NAME = "curves"
COLOURED, BLOCKS, BATCHES, ACROSS = 6, 6, 8, 4  # at most: lines in colour, blocks, batches, panels side by side
POINTS = 50  # of a line; a panel is an inch wide
FAR = 1e3  # times the median loss, up and down, is where the axis ends at the latest
LEFT, RIGHT, GAP = 0.48, 0.14, 0.09  # inches: the margins, between panels
TOP1, LOSS, NAMED, UNDER, BELOW = 0.95, 0.7, 0.16, 0.2, 0.34  # inches: panels, above, below and after them all
SIZE, PITCH = 7.0, 0.115  # points of a label, inches between two
LABELS = 0.24  # the largest share of the width for labels


def draw(
    title: str, spots: list[Spot], histories: Mapping[Place, History], told: Sequence[str] = ()
) -> dict[str, bytes]:
    """``{"png": …, "svg": …}``; nothing unless some cell has two epochs. ``histories``: see ``histories.collect``."""
    if not any(len(history.mean()) > 1 for history in histories.values()):
        return {}
    return rendered(NAME, lambda: figure(title, spots, histories, list(told)))


def figure(title: str, spots: list[Spot], histories: Mapping[Place, History], told: list[str]) -> Figure:
    """Blocks below each other; in each, bands of panels side by side, top-1 above the loss of the same batch."""
    drawing = _Drawing(spots, histories)
    said, blocks = settled(told), list(grouped(spots, "block"))[:BLOCKS]
    bands = [band for block in blocks for band in drawing.bands(block, max(BATCHES // len(blocks), 3))]
    direct = drawing.direct(bands)
    names = {line: drawing.styles[line] for line in drawing.coloured}
    legend = None if direct else Legend(names, set())
    there = {(block, batch) for (block, _, batch), mean in drawing.means.items() if block in blocks and len(mean)}
    batches = len(there) - sum(len(band.batches) for band in bands)
    keys = drawing.keys(len(grouped(spots, "block")) - len(blocks), batches)
    height = head(said) - 0.1 + sum(_tall(band) for band in bands) + BELOW + 0.13 * len(keys)
    sheet, top = Sheet(canvas(title, said, height + (legend.height if legend else 0))), head(said) - 0.1
    for band in bands:
        drawing.band(sheet, band, top, direct)
        top += _tall(band)
    sheet.text(WIDTH / 2, top, "epoch", 8, ha="center", va="top")
    for k, line in enumerate(keys):
        sheet.text(WIDTH / 2, top + 0.17 + 0.13 * k, line, 7, ha="center", va="top", color=QUIET)
    if legend:
        legend.draw(sheet.figure)
    return sheet.figure


@dataclass(frozen=True)
class _Band:
    """Some batches of a block side by side; ``across``: for how many there is room; ``name``: above the first band."""

    block: str
    batches: tuple[int, ...]
    across: int
    name: str


def _tall(band: _Band) -> float:
    return (0.15 if band.name else 0.0) + NAMED + TOP1 + GAP + LOSS + UNDER


class _Drawing:
    """What all panels share: styles, the lines in colour, the scales of each block."""

    def __init__(self, spots: list[Spot], histories: Mapping[Place, History]) -> None:
        self.spots, self.histories = spots, histories
        self.means = {place: _thinned(history.mean()) for place, history in histories.items()}
        self.styles = styled(list(grouped(spots, "line")))
        alive = {line for (_, line, _), mean in self.means.items() if len(mean)}
        self.coloured = telling([spot for spot in spots if spot.line in alive], COLOURED)
        self.scales = {block: self._scales(block) for block in grouped(spots, "block")}

    def _scales(self, block: str) -> tuple[Scale, Scale, Scale]:
        means = [mean for place, mean in self.means.items() if place[0] == block and len(mean)]
        rows = np.concatenate(means) if means else np.array([(1.0, 50.0, 1.0)])
        epochs, accuracy, loss = rows[:, 0], rows[:, 1], rows[:, 2][rows[:, 2] > 0]
        last = max(float(epochs.max()), 2.0)
        # What explodes before it ends ok may leave the panel, for the sake of the others.
        middle = float(np.median(loss)) if len(loss) else 0.3
        low, high = (
            max(float(loss.min(initial=middle)), middle / FAR),
            min(float(loss.max(initial=middle)), middle * FAR),
        )
        # Of every seed: a line that leaves its panel is not drawn there.
        seeds = [seed for (where, line, _), own in self.histories.items() if where == block and line in self.coloured
                 for seed in (*own.whole, *own.cut)]  # fmt: skip
        accuracy = np.concatenate([accuracy, *(seed[:, 1] for seed in seeds)])
        accuracy = accuracy[np.isfinite(accuracy)]
        y = top1([float(accuracy.min()), float(accuracy.max())] if len(accuracy) else [50.0], apart=0.14, count=4)
        x = linear(0, last * 1.03, "epoch", 3)
        # Without the 0, which would touch the last number of the panel at the left.
        x = replace(x, ticks=tuple(tick for tick in x.ticks if tick >= 1 and tick == round(tick)))
        return x, y, logarithmic(low / 1.2, max(high, low * 2) * 1.1, "train loss")

    def bands(self, block: str, most: int) -> list[_Band]:
        met = {batch for (place, _, batch), mean in self.means.items() if place == block and len(mean)}
        batches = evenly(sorted(met), most)
        count = max(-(-len(batches) // ACROSS), 1)
        across = max(-(-len(batches) // count), 2)
        some = [tuple(batches[k : k + across]) for k in range(0, len(batches), across)]
        return [_Band(block, batches, across, block if k == 0 else "") for k, batches in enumerate(some)]

    def direct(self, bands: list[_Band]) -> bool:
        """Whether names are short, and every line in colour has a mean in the last panel of every band."""
        ends = [(band.block, line, band.batches[-1]) for band in bands for line in self.coloured]
        short = self._room() <= LABELS * WIDTH
        return short and all(len(self.means.get(end, ())) for end in ends)

    def _room(self) -> float:
        return 0.2 + max(text_width(line, SIZE) for line in self.coloured)

    def band(self, sheet: Sheet, band: _Band, top: float, direct: bool) -> None:
        right = self._room() if direct else RIGHT
        wide = (WIDTH - LEFT - right - GAP * (band.across - 1)) / band.across
        x, accuracy, loss = self.scales[band.block]
        if band.name:
            sheet.text(0.06, top + 0.04, shortened(band.name, 7.5, WIDTH - 0.12), 7.5, weight="bold")
            top += 0.15
        edges = []
        for k, batch in enumerate(band.batches):
            left, first = LEFT + k * (wide + GAP), top + NAMED
            above = Box(left, first, wide, TOP1, x, accuracy)
            under = Box(left, first + TOP1 + GAP, wide, LOSS, x, loss)
            sheet.text(left, first - 0.03, f"batch {batch}", SIZE, va="bottom")
            edges += [(above, k == 0, False), (under, k == 0, True)]
            self._panel(sheet, band.block, batch, above, under)
        frame(sheet, edges)
        last = edges[-2][0]
        for (box, _, _), name in zip(edges[:2], ("top-1 (%)", "train loss"), strict=True):
            sheet.text(0.1, box.top + box.height / 2, name, SIZE, rotation=90, ha="center", va="center")
        if direct:
            self._name(sheet, band, last)

    def _panel(self, sheet: Sheet, block: str, batch: int, above: Box, under: Box) -> None:
        own = {line: history for (where, line, at), history in self.histories.items() if (where, at) == (block, batch)}
        for box, column in ((above, 1), (under, 2)):
            crowd = [line for line in own if line not in self.coloured]
            greys = [_path(box, self.means[block, line, batch], column) for line in crowd]
            sheet.lines(greys, colors="0.82", lw=0.5, zorder=1)
            for line in (line for line in self.coloured if line in own):
                style = self.styles[line]
                seeds = [_path(box, _thinned(seed), column) for seed in (*own[line].whole, *own[line].cut)]
                sheet.lines(seeds, colors=style.colour, lw=0.35, alpha=0.35, zorder=2)
                mean = _path(box, self.means[block, line, batch], column)
                sheet.lines([mean], colors=style.colour, lw=1.1, linestyles=[style.dashes], zorder=3)
                sheet.signs(_some(mean, self.coloured.index(line)), **style.mark(size=2.6))
                self._crosses(sheet, box, own[line].cut, column, style)

    def _crosses(self, sheet: Sheet, box: Box, cut: Iterable[np.ndarray], column: int, style: Style) -> None:
        """Where seeds ended that did not end ok, inside the panel."""
        ends = [seed[np.isfinite(seed[:, column])][-1:] for seed in cut]
        rows = np.concatenate([end for end in ends if len(end)] or [np.empty((0, 3))])
        values = np.clip(rows[:, column], box.y.low, box.y.high)
        sheet.signs(box.at(rows[:, 0], values), marker="x", ls="", color=style.colour, ms=3.4, mew=1, zorder=5)

    def _name(self, sheet: Sheet, band: _Band, box: Box) -> None:
        """Names at the right of a panel of top-1, moved apart."""
        ends = {line: self.means[band.block, line, band.batches[-1]][-1] for line in self.coloured}
        wanted = {line: -float(box.at(end[0], end[1])[0, 1]) for line, end in ends.items()}
        placed = spread(wanted, PITCH, -box.foot, -box.top)
        for line, place in placed.items():
            sheet.signs(np.array([(box.left + box.width + 0.07, -place)]), **self.styles[line].mark(size=3))
            sheet.text(box.left + box.width + 0.14, -place, line, SIZE, color=self.styles[line].colour)

    def keys(self, blocks: int, batches: int) -> list[str]:
        """The lines below all panels; so many blocks, and batches of those shown, are left out."""
        lines = len({line for _, line, _ in self.means})
        cut = any(history.cut for (_, line, _), history in self.histories.items() if line in self.coloured)
        several = any(len(history.whole) > 1 for history in self.histories.values())
        error = any("error" in y.name for _, y, _ in self.scales.values())
        parts = (
            "mean over seeds, seeds faint" if several else "",
            "top-1 on the log scale of the error" if error else "",
            "× ended without a result" if cut else "",
            f"grey: the other {lines - len(self.coloured)} lines" if lines > len(self.coloured) else "",
            more(blocks, "block"),
            more(batches, "batch"),
        )
        return wrapped("; ".join(filter(None, parts)), 7, WIDTH - 0.2)


def _thinned(rows: np.ndarray) -> np.ndarray:
    """Some of many epochs, the first and the last among them."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), POINTS)).round().astype(int))]


def _some(places: np.ndarray, shift: int) -> np.ndarray:
    """A few places of a line for its signs, not the same ones as another line's; all of them where they are few."""
    return places if len(places) <= 8 else places[len(places) // 3 + 2 * shift % 10 :: 15]


def _path(box: Box, rows: np.ndarray, column: int) -> np.ndarray:
    """Broken where it leaves the panel."""
    values = rows[:, column]
    inside = (values >= box.y.low) & (values <= box.y.high)
    return box.at(rows[:, 0], np.where(inside, values, np.nan))
