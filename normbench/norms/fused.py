"""The moment family as one autograd function over the kernels of a device: who may take that way, and both passes.

In eager mode it is a plain autograd function; under torch.compile and torch.export an operator, which a graph can hold
(operators.py). Whoever cannot take this way (other devices and dtypes, torch.func's transforms, another activation than
those in CLIPS) computes the same in plain PyTorch. NORMBENCH_KERNELS=off sends everybody there.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from normbench.errors import InputError
from normbench.norms import operators, plain
from normbench.norms.call import Parts, Saved, Shape

# Activations that are a cut below and above.
CLIPS: dict[type, tuple[float, float]] = {
    type(None): (-math.inf, math.inf),
    nn.ReLU: (0.0, math.inf),
    nn.ReLU6: (0.0, 6.0),
}


def kernels_for(x: Tensor, eps: float | Tensor, parts: Parts, activation: nn.Module | None) -> ModuleType | None:
    """The kernels that take this call, or None."""
    if type(activation) not in CLIPS or (activation is not None and _watched(activation)):
        return None
    if isinstance(activation, nn.ReLU6) and (parts.scale is not None or parts.threshold is not None):
        return None
    if x.is_cpu:
        if x.dtype not in (torch.float32, torch.float64) or any(_foreign(part, x.dtype) for part in parts[:9]):
            return None
        if torch.compiler.is_compiling():
            return operators if operators.takes(x, eps) else None
        return _cpu() if _eager(x) else None
    if x.is_cuda and not (x.dtype is torch.float64 or isinstance(eps, Tensor) or torch.compiler.is_compiling()):
        return _cuda() if _eager(x) else None
    return None


def shape_of(rows: int, groups: int, eps: float | Tensor, centered: bool, activation: nn.Module | None) -> Shape:
    number = float(eps.detach()) if isinstance(eps, Tensor) else eps
    return Shape(rows, groups, number, centered, *CLIPS[type(activation)])


def standardize(
    kernels: Any, x: Tensor, eps: float | Tensor, shape: Shape, parts: Parts, by_channel: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the mean and biased variance that it was normalized by, or of each channel."""
    if parts.bounds is not None:
        parts = parts._replace(bounds=parts.bounds.to(torch.float64 if x.is_cpu else torch.float32))
    if kernels is operators:
        return operators.standardize(dense(x), shape, parts, by_channel)
    call = Call(kernels, shape, parts)
    y = call(x, eps if isinstance(eps, Tensor) else None)
    assert call.saved is not None
    if by_channel and shape.groups < x.shape[1]:
        return (y, *kernels.columns(call.saved, x))
    return y, call.saved.mean, call.saved.var


def normalize(
    kernels: Any, x: Tensor, eps: float | Tensor, shape: Shape, parts: Parts, given: tuple[Tensor, Tensor]
) -> Tensor:
    """y by given statistics."""
    if kernels is operators:
        return operators.normalize(dense(x), shape, parts, given)
    return Call(kernels, shape, parts, given)(x, eps if isinstance(eps, Tensor) else None)


def kernels(device: torch.device) -> str:
    """Which way units take on a device, in a word: ``fused``, or ``plain`` PyTorch."""
    found = _cpu() if device.type == "cpu" else _cuda() if device.type == "cuda" else None
    return "plain" if found is None else "fused"


def _foreign(part: Tensor | None, dtype: torch.dtype) -> bool:
    return part is not None and (part.dtype is not dtype or not part.is_contiguous())


def _watched(activation: nn.Module) -> bool:
    """Whether somebody waits at the activation, whom a fused one would pass by."""
    return bool(activation._forward_hooks or activation._forward_pre_hooks or activation._backward_hooks)


def _eager(x: Tensor) -> bool:
    """Whether x is an ordinary tensor in ordinary eager mode, whose memory a kernel may read."""
    ordinary = type(x) is Tensor or type(x) is nn.Parameter
    return ordinary and torch._C._functorch.peek_interpreter_stack() is None and not torch.jit.is_tracing()


@functools.cache
def _cpu() -> ModuleType | None:
    if os.environ.get("NORMBENCH_KERNELS") == "off":
        return None
    try:
        from normbench.norms import cpu

        cpu.prepare()
    except Exception as error:  # whatever is wrong with a compiler on this machine, the plain way is right
        warnings.warn(f"no fused kernels for the CPU, plain PyTorch instead: {error}", RuntimeWarning, stacklevel=2)
        return None
    return cpu


@functools.cache
def _cuda() -> ModuleType | None:
    if os.environ.get("NORMBENCH_KERNELS") == "off":
        return None
    try:
        from normbench.norms import cuda
    except ImportError as error:
        warnings.warn(f"no fused kernels for CUDA, plain PyTorch instead: {error}", RuntimeWarning, stacklevel=2)
        return None
    return cuda


