"""The story of one cell: seed, build, replace the normalizers, then for each epoch train, evaluate, record."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from normbench import data, graph, isolate, machine, models, norms, surgery, weighing
from normbench.cell import Cell
from normbench.checkpoint import CheckpointError, draws, set_draws
from normbench.data import Description, Pictures, open_pictures
from normbench.data.tuned import Tuned
from normbench.errors import ConfigError, one_line
from normbench.evaluate import evaluate
from normbench.graph import CudaRecorder, Recorded, Recorder
from normbench.meter import DivergedError, Meter, StoppedError, Watch
from normbench.optimize import learning_rate, optimizer, warmup_steps
from normbench.options import AUTO
from normbench.ranks import ALONE, Ranks, apart
from normbench.step import Step, memory_format

# A run's own numbers that a checkpoint holds.
SUMS = ("done", "seconds", "untimed", "compile_seconds")
# Draws of what is evaluated after training are apart from the run's: this number and the seed.
APART = 2**20
# What rank 0 says while it evaluates: it is not over, and nothing was found.
WAITING: tuple[bool, dict[str, Any] | None] = (False, None)
# Who records a step.
RECORDER: Callable[[torch.device], Recorder] = CudaRecorder
# Side in pixels of streamed pictures where neither the data nor the network asks for one.
STREAMED_SIZE = 224


class Keeper(Protocol):
    """Who writes checkpoints, and is told when the run shall stop.

    trained: keeps what the training came to; whether the network may be evaluated in other ways, too.
    """

    stop: bool

    def due(self, at_end: bool) -> bool: ...
    def save(self, state: dict[str, Any]) -> None: ...
    def trained(self, result: dict[str, Any]) -> bool: ...


class Forget:
    """Keeps nothing, and never stops."""

    stop = False

    def due(self, at_end: bool) -> bool:
        return False

    def save(self, state: dict[str, Any]) -> None: ...

    def trained(self, result: dict[str, Any]) -> bool:
        return True


@dataclass(frozen=True)
class Length:
    """How long a run is: optimizer steps in all, steps of one pass over the pictures, passes begun."""

    total: int
    per_epoch: int

    @property
    def epochs(self) -> int:
        return math.ceil(self.total / self.per_epoch)


def length(cell: Cell, description: Description) -> Length:
    """The run's length over ``description.train`` pictures; the last, smaller step of an epoch is dropped."""
    per_epoch = max(1, description.train // cell.images)
    return Length(cell.length("steps") or (cell.length("epochs") or 0) * per_epoch, per_epoch)


def picture_size(cell: Cell, description: Description) -> int | None:
    """The side in pixels that pictures come at; None if they are streamed and come at the network's own."""
    return description.height or cell.data.size


def fed_size(cell: Cell, description: Description) -> tuple[int, int]:
    """Height and width in pixels of what the network is fed."""
    size = net_size(cell, description)
    if size is None and description.height and description.width:
        return description.height, description.width
    side = size or cell.data.size or STREAMED_SIZE
    return side, side


def net_size(cell: Cell, description: Description) -> int | None:
    """The side in pixels that pictures are brought to for the network; None: as they are."""
    return models.resolve(cell.arch, picture_size=picture_size(cell, description)).size


def open_for(cell: Cell, description: Description, device: torch.device) -> Pictures:
    """The pictures of a cell as its network wants them."""
    return open_pictures(cell.data, size=net_size(cell, description), device=device, described=description)


def prepare(cell: Cell, description: Description, device: torch.device) -> nn.Module:
    """The network of a cell. Its weights are drawn from the seed before any normalizer is chosen: the same for all."""
    machine.seed(cell.seed)
    size = picture_size(cell, description)
    plain = models.build(cell.arch, num_classes=len(description.classes), picture_size=size)
    shape = (3, *fed_size(cell, description))
    told = told_options(cell, description)
    net = surgery.apply(plain, cell.norm.name, batch=cell.batch, input_shape=shape, **told)
    return net.to(device).to(memory_format=memory_format(cell))


def told_options(cell: Cell, description: Description) -> dict[str, Any]:
    """The normalizer's options, and the number of the data's domains where it wants that.

    Raises ConfigError for another number given: statistics of a domain that is not there would never be any.
    """
    options = dict(cell.norm.options)
    if norms.get(cell.norm.name).takes_domains:
        there = max(1, len(description.domains))
        if options.setdefault("domains", there) != there:
            named = f" ({', '.join(description.domains)})" if description.domains else ""
            raise ConfigError(
                f"norm.domains: got {options['domains']}, but data={description.name} is trained on {there} "
                f"domain{'s' if there > 1 else ''}{named}; leave it out"
            )
    return options


def tell_steps(net: nn.Module, total: int) -> None:
    """Tell the units that have a schedule of their own (``run_steps``) how many optimizer steps the run has."""
    for unit in filter(norms.is_unit, net.modules()):
        if hasattr(unit, "run_steps"):
            unit.run_steps = total  # type: ignore[assignment]


def train(
    cell: Cell,
    net: nn.Module,
    pictures: Pictures,
    device: torch.device,
    watch: Watch,
    keep: Keeper | None = None,
    state: Mapping[str, Any] | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Train ``net`` as the cell says; the result of the last epoch, with times and peak memory.

    keep: writes checkpoints. state: one of these, to go on from, bit for bit. ranks: who shares the work.
    Raises DivergedError when the training or the evaluation loss is no longer finite, StoppedError when ``keep`` was
    asked to stop.
    """
    return Run(cell, net, pictures, device, watch, keep or Forget(), ranks).go(state)


class Run:
    """A cell's training from its first step, or from a checkpoint, to its result."""

    def __init__(
        self,
        cell: Cell,
        net: nn.Module,
        pictures: Pictures,
        device: torch.device,
        watch: Watch,
        keep: Keeper,
        ranks: Ranks = ALONE,
    ) -> None:
        self.cell, self.net, self.pictures, self.device = cell, net, pictures, device
        self.watch, self.keep, self.ranks = watch, keep, ranks
        self.length = run = length(cell, pictures.description)
        tell_steps(net, run.total)
        if cell.eval.example_weight != AUTO:
            norms.set_example_weight(net, float(cell.eval.example_weight))
        feed = data.feed(pictures, cell.images) if graph.wanted(cell, device, ranks.count) else None
        if feed is None and cell.graph is True:
            raise graph.refused(graph.NO_FEED)
        self.update = optimizer(net, cell.recipe, cell.peak_lr, recorded=feed is not None)
        warmup = warmup_steps(cell.recipe, run.per_epoch, run.total)
        self.rate = partial(learning_rate, peak=cell.peak_lr, total=run.total, warmup=warmup, recipe=cell.recipe)
        self.forward: nn.Module = torch.compile(net) if cell.compile else net  # type: ignore[assignment]
        self.step = Step(cell, net, self.forward, self.update, device, ranks, pictures.description.domain_classes)
        self.recorded = None if feed is None else self._recorded(feed)
        self.done, self.seconds = 0, 0.0
        # Of the process that wrote the checkpoint this one goes on from.
        self.resumed, self.earlier, self.peak_before = 0, "", 0.0
        # Steps until the fastest way is ready, which are not timed; those that were not; the seconds they took.
        self.unready = graph.FIRST + 1 if self.recorded else int(cell.compile)
        self.untimed, self.compile_seconds = 0, 0.0
        self.row: dict[str, Any] = {}
        self.meter = Meter(1, 0, cell.images, device, watch)

    def go(self, state: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Train from the start, or from ``state``; the result."""
        machine.reset_peak_memory(self.device)
        # Dropout and the like draw from here on; the weights' draws differ in number between architectures, not norms.
        # Ranks draw apart, as pictures of one step do.
        machine.seed(self.cell.seed + 1 + 2**32 * self.ranks.rank)
        if state is not None:
            self.restore(state)
        while self.done < self.length.total or self.meter.steps:
            self._epoch()
        timed, seconds = self.done - self.untimed, self.seconds
        if not timed:
            timed, seconds = self.done, seconds + self.compile_seconds
        measured = {
            "images_per_s": timed * self.cell.images / seconds,
            "peak_memory_mib": self.peak,
            "execution": self.execution,
        }
        if self.cell.compile:
            measured["compile_seconds"] = self.compile_seconds
        row = {key: value for key, value in self.row.items() if key != "lr"}  # the last step's; a cell's is its peak
        last = {"last_loss": self.meter.last, "split": self.pictures.description.split}
        result = row | measured | last
        return result | (self._isolate(result) if self.cell.eval.isolate else {})

    def _isolate(self, result: dict[str, Any]) -> dict[str, Any]:
        """What the trained network does when it is evaluated in other ways, by rank 0 while the others wait."""
        over, found = self.ranks.first((True, self._isolated(result)) if self.ranks.rank == 0 else WAITING)
        while not over:
            over, found = self.ranks.first(WAITING)
        if found is None:
            self._stopped()
        return found

    def _isolated(self, result: dict[str, Any]) -> dict[str, Any] | None:
        """None if the run shall stop. What cannot be done costs no result; the run's own draws stay where they are."""
        if not self.keep.trained(result):
            return _only_ordinary("it ended the process before")
        before = draws(self.device)
        machine.seed(self.cell.seed + APART)
        try:
            with apart():
                found, right = isolate.isolate(self.cell, self.net, self.pictures, self.step.precision, self._go_on)
        except StoppedError:
            return None
        except Exception as error:
            return _only_ordinary(one_line(error))
        finally:
            set_draws(before, self.device)
        if right is not None:
            self.watch.right(right)
        return found

    def _go_on(self) -> None:
        """Between passes: an exchange that takes too long would be given up."""
        self.ranks.first(WAITING)
        if self.keep.stop:
            raise StoppedError("", {})

    def _epoch(self) -> None:
        """What is left of the epoch at work, its evaluation and its row."""
        meter, cell, run, epoch = self.meter, self.cell, self.length, self.meter.epoch
        steps = min(run.per_epoch, run.total - meter.done)
        self.net.train()
        losses = self._losses(epoch)
        for _ in range(steps - meter.steps):
            with meter.preparing() if self.unready else contextlib.nullcontext():
                meter.add(next(losses))
            self.done += 1
            self.unready = max(0, self.unready - 1)
            self._stop_or_save()
        epoch_seconds = meter.close()
        self.seconds += epoch_seconds
        self.untimed, self.compile_seconds = self.untimed + meter.untimed, self.compile_seconds + meter.spent

        found = self._weigh()
        found |= self._measure(self.pictures.test, self.pictures.description.test)
        self.row = {
            "epoch": epoch, "step": self.done, "lr": self.rate(self.done - 1), "train_loss": meter.mean, **found,
            "images_per_s": meter.images_per_s(epoch_seconds), "train_seconds": self.seconds,
        }  # fmt: skip
        self.watch.row(self.row)
        if not math.isfinite(found["loss"]):
            reached = {"epoch": epoch, "step": self.done, "last_loss": meter.last}
            raise DivergedError(f"the evaluation loss is {found['loss']}", reached)
        self.meter = Meter(epoch + 1, self.done, cell.images, self.device, self.watch, meter.last)
        if self.done < run.total or self.cell.eval.isolate:
            self._stop_or_save(at_end=True)

    def _losses(self, epoch: int) -> Iterator[Tensor]:
        """The loss of each step that is left of the epoch, as it is made."""
        place: dict[str, int] = {"seed": self.cell.seed, "epoch": epoch, "start": self.meter.steps}
        if self.recorded is not None:
            steps = range(self.meter.done, min(self.meter.done + self.length.per_epoch, self.length.total))
            self.recorded.begin([self.rate(step) for step in steps], **place)
            while True:
                yield self.recorded()
        ranks = {"rank": self.ranks.rank, "ranks": self.ranks.count}
        for x, y in self.pictures.train(**place, batch=self.cell.images, **ranks):
            yield self.step(x, y, self.rate(self.done))

    def _recorded(self, feed: data.Feed) -> Recorded:
        """The steps as they are recorded and replayed."""
        recorder, strict = RECORDER(self.device), self.cell.graph is True
        return Recorded(self.step, feed, self.length.per_epoch, recorder, strict=strict)

    @property
    def execution(self) -> str:
        """How steps are made: ``graph`` (recorded and replayed), ``compiled``, ``eager``; before any, as earlier."""
        if self.done == self.resumed and self.earlier:
            return self.earlier
        if self.recorded is not None and self.recorded.replays:
            return "graph"
        return "compiled" if self.cell.compile else "eager"

    @property
    def peak(self) -> float:
        """MiB, of this process or of one before it that went further."""
        return max(machine.peak_memory_mib(self.device), self.peak_before)

    def _weigh(self) -> dict[str, float]:
        """With ``eval.example_weight=auto``: choose it after the last step. What the row says of it."""
        if self.cell.eval.example_weight != AUTO:
            return {}
        if self.done < self.length.total:
            return {"example_weight": 0.0}
        assert isinstance(self.pictures, Tuned)  # or the cell would have been refused
        measure = partial(self._measure, self.pictures.tune, self.pictures.description.tune)
        row = norms.get(self.cell.norm.name, self.cell.norm.options)
        images = self.cell.images if row.joins_workers else self.cell.batch
        return {"example_weight": weighing.choose(self.net, images, measure)}

    def _measure(self, pictures: Any, count: int) -> dict[str, float]:
        """Top-1, top-5 and loss over ``count`` ``pictures`` of all ranks."""
        return evaluate(
            self.forward,
            pictures(self.cell.data.eval_batch, rank=self.ranks.rank, ranks=self.ranks.count),
            count,
            precision=self.step.precision,
            memory_format=memory_format(self.cell),
            reduce=self.ranks.total if self.ranks.count > 1 else None,
        )

    def _stop_or_save(self, at_end: bool = False) -> None:
        if self.ranks.count > 1 and self.meter.waiting:  # they wait for each other only where the device is waited for
            return
        due, stop = self.ranks.any([self.keep.due(at_end), self.keep.stop], self.device)
        if stop:
            self._stopped()
        if due:
            with self.meter.paused():
                self.keep.save(self.state())

    def _stopped(self) -> NoReturn:
        with self.meter.paused():
            self.keep.save(self.state())
        reached = {"epoch": self.meter.epoch, "step": self.done, "last_loss": self.meter.last}
        raise StoppedError("stopped by Ctrl-C or a signal", reached)

    def state(self) -> dict[str, Any]:
        """All that the numbers to come depend on."""
        return {
            "net": self.net.state_dict(),
            "update": self.update.state_dict(),
            "draws": self.ranks.everybodys(draws(self.device)),
            "meter": self.meter.state(),
            "row": self.row,
            **{key: getattr(self, key) for key in (*SUMS, "execution", "peak")},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Stand where ``state`` was taken. Raises CheckpointError if it is of another network."""
        try:
            self.net.load_state_dict(state["net"])
            self.update.load_state_dict(state["update"])
            for group in self.update.param_groups:  # how steps were made before says nothing of how they are made now
                if "capturable" in group:
                    group["capturable"] = self.recorded is not None
            self.meter.restore(state["meter"])
            if self.ranks.rank < len(state["draws"]):  # else it goes on over more ranks than before
                set_draws(state["draws"][self.ranks.rank], self.device)
            self.row = state["row"]
            for key in SUMS:
                setattr(self, key, state[key])
            self.resumed = self.done
            self.earlier, self.peak_before = state.get("execution", ""), state.get("peak", 0.0)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"checkpoint.pt does not fit this cell: {one_line(error)[:200]}") from None


def _only_ordinary(why: str) -> dict[str, Any]:
    """Nothing more of a cell than its headline, and a word of that."""
    warnings.warn(f"only the ordinary evaluation was done: {why}", RuntimeWarning, stacklevel=3)
    return {}
