"""What auto comes to for the cells of a sweep: as its folder or the user's cache has it, else measured at the start."""

from __future__ import annotations

import json
import os
import select
import signal
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from normbench import choices
from normbench.attempt import writing
from normbench.choices import Choice, Question
from normbench.errors import StoreError
from normbench.launch import forkserver
from normbench.launch.order import Order
from normbench.launch.places import Places
from normbench.options import AUTO
from normbench.preflight import Planned

# Answers a question with a cell, on so many threads, in a process of its own; None: it was stopped.
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
            choice = self._read(path, question)
            if choice is None:
                measured = self.measure(item, question, threads)
                if measured is None:
                    return None
                with writing(self.folder):
                    choice = choices.keep(path, question, measured)
            self.note(f"{question.what} auto for {question.name}: {choice.told()}")
            self.found[mark] = choice
        return self.found[mark]

    def _read(self, path: Path, question: Question) -> Choice | None:
        """What a file holds; one that cannot be used goes, and is said."""
        try:
            return choices.read(path, question)
        except StoreError as error:
            self.note(str(error))
            with writing(self.folder):
                path.unlink(missing_ok=True)
            return None

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


class Answer:
    """A question at work in a process of its own. fork: starts one on an order's text, with its ends of two files."""

    def __init__(self, order: Order, fork: Callable[[str, int, int], int]) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by ``read`` or ``kill``)
        talk, child_end = os.pipe()
        self.line = os.fdopen(talk, "rb")
        with os.fdopen(child_end, "wb") as own:
            self.pid = fork(order.text(), own.fileno(), self.log.fileno())

    def ready(self, seconds: float) -> bool:
        """Whether there is an answer, or the process has gone; waits so long for it."""
        return bool(select.select([self.line], [], [], seconds)[0])

    def kill(self) -> None:
        forkserver.end(self.pid, signal.SIGKILL)
        self._close()

    def read(self, question: Question) -> tuple[Choice, str]:
        """The choice, the plainest if the process died; what is to be said of the user's cache."""
        said = self.line.read()
        self.log.seek(0)
        words = self.log.read().decode(errors="replace").strip().splitlines()
        self._close()
        if said:
            told = json.loads(said)
            return Choice(**told["choice"]), told["complaint"]
        why = f"it could not be measured: its process died{': ' + words[-1][:200] if words else ''}"
        return Choice(question.candidates()[0], {}, {}, why), ""

    def _close(self) -> None:
        self.line.close()
        self.log.close()
