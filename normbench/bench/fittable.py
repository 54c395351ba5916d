"""The rows of ``fit``, and its table: a line per normalizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from normbench.bench.sheet import NOTHING, Sheet, two

CHUNK = "with chunk only the step's pictures grow with the workers"
TITLE = "The largest batch that can be trained at"


@dataclass(frozen=True)
class FitRow:
    """One normalizer with so many workers, at most ``chunk`` of them in a forward; at_once: those that are.

    batch: the largest that fits, images of one worker. peak_mib: what it takes; next_mib: what one more would, infinite
    where memory ran out, nothing where it was not tried. each_mib: of one more in the batch. capped: larger batches
    were not tried. status: ``ok``, ``skipped`` (none fits) or ``failed``.
    """

    name: str
    kind: str
    network: str
    memory_format: str
    amp: str
    workers: int
    chunk: int
    limit_mib: float
    at_once: int = 0
    batch: int = 0
    images: int = 0
    capped: bool = False
    peak_mib: float = math.nan
    next_mib: float = math.nan
    each_mib: float = math.nan
    tries: int = 0
    status: str = "ok"
    reason: str = ""

    @property
    def measured(self) -> bool:
        return self.batch > 0


def make(rows: Sequence[FitRow], notes: Sequence[str], about: str) -> Sheet:
    """Columns: one worker, then those of the other ways that were asked for."""
    ways = sorted({(row.workers, row.chunk) for row in rows}, key=lambda way: (way[0], -way[1]))
    header = ["", "batch", "MiB", "of one more", "MiB an image"]
    for workers, chunk in ways[1:]:
        header += [f"{workers} workers, {'one forward' if chunk == workers else f'chunk={chunk}'}: batch", "MiB"]
    lines = []
    for name in dict.fromkeys(row.name for row in rows):
        own = {(row.workers, row.chunk): row for row in rows if row.name == name}
        alone = own.get(ways[0])
        line = [name, _batch(alone), _mib(alone), _next(alone), _each(alone)]
        for way in ways[1:]:
            line += [_batch(own.get(way)), _mib(own.get(way))]
        lines.append(line)
    several = [f"batch: images of one worker, a step has workers × batch; {CHUNK}"] if len(ways) > 1 else []
    return Sheet(f"{TITLE} ({rows[0].network})", about, header, lines, [*several, *notes, *_reasons(rows)])


def _batch(row: FitRow | None) -> str:
    if row is None or not row.measured:
        return NOTHING
    return f"{row.batch} or more" if row.capped else str(row.batch)


def _mib(row: FitRow | None) -> str:
    return f"{row.peak_mib:.0f}" if row and row.measured else NOTHING


def _next(row: FitRow | None) -> str:
    if row is None or not row.measured or math.isnan(row.next_mib):
        return NOTHING
    return f"{row.next_mib:.0f}" if math.isfinite(row.next_mib) else "out of memory"


def _each(row: FitRow | None) -> str:
    return two(row.each_mib) if row and row.measured and math.isfinite(row.each_mib) else NOTHING


def _reasons(rows: Sequence[FitRow]) -> list[str]:
    return [
        f"{row.name}, {row.workers} workers, chunk={row.chunk}: {row.status}: {row.reason}"
        for row in rows
        if row.reason
    ]
