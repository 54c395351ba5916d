"""The table of ``step``: a line per loop and batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from normbench.bench.breakdown import PARTS
from normbench.bench.loops import LoopRow
from normbench.bench.sheet import NOTHING, Sheet, two

TITLE = "Training images per second: the loop of a sweep beside the plain one, taking turns"
HEADER = (
    "", "batch × workers", "forwards", "ms a step", "images/s", "× plain loop", "quartiles", "ratio", "quartiles",
    "rounds", *PARTS,
)  # fmt: skip


def make(rows: Sequence[LoopRow], notes: Sequence[str], about: str) -> Sheet:
    """Rows that could not be measured are notes."""
    network = rows[0].network
    lines = [_line(row) for row in rows if row.measured]
    reasons = [
        f"{row.name} at {row.batch} × {row.workers}: {row.status}: {row.reason}" for row in rows if not row.measured
    ]
    return Sheet(f"{TITLE} ({network})", about, HEADER, lines, [*notes, *reasons])


def _line(row: LoopRow) -> list[str]:
    return [
        row.name, f"{row.batch} × {row.workers}", str(row.forwards), f"{row.median_ms:.1f}", f"{row.images_per_s:.0f}",
        _number(row.over_plain), _spread(row.over_plain_q25, row.over_plain_q75),
        _number(row.ratio), _spread(row.ratio_q25, row.ratio_q75), str(row.rounds),
        *(_share(getattr(row, part)) for part in PARTS),
    ]  # fmt: skip


def _number(value: float) -> str:
    return two(value) if math.isfinite(value) else NOTHING


def _spread(low: float, high: float) -> str:
    return f"{two(low)}–{two(high)}" if math.isfinite(low) else NOTHING


def _share(value: float) -> str:
    return f"{100 * value:.0f} %" if math.isfinite(value) else NOTHING
