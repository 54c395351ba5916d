"""Before anything runs: every cell of the grid is checked, identified and looked up in the store.

By tracing alone, on the meta device: no weights, no pictures in memory. What cannot be is an error now; what a method
cannot do is a skip with its reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from normbench import graph, machine, models, norms, surgery
from normbench.attempt import FAILURES
from normbench.cell import Cell
from normbench.data import Description, check_decoder, describe
from normbench.errors import ConfigError, InputError, NormbenchError, UnknownName, one_line
from normbench.grid import Grid
from normbench.options import DataOptions
from normbench.records import Store
from normbench.step import Step
from normbench.train import fed_size, picture_size, told_options

# What every label says already.
IN_LABEL = ("norm", "batch", "seed")

Shapes = dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Planned:
    """A cell, checked: its id, what the store knows of it, and why it would be skipped, if it would.

    label: the cell for people, with what tells it from the others of the grid. attempts: made so far.
    values: in the maps of one forward, a measure of the cell's size. widest: of these, in one picture's largest map.
    parameters: of the untouched network. skip_as: the status that a cell with a reason in ``skip`` ends with. told:
    what every record of the cell says beside its configuration.
    """

    cell: Cell
    cell_id: str
    label: str
    changed: tuple[str, ...]
    description: Description
    status: str
    attempts: int
    skip: str | None
    values: int
    widest: int
    parameters: int
    evidence: Mapping[str, str | None]
    skip_as: str = "skipped"
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> dict[str, Any]:
        """What every record of the cell repeats."""
        sources = {f"{key}.source": value[:8] for key, value in self.evidence.items() if value is not None}
        return {"config": self.cell.flat() | sources, "changed": list(self.changed), **self.told}


@dataclass
class Preflight:
    """Checks cells, and remembers what it found out about their parts: a grid has few of each.

    fetch: whether data that is missing may be downloaded (not when only planning). mixed: the grid has several norms.
    """

    fetch: bool = True
    described: dict[str, Description] = field(default_factory=dict)
    outlines: dict[str, tuple[Shapes, int]] = field(default_factory=dict)
    reasons: dict[tuple[str, int], str | None] = field(default_factory=dict)
    wired: set[str] = field(default_factory=set)
    mixed: bool = False

    def plan(self, grid: Grid, store: Store) -> list[Planned]:
        """All cells, in the grid's order, each once. Raises ConfigError or DataError for the first that cannot be."""
        planned: dict[str, Planned] = {}
        self.mixed = len({item.cell.norm.name for item in grid.cells}) > 1
        for item in grid.cells:
            check_ranks(item.cell, grid.settings["ranks"])
            # What device=auto will be on a cluster's node is not known here.
            if item.cell.device != "auto" or grid.settings["launch"] == "local":
                check_decoder(item.cell.data, machine.device(item.cell.device))
                check_machine(item.cell)
            found = self.check(item.cell, item.changed, store)
            planned.setdefault(found.cell_id, found)
        return labelled(list(planned.values()))

    def check(self, cell: Cell, changed: tuple[str, ...], store: Store) -> Planned:
        description = self.describe(cell.data)
        if cell.graph is True and description.streamed:
            raise graph.refused(graph.NO_FEED)
        if cell.images > description.train:
            most = description.train // cell.workers
            each = f"batch={cell.batch}" + (f" × workers={cell.workers}" if cell.workers > 1 else "")
            raise ConfigError(
                f"{each}: a step takes {cell.images} pictures, "
                f"data={cell.data.name} has {description.train} to train on; "
                f"take {'fewer workers' if cell.workers > description.train else 'batch=' + str(most) + ' or less'}"
            )
        cell_id, evidence = identify(cell, description)
        self.check_options(cell)
        told_options(cell, description)
        shapes, parameters = self.outline(cell, description)
        self.check_wiring(cell, description)
        skip = self.skip_reason(cell, shapes)
        maps = [C * H * W for C, H, W in shapes.values()]
        values, widest = cell.batch * Step.workers_at_once(cell) * sum(maps), max(maps, default=0)
        status, attempts = store.status(cell_id), store.attempts(cell_id)
        return Planned(
            cell, cell_id, cell.label(), changed, description, status, attempts, skip, values, widest, parameters,
            evidence,
        )  # fmt: skip

    def describe(self, options: DataOptions) -> Description:
        key = repr(options)
        if key not in self.described:
            self.described[key] = describe(options, fetch=self.fetch)
        return self.described[key]

    def check_options(self, cell: Cell) -> None:
        """Raise ConfigError for an option that the normalizer has not or cannot take."""
        try:
            norms.check_options(cell.norm.name, dict(cell.norm.options))
        except UnknownName as error:
            if not self.mixed:
                raise
            raise ConfigError(
                f"{error} norm.{error.got}=… goes to every norm of the grid; options.<norm>.{error.got}=… to one alone."
            ) from None

    def skip_reason(self, cell: Cell, shapes: Shapes) -> str | None:
        """Why the cell's normalizer cannot be trained at this batch on these sites; None if it can.

        Raises ConfigError when an option does not fit a site, naming the site.
        """
        row = norms.get(cell.norm.name, cell.norm.options)
        if cell.batch < row.least_batch:
            return f"{cell.norm.name} needs batch={row.least_batch} or more"
        if cell.graph is True and row.no_graph:
            return f"{cell.norm.name}: graph=true cannot be: {row.no_graph}"
        if cell.compile and row.own_gradient:
            return f"{cell.norm.name} has a backward of its own that keeps state, which compile=true cannot do"
        key = (
            repr((cell.arch, cell.norm, cell.batch, cell.workers)),
            id(shapes),
        )  # the shapes are remembered, so their ids last
        if key not in self.reasons:
            self.reasons[key] = _single_value(cell, shapes)
        return self.reasons[key]

    def check_wiring(self, cell: Cell, description: Description) -> None:
        """Raise InputError if the normalizer, with these options, cannot change the network's graph as it must."""
        pictures, key = picture_size(cell, description), repr((cell.arch, cell.norm))
        if norms.get(cell.norm.name).wire is not None and key not in self.wired:
            net = models.outline(cell.arch, num_classes=len(description.classes), picture_size=pictures)
            surgery.apply(net, cell.norm.name, **cell.norm.options)
            self.wired.add(key)

    def outline(self, cell: Cell, description: Description) -> tuple[Shapes, int]:
        """(C, H, W) of every site, by running the plain network on the meta device; its number of parameters."""
        needs_graph = not norms.get(cell.norm.name).drop_in
        pictures, fed = picture_size(cell, description), fed_size(cell, description)
        key = repr((cell.arch, pictures, fed, len(description.classes), needs_graph))
        if key not in self.outlines:
            net = models.outline(cell.arch, num_classes=len(description.classes), picture_size=pictures)
            self.outlines[key] = _trace(cell, net, fed), sum(parameter.numel() for parameter in net.parameters())
        return self.outlines[key]


