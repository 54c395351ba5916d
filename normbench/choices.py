"""What ``auto`` comes to: memory format, bfloat16 and threads, measured once and then the same for every normalizer.

    runs/<name>/.choices/<arch>-<images>-<mark>.json   what was chosen for a sweep's cells: made once, then it stands

What is measured are whole training steps of the untouched network, with nn.BatchNorm2d, so that no normalizer's own
speed decides for the others (steptime.py). A question of format has one answer in a sweep, wherever its cells run; one
of threads has one for each number of cores that a process may have, for it changes no number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normbench import machine, models
from normbench.cell import AMP, MEMORY_FORMATS, Cell
from normbench.data import Description
from normbench.errors import StoreError
from normbench.files import CHOICES, read_json, temporary, write_json
from normbench.options import AUTO
from normbench.train import fed_size

SCHEMA = 1
# The keys of a cell that may be auto, with what they are where nothing is gained; threads is a key of the sweep.
PLAIN = {"memory_format": MEMORY_FORMATS[0], "amp": AMP[0]}
THREADS = "threads"
# Times within this share of the best are equal, and then the plainest wins. bfloat16 changes numbers: it must be faster
# by the second share at least.
TIE, CLEARLY = 0.03, 0.10

Setting = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is asked, in plain values. what: ``format`` or ``threads``; side: height and width in pixels; images: of a
    step, at_once of them in one forward; given: the keys of PLAIN as the cell has them; most: threads, None for format.
    """

    what: str
    arch: Mapping[str, Any]
    source: str | None
    side: tuple[int, int]
    classes: int
    images: int
    at_once: int
    device: str
    given: Mapping[str, str]
    most: int | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON gives it back."""
        found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return found

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Question:
        return cls(**{**plain, "side": tuple(plain["side"])})

    def mark(self, *more: object) -> str:
        return hashlib.sha256(json.dumps([self.plain(), *more], sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """For people."""
        arch = str(self.arch["name"]).rsplit("/", 1)[-1].replace(":", ".")
        return f"{arch}, {self.images} image{'s' if self.images > 1 else ''} a step"

    def candidates(self) -> list[Setting]:
        """The settings to choose from, the plainest first."""
        if self.most is not None:
            powers = [2**k for k in range(self.most.bit_length()) if 2**k < self.most]
            return [{THREADS: count} for count in (*powers, self.most)]
        formats, precisions = (
            choices if self.given[key] == AUTO else (self.given[key],)
            for key, choices in (("memory_format", MEMORY_FORMATS), ("amp", AMP))
        )
        return [{"memory_format": own, "amp": amp} for amp in precisions for own in formats]


@dataclass(frozen=True)
class Choice:
    """An answer. values: the setting; times_ms: of a step, by candidate; where: the machine, its threads and torch;
    why: if nothing was measured.
    """

    values: Setting
    times_ms: Mapping[str, float]
    where: Mapping[str, Any]
    why: str = ""

    def told(self) -> str:
        """In a line."""
        word = label(self.values)
        if self.why:
            return f"{word} ({self.why})"
        others = ", ".join(f"{name} {ms:.3g}" for name, ms in self.times_ms.items() if name != word)
        return f"{word}, {self.times_ms[word]:.3g} ms a step" + (f" ({others})" if others else "")


def asked(cell: Cell) -> tuple[str, ...]:
    """The keys of a cell that are auto."""
    return tuple(key for key in PLAIN if getattr(cell, key) == AUTO)


def of_format(cell: Cell, description: Description) -> Question | None:
    """What is to be asked of a cell's memory format and precision. Nothing where numbers are to be the same on every
    run: there it is the plainest.
    """
    return _question("format", cell, description) if asked(cell) and not cell.deterministic else None


def of_threads(cell: Cell, description: Description, most: int) -> Question | None:
    """What is to be asked where threads are auto; most: that a process may have. Deterministic cells have one."""
    found = _question(THREADS, cell, description, most)
    return None if cell.deterministic or found.device != "cpu" else found


def _question(what: str, cell: Cell, description: Description, most: int | None = None) -> Question:
    arch, given = dataclasses.asdict(cell.arch), {key: getattr(cell, key) for key in PLAIN}
    if what == THREADS:
        given = PLAIN
    return Question(
        what, {**arch, "name": arch["name"].rsplit("/", 1)[-1]}, models.source_hash(cell.arch.name),
        fed_size(cell, description), len(description.classes), cell.images,
        cell.batch * (cell.chunk or cell.workers), machine.device(cell.device).type, given, most,
    )  # fmt: skip


def resolved(cell: Cell, values: Mapping[str, Any]) -> Cell:
    """The cell with what was chosen in the place of auto."""
    return dataclasses.replace(cell, **{key: values.get(key, PLAIN[key]) for key in asked(cell)})


def label(setting: Mapping[str, Any]) -> str:
    """``channels_last, float32``, ``2 threads``."""
    if THREADS in setting:
        return f"{setting[THREADS]} thread{'s' if setting[THREADS] > 1 else ''}"
    return f"{setting['memory_format']}, {'float32' if setting['amp'] == AMP[0] else setting['amp']}"


def choose(candidates: list[Setting], times_ms: Mapping[str, float]) -> Setting:
    """The fastest of those that were timed; of equal ones the plainest; bfloat16 only if it is clearly faster."""
    timed = [setting for setting in candidates if label(setting) in times_ms]
    exact = [setting for setting in timed if setting.get("amp", AMP[0]) == AMP[0]]
    rough = [setting for setting in timed if setting not in exact]
    best = [_fastest(some, times_ms) for some in (exact, rough) if some]
    if len(best) == 2 and times_ms[label(best[1])] * (1 + CLEARLY) > times_ms[label(best[0])]:
        return best[0]
    return best[-1]


def _fastest(settings: list[Setting], times_ms: Mapping[str, float]) -> Setting:
    least = min(times_ms[label(setting)] for setting in settings)
    return next(setting for setting in settings if times_ms[label(setting)] <= least * (1 + TIE))


# The files.


def path_in(folder: Path, question: Question) -> Path:
    """Where a sweep's folder has the answer."""
    arch = "".join(c if c.isalnum() or c in "_.-" else "-" for c in str(question.arch["name"]))[-40:].strip(".-")
    return folder / CHOICES / f"{arch}-{question.images}-{question.mark()}.json"


def read(path: Path, question: Question) -> Choice | None:
    """The answer in a file; None if there is none. Raises StoreError for one that is damaged or answers another."""
    if not path.exists():
        return None
    found = read_json(path)
    values, times, where, why = ((found.get(key) or {}) for key in ("values", "times_ms", "where", "why"))
    fits = found.get("schema") == SCHEMA and found.get("question") == question.plain()
    whole = isinstance(times, dict) and isinstance(where, dict)
    if not (fits and whole and values in question.candidates() and (why or label(values) in times)):
        raise StoreError(f"{os.fspath(path)!r} is damaged, or answers another question; it is measured again")
    return Choice(values, times, where, str(why or ""))


def keep(path: Path, question: Question, choice: Choice) -> Choice:
    """Put an answer in place, unless another process was quicker: the one that is there then. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"schema": SCHEMA, "question": question.plain(), **dataclasses.asdict(choice)}
    with temporary(path) as own:
        write_json(own, content)
        try:
            os.link(own, path)  # whole, or not at all
        except FileExistsError:
            return read(path, question) or choice
    return choice
