"""The moment family on CUDA, in Triton: three passes over memory forward, five backward, for both memory formats.

Float16, bfloat16 and float32 maps; parts may have dtypes of their own. Nothing here waits for the device or looks at a
value on it, so a forward and a backward can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normbench.norms import plain
from normbench.norms.call import Parts, Shape, ceiling
from normbench.norms.cuda import family, maps

# Values of a tile, and how many of them at most lie in one channel (maps apart) or beside one another (channels last).
TILE, LONGEST, WIDEST = 2048, 1024, 64
# Items of a column that one program takes in any case, and that it takes at most, in a pass that sums.
FEW, MOST = 4, 64
# Programs per processor in such a pass: about five run at a time, and the last ones should not leave many idle.
PROGRAMS = 16
# Spans that a gated column may have: its moments are put together one span after another.
GATED = 16
# Entries of all groups of a program of the algebra together, and of one group at most; channels and entries of one that
# finishes gradients.
ENTRIES, ONE_GROUP, FINISH = 256, 1024, (4, 128)


class Rest(NamedTuple):
    """What the backward needs beside moments: see ``family.settle``."""

    moments: Tensor
    statistics: Tensor
    forth: Tensor
    planes: Tensor | None
    x: Tensor


class Plan(NamedTuple):
    """How a tensor is cut into work: see ``maps``."""

    last: bool
    unit: int
    inner: int
    other: int
    runs: int
    run: int
    chunks: int
    width: int
    size: int
    columns: int
    processors: int

    @property
    def items(self) -> int:
        return self.runs * self.chunks

    def spans(self, gated: bool) -> tuple[int, int]:
        """Items of a span, and spans of a column, for a pass that sums: few, but enough programs for the device."""
        wanted = -(-PROGRAMS * self.processors // self.columns)
        each = max(min(max(self.items // wanted, FEW), MOST), 1)
        if gated:
            each = max(each, -(-self.items // GATED))
        return each, -(-self.items // each)

    def pieces(self) -> tuple[int, int]:
        """The same for a pass that sums nothing, where small pieces cost only their start."""
        each = 4 if self.columns * self.items >= 64 * self.processors else 1
        return each, -(-self.items // each)

    def launch(self, kernel: Any, K: int, spans: tuple[int, int], *tensors: Any, **flags: int) -> None:
        """Run a kernel of ``maps`` in the plan's programs."""
        each, count = spans
        place = (self.inner, self.other, K, self.runs, self.chunks, self.items, each, count)
        cut = {"LAST": self.last, "UNIT": self.unit, "WIDTH": self.width, "SIZE": self.size}
        launch(kernel, self.columns * count, *tensors, *place, **cut, **flags)


def launch(kernel: Any, programs: int, *arguments: Any, **flags: int) -> None:
    """Run so many programs of a kernel. Products and sums may fuse: Triton's default, but not of every version."""
    kernel[(programs,)](*arguments, **flags, enable_fp_fusion=True)


