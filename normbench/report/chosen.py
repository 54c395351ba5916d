"""Which lines a picture shows, or names, where it has no room for all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from normbench.report.frame import Spot, grouped
from normbench.report.verdict import BASELINE


def baseline(spots: Sequence[Spot]) -> str | None:
    """The line that the others are read against: the first of ``bn``; None if there is none."""
    return next((line for line in grouped(spots, "line") if line.split(" ")[0] == BASELINE), None)


def most(spots: Sequence[Spot], count: int) -> tuple[list[Spot], int]:
    """The spots of at most ``count`` lines, in their order, and how many lines are left out.

    The baseline and those with the highest top-1 stay: on average over blocks and batches, no result counting as 0.
    """
    lines = grouped(spots, "line")
    ranked = sorted(lines, key=lambda line: (line != baseline(spots), -_average(lines[line])))
    kept = set(ranked[:count])
    return [spot for spot in spots if spot.line in kept], len(ranked) - len(kept)


def telling(spots: Sequence[Spot], count: int) -> list[str]:
    """At most ``count`` lines that say most, in their order: the baseline, then who is best or worst of a batch.

    All of them if they are no more than ``count``. Who is best, or worst, most often comes first; of those with as
    many, who is so at the smallest batch.
    """
    lines = list(grouped(spots, "line"))
    if len(lines) <= count:
        return lines
    places: Counter[str] = Counter()
    with_values = sorted((spot for spot in spots if spot.values), key=lambda spot: spot.batch)
    for block in grouped(with_values, "block").values():
        for rivals in grouped(block, "batch").values():
            ranked = sorted(rivals, key=lambda spot: spot.mean)
            places.update((ranked[-1].line, ranked[0].line))
    first = [base] if (base := baseline(spots)) else []
    wanted = list(dict.fromkeys([*first, *(line for line, _ in places.most_common())]))[:count]
    return [line for line in lines if line in wanted]


def _average(spots: Sequence[Spot]) -> float:
    return math.fsum(spot.mean if spot.values else 0.0 for spot in spots) / len(spots)


def evenly(batches: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of them, the last and the first among them."""
    if len(batches) <= count:
        return list(batches)
    if count == 1:
        return [batches[-1]]
    return [batches[round(k * (len(batches) - 1) / (count - 1))] for k in range(count)]


def more(count: int, what: str) -> str:
    """``3 more batches stand in the table``: what a picture leaves out; "" for nothing."""
    if count == 1:
        return f"1 more {what} stands in the table"
    return f"{count} more {what}{'es' if what.endswith('ch') else 's'} stand in the table" if count else ""
