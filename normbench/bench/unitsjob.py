"""One run over units, or over whole steps with ``arch``: who, on what, how long; measure; leave files and table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch

from normbench import norms
from normbench.bench import cases, contestants, networks, outcome, plot, table, units
from normbench.bench.contestants import Contestant
from normbench.bench.measure import Rule
from normbench.bench.outcome import Files, Outcome
from normbench.bench.progress import Bar, duration
from normbench.bench.results import Row
from normbench.bench.settings import Settings
from normbench.norms import listing

UNITS, STEPS = Files("bench", "summary", "bench"), Files("steps", "steps", "steps")

Counts = dict[str, dict[cases.Shape, int]]


def run(settings: Settings, words: Sequence[str]) -> bool:
    """Measure and write; whether a normalizer was measured. What was is written when the run is stopped, too."""
    device = outcome.prepared(settings.device, settings.threads)
    torch.backends.cudnn.benchmark = True  # as the runner has it
    entrants, notes = _contestants(settings, device)
    counts = _counts(settings)
    result = outcome.begin(settings.out, device, words)
    result.notes += [*notes, *_without_kernels(settings, device)]
    steps = bool(settings.arch)
    make, draw = partial(table.make, steps=steps), partial(plot.draw, steps=steps)
    with result.keeping(STEPS if steps else UNITS, make, draw) as rows:
        for some in _steps(settings, entrants, result) if steps else _units(settings, counts, entrants, result):
            rows += some
    return any(row.measured and row.kind == "norm" for row in rows)


def _contestants(settings: Settings, device: torch.device) -> tuple[list[Contestant], list[str]]:
    chosen = contestants.of_registry(settings.norm, extra=not settings.arch)
    others: list[Contestant] = []
    notes = _partly(chosen) if not settings.arch else []
    if settings.peers and not settings.arch:
        others, left = contestants.peers(device)
        notes += [f"not measured: {line}" for line in left]
    return [contestants.baseline(), *chosen, *others], notes


def _partly(chosen: Sequence[Contestant]) -> list[str]:
    """A line on the methods of which a unit alone is not all."""
    names = dict.fromkeys(one.norm for one in chosen)
    there = [name for name in names if listing.acts_on(norms.get(name))]
    if not there:
        return []
    return [
        f"units alone, without what they do to weights, graph or training loop (arch=… has that): {', '.join(there)}"
    ]


def _without_kernels(settings: Settings, device: torch.device) -> list[str]:
    """A line on the types for which there are none here, as a ratio would otherwise be taken for a kernel's."""
    halves = [dtype for dtype in settings.dtype if device.type == "cpu" and dtype not in ("float32", "float64")]
    return [f"{', '.join(halves)} on a CPU: plain PyTorch, since the kernels there take float32"] if halves else []


def _counts(settings: Settings) -> Counts:
    """The site shapes of the networks; none for whole steps, whose networks are checked here."""
    if settings.arch:
        networks.check(settings)
        return {}
    return {network: cases.site_counts(network) for network in settings.shapes}


def _units(
    settings: Settings,
    counts: Counts,
    entrants: list[Contestant],
    result: Outcome,
) -> Iterator[list[Row]]:
    """Rows of the cases, a case at a time; those that do not fit first."""
    device, console = result.device, result.console
    limit = cases.limit_mib(settings.limit_mib, device)
    fit, large = cases.fitting(cases.cases(settings, counts), limit)
    yield list(units.left_out(large, entrants, f"needs more memory than {limit:.0f} MiB"))
    if large:
        result.notes.append(_too_large(large, limit))
    rule = Rule(settings.rounds, settings.seconds)
    console.print(f"{len(fit)} cases of {len(entrants)} contestants; a trial of the small ones first", style="dim")
    forecast = units.Forecast(entrants, device, rule)
    expected = [forecast.seconds(case) for case in fit]
    console.print(f"about {duration(sum(expected))}; stop with Ctrl-C, what was measured is kept", style="dim")
    with Bar(console, sum(expected)) as bar:
        for case, seconds in zip(fit, expected, strict=True):
            shape = case.shape
            bar.at(f"{shape.C}×{shape.H}×{shape.W} N={case.N} {case.memory_format} {case.dtype}")
            yield units.measure(case, entrants, device, rule)
            bar.advance(seconds)


def _steps(settings: Settings, entrants: list[Contestant], result: Outcome) -> Iterator[list[Row]]:
    """Rows of whole training steps, a network at a time."""
    total = len(settings.arch) * len(settings.batch) * len(settings.dtype) * len(settings.memory_format)
    rule = Rule(settings.rounds, settings.seconds)
    with Bar(result.console, total) as bar:
        for network in networks.networks(settings):
            bar.at(f"{network.label} N={network.N} {network.memory_format} {network.dtype}")
            yield networks.measure(network, entrants, result.device, rule)
            bar.advance(1)


def _too_large(large: Iterable[cases.Case], limit: float) -> str:
    large = list(large)
    most = max(large, key=cases.needed_mib)
    shape = most.shape
    return (
        f"{len(large)} cases left out, which need more than limit_mib={limit:.0f}: "
        f"the largest, {shape.C}×{shape.H}×{shape.W} N={most.N} {most.dtype}, {cases.needed_mib(most):.0f} MiB"
    )