def check_machine(cell: Cell) -> None:
    """Raise ConfigError unless this machine can run the cell's steps as it says."""
    device = machine.device(cell.device)
    if cell.compile:
        machine.check_compiler(device)
    if cell.graph is True:
        why_not = graph.why_not(cell, device)
        if why_not:
            raise graph.refused(f"a step cannot be recorded in a CUDA graph here: {why_not}")


def check_ranks(cell: Cell, ranks: int) -> None:
    """Raise ConfigError unless ``ranks`` processes can share the cell's workers, each on a device of its own."""
    if ranks == 1:
        return
    if cell.graph is True:
        raise graph.refused(f"{graph.WAITING} (ranks={ranks})")
    if cell.workers % ranks:
        fewer = max(divisor for divisor in range(1, ranks) if cell.workers % divisor == 0)
        raise ConfigError(
            f"ranks={ranks} with workers={cell.workers}: each rank takes as many of a step's workers; "
            f"take workers={-(-cell.workers // ranks) * ranks} or ranks={fewer}"
        )
    device = machine.device(cell.device)
    if device.index is not None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"ranks={ranks} with device={cell.device}: ranks take a device each; take device=cuda or cpu")
    if device.type == "cuda" and ranks > (count := torch.cuda.device_count()):
        raise ConfigError(
            f"ranks={ranks}: each rank takes a GPU, and there {'is 1' if count == 1 else f'are {count}'} here; "
            f"take ranks={count}, or device=cpu; workers that are not ranks run on one device"
        )


