"""How a picture looks: fonts, greys, the colour and the sign of every line, bars and what they mean."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from normbench.report.frame import Spot

# In an SVG text stays text. Verdana is as wide as DejaVu Sans, for whoever has not the one.
FONT: dict[Any, Any] = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"], "font.size": 8,
    "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "xtick.major.width": 0.6,
    "ytick.major.width": 0.6, "xtick.major.size": 3, "ytick.major.size": 3, "axes.axisbelow": True,
    "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "normbench",
}  # fmt: skip
GRID, QUIET = "0.92", "0.35"  # greys of the grid's lines and of small text
# Okabe & Ito's colours, safe for the colour-blind; their yellow is too pale for a line on white, so grey stands for it.
COLOURS = {
    "black": "#000000", "vermillion": "#D55E00", "blue": "#0072B2", "green": "#009E73",
    "purple": "#CC79A7", "sky": "#56B4E9", "orange": "#E69F00", "grey": "#8C8C8C",
}  # fmt: skip
# The same normalizer in the same colour and dashes in every picture of every sweep; whoever is not named takes a colour
# that is free.
HOME = {
    "bn": "black", "bgn": "vermillion", "frn": "blue", "gn": "green",
    "in": "purple", "ln": "sky", "pn": "orange", "none": "grey",
}  # fmt: skip
# In the order of the colours, dashed, then dotted, then dashed and dotted.
DASHED = (
    "brn", "gbn", "evonorm_s0", "ws", "iebn", "rms", "sn", "nf",
    "syncbn", "batch_group", "evonorm_b0", "proxy", "bkn", "dyt", "mabn", "online",
    "rbn", "bcn", "bnp", "bne", "cbn", "ic", "mbn",
)  # fmt: skip
MARKERS = dict(zip(COLOURS, "osD^vPXp", strict=True))  # a second sign of the line, for print in black and white
MORE_MARKERS = "<>h*d"
# Eight colours, solid and in these dashes, are forty lines of which no two look alike.
DASHES = ((0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (8, 3)))


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


def styled(lines: Iterable[str], norms: Mapping[str, str] | None = None) -> dict[str, Style]:
    """A style per line: its normalizer's own, for the first line of each; the next free one for the others.

    Dashes once the colours run out. norms: of the lines, where their labels do not begin with them.
    """
    norms = norms or {line: line.split(" ")[0] for line in lines}
    own: dict[str, Style] = {}
    for line in lines:
        style = _home(norms[line])
        if style and style not in own.values():
            own[line] = style
    # The baseline's is another's only when there is nothing else left.
    colours = [colour for colour in COLOURS if colour != HOME["bn"]]
    dashed = map(_dashed, range(len(COLOURS) * len(DASHES)))
    everything = itertools.chain(map(_own, colours), dashed, [_own(HOME["bn"])], map(_dashed, itertools.count()))
    free = (style for style in everything if style not in own.values())
    return {line: own[line] if line in own else next(free) for line in lines}


def _home(norm: str) -> Style | None:
    if norm in HOME:
        return _own(HOME[norm])
    return _dashed(DASHED.index(norm)) if norm in DASHED else None


def _own(colour: str) -> Style:
    return Style(COLOURS[colour], MARKERS[colour])


def _dashed(k: int) -> Style:
    """The k-th beyond the colours: from the strongest colour again, dashed, then dotted."""
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


def ticks(axis: Any, places: Sequence[float]) -> None:
    """Ticks just there, with just these numbers."""
    axis.set(major_locator=FixedLocator(places), major_formatter=FixedFormatter([numeral(place) for place in places]))
    axis.set_minor_locator(NullLocator())


def numeral(number: float) -> str:
    """``0.05``, ``20000``, with a true minus."""
    return f"{number:.6g}".replace("-", "−")
