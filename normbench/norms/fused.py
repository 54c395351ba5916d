"""The moment family as one autograd function over the kernels of a device: who may take that way, and both passes.

In eager mode it is a plain autograd function; under torch.compile and torch.export an operator, which a graph can hold
(operators.py). Whoever cannot take this way (other devices and dtypes, torch.func's transforms, another activation than
those in CLIPS) computes the same in plain PyTorch. NORMBENCH_KERNELS=off sends everybody there.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn.modules.module import _has_any_global_hook

from normbench.errors import InputError
from normbench.norms import operators, plain, population, running
from normbench.norms.call import After, Gate, Moments, Parts, Shape, Track, ceiling

Again = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# Activations that are a cut below and above.
CLIPS: dict[type, tuple[float, float]] = {
    type(None): (-math.inf, math.inf),
    nn.ReLU: (0.0, math.inf),
    nn.ReLU6: (0.0, 6.0),
}


def kernels_for(x: Tensor, eps: float | Tensor, parts: Parts, activation: nn.Module | None) -> ModuleType | None:
    """The kernels that take this call, or None. One long function: at small shapes calls are what costs time."""
    if activation is not None:
        if type(activation) not in CLIPS or _watched(activation):
            return None
        if parts.threshold is not None or (type(activation) is nn.ReLU6 and parts.scale is not None):
            return None
    dtype, on_cpu, compiling = x.dtype, x.is_cpu, torch.compiler.is_compiling()
    if on_cpu:
        if dtype is not torch.float32 and dtype is not torch.float64:
            return None
    elif not x.is_cuda or dtype is torch.float64 or compiling or isinstance(eps, Tensor):
        return None
    # Every part must be such as a kernel may read: C numbers side by side, where x is; on CPU of its type.
    C = x.shape[1]
    for part in parts[:9]:
        if part is None:
            continue
        if part.dim() != 1 or part.numel() != C or not part.is_contiguous():
            return None
        if on_cpu:
            if part.dtype is not dtype or not part.is_cpu:
                return None
        elif part.device != x.device:
            return None
        if not compiling and ((type(part) is not Parameter and type(part) is not Tensor) or part.is_neg()):
            return None
    if parts.gate_weight is not None and parts.to_std is not None:
        return None
    if compiling:
        return operators if not isinstance(eps, Tensor) and _cpu_is_there() else None
    if not _eager(x):
        return None
    return _cpu() if on_cpu else _cuda()


def joins(kernels: ModuleType | None, residual: Any, x: Tensor, parts: Parts) -> bool:
    """Whether these kernels, which take the call without it, take a residual too."""
    if kernels is None or kernels is operators or not x.is_cpu or residual.__class__ is not Tensor:
        return False
    if parts.threshold is not None or parts.scale is not None:  # then y does not tell what was let through
        return False
    alike = residual.shape == x.shape and residual.dtype is x.dtype and residual.is_cpu
    return alike and residual.layout is torch.strided and _eager(residual)


def standardize(
    kernels: Any,
    x: Tensor,
    rows: int,
    groups: int,
    eps: float | Tensor,
    activation: nn.Module | None,
    parts: Parts,
    centered: bool = True,
    by_channel: bool = False,
    track: Track | None = None,
    residual: Tensor | None = None,
    cut: bool = False,
) -> tuple[Tensor, Call | Moments]:
    """y by the moments of x, and what has these, or each channel's; moves the running statistics of ``track``.

    ``cut``: as in Shape.
    """
    low, high = CLIPS[type(activation)]
    shape = Shape(rows, groups, eps if type(eps) is float else _number(eps), centered, low, high, cut)
    by_channel = by_channel and groups < x.shape[1]
    if kernels is operators:
        y, mean, var = operators.standardize(dense(x), shape, _with_bounds(parts, torch.float64, x), by_channel)
        if track is not None:
            running.move(running.of_segments(track, x, var) if cut else track, mean, var)
        return y, Moments(mean, var)
    call = Call(kernels, shape, parts, None, by_channel)
    if not x.is_cpu:
        call.parts = _with_bounds(parts, torch.float32, x)
    elif track is not None and not population.wanted():
        call.track = kernels.tracked(track, x, groups, by_channel)
        if call.track is not None:
            return call.run(x, eps, residual), call
    y = call.run(x, eps, residual)
    if track is not None:
        mean, var = call.tensors()
        running.move(running.of_segments(track, x, var) if cut else track, mean, var)
    return y, call


def _with_bounds(parts: Parts, dtype: torch.dtype, x: Tensor) -> Parts:
    """The parts with bounds, if there are any, as a tensor."""
    if parts.bounds is None or isinstance(parts.bounds, Tensor):
        return parts if parts.bounds is None else parts._replace(bounds=parts.bounds.to(dtype))
    return parts._replace(bounds=torch.stack([plain.constant(bound, dtype, x.device) for bound in parts.bounds]))


def normalize(
    kernels: Any,
    x: Tensor,
    given: tuple[Tensor, Tensor],
    eps: float | Tensor,
    activation: nn.Module | None,
    parts: Parts,
    residual: Tensor | None = None,
    cut: bool = False,
) -> Tensor:
    """y by given statistics; ``cut``: as in Shape."""
    shape = Shape(*given[0].shape, _number(eps), True, *CLIPS[type(activation)], cut)  # type: ignore[call-arg]
    if kernels is operators:
        return operators.normalize(dense(x), shape, parts, given)
    return Call(kernels, shape, parts, given).run(x, eps, residual)


def scale_shift(
    kernels: Any, x: Tensor, activation: nn.Module | None, parts: Parts, residual: Tensor | None = None
) -> tuple[Tensor, Call | None]:
    """y by the parts alone, which is by a mean of 0 and a variance of 1, and the call that found it."""
    as_it_is = x.new_zeros(1, 1), x.new_ones(1, 1)
    if kernels is operators:
        return normalize(kernels, x, as_it_is, 0.0, activation, parts), None
    call = Call(kernels, Shape(1, 1, 0.0, True, *CLIPS[type(activation)]), parts, as_it_is)
    cuts = activation is not None or parts.threshold is not None
    call.clips = cuts and parts.weight is None and parts.bias is None
    return call.run(x, 0.0, residual), call


def positional(
    kernels: Any, x: Tensor, eps: float, unbiased: bool, activation: nn.Module | None, parts: Parts
) -> Tensor:
    """y by the moments of each pixel."""
    shape = kernels.Shape(eps, *CLIPS[type(activation)], int(unbiased))
    return PositionalCall(kernels, shape, parts).run(x, eps)


def _number(eps: float | Tensor) -> float:
    return float(eps.detach()) if isinstance(eps, Tensor) else eps


def kernels(device: torch.device) -> str:
    """Which way units take on a device, in a word: ``fused``, or ``plain`` PyTorch."""
    found = _cpu() if device.type == "cpu" else _cuda() if device.type == "cuda" else None
    return "plain" if found is None else "fused"


def _watched(activation: nn.Module) -> bool:
    """Whether somebody waits at the activation, whom a fused one would pass by."""
    hooks = activation._forward_hooks or activation._forward_pre_hooks
    return bool(hooks or activation._backward_hooks or activation._backward_pre_hooks or _has_any_global_hook())


def _eager(x: Tensor) -> bool:
    """Whether x is an ordinary tensor in ordinary eager mode, whose memory a kernel may read."""
    if (type(x) is not Tensor and type(x) is not Parameter) or x.is_neg() or torch.jit.is_tracing():
        return False
    if _seen:
        return False
    return torch._C._functorch.peek_interpreter_stack() is None and forward_ad._current_level < 0


_seen = 0  # how many want to see every operation


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Everybody takes the plain way, in which every operation can be seen."""
    global _seen
    _seen += 1
    try:
        yield
    finally:
        _seen -= 1


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


