"""How long a training step of the untouched network takes under each of a question's candidates.

In a process of its own: whoever forks must not have computed, and a cell's numbers must not depend on what was timed.
What was measured is kept in the user's cache (``~/.cache/normbench/choices``) by machine, torch version and threads.
"""

from __future__ import annotations

import contextlib
import copy
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normbench import machine, models
from normbench.cell import AMP, MEMORY_FORMATS, Cell
from normbench.choices import THREADS, Choice, Question, Setting, choose, keep, label, read
from normbench.data import Description
from normbench.errors import StoreError, one_line
from normbench.files import cache_folder
from normbench.step import classification_loss
from normbench.train import picture_size

# Seconds for all candidates together, rounds at the least, and rounds that are not counted.
SECONDS, LEAST, WARM_UP = 1.5, 3, 2
# Seconds after which no other round is begun where steps are long.
MOST = 20.0


def answer(cell: Cell, description: Description, question: Question, ranks: int = 1) -> tuple[Choice, str]:
    """The choice, from the user's cache or measured on this process's threads; what is to be said of the cache."""
    where = place(machine.device(cell.device), question.most or torch.get_num_threads())
    path, complaint = path_of_cache(question, where, max(1, question.images // ranks)), ""
    try:
        choice = read(path, question)
    except StoreError as error:
        choice, complaint = None, str(error)
        path.unlink(missing_ok=True)
    if choice is None:
        choice = measure(cell, description, question, ranks)
        if choice.times_ms:
            with contextlib.suppress(OSError):  # a cache that cannot be written costs only time
                keep(path, question, choice)
    return choice, complaint


def path_of_cache(question: Question, where: Mapping[str, Any], images: int) -> Path:
    """Where the user's cache has it, for a machine, torch and threads; images: those of one process."""
    return cache_folder() / "choices" / f"{question.mark(where, images)}.json"


def place(device: torch.device, threads: int) -> dict[str, Any]:
    """What times depend on."""
    about = machine.provenance(device, threads)
    return {key: about[key] for key in ("torch", "device", "machine", "processor", "cores", "threads")}


def measure(cell: Cell, description: Description, question: Question, ranks: int = 1) -> Choice:
    """Time the candidates on this process's threads, in turn; what cannot run is left out."""
    threads = torch.get_num_threads()
    try:
        return _measure(cell, description, question, ranks)
    finally:
        torch.set_num_threads(threads)  # a candidate may have its own


def _measure(cell: Cell, description: Description, question: Question, ranks: int) -> Choice:
    device = machine.device(cell.device)
    machine.seed(0)
    net = models.build(cell.arch, num_classes=question.classes, picture_size=picture_size(cell, description))
    images = max(1, question.images // ranks)
    x = torch.randn(images, 3, *question.side, device=device)
    y = torch.randint(question.classes, (images,), device=device)
    where = place(device, question.most or torch.get_num_threads())
    steps, why = {}, ""
    for setting in question.candidates():
        try:
            step = _stepper(net, x, y, setting, min(question.at_once, images), question.classes)
            _warm_up(step)
            steps[label(setting)] = step
        except Exception as error:  # such as BatchNorm's for a single value, or no memory
            why = why or f"it could not be measured: {type(error).__name__}: {one_line(error)[:200]}"
    if not steps:
        return Choice(question.candidates()[0], {}, where, why)
    times = race(steps)
    return Choice(choose(question.candidates(), times), times, where)


def _warm_up(step: Callable[[], object]) -> None:
    """Steps that are not counted; one where they are long."""
    begun = time.perf_counter()
    for _ in range(WARM_UP):
        step()
        if time.perf_counter() - begun > SECONDS:
            return


def race(steps: Mapping[str, Callable[[], object]], seconds: float = SECONDS) -> dict[str, float]:
    """Median milliseconds of each, called in turn, in another order every round."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    until = time.perf_counter() + seconds
    most = time.perf_counter() + MOST
    while time.perf_counter() < until or (min(map(len, found.values())) < LEAST and time.perf_counter() < most):
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
