"""How a plot looks: fonts, colours, markers and the scale of top-1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from normbench.report.frame import Spot

FONT: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "xtick.major.width": 0.6,
    "ytick.major.width": 0.6, "xtick.major.size": 3, "ytick.major.size": 3, "axes.axisbelow": True,
    "svg.hashsalt": "normbench",
}  # fmt: skip
GRID, QUIET = "0.92", "0.35"  # greys of the grid's lines and of small text
# Okabe & Ito's colours, safe for the colour-blind; their yellow is too pale for a line on white, so grey stands for it.
COLOURS = {
    "black": "#000000", "vermillion": "#D55E00", "blue": "#0072B2", "green": "#009E73",
    "purple": "#CC79A7", "sky": "#56B4E9", "orange": "#E69F00", "grey": "#8C8C8C",
}  # fmt: skip
# The same normalizer in the same colour in every plot; whoever is not named takes a colour that is free.
HOME = {
    "bn": "black", "bgn": "vermillion", "frn": "blue", "gn": "green",
    "in": "purple", "ln": "sky", "pn": "orange", "none": "grey",
}  # fmt: skip
MARKERS = dict(zip(COLOURS, "osD^vPXp", strict=True))  # a second sign of the line, for print in black and white
MORE_MARKERS = "<>h8*d"
# Eight colours, solid and in these dashes, are forty lines of which no two look alike.
DASHES = ((0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (8, 3)))
FOLD = 8  # a larger ratio of errors makes the scale logarithmic in the error
# Places of a tick on that scale, and those that come first where not all have room.
TICKS = (0, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.98, 99.99, 100)
DEAR = (50, 90, 99, 99.9, 80, 95, 98, 99.5, 99.8, 30, 70, 20, 60)
APART = {"x": 0.14, "y": 0.075}  # the least share of an axis between two ticks; in a small panel
SMALL = {"x": 0.3, "y": 0.26}


@dataclass(frozen=True)
class Style:
    """How a line is drawn; ``dashes`` as matplotlib takes a linestyle."""

    colour: str
    marker: str
    dashes: Any = "-"

    def mark(self, *, hollow: bool = False, size: float = 4) -> dict[str, Any]:
        """Arguments of ``Axes.plot`` for a mean."""
        face = "white" if hollow else self.colour
        mark = {"marker": self.marker, "ms": size, "color": self.colour, "mfc": face, "mew": 0.8}
        return {**mark, "ls": "", "zorder": 4, "clip_on": False}

    def faint(self) -> dict[str, Any]:
        """Arguments of ``Axes.plot`` for single seeds."""
        return {"marker": self.marker, "ms": 2.8, "color": self.colour, "alpha": 0.6, "mew": 0, "ls": "", "zorder": 2}

    def bar(self) -> dict[str, Any]:
        """Arguments of ``Axes.errorbar`` for what ``bar`` says."""
        return {"fmt": "none", "ecolor": self.colour, "elinewidth": 0.8, "capsize": 1.6, "capthick": 0.8, "zorder": 3}


def styled(lines: list[str]) -> dict[str, Style]:
    """A style per line: its normalizer's own colour if free, else the next; dashes once the colours run out."""
    homes = _homes(lines)
    free = [colour for colour in COLOURS if colour not in homes.values()]
    others = [line for line in lines if line not in homes]
    given = homes | dict(zip(others, free, strict=False))
    again = {line: k for k, line in enumerate(others[len(free) :])}
    return {line: _again(again[line]) if line in again else _own(given[line]) for line in lines}


def _homes(lines: list[str]) -> dict[str, str]:
    """The first line of each normalizer that has a colour of its own."""
    found: dict[str, str] = {}
    for line in lines:
        home = HOME.get(line.split(" ")[0])
        if home and home not in found.values():
            found[line] = home
    return found


def _own(colour: str) -> Style:
    return Style(COLOURS[colour], MARKERS[colour])