@torch.compiler.assume_constant_result
def _cpu_is_there() -> bool:
    return _cpu() is not None


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

    __slots__ = (
        "by_channel",
        "clips",
        "eps",
        "given",
        "joined",
        "kernels",
        "layout",
        "moved",
        "parts",
        "saved",
        "shape",
        "track",
    )

    def __init__(
        self,
        kernels: Any,
        shape: Any,
        parts: Parts,
        given: tuple[Tensor, Tensor] | None = None,
        by_channel: bool = False,
    ) -> None:
        self.kernels, self.shape, self.parts, self.given, self.by_channel = kernels, shape, parts, given, by_channel
        self.eps: Tensor | None = None
        self.track: Any = None
        self.moved: tuple[float, ...] | None = None  # what ``track`` said, beside where
        self.saved: Any = None
        self.layout: tuple[int, ...] = ()
        self.joined = False  # with a residual that its backward must know of
        self.clips = False  # it does no more than cut off x, or a sum: its backward is the one of x = y, for either

    def run(self, x: Tensor, eps: float | Tensor, residual: Tensor | None = None) -> Tensor:
        if not x.is_contiguous():
            x = dense(x)
        tensors = [part for part in self.parts[:7] if part is not None]
        if isinstance(eps, Tensor):
            tensors.insert(0, eps)
            self.eps = eps
        y: Tensor
        wanted = x.requires_grad or _learned(tensors) or (residual is not None and residual.requires_grad)
        if wanted and torch.is_grad_enabled():
            self.layout, self.joined = x.stride(), residual is not None and not self.clips
            y = _Fused.apply(self, x, residual, *tensors)
        else:
            y = self.forward(x, residual)
        if self.track is not None:
            self.moved, self.track = self.track.numbers, None  # a graph does not hold the unit's buffers
        return y

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """y, by the kernels."""
        more = () if residual is None else (residual,)
        y: Tensor
        y, self.saved = self.kernels.forward(x, self.shape, self.parts, self.given, self.by_channel, self.track, *more)
        return y

    def tensors(self) -> tuple[Tensor, Tensor]:
        """μ and biased σ² that were found, (rows, K) each, at least float32."""
        read = self.kernels.channel_moments if self.by_channel else self.kernels.moments
        mean, var = read(self.saved, self.shape)
        return mean, var

    def plain(self, x: Tensor, learned: Tensor | None, parts: Parts) -> Tensor:
        """What the call computes, in plain PyTorch; of one with a residual, what comes before that is added."""
        shape, activation = self.shape, None if self.joined else _activation(self.shape)
        gate: Any = None if parts.gate_weight is None else Gate(parts.gate_weight, cast(Tensor, parts.gate_bias))
        after: Any = None if parts.scale is None else After(parts.scale, cast(Tensor, parts.shift))
        eps = shape.eps if learned is None else learned
        shared: dict[str, Any] = {
            "threshold": parts.threshold,
            "gate": gate,
            "after": after,
        }
        rows, groups, weight, bias = shape.rows, shape.groups, parts.weight, parts.bias
        given: Any = None
        if self.given is not None:
            mean, var = given = [value.to(x.dtype) for value in self.kernels.moments(self.saved, shape)]  # as they were
        if shape.cut:
            return plain.segmented(x, rows, groups, shape.eps, weight, bias, activation, given)[0]
        if given is None:
            shared["centered"] = shape.centered
            return plain.standardize(x, rows, groups, eps, weight, bias, activation, **shared)[0]
        return plain.normalize(x, mean, var, eps, weight, bias, activation, **shared)