class Call:
    """One use of the kernels: what is asked of them, and then what they leave for the backward."""

    __slots__ = ("given", "kernels", "parts", "saved", "shape")

    def __init__(self, kernels: Any, shape: Shape, parts: Parts, given: tuple[Tensor, Tensor] | None = None) -> None:
        self.kernels, self.shape, self.parts, self.given = kernels, shape, parts, given
        self.saved: Saved | None = None

    def __call__(self, x: Tensor, eps: Tensor | None) -> Tensor:
        x = dense(x)
        if torch.is_grad_enabled() and (x.requires_grad or any(p is not None and p.requires_grad for p in self.parts)):
            y: Tensor = _Fused.apply(x, eps, *self.parts[:7], self)
            return y
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        y, self.saved = self.kernels.forward(x, self.shape, self.parts, self.given)
        return y


def move(
    unit: Any,
    second: str,
    mean: Tensor,
    var: Tensor,
    workers: int,
    *,
    unbiased: float = 1.0,
    eps: float = 0.0,
    total: bool = False,
) -> bool:
    """Move a unit's running_mean and ``second`` buffer by the kernel, if it takes them; whether it did."""
    buffers = (unit.running_mean, getattr(unit, second))
    if torch.compiler.is_compiling() or mean.dtype is not torch.float64 or not mean.is_cpu:
        return False
    if any(_foreign(buffer, buffers[0].dtype) or not buffer.is_cpu for buffer in buffers) or not _eager(buffers[0]):
        return False
    kernels = _cpu()
    if kernels is None or buffers[0].dtype not in kernels.DTYPES:
        return False
    share = unit.momentum if unit.momentum is not None else 1.0 / int(unit.num_batches_tracked)
    kernels.move(buffers, mean, var, workers, share, unbiased, eps, "std" if eps else "total" if total else "var")
    torch.autograd.graph.increment_version(buffers)
    return True


def dense(x: Tensor) -> Tensor:
    """x itself where its maps or its pixels lie one after another, else a copy where they do."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous(memory_format=torch._prims_common.suggest_memory_format(x))


class _Fused(torch.autograd.Function):
    """Saves its input and small tensors; its backward reads memory twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: Tensor | None, *rest: Any) -> Tensor:
        *parts, call = rest
        ctx.call = call
        ctx.save_for_backward(x, eps, *parts)
        y: Tensor = call.forward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        call, dy = ctx.call, grads[0]
        x, eps, *parts = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants to differentiate this once more
            return (*_again(call, x, eps, parts, dy, ctx.needs_input_grad), None)
        if dy.stride() != x.stride() or dy.dtype is not x.dtype:
            dy = torch.empty_like(x).copy_(dy)
        # The statistics that renormalization corrects towards have moved; that there were any is all the backward asks.
        parts = Parts(*parts, *call.parts[7:])
        wants_x, wants_eps = ctx.needs_input_grad[:2]
        found = call.kernels.backward(dy, x, call.shape, parts, call.saved, call.given is not None, wants_x, wants_eps)
        deps = found.var.sum().to(eps.dtype).view(eps.shape) if wants_eps else None
        return (found.x, deps, *found[1:8], None)


def _again(
    call: Call, x: Tensor, eps: Tensor | None, parts: list[Tensor | None], dy: Tensor, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients by autograd, over the plain form, and so differentiable themselves."""
    if call.parts.to_std is not None:
        raise InputError(
            "batch renormalization: its kernels cannot be differentiated twice, since the statistics that it corrects "
            "towards have moved; set NORMBENCH_KERNELS=off"
        )
    with torch.enable_grad():
        y = plain_form(call, x, eps, Parts(*parts, *call.parts[7:]))
        inputs = [x, eps, *parts]
        chosen = [tensor for tensor, want in zip(inputs, wanted, strict=False) if want and tensor is not None]
        found = iter(torch.autograd.grad(y, chosen, dy, create_graph=True))
    return tuple(next(found) if want and t is not None else None for t, want in zip(inputs, wanted, strict=False))


def plain_form(call: Call, x: Tensor, eps: Tensor | None, parts: Parts) -> Tensor:
    """What the call computes, in plain PyTorch."""
    shape = call.shape
    gate = plain.Gate(parts.gate_weight, parts.gate_bias) if parts.gate_weight is not None else None  # type: ignore[arg-type]
    after = plain.After(parts.scale, parts.shift) if parts.scale is not None else None  # type: ignore[arg-type]
    activation = next(kind for kind, cuts in CLIPS.items() if cuts == (shape.low, shape.high))
    made = None if activation is type(None) else activation()
    shared: dict[str, Any] = {"threshold": parts.threshold, "gate": gate, "after": after}
    used = shape.eps if eps is None else eps
    if call.given is not None:
        assert call.saved is not None
        given = (call.saved.mean.to(x.dtype), call.saved.var.to(x.dtype))  # as they were
        return plain.normalize(x, *given, used, parts.weight, parts.bias, made, **shared)
    shared["centered"] = shape.centered
    return plain.standardize(x, shape.rows, shape.groups, used, parts.weight, parts.bias, made, **shared)[0]
