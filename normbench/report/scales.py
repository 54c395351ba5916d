"""Where a value stands on an axis, and which numbers are written at it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from normbench.report.look import ticks

FOLD = 8  # a larger ratio of errors makes the scale logarithmic in the error
# Places of a tick on that scale, and those that come first where not all have room.
TICKS = (0, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.98, 99.99, 100)
DEAR = (50, 90, 99, 99.9, 80, 95, 98, 99.5, 99.8, 30, 70, 20, 60)
STEPS = [1, 2, 5, 10]
BATCH = "batch (images that share statistics)"

Values = np.ndarray | Sequence[float] | float


@dataclass(frozen=True)
class Scale:
    """forward, inverse: the scale's function and back.  low, high: its ends.  ticks: between them.  name: with unit.

    base: of its logarithm, if it is one.
    """

    forward: Callable[[Any], np.ndarray]
    inverse: Callable[[Any], np.ndarray]
    low: float
    high: float
    ticks: tuple[float, ...]
    name: str = ""
    base: float | None = None

    def share(self, values: Values) -> np.ndarray:
        """How far along the axis values stand: 0 at its beginning, 1 at its end."""
        low, high = float(self.forward(self.low)), float(self.forward(self.high))
        return (self.forward(np.asarray(values, dtype=float)) - low) / (high - low)

    def apply(self, axes: Axes, axis: str) -> None:
        """Make the ``x`` or ``y`` axis of ``axes`` such a one."""
        set_scale = getattr(axes, f"set_{axis}scale")
        if self.base:
            set_scale("log", base=self.base)
        else:
            set_scale("function", functions=(self.forward, self.inverse))
        axes.set(**{f"{axis}lim": (self.low, self.high), f"{axis}label": self.name})
        ticks(getattr(axes, f"{axis}axis"), self.ticks)


def top1(values: Sequence[float], bars: Iterable[float] = (), *, apart: float = 0.075, count: int = 6) -> Scale:
    """The scale of values of top-1 (%), one at least, and ``bars``, ends of what reaches beyond them.

    Linear, or logarithmic in the error where the errors differ more than ``FOLD``-fold.
    apart: the least share of the axis between two ticks of the logarithmic one.  count: of the linear one’s.
    """
    bars, errors = list(bars), [max(100 - value, 0.0) for value in values]
    least = max(min((error for error in errors if error > 0), default=2.0) / 2, 0.01)
    if max(errors) > FOLD * max(min(errors), least):
        return _of_error(least, min([*values, *bars]), max(values), apart)
    values = [*values, *bars]
    middle, span = (min(values) + max(values)) / 2, max(max(values) - min(values), 1.0)
    low, high = middle - span / 2, middle + span / 2
    return linear(low - 0.12 * span, min(high + 0.1 * span, 100 + 0.03 * span), "top-1 (%)", count)


def _of_error(least: float, lowest: float, highest: float, apart: float) -> Scale:
    """Equal steps for equal ratios of the error; an error below ``least`` (at 100 %) is drawn at it.

    From the tick below the lowest value to the tick above the highest, so that every value can be read.
    """
    low, high = max(t for t in TICKS if t <= max(lowest, 0)), min(t for t in TICKS if t >= min(highest, 100))
    least = least if high == 100 else 100 - high

    def forward(top1: Values) -> np.ndarray:
        return -np.log10(np.maximum(100 - np.asarray(top1, dtype=float), least))

    def inverse(place: Values) -> np.ndarray:
        return 100 - 10 ** -np.asarray(place, dtype=float)

    foot = 100 - (100 - low) * ((100 - low) / least) ** 0.07  # room below the lowest tick for what has no result
    places = {tick: float(forward(tick)) for tick in TICKS if low <= tick <= high}
    kept = _apart(places, [low, high], DEAR, apart * (places[high] - places[low]))
    return Scale(forward, inverse, foot, high, kept, "top-1 (%), log scale of the error")


def _apart(places: dict[Any, float], kept: list[Any], more: Iterable[Any], least: float) -> tuple[float, ...]:
    """Those kept, and of the others, first come first served, whoever is as far from all."""
    for tick in (t for t in more if t in places):
        if all(abs(places[tick] - places[other]) >= least for other in kept):
            kept.append(tick)
    return tuple(sorted(kept))


def linear(low: float, high: float, name: str, count: int = 6) -> Scale:
    """From ``low`` to ``high``, with about so many ticks at round numbers."""
    places = MaxNLocator(nbins=count, steps=STEPS, min_n_ticks=min(count, 3)).tick_values(low, high)
    span = high - low
    kept = [round(float(tick), 9) for tick in places if low - 1e-9 * span <= tick <= high + 1e-9 * span]
    return Scale(_same, _same, low, high, tuple(tick + 0.0 for tick in kept), name)


def logarithmic(low: float, high: float, name: str, *, apart: float = 0.2) -> Scale:
    """From ``low`` to ``high``, both above 0; ticks at 1, 2, 5 × powers of ten, so far apart as a share of the axis."""
    span = math.log10(high / low)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    rounds = [digit * 10.0**k for digit in (1, 5, 2, 3, 7, 1.5) for k in decades]
    places = {tick: math.log10(tick) for tick in rounds if low <= tick <= high}
    kept = _apart(places, [], places, apart * span)
    if len(kept) < 2:  # less than an octave: as good as linear
        kept = linear(low, high, name, 3).ticks
    return Scale(np.log10, lambda place: 10 ** np.asarray(place, dtype=float), low, high, kept, name, 10)


def octaves(batches: Sequence[int], shown: Sequence[int] | None = None, side: float = 1.0) -> Scale:
    """Of batches, in order: log2, and ``side`` times as far as the outer ones; every batch is a tick unless given."""
    places = tuple(map(float, batches if shown is None else shown))
    return Scale(np.log2, np.exp2, batches[0] / side, batches[-1] * side, places, BATCH, 2)


def _same(value: Values) -> np.ndarray:
    return np.asarray(value, dtype=float)