class PositionalCall(Call):
    """The same for positional normalization."""

    def plain(self, x: Tensor, learned: Tensor | None, parts: Parts) -> Tensor:
        """What the call computes, in plain PyTorch."""
        shape = self.shape
        return plain.positional(x, shape.eps, bool(shape.less), parts.weight, parts.bias, _activation(shape))


def _activation(shape: Any) -> nn.Module | None:
    """The activation that cuts as ``shape`` says."""
    kind = next(kind for kind, cuts in CLIPS.items() if cuts == (shape.low, shape.high))
    return None if kind is type(None) else kind()


def _learned(tensors: list[Tensor]) -> bool:
    return any([tensor.requires_grad for tensor in tensors])  # noqa: C419  (a list is quicker than a generator)


def dense(x: Tensor) -> Tensor:
    """x itself where its maps or its pixels lie one after another, else a copy where they do."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous(memory_format=torch._prims_common.suggest_memory_format(x))


class _Fused(torch.autograd.Function):
    """Saves its input and small tensors; its backward reads memory twice.

    With a residual it saves its output instead of that: where the activation cut, it is ``low`` or ``high``, and the
    next layer keeps it too. If all it does is to cut, it saves its output instead of its input.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, residual: Tensor | None, *tensors: Tensor) -> Tensor:
        ctx.call = call
        y = call.forward(x, residual)
        cut = call.joined and call.shape.low > -math.inf
        kept = y if call.clips else x
        ctx.save_for_backward(kept, y if cut else None, *tensors)  # all of them, so that an edit in place is noticed
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, *tensors = ctx.saved_tensors
        return gradients(ctx.call, grads[0], x, y, tensors, ctx.needs_input_grad)


