"""The largest batch whose measured peak is within a limit: few tries, and both neighbours of the limit measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

FIRST = 2  # the batch to begin with
GROWTH = 8  # a try is of at most so many times the largest batch that is known to fit: memory need not be a line
GUESSES = 6  # tries by the line; then the interval is halved


@dataclass
class Fit:
    """batch: the largest that fits, 0 if none does. tried: the peak in MiB of every batch tried, infinite: ran out."""

    limit: float
    least: int
    most: int
    batch: int = 0
    tried: dict[int, float] = field(default_factory=dict)

    @property
    def capped(self) -> bool:
        """Whether larger batches were not tried."""
        return self.batch == self.most

    @property
    def peak(self) -> float:
        """Of the largest batch, in MiB; NaN if none fits."""
        return self.tried.get(self.batch, math.nan)

    @property
    def next_peak(self) -> float:
        """Of a batch larger by one, in MiB; infinite: memory ran out; NaN: not tried."""
        return self.tried.get(max(self.batch + 1, self.least), math.nan)

    @property
    def each(self) -> float:
        """MiB of one more in the batch: over all that was tried; NaN with fewer than two peaks."""
        known = [(batch, peak) for batch, peak in sorted(self.tried.items()) if math.isfinite(peak)]
        return (known[-1][1] - known[0][1]) / (known[-1][0] - known[0][0]) if len(known) > 1 else math.nan


def largest(
    peak: Callable[[int], float], limit: float, *, most: int, least: int = 1, first: int | None = None, each: float = 0
) -> Fit:
    """Tries batches from ``least`` to ``most``: ``peak(batch)`` is what one takes, in MiB.

    first, each: where the limit may be, and what one more may take, if something is known of that.
    """
    found = Fit(limit, least, most)
    low, high = least - 1, most + 1  # fits, or need not be tried; does not, or will not be
    batch = min(max(first or FIRST, least), most)
    while low + 1 < high:
        found.tried[batch] = peak(batch)
        if found.tried[batch] <= limit:
            low = found.batch = batch
        else:
            high = batch
        batch = _next(found, low, high, each)
    return found


def _next(found: Fit, low: int, high: int, each: float) -> int:
    """The batch where a line through the two peaks nearest to the limit meets it, within what is left."""
    if len(found.tried) >= GUESSES and len(found.tried) % 2:
        guess = (low + high) // 2
    else:
        guess = _by_line(found, low, high, each)
    return max(low + 1, min(guess, high - 1, max(1, low) * GROWTH))


def _by_line(found: Fit, low: int, high: int, each: float) -> int:
    known = sorted(
        ((batch, peak) for batch, peak in found.tried.items() if math.isfinite(peak)),
        key=lambda point: abs(point[1] - found.limit),
    )
    if not known:
        return (low + high) // 2
    batch, peak = known[0]
    if len(known) > 1:
        each = (peak - known[1][1]) / (batch - known[1][0])
    if each > 0:
        return math.floor(batch + (found.limit - peak) / each)
    return GROWTH * high  # nothing to be seen yet: much larger