def identify(cell: Cell, description: Description) -> tuple[str, Mapping[str, str | None]]:
    """The cell's id, and what beside its configuration it is made from: fingerprints of pictures and own files."""
    evidence = {
        "data": description.fingerprint,
        "arch": models.source_hash(cell.arch.name),
        "norm": norms.get(cell.norm.name).source_hash,
    }
    return cell.identity(evidence), evidence


def labelled(planned: list[Planned]) -> list[Planned]:
    """Labels that tell the cells of this grid apart: every axis that varies stands in them."""
    flats = [item.cell.flat() for item in planned]
    keys = dict.fromkeys(["arch", "data", *(key for item in planned for key in item.changed)])
    varying = [key for key in keys if key not in IN_LABEL and len({str(flat.get(key)) for flat in flats}) > 1]

    def label(item: Planned, flat: dict[str, Any]) -> str:
        own = [key for key in varying if flat.get(key) is not None]
        words = [str(flat[key]) if key in ("arch", "data") else f"{key.split('.')[-1]}={flat[key]}" for key in own]
        if item.cell.tune is not None and "tune" in own:
            words[own.index("tune")] = f"tuned over {item.cell.tune.rates}"
        return " ".join([item.cell.label(), *words])

    return [dataclasses.replace(item, label=label(item, flat)) for item, flat in zip(planned, flats, strict=True)]


def will_run(planned: Sequence[Planned], rerun: str) -> Iterator[Planned]:
    """The cells that ``rerun`` (none, failed, all) lets run: always those that never ended by themselves."""
    again = {
        "none": (),
        "failed": FAILURES,
        "all": ("ok", *FAILURES),
    }
    wanted = {"new", "killed", "interrupted", "skipped", *again[rerun]}
    return (item for item in planned if item.status in wanted and item.skip is None)


def _trace(cell: Cell, net: nn.Module, size: tuple[int, int]) -> Shapes:
    arch, (height, width) = cell.arch, size
    try:
        shapes = surgery.site_shapes(net, (3, height, width))
    except NormbenchError:
        raise
    except Exception as error:  # each network refuses in its own way
        raise ConfigError(
            f"arch={arch.name} cannot be run on pictures of 3×{height}×{width}: {type(error).__name__}: "
            f"{one_line(error)[:200]}; if they are too small for it, arch.size=64 brings them to 64×64"
        ) from None
    if not shapes:
        raise ConfigError(
            f"arch={arch.name} has no nn.BatchNorm2d to put a normalizer in the place of; take one that has"
        )
    surgery.check_traceable(net, cell.norm.name)
    return shapes


def _single_value(cell: Cell, shapes: Shapes) -> str | None:
    """Try the normalizer on every kind of site. An error: it does not fit. A string: a statistic is of one value."""
    row = norms.get(cell.norm.name, cell.norm.options)
    first_of = {shape: name for name, shape in reversed(shapes.items())}
    for (C, H, W), site in first_of.items():
        options = {"size": (H, W), **cell.norm.options} if row.takes_size else cell.norm.options
        try:
            with torch.device("meta"):
                unit = norms.build(cell.norm.name, C, batch=cell.batch, **options)
        except InputError as error:
            raise ConfigError(f"arch={cell.arch.name}, site {site} ({C}×{H}×{W}): {error}") from None
        count = getattr(unit, "values_per_statistic", None)
        images = cell.images if row.joins_workers else cell.batch
        if row.mixes_samples and count is not None and count(H, W, images) == 1:
            others = sum(shape == (C, H, W) for shape in shapes.values()) - 1
            more = f" and {others} more" if others else ""
            return f"a single value per channel with batch={images} at site {site} ({C}×{H}×{W}){more}"
    return None
