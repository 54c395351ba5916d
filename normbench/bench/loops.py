"""Steps of whole training loops: a sweep's with each normalizer, the same with the network untouched, the plain one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from normbench.bench import ours
from normbench.bench.measure import Call, Rule, Samples, Slice, race
from normbench.bench.ours import Checked, Loop
from normbench.bench.plainprocess import AHEAD, WARM_UP, PlainProcess, parts
from normbench.bench.statistics import BASELINE, quartiles, ratios
from normbench.data import Pictures, open_pictures
from normbench.train import net_size

PLAIN = "plain loop"
SLICE = 0.25  # seconds of a turn at least


@dataclass(frozen=True)
class LoopRow:
    """One loop at one batch. Ratios are of times in the same round.

    batch: images that share statistics; forwards: of one step. over_plain: how many times as many images per second as
    the plain loop's. ratio: time over that of the untouched network in our loop, at batch × workers images.
    data … python: shares of a profiled step's time. status: ``ok``, ``failed`` or ``skipped``.
    """

    name: str
    kind: str
    network: str
    data_set: str
    batch: int
    workers: int
    images: int
    forwards: int
    memory_format: str
    amp: str
    loaders: int
    step_threads: int = 0
    median_ms: float = math.nan
    q25_ms: float = math.nan
    q75_ms: float = math.nan
    images_per_s: float = math.nan
    over_plain: float = math.nan
    over_plain_q25: float = math.nan
    over_plain_q75: float = math.nan
    ratio: float = math.nan
    ratio_q25: float = math.nan
    ratio_q75: float = math.nan
    rounds: int = 0
    repeats: int = 0
    data: float = math.nan
    convolution: float = math.nan
    norm: float = math.nan
    optimizer: float = math.nan
    other: float = math.nan
    python: float = math.nan
    profiled_ms: float = math.nan
    status: str = "ok"
    reason: str = ""

    @property
    def measured(self) -> bool:
        return math.isfinite(self.median_ms)


@dataclass(frozen=True)
class Round:
    """Everyone at one batch. base: the cell of the untouched network, all images of a step in one batch."""

    base: Checked
    cells: Sequence[Checked]
    loaders: int

    @property
    def batch(self) -> int:
        return self.cells[0].cell.batch


def measure(now: Round, device: torch.device, rule: Rule) -> list[LoopRow]:
    """A row per loop: the plain one, the untouched network, every normalizer."""
    pictures = open_pictures(now.base.cell.data, size=net_size(now.base.cell, now.base.description), device=device)
    loops: dict[str, Loop | PlainProcess] = {}
    names = [PLAIN, BASELINE, *(one.cell.norm.name for one in now.cells)]
    able = [name for name in names if _checked(now, name).skip is None]
    with contextlib.ExitStack() as stack:

        def made(name: str) -> Call:
            loop = loops[name] = _loop(now, pictures, device, name)
            stack.callback(loop.close)
            if isinstance(loop, PlainProcess):
                return Call(lambda: None, elsewhere=loop.train)
            with loop.turn():
                for _ in range(WARM_UP):
                    loop.train(loop.fetch())
            return Call(lambda: loop.train(loop.fetch()), turn=loop.turn)

        makers = {name: partial(made, name) for name in able}
        found = race(makers, device, rule, Slice(SLICE, AHEAD * max(1, now.loaders)))
        shares = {name: _parts(loop, device) for name, loop in loops.items() if not found[name].reason}
    return [_row(now, name, found, shares, loops) for name in names]


def _loop(now: Round, pictures: Pictures, device: torch.device, name: str) -> Loop | PlainProcess:
    checked = _checked(now, name)
    if name == PLAIN:
        return PlainProcess(checked, device, now.loaders)
    net = ours.untouched(checked, device) if name == BASELINE else ours.network(checked, device)
    return Loop(checked, net, pictures, device)


def _checked(now: Round, name: str) -> Checked:
    """The cell of a loop."""
    return next((one for one in now.cells if one.cell.norm.name == name), now.base)


def _parts(loop: Loop | PlainProcess, device: torch.device) -> dict[str, float]:
    if isinstance(loop, PlainProcess):
        return loop.parts()
    with loop.turn():
        return parts(loop, device)


def _row(
    now: Round,
    name: str,
    found: dict[str, Samples],
    shares: dict[str, dict[str, float]],
    loops: dict[str, Loop | PlainProcess],
) -> LoopRow:
    checked = _checked(now, name)
    cell, base = checked.cell, now.base.cell
    row = LoopRow(
        name, {PLAIN: "plain", BASELINE: "baseline"}.get(name, "norm"), cell.arch.name, now.base.description.name,
        cell.batch, cell.workers, cell.images, loops[name].forwards if name in loops else 0,
        "contiguous" if name == PLAIN else cell.memory_format, base.amp, now.loaders if name == PLAIN else 0,
    )  # fmt: skip
    if name not in found:
        return replace(row, status="skipped", reason=checked.skip or "")
    own = found[name]
    if own.reason or not own.seconds:
        return replace(row, status="failed", reason=own.reason or "no round was finished")
    return replace(row, **_measures(row.images, own, found), **shares.get(name, {}))  # type: ignore[arg-type]


def _measures(images: int, own: Samples, found: dict[str, Samples]) -> dict[str, Any]:
    time = quartiles([1000 * value for value in own.seconds])
    over = quartiles(ratios(found[PLAIN].seconds, own.seconds))
    ratio = quartiles(ratios(own.seconds, found[BASELINE].seconds))
    return {
        "median_ms": time.median, "q25_ms": time.low, "q75_ms": time.high, "images_per_s": 1000 * images / time.median,
        "over_plain": over.median, "over_plain_q25": over.low, "over_plain_q75": over.high,
        "ratio": ratio.median, "ratio_q25": ratio.low, "ratio_q75": ratio.high,
        "rounds": len(own.seconds), "repeats": own.repeats,
    }  # fmt: skip
