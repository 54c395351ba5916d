"""From the table's entries to verdicts: intervals, the difference to a baseline, what is level with the best.

    spots = statistics.judged(folder, frame, spots, "bn")

Seeds are the replicates. For one seed all normalizers start from the same weights and see the same pictures in the same
order, so entries are paired by seed, and by picture where both sides' correctness is known (``records.correct``); then
a verdict holds for new seeds and new pictures of the same kind (crossed.py), else for new seeds on this test set.

* Family: all entries of a block of the table with a p-value against the baseline; Holm at 5 %.
* Pooling of the seeds' variance: pooling.py. Interval and p-value: compare.py. Interval of a mean: bootstrap.py.
* Failures: an entry, or a baseline, with a seed that ended ``diverged oom timeout error`` has no verdict: its mean is
  of the seeds that survived. ``killed interrupted skipped running`` are no results; the seeds that are there count.
* Too few seeds: below 2 paired ones nothing is known of seed noise, so there is no verdict; with 2 only if the variance
  was pooled (a variance of one degree of freedom tells nothing at a family's level).
* Level with the best of a batch: not worse in a one-sided test at 5 % / (k − 1) among k complete entries. So the
  truly best one is best or level with 95 % certainty, although the best was picked after looking: to be left out it
  must be beaten by one of k − 1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from normbench.errors import ConfigError, UnknownName
from normbench.records import Problems
from normbench.report.bootstrap import interval
from normbench.report.compare import LEVEL, holm
from normbench.report.evidence import Evidence
from normbench.report.frame import Spot, grouped
from normbench.report.pairing import Assessed, Pair, against, assess, paired
from normbench.report.pooling import LEAST_SEEDS
from normbench.report.verdict import (
    BASELINE,
    BASELINE_FAILED,
    BETTER,
    FAILED,
    NO_NOISE,
    NO_RESULT,
    NO_SEED,
    TOO_FEW,
    UNDECIDED,
    WORSE,
    Family,
    Noise,
    Versus,
)  # fmt: skip


def judged(
    folder: Path,
    frame: pd.DataFrame,
    spots: Sequence[Spot],
    baseline: str | None = None,
    problems: Problems | None = None,
) -> list[Spot]:
    """The spots with ``interval``, ``versus`` the baseline and ``level``.

    baseline: a line's label, or a normalizer's name where each contest has one line of it; ``bn`` if none is given, and
    no comparison where there is none, or are several.  problems: where damaged evidence is told.  Raises as ``check``.
    """
    check(spots, baseline)
    evidence, made = Evidence(folder, frame, problems), dict[tuple[str, str, int], Spot]()
    for block in grouped(spots, "block").values():
        pairs, with_best, intervals = list[Pair](), list[Pair](), dict[int, tuple[float, float] | None]()
        for column in grouped(block, "batch").values():
            evidence.read(cell for spot in column for cell in spot.cells)
            intervals |= {id(spot): _interval(spot, evidence) for spot in column}
            for rivals in grouped(column, "contest").values():
                pairs += _to_baseline(rivals, baseline or BASELINE, evidence)
                with_best += _to_best(rivals, evidence)
        versus, level = _verdicts(pairs), _level(with_best)
        for spot in block:
            found = {"interval": intervals[id(spot)], "versus": versus.get(id(spot)), "level": id(spot) in level}
            made[spot.block, spot.line, spot.batch] = replace(spot, **found)  # type: ignore[arg-type]
    return [made[spot.block, spot.line, spot.batch] for spot in spots]


def check(spots: Sequence[Spot], baseline: str | None) -> None:
    """Raise UnknownName for a baseline that was given and stands in no line, ConfigError for one that is several."""
    if baseline is None:
        return
    named = [spot for spot in spots if spot.is_of(baseline)]
    if not named:
        raise UnknownName("baseline", baseline, {spot.line for spot in spots}, "Give baseline=LINE, a line's label.")
    places = Counter((spot.block, spot.batch, spot.contest) for spot in named)
    if 1 not in places.values() and all(spot.line != baseline for spot in named):
        lines = ", ".join(sorted({repr(spot.line) for spot in named}))
        raise ConfigError(f"baseline: {baseline!r} is several lines, {lines}; expected one, by its whole label")


def comparisons(block: Sequence[Spot], baseline: str | None, evidence: Evidence) -> list[Pair]:
    """A block's entries, each with the baseline."""
    pairs: list[Pair] = []
    for column in grouped(block, "batch").values():
        evidence.read(cell for spot in column for cell in spot.cells)
        for rivals in grouped(column, "contest").values():
            pairs += _to_baseline(rivals, baseline or BASELINE, evidence)
    return pairs


