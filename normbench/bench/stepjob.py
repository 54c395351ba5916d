"""One run of ``step``: the cells checked, raced a batch at a time; the files and the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from normbench import choices, machine, steptime
from normbench.bench import loops, ours, outcome, stepplot, steptable
from normbench.bench.loops import Round
from normbench.bench.measure import Rule
from normbench.bench.ours import Checked
from normbench.bench.outcome import Files
from normbench.bench.plainloop import Source
from normbench.bench.progress import Bar
from normbench.bench.settings import StepSettings
from normbench.options import AUTO
from normbench.train import net_size

FILES = Files("step", "step", "step")


def run(settings: StepSettings, words: Sequence[str]) -> bool:
    """Measure and write; whether anything was measured. What was measured is written when the run is stopped, too."""
    device = outcome.prepared(settings.device, None)
    rounds = list(_rounds(settings))
    base = rounds[0].base
    Source(base.cell, net_size(base.cell, base.description))  # raises here what it would in a process of its own
    result = outcome.begin(settings.out, device, words)
    result.notes += _notes(settings, rounds, device)
    rule = Rule(settings.rounds, settings.seconds)
    with result.keeping(FILES, steptable.make, stepplot.draw) as rows, Bar(result.console, len(rounds)) as bar:
        for now in rounds:
            bar.at(f"{settings.arch} batch={now.batch} workers={settings.workers}")
            rows += loops.measure(_settled(now, settings.threads), device, rule)
            bar.advance(1)
    return any(row.measured and row.kind == "norm" for row in rows)


def _rounds(settings: StepSettings) -> Iterator[Round]:
    """Every batch, its cells checked. Raises UnknownName, ConfigError, DataError."""
    check = ours.Checks()
    shared: dict[str, Any] = {"data": settings.data, "root": settings.root, "memory_format": settings.memory_format}
    shared |= {"amp": settings.amp, "device": settings.device}
    for batch in settings.batch:
        base = ours.cell(settings.arch, "bn", batch * settings.workers, **shared)
        cells = [
            ours.cell(settings.arch, norm, batch, workers=settings.workers, **shared)
            for norm in ours.chosen(settings.norm)
        ]
        yield Round(check(base), [check(cell) for cell in cells], settings.loaders)


def _settled(now: Round, threads: int | str | None) -> Round:
    """The round with what auto comes to, for everyone the same: threads, then on so many the memory format."""
    base, cell, described = now.base, now.base.cell, now.base.description
    count = threads if isinstance(threads, int) else None
    if threads == AUTO and (question := choices.of_threads(cell, described, torch.get_num_threads())):
        count = steptime.answer(cell, described, question)[0].values[choices.THREADS]
    values: dict[str, Any] = {}
    if question := choices.of_format(cell, described):
        with machine.numerics(False, base.values, count):
            values = steptime.answer(cell, described, question)[0].values

    def settled(one: Checked) -> Checked:
        return replace(one, cell=choices.resolved(one.cell, values), threads=count)

    return replace(now, base=settled(base), cells=[settled(one) for one in now.cells])


def _notes(settings: StepSettings, rounds: Sequence[Round], device: torch.device) -> list[str]:
    """What a reader must know of both loops."""
    pinned = ", pinned memory, non_blocking" if device.type == "cuda" else ""
    loaders = f"{settings.loaders} loader processes" if settings.loaders else "no loader process"
    notes = [
        f"{loops.PLAIN}: DataLoader with {loaders}{pinned}, torchvision's transforms on uint8 tensors, nn.BatchNorm2d, "
        "SGD at torch's defaults, the loss read at every step; its loaders stand still while others are timed",
        f"{loops.BASELINE}: the untouched network in our loop, at batch × workers images; ratio: over its time",
        "the plain loop runs in a process of its own, without the settings of allocator and threads that a sweep makes",
        "× plain loop and ratio are medians of what each round gave, not ratios of the medians beside them",
        "shares: of steps under torch's profiler, which slows small operators down",
    ]
    alone = [one.cell.norm.name for one in rounds[0].cells if one.at_once < settings.workers]
    if alone:
        notes.append(f"workers one by one, {settings.workers} forwards a step: {', '.join(alone)}")
    return notes
