"""Ours minus the paper's: how far each normalizer is from what was published, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from normbench.report.canvas import rendered, settled
from normbench.report.labels import Legend, end_room, fit_at_ends, name_ends
from normbench.report.look import Style, styled
from normbench.report.panel import BOTTOM, KEY, LEFT, RIGHT, batch_axis, below, panels, wrapped_key

NAME = "apart"


@dataclass(frozen=True)
class Difference:
    """A number of ours beside the published one, both top-1 in %. line: its label; norm: its normalizer.

    interval: of 95 % for our mean, if there is one.  reduced: ours was run under a reduced protocol.
    """

    line: str
    norm: str
    batch: int
    ours: float
    interval: tuple[float, float] | None
    theirs: float
    reduced: bool

    @property
    def points(self) -> float:
        return self.ours - self.theirs

    @property
    def ends(self) -> tuple[float, float]:
        """Of the interval, in points from the published number; the difference itself twice if there is none."""
        low, high = self.interval or (self.ours, self.ours)
        return low - self.theirs, high - self.theirs


def draw(title: str, rows: Sequence[Difference], told: Sequence[str] = ()) -> dict[str, bytes]:
    """``{"png": …, "svg": …}``; nothing if there is no row. One row a line and batch; told: for the head."""
    return rendered(NAME, lambda: figure(title, rows, told)) if rows else {}


def figure(title: str, rows: Sequence[Difference], told: Sequence[str] = ()) -> Figure:
    """Lines against batch around a line at 0; a hollow sign is a reduced protocol, a bar the interval of our mean."""
    lines = {row.line: [other for other in rows if other.line == row.line] for row in rows}
    batches = sorted({row.batch for row in rows})
    styles = styled(list(lines), {row.line: row.norm for row in rows})
    direct = fit_at_ends(styles, LEFT) and all(any(row.batch == batches[-1] for row in own) for own in lines.values())
    legend = None if direct else Legend(styles, set())
    said = wrapped_key(_key(rows))
    foot = BOTTOM + KEY * len(said) + (legend.height if legend else 0)
    made, (axes,) = panels(title, settled(list(told)), [""], foot, RIGHT if legend else end_room(styles))
    _scale(axes, rows)
    asides = batch_axis(axes, batches, len(lines), beside=True)
    for aside, (line, own) in zip(asides, lines.items(), strict=True):
        _line(axes, sorted(own, key=lambda row: row.batch), styles[line], aside)
    below(axes, said)
    if legend:
        legend.draw(made)
    else:
        name_ends(axes, _ends(lines, asides), styles)
    return made


def _ends(lines: Mapping[str, list[Difference]], asides: list[float]) -> dict[str, tuple[float, float]]:
    last = {line: max(own, key=lambda row: row.batch) for line, own in lines.items()}
    return {line: (row.batch * aside, row.points) for aside, (line, row) in zip(asides, last.items(), strict=True)}


def _scale(axes: Axes, rows: Sequence[Difference]) -> None:
    reach = [0.0, *(row.points for row in rows), *(end for row in rows for end in row.ends)]
    span = max(max(reach) - min(reach), 1.0)
    axes.set_ylim(min(reach) - 0.08 * span, max(reach) + 0.08 * span)
    axes.set_ylabel("top-1, ours − paper’s (points)")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], min_n_ticks=3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:+.4g}".replace("-", "−") if abs(y) > 1e-9 else "0"))
    axes.axhline(0, color="0.2", lw=0.9, zorder=1)


def _line(axes: Axes, rows: list[Difference], style: Style, aside: float) -> None:
    places = [row.batch * aside for row in rows]
    axes.plot(places, [row.points for row in rows], color=style.colour, ls=style.dashes, lw=1.0, zorder=3)
    for x, row in zip(places, rows, strict=True):
        axes.plot(x, row.points, **style.mark(hollow=row.reduced))
        if row.interval:
            low, high = row.ends
            axes.errorbar(x, row.points, yerr=[[row.points - low], [high - row.points]], **style.bar())


def _key(rows: Sequence[Difference]) -> str:
    parts = (
        "0: as published",
        "bars: 95 % interval of our mean" if any(row.interval for row in rows) else "",
        "hollow: reduced protocol" if any(row.reduced for row in rows) else "",
    )
    return "; ".join(part for part in parts if part)
