"""One run of ``fit``: each normalizer's largest batch with one worker, with several in a forward, and with chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from normbench.bench import cases, fittable, ours, outcome, trial
from normbench.bench.fit import Fit, largest
from normbench.bench.fittable import FitRow
from normbench.bench.ours import Checked, Checks
from normbench.bench.outcome import Files
from normbench.bench.progress import Bar
from normbench.bench.settings import FitSettings
from normbench.bench.statistics import BASELINE
from normbench.data import Description
from normbench.errors import ConfigError
from normbench.norms import get

FILES = Files("fit", "fit", "fit")
MOST = {"cpu": 256}  # images of one forward at most, unless a number is given
MOST_ELSEWHERE = 65536
PICTURES = 10**9  # as many as any step takes
PEAK = {"cuda": "the peak of the tensors"}
PEAK_ELSEWHERE = "the peak of a process of its own, torch itself included"


@dataclass(frozen=True)
class Question:
    """A normalizer (``BASELINE``: the untouched network) with so many workers, ``chunk`` of them in a forward."""

    name: str
    workers: int
    chunk: int | None

    @property
    def norm(self) -> str:
        return "bn" if self.name == BASELINE else self.name


class Finder:
    """Answers questions by tries."""

    def __init__(self, settings: FitSettings, device: torch.device) -> None:
        self.settings, self.device, self.check = settings, device, Checks()
        free = cases.free_mib(device)
        half = free if device.type == "cuda" else free / 2
        self.limit = min(free, half if settings.limit_mib is None else settings.limit_mib)
        if not math.isfinite(self.limit):
            raise ConfigError("limit_mib: none, and what is free cannot be told here; give limit_mib=…, in MiB")
        self.most = settings.most or MOST.get(device.type, MOST_ELSEWHERE)
        classes = tuple(map(str, range(cases.CLASSES)))
        side = settings.size
        self.pictures = Description("noise", classes, PICTURES, 1, "test", side, side, 3, False, "")

    def checked(self, question: Question, batch: int) -> Checked:
        """Raises UnknownName and ConfigError, as a sweep does."""
        settings = self.settings
        cell = ours.cell(
            settings.arch, question.norm, batch, workers=question.workers, chunk=question.chunk,
            device=settings.device, amp=settings.amp, memory_format=settings.memory_format,
        )  # fmt: skip
        return self.check(cell, self.pictures)

    def least(self, question: Question) -> int:
        """The smallest batch that the method trains on here."""
        least = get(question.norm).least_batch
        return least if self.checked(question, least).skip is None else least + 1

    def answer(self, question: Question, alone: Fit | None) -> tuple[Fit, int]:
        """The largest batch, and the workers of one forward; ``alone``: what was found for one worker."""
        least = self.least(question)
        at_once = self.checked(question, least).at_once
        known: dict[str, Any] = {}
        if alone and alone.batch:
            known = {"first": alone.batch // at_once, "each": alone.each * at_once if alone.each > 0 else 0.0}
        most = max(least, self.most // at_once)
        return largest(partial(self._peak, question), self.limit, most=most, least=least, **known), at_once

    def _peak(self, question: Question, batch: int) -> float:
        checked = self.checked(question, batch)
        asked = trial.Try(checked, question.name == BASELINE, self.settings.threads, self.limit)
        return trial.peak_mib(asked, self.device)


def run(settings: FitSettings, words: Sequence[str]) -> bool:
    """Measure and write; whether anything fits. What was measured is written when the run is stopped, too."""
    device = outcome.prepared(settings.device, settings.threads)
    finder = Finder(settings, device)
    names = [BASELINE, *ours.chosen(settings.norm)]
    for name in names:
        for question in _questions(name, settings):
            finder.least(question)
    result = outcome.begin(settings.out, device, words)
    peak = PEAK.get(device.type, PEAK_ELSEWHERE)
    result.notes.append(
        f"limit: {finder.limit:.0f} MiB for {peak}, over {trial.STEPS} steps of noise at {settings.size} px; the data "
        f"set comes on top; no forward of more than {finder.most} images was tried"
    )
    with result.keeping(FILES, fittable.make) as rows, Bar(result.console, len(names)) as bar:
        for name in names:
            bar.at(name)
            for row in _rows(name, finder):
                rows.append(row)
            bar.advance(1)
    return any(row.measured and row.kind != "baseline" for row in rows)


def _questions(name: str, settings: FitSettings) -> list[Question]:
    """One worker first: the others are near what that says. The untouched network knows of one only."""
    found = [Question(name, 1, None)]
    if name != BASELINE and settings.workers > 1:
        found.append(Question(name, settings.workers, None))
        if settings.chunk < settings.workers:
            found.append(Question(name, settings.workers, settings.chunk))
    return found


def _rows(name: str, finder: Finder) -> Iterator[FitRow]:
    settings, alone = finder.settings, None
    for question in _questions(name, settings):
        row = FitRow(
            name, "baseline" if name == BASELINE else "norm", f"{settings.arch}@{settings.size}",
            settings.memory_format, "bfloat16" if settings.amp else "none",
            question.workers, question.chunk or question.workers, finder.limit,
        )  # fmt: skip
        try:
            found, at_once = finder.answer(question, alone)
        except trial.FailedTry as error:
            yield replace(row, status="failed", reason=str(error))
            continue
        alone = alone or found
        reason = ""
        if not found.batch:
            reason = f"batch={found.least} takes {found.next_peak:.0f} MiB"
        yield replace(
            row, at_once=at_once, batch=found.batch, images=found.batch * question.workers, capped=found.capped,
            peak_mib=found.peak, next_mib=found.next_peak, each_mib=found.each, tries=len(found.tried),
            status="ok" if found.batch else "skipped", reason=reason,
        )  # fmt: skip
