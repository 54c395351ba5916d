"""What a sweep's cell is and does in its training loop. All that the bench knows of that stands here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normbench import graph, machine, models
from normbench.cell import Cell, make
from normbench.data import Description, Pictures, feed
from normbench.errors import ConfigError
from normbench.graph import CudaRecorder, Recorded
from normbench.grid import GROUPS, Configs
from normbench.meter import Meter
from normbench.norms import names
from normbench.optimize import optimizer
from normbench.preflight import Preflight
from normbench.step import Step, memory_format
from normbench.train import picture_size, prepare, tell_steps

RECIPE = "cifar"  # SGD with Nesterov momentum and weight decay
SYNTHETIC = {"name": "normbench.bench.synthetic:pictures", "pad": 4, "flip": True}
Batch = tuple[Tensor, Tensor]


def chosen(given: tuple[str, ...]) -> list[str]:
    """Normalizers by name, ``all`` being every registered one."""
    return list(dict.fromkeys(word for one in given for word in (names() if one == "all" else [one])))


def cell(arch: str, norm: str, batch: int, *, data: str | None = None, root: str | None = None, **values: Any) -> Cell:
    """The cell of a sweep with these keys; ``data`` None: noise. Raises ConfigError."""
    config = Configs().config({"arch": arch, "data": data or "none", "norm": norm, "recipe": RECIPE})
    groups = {group: config[group] for group in GROUPS}
    if data is None:
        groups["data"] = dict(SYNTHETIC)
    elif root is not None:
        groups["data"]["root"] = root
    return make({**groups, "batch": batch, **values})


@dataclass
class Checked:
    """A cell that can be: its pictures described, its sites counted.

    values: in the maps of one forward. at_once: workers in one. skip: why the method cannot train so, if it
    cannot. threads: of the loop; None: by its size.
    """

    cell: Cell
    description: Description
    values: int
    at_once: int
    skip: str | None
    threads: int | None = None


class Checks:
    """Checks cells as a sweep does before it runs any, and remembers what it found out about their parts."""

    def __init__(self) -> None:
        self.preflight = Preflight()

    def __call__(self, cell: Cell, description: Description | None = None) -> Checked:
        """description: of pictures that are not there. Raises UnknownName, ConfigError, DataError."""
        ahead = self.preflight
        description = description or ahead.describe(cell.data)
        if cell.images > description.train:
            raise ConfigError(
                f"batch={cell.batch} × workers={cell.workers}: a step takes {cell.images} pictures, "
                f"data={cell.data.name} has {description.train} to train on; take a smaller batch"
            )
        ahead.check_options(cell)
        shapes, _ = ahead.outline(cell, description)
        ahead.check_wiring(cell, description)
        skip = ahead.skip_reason(cell, shapes)
        at_once = Step.workers_at_once(cell)
        values = cell.batch * at_once * sum(C * H * W for C, H, W in shapes.values())
        return Checked(cell, description, values, at_once, skip)


class Onlooker:
    """Sees the steps, and does nothing about it."""

    def step(self, epoch: int, step: int, loss: float, images_per_s: float) -> None: ...
    def row(self, row: dict[str, Any]) -> None: ...
    def right(self, right: object) -> None: ...


class Trainer:
    """A network, its optimizer, step and meter, as a cell has them."""

    def __init__(self, checked: Checked, net: nn.Module, device: torch.device) -> None:
        self.cell, self.net = checked.cell, net.train()
        tell_steps(net, 1)  # no burn-in, no warm-up: what a step costs in most of a run
        recorded = graph.wanted(self.cell, device, 1)
        self.update = optimizer(net, self.cell.recipe, self.cell.peak_lr, recorded=recorded)
        classes = checked.description.domain_classes
        self.step = Step(self.cell, net, net, self.update, device, classes=classes)
        self.meter = Meter(1, 0, self.cell.images, device, Onlooker())

    @property
    def forwards(self) -> int:
        """Of one step: more than one where workers are run one by one, or a chunk at a time."""
        return self.cell.images // self.step.images

    def train(self, batch: Batch) -> None:
        """One step. It leaves the weights as they are: with lr 0 all rounds do the same work on the same numbers."""
        self.meter.add(self.step(*batch, 0.0))


class Loop(Trainer):
    """The training loop of a cell, step by step. Epochs follow each other without an end."""

    def __init__(self, checked: Checked, net: nn.Module, pictures: Pictures, device: torch.device) -> None:
        super().__init__(checked, net, device)
        self.batches = _endless(pictures, self.cell)
        self.turn = partial(machine.numerics, False, checked.values, checked.threads)
        self.recorded = _recorded(self.step, pictures, device)

    def fetch(self) -> Batch | None:
        """A step's pictures; None for one that is recorded, which fetches its own."""
        return None if self.recorded else next(self.batches)

    def train(self, batch: Batch | None) -> None:
        """See ``Trainer``."""
        if batch is None:
            self.meter.add(next(self.recorded or iter(())))
        else:
            super().train(batch)

    def close(self) -> None:
        """Nothing of it works in the background."""


def _endless(pictures: Pictures, cell: Cell) -> Iterator[Batch]:
    epoch = 0
    while True:
        epoch += 1
        yield from pictures.train(seed=cell.seed, epoch=epoch, batch=cell.images)


def _recorded(step: Step, pictures: Pictures, device: torch.device) -> Iterator[Tensor] | None:
    """The losses of recorded steps, without end, where a sweep's cell would record them."""
    cell = step.cell
    source = feed(pictures, cell.images) if graph.wanted(cell, device, 1) else None
    if source is None:
        return None
    steps = pictures.train_steps(cell.images)
    return _replayed(Recorded(step, source, steps, CudaRecorder(device), strict=False), steps, cell.seed)


def _replayed(recorded: Recorded, steps: int, seed: int) -> Iterator[Tensor]:
    epoch = 0
    while True:
        epoch += 1
        recorded.begin([0.0] * steps, seed=seed, epoch=epoch, start=0)
        for _ in range(steps):
            yield recorded()


def network(checked: Checked, device: torch.device) -> nn.Module:
    """The cell's network with its normalizer in place."""
    return prepare(checked.cell, checked.description, device)


def untouched(checked: Checked, device: torch.device, layout: torch.memory_format | None = None) -> nn.Module:
    """The same network, the same weights, with nn.BatchNorm2d; in the cell's layout unless another is given."""
    cell, described = checked.cell, checked.description
    machine.seed(cell.seed)
    net = models.build(cell.arch, num_classes=len(described.classes), picture_size=picture_size(cell, described))
    return net.to(device).to(memory_format=layout or memory_format(cell))
