"""How many seeds would show a difference: from the noise that a sweep's own comparisons have.

    python -m normbench.report power=0.2,0.5,1 runs/first

The test is the table's (compare.py): two-sided, at 5 % over the family's size, the level of Holm's first step. For n
seeds a difference D varies by S = s²/n, s² the family's mean variance over seeds (pooling.py), and P, the test set's
part, which n does not lessen. D is Gaussian, the estimate of S has a χ² distribution, and so

    power(δ) = E[Φ((δ − h)/√(S + P)) + Φ((−δ − h)/√(S + P))],   h² = t²(ν) S χ²(ν)/ν + t²(M − 1) P

which without P is the noncentral t distribution's (tests/report/test_power.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import special

from normbench.errors import StoreError
from normbench.report.compare import LEVEL, half_width
from normbench.report.evidence import Evidence
from normbench.report.frame import Spot, grouped
from normbench.report.pairing import Pair, against, assess
from normbench.report.pooling import LEAST_SEEDS
from normbench.report.statistics import check, comparisons
from normbench.report.verdict import BASELINE

WANTED = 0.8  # power
MOST = 10_000  # seeds; more are as good as none
NODES = 256  # of the integral over χ²


@dataclass(frozen=True)
class Basis:
    """What a block's comparisons tell of noise, per comparison in the mean.

    seed: variance of one seed's difference (points²).  picture: of the mean difference, by the test set (points²); NaN
    without correctness.  pictures: M.  freedom: of a test's ``seed``, per seed beyond the first; now: of this one.
    size: of the family.  pooled: whether its comparisons share ``seed``.
    """

    block: str
    baseline: str
    seed: float
    picture: float
    pictures: int
    freedom: float
    now: float
    size: int
    pooled: bool


def bases(folder: Path, frame: pd.DataFrame, spots: Sequence[Spot], baseline: str | None = None) -> list[Basis]:
    """One per block of the table that has a comparison with two seeds. Raises StoreError if none has.

    UnknownName for a baseline that stands in no line.
    """
    check(spots, baseline)
    evidence, found = Evidence(folder, frame), []
    for block in grouped(spots, "block").values():
        pairs = comparisons(block, baseline, evidence)
        usable = [pair for pair in pairs if pair.usable and not pair.identical]
        size = sum(not against(pair.spot) and not against(pair.other) for pair in pairs)
        found += [basis] if usable and (basis := _basis(usable, size)).seed + np.nan_to_num(basis.picture) else []
    if not found:
        name = baseline or BASELINE
        raise StoreError(
            f"{str(folder)!r}: power has nothing to estimate noise from; expected {name} and another line at one batch "
            f"with two seeds or more that ended ok; sweep with seed=0,1,2, or compare with another, baseline=LINE"
        )
    return found


def _basis(pairs: Sequence[Pair], size: int) -> Basis:
    pool = assess(pairs).pool
    assert pool is not None, "none of them is identical"
    squares = [pair.squares for pair in pairs if pair.squares]
    whole = len(squares) == len(pairs)
    picture = float(np.mean([(one.picture - one.residual) / one.seeds for one in squares])) if whole else math.nan
    seeds = np.array([pair.seeds - 1 for pair in pairs], dtype=float)
    lines = list(dict.fromkeys(pair.other.line for pair in pairs))
    return Basis(
        block=pairs[0].spot.block,
        baseline=", ".join(lines),
        seed=float(pool.mean.mean()),
        picture=max(picture, 0.0) if whole else math.nan,
        pictures=min((one.pictures for one in squares), default=0) if whole else 0,
        freedom=pool.shared_freedom / float(seeds.mean()) if pool.accepted else 1.0,
        now=pool.shared_freedom,
        size=size,
        pooled=pool.accepted,
    )


def power(delta: float, seeds: int, basis: Basis) -> float:
    """The probability that a difference of ``delta`` points is found with so many seeds (2 or more)."""
    picture = 0.0 if math.isnan(basis.picture) else basis.picture
    S, nu = basis.seed / seeds, np.asarray(basis.freedom * (seeds - 1))
    chi = special.chdtri(nu, 1 - _nodes()[0]) / nu
    M = np.asarray(basis.pictures or 2)
    h = half_width(LEVEL / basis.size, S * chi, nu, np.asarray(picture), M)
    sd = math.sqrt(S + picture)
    if not sd:
        return 1.0
    found = special.ndtr((delta - h) / sd) + special.ndtr((-delta - h) / sd)
    return float(_nodes()[1] @ found)


def seeds(delta: float, basis: Basis) -> int | None:
    """The least number that finds ``delta`` with a power of 80 %; None if ``MOST`` do not.

    ``LEAST_SEEDS`` or more, as fewer get no verdict.
    """
    if power(delta, MOST, basis) < WANTED:
        return None
    high = LEAST_SEEDS
    low = high - 1
    while power(delta, high, basis) < WANTED:
        low, high = high, min(2 * high, MOST)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(delta, middle, basis) >= WANTED else (middle, high)
    return high


def pictures(delta: float, basis: Basis) -> int:
    """How large a test set would have to be for ``delta`` to be found by many seeds."""
    needed = -special.ndtri(LEVEL / basis.size / 2) + special.ndtri(WANTED)
    return math.ceil(basis.pictures * basis.picture * (needed / delta) ** 2)


@functools.cache
def _nodes() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and weights of Gauss and Legendre on (0, 1)."""
    x, w = np.polynomial.legendre.leggauss(NODES)
    return (x + 1) / 2, w / 2


def told(name: str, basis: Basis, deltas: Sequence[float]) -> str:
    """What is printed of a block."""
    where = f"{name}, {basis.block}" if basis.block else name
    answers = [(f"{delta:g}", _answer(delta, basis)) for delta in deltas]
    width = max(len("points"), *(len(delta) for delta, _ in answers))
    family = f"Holm over {basis.size} comparisons" if basis.size > 1 else "1 comparison"
    lines = [
        f"{where}: seeds that would show a difference to {basis.baseline}",
        f"(5 %, two-sided, {family}; power 80 %)",
        "",
        f"  {'points':>{width}}  seeds",
        *(f"  {delta:>{width}}  {answer}" for delta, answer in answers),
        "",
        "rests on",
        *(f"  {line}" for line in _rests(basis)),
    ]
    return "\n".join(lines)


def _answer(delta: float, basis: Basis) -> str:
    found = seeds(delta, basis)
    if found is not None:
        return str(found)
    if basis.picture > 0 and (needed := pictures(delta, basis)) > basis.pictures:
        return f"not with this test set at any number of seeds; more than {needed:,} pictures would do"
    return f"more than {MOST:,}"


def _rests(basis: Basis) -> list[str]:
    """The two noises, and how well they are known."""
    kinds = {True: "pooled", False: "mean of unequal ones: noisier comparisons take more seeds"}
    kind = kinds[basis.pooled] if basis.size > 1 else "one comparison"
    known = f"{kind}; {basis.now:.0f} degree{'s'[: round(basis.now) != 1]} of freedom"
    seed = f"{math.sqrt(basis.seed):.2f} points: s.d. of a paired difference from seed to seed ({known})"
    if math.isnan(basis.picture):
        return [seed, "differences on this very test set: its own noise is not known without per-picture correctness"]
    return [seed, f"{math.sqrt(basis.picture):.2f} points by the {basis.pictures:,} test pictures, however many seeds"]