def gradients(
    call: Call, dy: Tensor, x: Tensor, y: Tensor | None, tensors: Sequence[Tensor], wants: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of a call (None), x, residual and the parts, as far as ``wants`` asks for them.

    x: what was saved, which is the output of a call that ``clips``.
    """
    if torch.is_grad_enabled():  # somebody wants to differentiate this once more
        return _again(call, x, y, tensors, dy, wants)
    layout = call.layout
    if x.stride() != layout:  # a hook on saved tensors gave it back another way
        x = torch.empty_strided(x.shape, layout, dtype=x.dtype, device=x.device).copy_(x)
    if dy.stride() != layout or dy.dtype is not x.dtype or dy.is_neg():
        dy = torch.empty_like(x).copy_(dy)
    dtype = dy.dtype
    if any([tensor.dtype is not dtype for tensor in tensors]):  # noqa: C419  (a list is quicker than a generator)
        raise InputError(
            f"a unit's parameters are of another type in its backward than its input, {dtype}: it was converted "
            "after its forward; convert a model before a step, or after it"
        )
    eps = call.eps
    wants_x = wants[1] or (call.clips and wants[2])
    asked = call.shape, call.parts, call.saved, call.given is not None, wants_x, eps is not None
    if y is None:
        dz = dy
        dx, found, dvar = call.kernels.backward(dy, x, *asked)
    else:
        if y.stride() != layout:
            y = torch.empty_like(x).copy_(y)
        dz = torch.empty_like(x)
        dx, found, dvar = call.kernels.backward(dy, x, *asked, (y, dz))
    residual = None if not wants[2] else dx if call.clips else dz
    if eps is None:
        return (None, dx, residual, *found)
    return (None, dx, residual, dvar.sum().to(eps.dtype).view(eps.shape), *found)


def _again(
    call: Call, x: Tensor, y: Tensor | None, tensors: Sequence[Tensor], dy: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients by autograd, over the plain form, and so differentiable themselves."""
    if call.parts.to_std is not None:
        raise InputError(
            "batch renormalization: its kernels cannot be differentiated twice, since the statistics that it corrects "
            "towards have moved; set NORMBENCH_KERNELS=off"
        )
    with torch.enable_grad():
        # Views, since one input may be made of another, and the gradient asked for is this function's alone.
        if y is not None:
            dy = dy.masked_fill((y <= call.shape.low) | (y >= ceiling(call.shape.high)), 0)
        x, *tensors = views = [tensor.view_as(tensor) for tensor in (x, *tensors)]
        eps = None if call.eps is None else tensors.pop(0)
        given = iter(tensors)
        parts = Parts(*(None if part is None else next(given) for part in call.parts[:7]))
        wants_x = wanted[1] or (call.clips and wanted[2])
        chosen = [view for view, want in zip(views, (wants_x, *wanted[3:]), strict=True) if want]
        found = iter(torch.autograd.grad(call.plain(x, eps, parts), chosen, dy, create_graph=True) if chosen else ())
        dx = next(found) if wants_x else None
        residual = None if not wanted[2] else dx if call.clips else dy
    return (None, dx, residual, *(next(found) if want else None for want in wanted[3:]))


def proxy(gamma: Tensor, beta: Tensor, grid: Tensor, ends: Tensor, eps: float, again: Again) -> tuple[Tensor, Tensor]:
    """Scale and shift by relu's proxy, (C,) each; ``again(γ, β)`` is the same in plain PyTorch."""
    plain_ones = torch.compiler.is_compiling() or not (gamma.is_cpu and beta.is_cpu and grid.is_cpu)
    if plain_ones or not (gamma.is_contiguous() and beta.is_contiguous() and _eager(gamma) and _eager(beta)):
        return again(gamma, beta)
    kernels = _cpu()
    if kernels is None or gamma.dtype is not beta.dtype or gamma.dtype not in kernels.DTYPES:
        return again(gamma, beta)
    found: tuple[Tensor, Tensor] = _Proxy.apply(gamma, beta, grid, ends, eps, kernels, again)
    return found


class _Proxy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gamma: Tensor, beta: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        grid, ends, eps, kernels, _ = ctx.rest = rest
        ctx.save_for_backward(gamma, beta)
        scale, shift = kernels.proxies.forward(gamma, beta, grid, ends, eps)
        return scale, shift

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grid, ends, eps, kernels, again = ctx.rest
        gamma, beta = ctx.saved_tensors
        if torch.is_grad_enabled():
            with torch.enable_grad():
                views = gamma.view_as(gamma), beta.view_as(beta)
                wanted = [view for view, want in zip(views, ctx.needs_input_grad, strict=False) if want]
                found = iter(torch.autograd.grad(again(*views), wanted, grads, create_graph=True))
            return (*(next(found) if want else None for want in ctx.needs_input_grad[:2]), *[None] * 5)
        return (*kernels.proxies.backward(gamma, beta, grid, ends, eps, *grads), *[None] * 5)
