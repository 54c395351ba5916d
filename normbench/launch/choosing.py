"""What auto comes to for the cells of a sweep: as its folder or the user's cache has it, else measured at the start."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from normbench import choices, machine
from normbench.attempt import writing
from normbench.choices import Choice, Question
from normbench.errors import StoreError
from normbench.launch.places import Places
from normbench.options import AUTO
from normbench.preflight import Planned

# Measures a question with a cell, on so many threads, in a process of its own; None: it was stopped.
Measure = Callable[[Planned, Question, int | None], Choice | None]


@dataclass(frozen=True)
class Chosen:
    """What a cell is run with. values: in the place of auto; threads: so many, whatever its size; record: what every
    record of it repeats.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    record: Mapping[str, Any] = field(default_factory=dict)


class Choosing:
    """Answers for the cells of one sweep. threads: the sweep's setting: None, a number, or auto."""

    def __init__(
        self,
        folder: Path,
        places: Places,
        threads: str | None,
        note: Callable[[str], None] = print,
        measure: Measure = lambda *_: None,
    ) -> None:
        self.folder, self.places, self.threads = folder, places, threads
        self.note, self.measure = note, measure
        self.found: dict[str, Choice] = {}

    def of(self, item: Planned) -> Chosen | None:
        """What the cell is run with; None if it was stopped while that was measured. Raises StoreError."""
        answers: dict[str, Choice] = {}
        threads = None if self.threads in (None, AUTO) else int(self.threads or 1)
        for question in self.questions(item):
            answer = self._answer(item, question, threads)
            if answer is None:
                return None
            answers[question.what] = answer
            threads = answer.values.get(choices.THREADS, threads)
        values = {key: choices.PLAIN[key] for key in choices.asked(item.cell)}
        if "format" in answers:
            values = {key: answers["format"].values[key] for key in values}
        return Chosen(values, threads, self._record(values, answers))

    def questions(self, item: Planned) -> list[Question]:
        """What is to be known of a cell, threads first: the rest is measured on as many."""
        most = self.places.threads or torch.get_num_threads()
        threads = choices.of_threads(item.cell, item.description, most) if self.threads == AUTO else None
        both = (threads, choices.of_format(item.cell, item.description))
        return [found for found in both if found is not None and len(found.candidates()) > 1]

    def told(self, items: Iterable[Planned]) -> list[str]:
        """A line for each question of these cells: what the sweep's folder knows of it. Nothing is measured."""
        found: dict[str, str] = {}
        for item in items:
            for question in self.questions(item):
                try:
                    choice = choices.read(choices.path_in(self.folder, question), question)
                except StoreError as error:
                    found[question.mark()] = str(error)
                    continue
                word = "measured at the start" if choice is None else choice.told()
                found[question.mark()] = f"{question.what} auto for {question.name}: {word}"
        return list(found.values())

    def _answer(self, item: Planned, question: Question, threads: int | None) -> Choice | None:
        mark = question.mark()
        if mark not in self.found:
            path = choices.path_in(self.folder, question)
            with writing(self.folder):
                choice = self._read(path, question)
                if choice is None:
                    choice = self._new(item, question, threads)
                    if choice is None:
                        return None
                    choice = choices.keep(path, question, choice)
            self.note(f"{question.what} auto for {question.name}: {choice.told()}")
            self.found[mark] = choice
        return self.found[mark]

    def _read(self, path: Path, question: Question) -> Choice | None:
        """What a file holds; one that cannot be used goes, and is said."""
        try:
            return choices.read(path, question)
        except StoreError as error:
            self.note(str(error))
            path.unlink(missing_ok=True)
            return None

    def _new(self, item: Planned, question: Question, threads: int | None) -> Choice | None:
        """An answer from the user's cache, or by measuring."""
        count = question.most or threads or self._own_threads(item)
        cached = choices.path_of_cache(question, count, max(1, question.images // self.places.ranks))
        choice = self._read(cached, question)
        if choice is not None:
            return choice
        choice = self.measure(item, question, threads)
        if choice is not None and choice.times_ms:
            with contextlib.suppress(OSError, StoreError):  # a cache that cannot be written costs only time
                choices.keep(cached, question, choice)
        return choice

    def _own_threads(self, item: Planned) -> int:
        """Threads that a process of the cell has where nobody chose."""
        small = machine.threads_for(item.values) == 1
        return 1 if small else self.places.threads or torch.get_num_threads()

    def _record(self, values: Mapping[str, str], answers: Mapping[str, Choice]) -> dict[str, Any]:
        """What result.json, results.csv and provenance.json say."""
        record: dict[str, Any] = {f"chosen_{key}": value for key, value in values.items()}
        if choices.THREADS in answers:
            record["chosen_threads"] = answers[choices.THREADS].values[choices.THREADS]
        if answers:
            record["choices"] = {
                what: {"times_ms": dict(found.times_ms), "where": dict(found.where), "why": found.why}
                for what, found in answers.items()
            }
        return record