def forward(
    x: Tensor,
    shape: Shape,
    parts: Parts,
    given: tuple[Tensor, Tensor] | None = None,
    by_channel: bool = False,
    _track: None = None,
) -> tuple[Tensor, Rest]:
    """y, and what the backward needs. ``given``: mean and var, (rows, groups) each, where they are not x's own.

    ``shape.eps`` may be a tensor of one number on x's device. The tensors of ``parts`` lie without gaps.
    """
    x = dense(x)
    C, R, G = x.shape[1], shape.rows, shape.groups
    gated = parts.gate_weight is not None
    K = x.shape[0] if gated else R
    plan = plan_for(x.shape, channels_last(x), K, x.device)
    spans = plan.spans(gated)
    with torch.cuda.device_of(x):
        y = torch.empty_like(x)
        mean = squares = None
        if given is None or gated:
            mean = x.new_empty((spans[1], K, C), dtype=torch.float64)
            squares = x.new_empty((spans[1], K, C), dtype=torch.float32)
            plan.launch(maps.moments, K, spans, x, mean, squares)
        found = x.new_empty((2, R, G), dtype=torch.float32)
        statistics = x.new_empty((2 if parts.to_std is None else 4, R, G), dtype=torch.float64)
        forth = x.new_empty((3, K, C), dtype=torch.float32)
        planes = x.new_empty((K, C), dtype=torch.float64) if gated else None
        several, at_once = tiles(K // R * -(-C // G) * spans[1])
        given_mean, given_var = (None, None) if given is None else (given[0].contiguous(), given[1].contiguous())
        eps, more_eps = (0.0, shape.eps) if isinstance(shape.eps, Tensor) else (shape.eps, None)
        launch(
            family.settle, -(-R * G // several),
            mean, squares, given_mean, given_var, more_eps, parts.weight, parts.bias, parts.gate_weight,
            parts.gate_bias, parts.to_mean, parts.to_std, parts.bounds, found, statistics, forth, planes,
            float(eps), C, G, R * G, K, K // R, -(-C // G), spans[1], spans[0], plan.items, plan.chunks, plan.run,
            plan.runs, CENTERED=shape.centered, GROUPS=several, ENTRIES=at_once, SIZE=plan.size,
        )  # fmt: skip
        follow = (parts.threshold, parts.scale, parts.shift)
        plan.launch(maps.apply, K, plan.pieces(), x, y, forth, *follow, float(shape.low), ceiling(shape.high))
    return y, Rest(found, statistics, forth, planes, x)


def moments(saved: Rest, shape: Shape) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the groups, (rows, groups) each, after a ``forward``."""
    return saved.moments[0], saved.moments[1]


def channel_moments(saved: Rest, shape: Shape) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, (rows, C), after a ``forward``. Takes a pass of its own."""
    return plain.pool(*plain.moments(saved.x.detach()), shape.rows, saved.x.shape[1])


def backward(
    dy: Tensor, x: Tensor, shape: Shape, parts: Parts, saved: Rest, fixed: bool, wants_x: bool, wants_var: bool
) -> tuple[Tensor | None, list[Tensor], Tensor | None]:
    """The gradients of x, of those of the first seven parts that there are, and of σ².

    ``fixed``: statistics were given, and are constants for x.
    """
    x = dense(x)
    dy = dy.contiguous(memory_format=torch.channels_last if channels_last(x) else torch.contiguous_format)
    C, R, G = x.shape[1], shape.rows, shape.groups
    rest = saved
    gated = parts.gate_weight is not None
    K = x.shape[0] if gated else R
    plan = plan_for(x.shape, channels_last(x), K, x.device)
    spans = plan.spans(gated)
    kinds = 4 if parts.scale is not None else 3 if parts.threshold is not None else 2
    bounds = (float(shape.low), ceiling(shape.high))
    with torch.cuda.device_of(x):
        dx = torch.empty_like(x) if wants_x else None
        dvar = torch.empty_like(rest.moments[0]) if wants_var else None
        grads = [None if part is None else torch.empty_like(part) for part in parts[:7]]
        sums = x.new_empty((spans[1], kinds, K, C), dtype=torch.float32)
        plan.launch(
            maps.sums, K, spans, x, dy, sums, rest.forth, parts.threshold, parts.scale, *bounds, SUMS=kinds
        )  # fmt: skip
        through = torch.empty_like(rest.forth)
        several, at_once = tiles(K // R * -(-C // G) * spans[1])
        pulls = -(-R * G // several) if wants_x or wants_var else 0
        finishes = -(-C // FINISH[0]) if any(grad is not None for grad in grads) else 0
        if pulls + finishes:
            launch(
                family.resolve, pulls + finishes,
                sums, rest.statistics, rest.forth, through, rest.planes, parts.weight, parts.scale, parts.gate_weight,
                parts.gate_bias, parts.to_std, dvar, *grads,
                C, G, R * G, K, K // R, -(-C // G), spans[1], plan.run, plan.runs, pulls,
                FIXED=fixed, CENTERED=shape.centered, SUMS=kinds, GROUPS=several, ENTRIES=at_once,
                CHANNELS=FINISH[0], ROWS=FINISH[1],
            )  # fmt: skip
        if wants_x:
            plan.launch(maps.back, K, plan.pieces(), x, dy, dx, rest.forth, through, parts.threshold, *bounds)
    return dx, [grad for grad in grads if grad is not None], dvar


def channels_last(x: Tensor) -> bool:
    """Whether the kernels walk x as channels last: 1 × 1 maps are that too, and only then are they long runs."""
    if x.shape[1] == 1 or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    return x.shape[2:] == (1, 1) or not x.is_contiguous()


def dense(x: Tensor) -> Tensor:
    """x itself in either memory format, and a copy of anything else."""
    return x if channels_last(x) else x.contiguous()


@functools.lru_cache(maxsize=1024)
def plan_for(shape: torch.Size, last: bool, K: int, device: torch.device) -> Plan:
    """How a tensor of this shape is cut into work, for K rows of coefficients."""
    N, C, H, W = shape
    run, runs = (N // K * H * W, 1) if last else (H * W, N // K)
    inner, other = (C, run) if last else (run, C)
    unit = next(unit for unit in (8, 4, 1) if inner % unit == 0)
    if last:
        width = min(power_of_two(C), WIDEST)
        size = min(power_of_two(run), TILE // width)
    else:
        size = min(power_of_two(run), LONGEST)
        width = min(power_of_two(C), TILE // size)
    columns = K * -(-C // width)
    return Plan(last, unit, inner // unit, other, runs, run, -(-run // size), width, size, columns, processors(device))


def tiles(entries: int) -> tuple[int, int]:
    """Groups and entries of a program of the algebra, for groups of so many entries; few shapes, so few to compile."""
    at_once = next(size for size in (1, 8, 64, 256, 1024) if size >= min(entries, ONE_GROUP))
    return max(ENTRIES // at_once, 1), at_once


def power_of_two(value: int) -> int:
    """The smallest power of two that is not below ``value``."""
    return 1 << (value - 1).bit_length()


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a device; 1 for Triton's interpreter, which runs on CPU tensors."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
