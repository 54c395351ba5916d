"""The CPU kernels as operators that torch.compile and torch.export can hold in a graph. Eager mode does without.

An operator takes and gives tensors and numbers alone, so what the kernels leave for the backward is given out with y.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normbench.errors import InputError
from normbench.norms.call import Parts, Shape


def standardize(x: Tensor, shape: Shape, parts: Parts, by_channel: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the mean and biased variance of the groups or of each channel."""
    y, work = forward(x, *shape, *parts, None, None)
    N, C, H, W = x.shape
    RG = shape.rows * shape.groups
    if by_channel:
        mean, squares = work[3 * RG : 3 * RG + 2 * shape.rows * C].view(2, shape.rows, C)
        return y, mean, squares * (shape.rows / (N * H * W))
    mean, var = work[: 2 * RG].view(2, shape.rows, shape.groups)
    return y, mean, var


def normalize(x: Tensor, shape: Shape, parts: Parts, given: tuple[Tensor, Tensor]) -> Tensor:
    """As fused.normalize."""
    return forward(x, *shape, *parts, *given)[0]


def held(x: Tensor) -> Tensor:
    """x as it is now, for a backward to read: what was made of a buffer that this forward goes on to move.

    A compiled backward would make it once more, of the buffer as it is by then; an operator's output it keeps.
    """
    return _hold(x) if torch.compiler.is_compiling() else x


@torch.library.custom_op("normbench::hold", mutates_args=())
def _hold(x: Tensor) -> Tensor:
    return x.clone()


@_hold.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("normbench::standardize", mutates_args=(), device_types="cpu")
def forward(
    x: Tensor,
    rows: int,
    groups: int,
    eps: float,
    centered: bool,
    low: float,
    high: float,
    cut: bool,
    weight: Tensor | None,
    bias: Tensor | None,
    threshold: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    to_mean: Tensor | None,
    to_std: Tensor | None,
    bounds: Tensor | None,
    given_mean: Tensor | None,
    given_var: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y, and what cpu.Saved holds."""
    from normbench.norms import cpu

    parts = Parts(
        weight, bias, threshold, scale, shift, gate_weight, gate_bias, to_mean, to_std, bounds
    )  # fmt: skip
    _check(x, *parts[:9])
    given = None if given_mean is None or given_var is None else (given_mean, given_var)
    shape = Shape(rows, groups, eps, centered, low, high, cut)
    y, saved = cpu.forward(x, shape, parts, given, by_channel=True)
    return y, saved.work


def _check(x: Tensor, *parts: Tensor | None) -> None:
    """Raise InputError for tensors that the kernels would misread: a graph may be fed, or converted, by anybody."""
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        raise InputError(f"normbench::standardize: got strides {x.stride()}, expected a contiguous or channels_last x")
    for part in parts:
        if part is not None and (part.dtype is not x.dtype or part.shape != x.shape[1:2] or not part.is_contiguous()):
            raise InputError(
                f"normbench::standardize: got a parameter of {part.dtype}, shape {tuple(part.shape)}, expected "
                f"{x.dtype}, ({x.shape[1]},), as the input of shape {tuple(x.shape)} has it; convert both alike"
            )


@forward.register_fake
def _(x: Tensor, rows: int, groups: int, *rest: Any) -> tuple[Tensor, Tensor]:
    if rest[4]:
        return torch.empty_like(x), x.new_empty(3 * rows * groups, dtype=torch.float64)
    KC = (x.shape[0] if rest[10] is not None else rows) * x.shape[1]
    three = (3 * KC * x.element_size() + 7) // 8
    statistics = 3 * rows * groups if rest[13] is None else 5 * rows * groups
    return torch.empty_like(x), x.new_empty(statistics + 2 * KC + three, dtype=torch.float64)


@torch.library.custom_op("normbench::standardize_backward", mutates_args=(), device_types="cpu")
def backward(
    dy: Tensor,
    x: Tensor,
    work: Tensor,
    rows: int,
    groups: int,
    eps: float,
    centered: bool,
    low: float,
    high: float,
    cut: bool,
    weight: Tensor | None,
    bias: Tensor | None,
    threshold: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    corrected: bool,
    fixed: bool,
) -> list[Tensor]:
    """The gradients of x, and of those of the first seven parts that there are."""
    from normbench.norms import cpu

    if dy.stride() != x.stride():
        dy = torch.empty_like(x).copy_(dy)
    parts = Parts(weight, bias, threshold, scale, shift, gate_weight, gate_bias, None, work if corrected else None)
    shape = Shape(rows, groups, eps, centered, low, high, cut)
    use = cpu.Use(gate_weight is not None, corrected, fixed, by_channel=True)
    saved = cpu.Saved(work, cpu.plan_for(x, shape, use))
    dx, found, _ = cpu.backward(dy, x, shape, parts, saved, fixed, wants_x=True, wants_var=False)
    assert dx is not None
    return [dx, *found]


@backward.register_fake
def _(dy: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    return [torch.empty_like(x), *(torch.empty_like(part) for part in rest[8:15] if part is not None)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *numbers = inputs[:8]
    ctx.numbers, ctx.flags = numbers, (inputs[16] is not None, inputs[18] is not None)
    ctx.save_for_backward(x, output[1], *inputs[8:15])


def _differentiate(ctx: Any, dy: Tensor, *_unused: Any) -> tuple[Any, ...]:
    x, work, *parts = ctx.saved_tensors
    found = iter(backward(dy, x, work, *ctx.numbers, *parts, *ctx.flags))
    dx = next(found)
    gradients = [None if part is None else next(found) for part in parts]
    return (dx, *[None] * 7, *gradients, *[None] * 5)


forward.register_autograd(_differentiate, setup_context=_keep)
