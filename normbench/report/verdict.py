"""What a comparison came to: the difference to the baseline, how sure it is, and what it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from normbench.attempt import FAILURES

BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"
BASELINE = "bn"  # what the others are compared with, unless said
TOO_FEW, FAILED, BASELINE_FAILED = "too few seeds", "failed", "baseline failed"
# Nothing to compare on one side; no seed that both have; seeds that differ by nothing, which nobody believes.
NO_RESULT, NO_SEED, NO_NOISE = "no result", "no seed in common", "no noise seen"
# What stands beside a mean in a table: better and worse than the baseline; level with the best of its batch.
SIGNS = {BETTER: "▲", WORSE: "▼"}
LEVEL_SIGN = "≈"
MARKS = "".join(SIGNS.values()) + LEVEL_SIGN
# Ends that count against the method. The others (killed, interrupted, skipped, running) are no results.
AGAINST = (*FAILURES, "no top-1")


@dataclass(frozen=True)
class Noise:
    """Where a difference's uncertainty comes from, in points; NaN: not known.

    The variance of the mean difference over n seeds is seed²/n + residual²/n + picture².
    seed: from seed to seed, on whatever pictures.  residual: of one seed, as it gets this picture right and another
    wrong.  picture: as these pictures and no others were drawn; more seeds do not lessen it, more pictures do.
    """

    seed: float = math.nan
    picture: float = math.nan
    residual: float = math.nan


@dataclass(frozen=True)
class Family:
    """The comparisons of one block of the table, which share the error rate.

    size: p-values that Holm's correction counts.  comparisons: entries beside the baseline.  equality: Bartlett's p for
    equal noise of the seeds; NaN if there was nothing to test.  pooled: whether their variance was pooled, with how
    many degrees of freedom.  by_picture: how many of them were paired by picture, too.
    """

    block: str
    baseline: str
    size: int
    comparisons: int
    equality: float
    pooled: bool
    freedom: float
    by_picture: int


@dataclass(frozen=True)
class Versus:
    """An entry beside the baseline at its batch, in points of top-1: entry less baseline.

    seeds: those that both have; left_out: those that only one has.  interval: of 95 % for this difference alone.
    p: two-sided; p_holm: corrected for the family; NaN where the verdict is none.  pooled: by the family's variance.
    """

    baseline: str
    seeds: int
    left_out: int
    difference: float
    interval: tuple[float, float]
    p: float
    p_holm: float
    verdict: str
    noise: Noise
    pooled: bool
    family: Family
