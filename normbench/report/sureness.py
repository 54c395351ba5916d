"""How sure the table is, in words: what its marks mean, and what they rest on. A line only where it applies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from normbench.report.frame import Spot
from normbench.report.pooling import LEAST_SEEDS
from normbench.report.verdict import (
    BASELINE,
    BASELINE_FAILED,
    BETTER,
    FAILED,
    LEVEL_SIGN,
    NO_NOISE,
    NO_RESULT,
    NO_SEED,
    SIGNS,
    TOO_FEW,
    UNDECIDED,
    WORSE,
    Family,
    Versus,
)

SURE = (BETTER, WORSE, UNDECIDED)


def notes(spots: Sequence[Spot]) -> list[str]:
    """The lines of a table's spots (``statistics.judged``)."""
    verdicts = [spot.versus for spot in spots if spot.versus]
    families = list(dict.fromkeys(versus.family for versus in verdicts))
    said = [line for family in families for line in _family(family, [v for v in verdicts if v.family == family])]
    if any(spot.level for spot in spots):
        said.append(f"{LEVEL_SIGN} not significantly worse than the best of its batch (5 %, all of a batch together)")
    return [*said, *_missing(spots, verdicts), *([] if verdicts else _uncompared(spots))]


def _family(family: Family, verdicts: Sequence[Versus]) -> list[str]:
    """What was compared, and what the seeds' variance is."""
    if not family.size:
        return []
    where = f"{family.block}: " if family.block else ""
    kinds = {versus.verdict for versus in verdicts}
    signs = [(SIGNS[kind], kind) for kind in (BETTER, WORSE) if kind in kinds]
    found = f"{' '.join(sign for sign, _ in signs)} significantly {' or '.join(kind for _, kind in signs)} than"
    by = {family.size: " and picture", 0: ""}.get(family.by_picture, f", {family.by_picture} of them by picture, too")
    mates = f"paired by seed{by}"
    size = f"Holm over {_many(family.size, 'comparison')}" if family.size > 1 else "1 comparison"
    told = f"{where}{found if signs else 'no significant difference to'} {family.baseline} (5 %; {mates}; {size})"
    return [told, *_variance(family, where), *_noise(verdicts, where)]


def _variance(family: Family, where: str) -> list[str]:
    if math.isnan(family.equality):
        return []
    test = f"Bartlett's p {family.equality:.2f}"
    if family.pooled:
        return [f"{where}seed variance pooled over the comparisons: {family.freedom:.0f} degrees of freedom ({test})"]
    return [f"{where}seed variance not pooled, each comparison has its own: they are not equally noisy ({test})"]


def _noise(verdicts: Sequence[Versus], where: str) -> list[str]:
    """The middle comparison's parts: which of them limits the verdicts."""
    known = [versus.noise for versus in verdicts if versus.verdict in SURE and not math.isnan(versus.noise.picture)]
    if not known:
        return []
    seed, residual, picture = (
        statistics.median([getattr(noise, part) for noise in known]) for part in ("seed", "residual", "picture")
    )
    parts = f"{seed:.2f} from seed to seed, {residual:.2f} of single pictures per seed, {picture:.2f} of this test set"
    return [f"{where}noise of a difference (s.d., points, median): {parts}, which more seeds do not lessen"]


def _missing(spots: Sequence[Spot], verdicts: Sequence[Versus]) -> list[str]:
    """Why some have no verdict, and what some verdicts leave out."""
    kinds = [versus.verdict for versus in verdicts]
    said = []
    if TOO_FEW in kinds:
        few = kinds.count(TOO_FEW)
        who = "" if few == len(kinds) else f" for {few} of {len(kinds)} comparisons"
        said.append(f"too few seeds for a verdict{who}: it takes {LEAST_SEEDS} that both have")
    if NO_RESULT in kinds:
        said.append("no verdict where the entry or the baseline has no result")
    if NO_SEED in kinds:
        said.append("no verdict where the entry and the baseline have no seed in common")
    if NO_NOISE in kinds:
        said.append("no verdict where all seeds differ by the same from the baseline: such noise cannot be judged")
    if FAILED in kinds or BASELINE_FAILED in kinds:
        said.append("no verdict where a seed, the entry's or the baseline's, ended diverged, oom, timeout or error")
    out = sum(versus.left_out for versus in verdicts if versus.verdict in SURE)
    if out:
        said.append(f"paired are the seeds that both have: {_many(out, 'seed')} of one side left out")
    if any(spot.interval and len(spot.values) == 1 for spot in spots):
        said.append("the 95 % interval of a single seed (table.csv) covers test-set noise only")
    return said


def _uncompared(spots: Sequence[Spot]) -> list[str]:
    """Why nothing is, though the usual baseline is there: several lines of one contest, or in none with another."""
    contests: dict[tuple[str, int, str], list[Spot]] = {}
    for spot in spots:
        contests.setdefault((spot.block, spot.batch, spot.contest), []).append(spot)
    bases = [[spot.line for spot in rivals if spot.is_of(BASELINE)] for rivals in contests.values()]
    lines = max(bases, key=len, default=[])
    if not lines and len({spot.line for spot in spots}) > 1:
        return [f"no comparison, as no line is {BASELINE}: normbench.report DIR baseline=LINE compares with another"]
    if len(lines) > 1:
        return [f"no comparison, as {BASELINE} is {len(lines)} lines: baseline='{lines[0]}', say, chooses one"]
    if lines and any(not base for base in bases):
        return [f"no comparison: nothing differs from {BASELINE} in the norm alone"]
    return []


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}{'s'[: count != 1]}"
