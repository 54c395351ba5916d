"""What units are measured on: the shapes that enter the BatchNorms of networks, each once, at every batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from normbench import memory, models, surgery
from normbench.bench.settings import Settings
from normbench.errors import ConfigError
from normbench.options import ArchOptions

CLASSES = 1000
# Maps of the input's size that are alive at once, at the least: the input and its gradient, the output and its, the
# copy, and what a method written op by op keeps for its backward.
ALIVE = 8
CPU_LIMIT_MIB = 2048
QUICK_SHAPES = 3
ITEM_BYTES = {"float32": 4, "bfloat16": 2}
FORMAT = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """A map that enters a BatchNorm; ``activation``: one follows, for which everyone is measured with a ReLU."""

    C: int
    H: int
    W: int
    activation: bool

    @property
    def values(self) -> int:
        return self.C * self.H * self.W


@dataclass(frozen=True)
class Case:
    """A shape at a batch, layout and dtype; ``sites``: how many a network has of it, for each that has any."""

    shape: Shape
    N: int
    memory_format: str
    dtype: str
    sites: dict[str, int]

    @property
    def bytes(self) -> int:
        return self.N * self.shape.values * ITEM_BYTES[self.dtype]


def site_counts(network: str) -> dict[Shape, int]:
    """The shapes of ``arch`` or ``arch@side`` and how many sites have each, small ones first.

    A network is built as the runner builds it: small pictures meet the stem, and the size, that it has for them.
    """
    name, side = split(network)
    options = ArchOptions(name)
    resolved = models.resolve(options, picture_size=side)
    model = models.outline(options, num_classes=CLASSES, picture_size=side)
    fed = resolved.size or side
    shapes = surgery.site_shapes(model, (3, fed, fed))
    counts = Counter(
        Shape(*shapes[site.name], site.activation is not None)
        for site in surgery.find_sites(model)
        if site.name in shapes
    )
    return dict(sorted(counts.items(), key=lambda item: (item[0].values, item[0].C, item[0].activation)))


def split(network: str) -> tuple[str, int]:
    """``resnet50@32`` → (resnet50, 32); without @ the network's own side. Raises ConfigError."""
    name, at, side = network.partition("@")
    if not at:
        return name, models.native_size(name)
    if not side.isdecimal() or int(side) < 1:
        raise ConfigError(f"shapes: got {network!r}, expected a network @ the side of its pictures, as in resnet50@32")
    return name, int(side)


def cases(settings: Settings, networks: dict[str, dict[Shape, int]]) -> list[Case]:
    """Every case once, small batches first: a run that is stopped has whole batches to show."""
    found: dict[Shape, dict[str, int]] = {}
    for network, counts in networks.items():
        for shape in spread(list(counts)) if settings.quick else counts:
            found.setdefault(shape, {})[network] = counts[shape]
    return [
        Case(shape, N, memory_format, dtype, sites)
        for N in settings.batch
        for dtype in settings.dtype
        for memory_format in settings.memory_format
        for shape, sites in found.items()
    ]


def spread(shapes: Sequence[Shape]) -> list[Shape]:
    """A few of many, from the smallest to the largest."""
    count = min(QUICK_SHAPES, len(shapes))
    return [shapes[k * (len(shapes) - 1) // max(1, count - 1)] for k in range(count)]


def fitting(cases: Iterable[Case], limit_mib: float) -> tuple[list[Case], list[Case]]:
    """Those that can be held in memory, and those that cannot."""
    fit: list[Case] = []
    large: list[Case] = []
    for case in cases:
        (fit if needed_mib(case) <= limit_mib else large).append(case)
    return fit, large


def needed_mib(case: Case) -> float:
    return ALIVE * case.bytes / 2**20


def limit_mib(given: float | None, device: torch.device) -> float:
    """The memory a case may take: ``given``, but never more than is free; by default half of it."""
    free = free_mib(device)
    if given is not None:
        return min(given, free)
    return free / 2 if device.type == "cuda" else min(free / 2, CPU_LIMIT_MIB)


def free_mib(device: torch.device) -> float:
    """Memory of the device, or of this machine, that this process can have; infinite where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    return memory.free_mib()
