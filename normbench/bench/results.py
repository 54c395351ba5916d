"""Rows of what was measured, and the CSV of these and of every other mode's."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from normbench.bench.statistics import BASELINE, COPY, quartiles, ratios

if TYPE_CHECKING:
    from normbench.bench.measure import Samples


@dataclass(frozen=True)
class Row:
    """One contestant on one case of one network. Ratios are to the baseline of the same round.

    sites: how many the network has of this shape. activation: one follows the norm there. copy_ratio: to a copy of the
    input. kept_mib: what the forward keeps for the backward. state_mib: parameters and buffers. status: ``ok``,
    ``failed`` or ``skipped``; NaN in all measures but of ``ok``.
    """

    name: str
    kind: str
    network: str
    N: int
    C: int
    H: int
    W: int
    activation: bool
    sites: int
    memory_format: str
    dtype: str
    mib: float
    median_ms: float = math.nan
    q25_ms: float = math.nan
    q75_ms: float = math.nan
    forward_ms: float = math.nan
    ratio: float = math.nan
    ratio_q25: float = math.nan
    ratio_q75: float = math.nan
    copy_ratio: float = math.nan
    kept_mib: float = math.nan
    state_mib: float = math.nan
    rounds: int = 0
    repeats: int = 0
    status: str = "ok"
    reason: str = ""

    @property
    def measured(self) -> bool:
        return math.isfinite(self.ratio)

    @property
    def column(self) -> str:
        """Layout and dtype: what is never averaged over."""
        return f"{self.memory_format} {self.dtype}"

    @property
    def case(self) -> tuple[Any, ...]:
        """What all contestants of a round share."""
        return (self.network, self.N, self.C, self.H, self.W, self.activation, self.memory_format, self.dtype)

    @property
    def place(self) -> str:
        """The case in short."""
        return f"{self.C}×{self.H}×{self.W} N={self.N}"


def measures(name: str, samples: Mapping[str, Samples]) -> dict[str, Any]:
    """The measures of ``name`` as columns of a row."""
    own = samples[name]
    if own.reason or not own.seconds:
        return {"status": "failed", "reason": own.reason or "no round was finished"}
    time = quartiles([1000 * value for value in own.seconds])
    ratio = quartiles(ratios(own.seconds, samples[BASELINE].seconds))
    copy = quartiles(ratios(own.seconds, samples[COPY].seconds)) if COPY in samples else None
    why = samples[BASELINE].reason
    return {
        "median_ms": time.median, "q25_ms": time.low, "q75_ms": time.high,
        "forward_ms": 1000 * quartiles(own.forward).median,
        "ratio": ratio.median, "ratio_q25": ratio.low, "ratio_q75": ratio.high,
        "copy_ratio": copy.median if copy else math.nan,
        "rounds": len(own.seconds), "repeats": own.repeats, "reason": f"{BASELINE}: {why}" if why else "",
    }  # fmt: skip


def to_csv(rows: Sequence[Any], facts: Mapping[str, Any]) -> str:
    """Tidy: one line per row, all dataclasses of one kind; five digits, nothing where there is no number.

    facts: what every line repeats, such as the device.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, [*(f.name for f in fields(rows[0])), *facts], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in {**asdict(row), **facts}.items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.5g}"
    return str(value).lower() if isinstance(value, bool) else value
