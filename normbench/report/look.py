"""How a plot looks: fonts, colours, markers and the scale of top-1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

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
DASHES = ((0, (4, 1.5)), (0, (1, 1.2)))
FOLD = 8  # a larger ratio of errors makes the scale logarithmic in the error
TICKS = (0, 50, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.98)


@dataclass(frozen=True)
class Style:
    """How a line is drawn; ``dashes`` as matplotlib takes a linestyle."""

    colour: str
    marker: str
    dashes: Any = "-"

    def mark(self, *, hollow: bool = False, size: float = 4) -> dict[str, Any]:
        """Arguments of ``Axes.plot`` for a mean."""
        face = "white" if hollow else self.colour
        return {"marker": self.marker, "ms": size, "color": self.colour, "mfc": face, "mew": 0.8, "ls": "", "zorder": 4}

    def faint(self) -> dict[str, Any]:
        """Arguments of ``Axes.plot`` for single seeds."""
        return {"marker": self.marker, "ms": 2.6, "color": self.colour, "alpha": 0.35, "mew": 0, "ls": "", "zorder": 2}


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


def scale(axes: Axes, values: list[float], axis: str) -> None:
    """Scale, limits, ticks and name of an axis of top-1 (%); ``axis`` is ``x`` or ``y``.

    Linear, or logarithmic in the error where the errors differ more than ``FOLD``-fold.
    """
    if not values:
        return
    errors = [max(100 - value, 0.0) for value in values]
    least = max(min((error for error in errors if error > 0), default=2.0) / 2, 0.01)
    if max(errors) > FOLD * max(min(errors), least):
        _scale_error(axes, least, errors, axis)
        return
    middle, span = (min(values) + max(values)) / 2, max(max(values) - min(values), 1.0)
    low, high = middle - span / 2, middle + span / 2
    limits = (low - 0.12 * span, min(high + 0.1 * span, 100 + 0.03 * span))
    axes.set(**{f"{axis}lim": limits, f"{axis}label": "top-1 (%)"})
    getattr(axes, f"{axis}axis").set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], min_n_ticks=3))


def _scale_error(axes: Axes, least: float, errors: list[float], axis: str) -> None:
    """Equal steps for equal ratios of the error; an error below ``least`` (at 100 %) is drawn at it."""

    def forward(top1: np.ndarray) -> np.ndarray:
        return -np.log10(np.maximum(100 - np.asarray(top1, dtype=float), least))

    def inverse(place: np.ndarray) -> np.ndarray:
        return 100 - 10 ** -np.asarray(place, dtype=float)

    getattr(axes, f"set_{axis}scale")("function", functions=(forward, inverse))
    low, high = 100 - min(max(errors) * 1.3, 130), 100 - max(min(errors) / 1.3, least)
    axes.set(**{f"{axis}lim": (low, high), f"{axis}label": "top-1 (%), log scale of the error"})
    ticks(getattr(axes, f"{axis}axis"), [tick for tick in TICKS if low <= tick <= high])


def ticks(axis: Any, places: list[float] | list[int]) -> None:
    """Ticks just there, with just these numbers."""
    axis.set(major_locator=FixedLocator(places), major_formatter=FixedFormatter([f"{place:g}" for place in places]))
    axis.set_minor_locator(NullLocator())
