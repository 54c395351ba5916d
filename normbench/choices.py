"""What ``auto`` comes to: memory format, bfloat16 and threads, measured once and then the same for every normalizer.

    runs/<name>/.choices/<arch>-<images>-<mark>.json   what was chosen for a sweep's cells: made once, then it stands
    ~/.cache/normbench/choices/<mark>.json             the same by machine, for the sweeps to come

What is measured are whole training steps of the untouched network, with nn.BatchNorm2d, so that no normalizer's own
speed decides for the others. A question of format has one answer in a sweep, wherever its cells run; one of threads has
one for each number of cores that a process may have, for it changes no number.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normbench import machine, models
from normbench.cell import AMP, MEMORY_FORMATS, Cell
from normbench.data import Description
from normbench.errors import StoreError, one_line
from normbench.files import cache_folder, read_json, temporary, write_json
from normbench.options import AUTO
from normbench.step import classification_loss
from normbench.train import fed_size, picture_size

SCHEMA = 1
FOLDER = ".choices"
# The keys of a cell that may be auto, with what they are where nothing is gained; threads is a key of the sweep.
PLAIN = {"memory_format": MEMORY_FORMATS[0], "amp": AMP[0]}
THREADS = "threads"
# Times within this share of the best are equal, and then the plainest wins. bfloat16 changes numbers: it must be faster
# by the second share at least.
TIE, CLEARLY = 0.03, 0.10
# Seconds for all candidates together, rounds at the least, and rounds that are not counted.
SECONDS, LEAST, WARM_UP = 1.5, 3, 2

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
    return folder / FOLDER / f"{arch}-{question.images}-{question.mark()}.json"


def path_of_cache(question: Question, threads: int, images: int) -> Path:
    """Where the user's cache has it, for this machine, torch and as many threads; images: those of one process."""
    where = {**machine_of(torch.device(question.device)), THREADS: threads}
    return cache_folder() / "choices" / f"{question.mark(where, images)}.json"


def machine_of(device: torch.device) -> dict[str, Any]:
    """What times depend on."""
    about = machine.provenance(device, 1)
    return {key: about[key] for key in ("torch", "device", "machine", "processor", "cores")}


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


# Measuring, in a process of its own.


def measure(cell: Cell, description: Description, question: Question, ranks: int = 1) -> Choice:
    """Time the candidates on this process's threads, in turn; what cannot run is left out."""
    device = machine.device(cell.device)
    machine.seed(0)
    net = models.build(cell.arch, num_classes=question.classes, picture_size=picture_size(cell, description))
    images = max(1, question.images // ranks)
    x = torch.randn(images, 3, *question.side, device=device)
    y = torch.randint(question.classes, (images,), device=device)
    threads, steps, why = torch.get_num_threads(), {}, ""
    for setting in question.candidates():
        try:
            step = _stepper(net, x, y, setting, min(question.at_once, images), question.classes)
            for _ in range(WARM_UP):
                step()
            steps[label(setting)] = step
        except Exception as error:  # such as BatchNorm's for a single value, or no memory
            why = why or f"it could not be measured: {type(error).__name__}: {one_line(error)[:200]}"
    where = {**machine_of(device), THREADS: question.most or threads}
    if not steps:
        return Choice(question.candidates()[0], {}, where, why)
    times = race(steps)
    return Choice(choose(question.candidates(), times), times, where)


def race(steps: Mapping[str, Callable[[], object]], seconds: float = SECONDS) -> dict[str, float]:
    """Median milliseconds of each, called in turn, in another order every round."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    until = time.perf_counter() + seconds
    while min(map(len, found.values())) < LEAST or time.perf_counter() < until:
        for name in random.sample(list(steps), len(steps)):
            begun = time.perf_counter()
            steps[name]()
            found[name].append(1000 * (time.perf_counter() - begun))
    return {name: statistics.median(times) for name, times in found.items()}


def _stepper(
    plain: nn.Module, x: torch.Tensor, y: torch.Tensor, setting: Setting, at_once: int, classes: int
) -> Callable[[], object]:
    """A training step of a copy of ``plain`` as the setting has it; with rate 0 every one does the same work."""
    layout = torch.channels_last if setting.get("memory_format") == MEMORY_FORMATS[1] else torch.contiguous_format
    half = setting.get("amp", AMP[0]) != AMP[0]
    net = copy.deepcopy(plain).to(x.device).to(memory_format=layout).train()
    update = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)

    def step() -> float:
        if THREADS in setting:
            torch.set_num_threads(setting[THREADS])
        update.zero_grad(set_to_none=True)
        total = torch.zeros((), device=x.device)
        for part, labels in zip(x.split(at_once), y.split(at_once), strict=True):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
                loss = classification_loss(net(part.contiguous(memory_format=layout)), labels, 0.0)
            (loss * (len(part) / len(x))).backward()
            total = total + loss.detach()
        update.step()
        return float(total)  # waits for the device

    return step