def _again(k: int) -> Style:
    """The k-th line beyond the colours: from the strongest colour again, dashed, then dotted."""
    colour = list(COLOURS.values())[k % len(COLOURS)]
    return Style(colour, MORE_MARKERS[k % len(MORE_MARKERS)], DASHES[k // len(COLOURS) % len(DASHES)])


def by_interval(spots: Iterable[Spot]) -> bool:
    """Whether bars are intervals of the mean; standard deviations where no spot has one. Never both in one picture."""
    return any(spot.interval for spot in spots)


def bar(spot: Spot, intervals: bool) -> tuple[float, float] | None:
    """How far a mean's bar goes down and up, in points; None if it has none."""
    if intervals:
        low, high = spot.interval or (math.nan, math.nan)
        return (max(spot.mean - low, 0.0), max(high - spot.mean, 0.0)) if spot.interval else None
    return (spot.sd, spot.sd) if len(spot.values) > 1 else None


def key(spots: Iterable[Spot]) -> str:
    """What bars, crosses and hollow signs mean."""
    spots = list(spots)
    failed = sorted({status for spot in spots for status in spot.failed})
    spread = "95 % interval" if by_interval(spots) else "s.d. over seeds"
    parts = (
        f"mean, {spread}, every seed" if any(bar(spot, by_interval(spots)) for spot in spots) else "",
        f"× no result ({', '.join(failed)})" if any(not spot.values for spot in spots) else "",
        "○ not from every seed" if any(spot.values and spot.failed for spot in spots) else "",
    )
    return "; ".join(part for part in parts if part)


def reach(spots: Iterable[Spot]) -> list[float]:
    """Where the bars end, within 0 and 100 %."""
    spots = list(spots)
    bars = [(spot.mean, ends) for spot in spots if (ends := bar(spot, by_interval(spots)))]
    return [min(max(end, 0.0), 100.0) for mean, (down, up) in bars for end in (mean - down, mean + up)]


def scale(axes: Axes, values: list[float], axis: str, bars: Iterable[float] = (), *, small: bool = False) -> None:
    """Scale, limits, ticks and name of an axis of top-1 (%); ``axis`` is ``x`` or ``y``; ``bars``: see ``reach``.

    small: an axis of half an inch, with room for three numbers.
    Linear, or logarithmic in the error where the errors differ more than ``FOLD``-fold.
    """
    if not values:
        return
    errors = [max(100 - value, 0.0) for value in values]
    least = max(min((error for error in errors if error > 0), default=2.0) / 2, 0.01)
    if max(errors) > FOLD * max(min(errors), least):
        _scale_error(axes, least, min([*values, *bars]), max(values), axis, SMALL if small else APART)
        return
    values = [*values, *bars]
    middle, span = (min(values) + max(values)) / 2, max(max(values) - min(values), 1.0)
    low, high = middle - span / 2, middle + span / 2
    limits = (low - 0.12 * span, min(high + 0.1 * span, 100 + 0.03 * span))
    axes.set(**{f"{axis}lim": limits, f"{axis}label": "top-1 (%)"})
    getattr(axes, f"{axis}axis").set_major_locator(
        MaxNLocator(nbins=2 if small else 6, steps=[1, 2, 5, 10], min_n_ticks=2 if small else 3)
    )


def _scale_error(
    axes: Axes, least: float, lowest: float, highest: float, axis: str, apart: Mapping[str, float]
) -> None:
    """Equal steps for equal ratios of the error; an error below ``least`` (at 100 %) is drawn at it.

    From the tick below the lowest value to the tick above the highest, so that every value can be read.
    """
    low, high = max(t for t in TICKS if t <= max(lowest, 0)), min(t for t in TICKS if t >= min(highest, 100))
    least = least if high == 100 else 100 - high

    def forward(top1: np.ndarray) -> np.ndarray:
        return -np.log10(np.maximum(100 - np.asarray(top1, dtype=float), least))

    def inverse(place: np.ndarray) -> np.ndarray:
        return 100 - 10 ** -np.asarray(place, dtype=float)

    getattr(axes, f"set_{axis}scale")("function", functions=(forward, inverse))
    foot = 100 - (100 - low) * ((100 - low) / least) ** 0.07  # room below the lowest tick for what has no result
    axes.set(**{f"{axis}lim": (foot, high), f"{axis}label": "top-1 (%), log scale of the error"})
    places = {tick: float(forward(np.array(tick))) for tick in TICKS if low <= tick <= high}
    span = places[high] - places[low]
    kept = [low, high]
    for tick in (t for t in DEAR if t in places):
        if all(abs(places[tick] - places[other]) >= apart[axis] * span for other in kept):
            kept.append(tick)
    ticks(getattr(axes, f"{axis}axis"), sorted(kept))


def ticks(axis: Any, places: list[float] | list[int]) -> None:
    """Ticks just there, with just these numbers."""
    axis.set(major_locator=FixedLocator(places), major_formatter=FixedFormatter([f"{place:g}" for place in places]))
    axis.set_minor_locator(NullLocator())