def _interval(spot: Spot, evidence: Evidence) -> tuple[float, float] | None:
    pictures = evidence.of(spot.cells)
    right = np.array([one.right for one in pictures]) if pictures else None
    return interval(spot.values, right, " ".join(sorted(spot.cells)))


def _to_baseline(rivals: list[Spot], baseline: str, evidence: Evidence) -> list[Pair]:
    """The other lines of one batch and contest, each with the baseline; none if there is none, or are several."""
    named = [spot for spot in rivals if spot.line == baseline] or [spot for spot in rivals if spot.is_of(baseline)]
    if len(named) != 1:
        return []
    return [paired(spot, named[0], evidence) for spot in rivals if spot is not named[0]]


def _to_best(rivals: list[Spot], evidence: Evidence) -> list[Pair]:
    """The other complete lines of one batch and contest, each with the best."""
    best = max((spot for spot in rivals if spot.best), key=lambda spot: spot.mean, default=None)
    if best is None:
        return []
    others = [spot for spot in rivals if spot is not best and spot.n == best.n and not spot.failed]
    return [paired(spot, best, evidence) for spot in others]


def _verdicts(pairs: list[Pair]) -> dict[int, Versus]:
    """By the spot's id: each pair of a block with what it came to."""
    usable = [pair for pair in pairs if pair.usable]
    done = assess(usable)
    known = done.known & ~np.isnan(done.p)
    corrected = np.full(len(usable), math.nan)
    corrected[known] = holm(done.p[known])
    family = _family(pairs, usable, done, known)
    place = {id(pair): k for k, pair in enumerate(usable)}
    nothing = math.nan
    found = {}
    for pair in pairs:
        k = place.get(id(pair))
        half, noise = (float(done.half[k]), done.noise[k]) if k is not None else (nothing, _alone(pair))
        sure = k is not None and known[k]
        found[id(pair.spot)] = Versus(
            baseline=pair.other.line,
            seeds=pair.seeds,
            left_out=pair.left_out,
            difference=pair.difference,
            interval=(pair.difference - half, pair.difference + half),
            p=float(done.p[k]) if k is not None and sure else nothing,
            p_holm=float(corrected[k]) if k is not None and sure else nothing,
            verdict=_verdict(pair, corrected[k] if k is not None and sure else nothing),
            noise=noise,
            pooled=k is not None and bool(done.pooled[k]),
            family=family,
        )
    return found


def _alone(pair: Pair) -> Noise:
    """Of a pair without a verdict what there is of it."""
    return pair.squares.noise() if pair.squares and pair.seeds > 1 else Noise()


def _verdict(pair: Pair, p: float) -> str:
    if against(pair.spot) or against(pair.other):
        return FAILED if against(pair.spot) else BASELINE_FAILED
    if not math.isnan(p):
        return UNDECIDED if p > LEVEL else BETTER if pair.difference > 0 else WORSE
    if not pair.spot.values or not pair.other.values:
        return NO_RESULT
    if not pair.seeds:
        return NO_SEED
    return TOO_FEW if pair.seeds < LEAST_SEEDS else NO_NOISE


def _family(pairs: Sequence[Pair], usable: Sequence[Pair], done: Assessed, known: np.ndarray) -> Family:
    lines = list(dict.fromkeys(pair.other.line for pair in pairs))
    return Family(
        block=pairs[0].spot.block if pairs else "",
        baseline=", ".join(lines),
        size=int(known.sum()),
        comparisons=len(pairs),
        equality=done.pool.equality if done.pool else math.nan,
        pooled=bool(done.pool and done.pool.accepted),
        freedom=done.pool.shared_freedom if done.pool else math.nan,
        by_picture=sum(bool(pair.squares) for pair, sure in zip(usable, known, strict=True) if sure),
    )


def _level(pairs: list[Pair]) -> set[int]:
    """The ids of spots that are not significantly worse than the best of their batch."""
    usable = [pair for pair in pairs if pair.usable]
    done = assess(usable)
    rivals: dict[int, int] = {}
    for pair in pairs:
        rivals[id(pair.other)] = rivals.get(id(pair.other), 0) + 1
    return {
        id(pair.spot)
        for k, pair in enumerate(usable)
        if done.known[k] and not pair.spot.best and done.p[k] / 2 > LEVEL / rivals[id(pair.other)]
    }
