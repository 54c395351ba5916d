"""A unit's forward, gone over once more with what the one before it found out, where nothing has changed since.

Which kernels take a call, and how, depends on the unit, on the shape and type of its input, and on what PyTorch is
asked to do meanwhile; in training all of it is the same step after step. So a unit keeps what its last forward came to
(``Ready``), forgets it when anything of it is set, and before it goes that way again compares in one foreign call the
metadata of all tensors and the modes that PyTorch is in (what torch.compile's guards are made of).
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from normbench.norms import fused, population
from normbench.norms.call import Parts, Track

READY = "_ready"
PARTS = ("weight", "bias", "threshold")
NO_PLACES = (0, 0, 0)


class Repeatable(nn.Module):
    """A module that knows what its last forward came to, until an attribute is set. Copies and pickles do not."""

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__.pop(READY, None)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self.__dict__.pop(READY, None)
        super().__delattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != READY}


@functools.cache
def guards() -> Any:
    """torch's TensorGuards; None where they are not as they are used here, and every forward goes the long way."""
    x = torch.zeros(2, 3)
    others = x.double(), x[:1], x.t().contiguous().t(), nn.Parameter(x)
    try:
        from torch._C._dynamo import guards as private

        made: Any = private.TensorGuards
        check = made(x, dynamic_dims_sizes=[[2, 3]], dynamic_dims_strides=[[3, 1]]).check
        tell = check(x + 1) and not any(map(check, others))
    except Exception:  # they may change in any way
        return None
    return made if tell else None


def repeated(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A unit's forward(x, residual=None) that ends in ``core.standardize(…, unit=self)``, sooner the second time."""

    @functools.wraps(forward)
    def soon(self: Any, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if not torch.compiler.is_compiling():
            ready = self.__dict__.get(READY)
            if ready is not None and (y := ready(self, x, residual)) is not None:
                return y
        return forward(self, x) if residual is None else forward(self, x, residual)

    return soon


def note(
    unit: Any,
    call: Any,
    x: Tensor,
    residual: Tensor | None,
    parts: Parts,
    activation: nn.Module | None,
    track: Track | None,
) -> None:
    """Keep what a forward of ``unit`` came to, if it went to the CPU's kernels with no more than Ready knows of."""
    if not isinstance(call, fused.Call) or not x.is_cpu or call.saved.plan.lone or guards() is None:
        return
    own = tuple(map(unit._parameters.get, PARTS))
    if any(part is not None for part in parts[3:]) or any(map(operator.is_not, parts[:3], own)) or None in own[:2]:
        return
    if call.eps is not None or (call.moved is None) is not (track is None) or fused.dense(x) is not x:
        return
    if residual is not None and residual.stride() != x.stride():
        return
    unit.__dict__[READY] = Ready(unit, call, x, residual, activation, track)


class Ready:
    """What a forward came to, and whether another would come to the same."""

    __slots__ = (
        "activation",
        "again",
        "check",
        "joined",
        "keeps_y",
        "kernels",
        "second",
        "shape",
        "threads",
        "threshold",
        "wanted",
        "wants_x",
    )

    def __init__(
        self,
        unit: Any,
        call: fused.Call,
        x: Tensor,
        residual: Tensor | None,
        activation: nn.Module | None,
        track: Track | None,
    ) -> None:
        self.activation, self.joined, self.shape = activation, residual is not None, call.shape
        self.second = None if track is None else track.second
        self.threshold, self.threads = unit._parameters.get("threshold") is not None, torch.get_num_threads()
        self.keeps_y = self.joined and call.shape.low > -math.inf
        self.kernels = call.kernels.again
        self.again = self.kernels.ready(x, call.shape, call.saved.plan, call.moved)
        tensors = self.tensors(unit, x, residual)
        sizes, strides = [list(t.shape) for t in tensors], [list(t.stride()) for t in tensors]
        self.check = guards()(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
        self.wants_x = x.requires_grad
        self.wanted = any(tensor.requires_grad for tensor in tensors)

    def tensors(self, unit: Any, x: Tensor, residual: Tensor | None) -> list[Any]:
        """All that a forward reads or writes and did not make: the input, the parts, what running statistics move."""
        parameters = unit._parameters
        found = [x, parameters.get("weight"), parameters.get("bias")]
        if self.threshold:
            found.append(parameters.get("threshold"))
        if self.joined:
            found.append(residual)
        if self.second is not None:
            buffers = unit._buffers
            found += buffers["running_mean"], buffers[self.second], buffers["num_batches_tracked"]
        return found

    def __call__(self, unit: Any, x: Tensor, residual: Tensor | None) -> Tensor | None:
        """y, or None where this forward is another than that one."""
        tensors, activation = self.tensors(unit, x, residual), self.activation
        if (residual is not None) is not self.joined or not self.check(*tensors):
            return None
        if fused._seen or population._open is not None or forward_ad._current_level >= 0:
            return None
        if torch.get_num_threads() != self.threads or (activation is not None and fused._watched(activation)):
            return None
        places, moved = NO_PLACES, None
        if self.second is not None:
            mean, second, count = moved = tensors[-3:]
            places = mean.data_ptr(), second.data_ptr(), count.data_ptr()
        parts = tensors[1 : 4 if self.threshold else 3]
        y: Tensor
        if self.wanted and torch.is_grad_enabled():
            y = apply((self, places), x, residual, *parts)
        else:
            y = self.kernels.forward(self.again, places, x, residual, *parts)[0]
        if moved is not None:
            torch._C._increment_version(moved)
        return y

    def gradients(
        self, work: Tensor, dy: Tensor, x: Tensor, y: Tensor | None, parts: list[Tensor], wants: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """The long way."""
        weight, bias, *threshold = parts
        kernels: Any = fused._cpu()
        call = fused.Call(kernels, self.shape, Parts(weight, bias, *threshold))
        call.layout, call.joined = self.again.stride, self.joined
        call.saved = kernels.Saved(work, self.again.plan)
        return fused.gradients(call, dy, x, y, parts, wants)


class _Repeated(torch.autograd.Function):
    """As fused's function: saves its input and small tensors, or its output too, behind a residual sum."""

    @staticmethod
    def forward(
        ctx: Any, way: tuple[Ready, tuple[int, int, int]], x: Tensor, residual: Tensor | None, *parts: Tensor
    ) -> Tensor:
        ready, places = way
        y, ctx.work = ready.kernels.forward(ready.again, places, x, residual, *parts)
        ctx.ready = ready
        ctx.save_for_backward(x, y if ready.keeps_y else None, *parts)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        ready, (x, y, *parts) = ctx.ready, ctx.saved_tensors
        stride, dtype = ready.again.stride, ready.again.dtype
        alike = dy.stride() == stride and dy.dtype is dtype and x.stride() == stride and parts[0].dtype is dtype
        if not alike or (y is not None and y.stride() != stride) or torch.is_grad_enabled():
            return ready.gradients(ctx.work, dy, x, y, parts, ctx.needs_input_grad)
        dx, dz, *found = ready.kernels.backward(ready.again, ctx.work, dy, x, y, parts, ready.wants_x)
        return None, dx, (dy if dz is None else dz) if ready.joined else None, *found


# Function.apply without its look for transforms of torch.func, which TensorGuards has had already.
apply = super(torch.autograd.Function, _Repeated).apply
