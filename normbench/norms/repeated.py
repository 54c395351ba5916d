"""A call of a function of core.py that is like one before it goes straight to the CPU's kernels.

At small maps most of a call's time is Python's, and most of that finds out what was found out a step ago: which kernels
take the tensors, how the work is shared out, what to tell them. So what a call came to is kept (``Ready``) under all
that it was asked, and a later one goes by it if torch's TensorGuards, which torch.compile's guards are made of, find
every tensor as it was then, in one foreign call: type, dispatch keys under the modes that hold, dtype, device, sizes,
strides, whether a gradient is wanted. Nothing of a unit is kept, and no tensor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from normbench.norms import fused, population
from normbench.norms.call import After, Gate, Parts, Renorm, Track

# What is kept: questions, and for each so many kinds of tensors (types, gradients wanted) and of modes.
MOST, KINDS = 4096, 8
PLAIN = (float, int, type(None))
# The parts of a call, by its kind. A renormalization has none of its own: it corrects towards the running statistics
# that it moves.
AFFINE = ("weight", "bias")
OWN = {
    "": AFFINE,
    "threshold": (*AFFINE, "threshold"),
    "after": (*AFFINE, "scale", "shift"),
    "gate": (*AFFINE, "gate_weight", "gate_bias"),
    "renorm": AFFINE,
    "threshold alone": ("threshold",),
}
# What is asked of a call that scales and shifts x as it is: by one mean of 0 and variance of 1.
AS_IT_IS = (1, 1, 0.0, "as it is")

readies: dict[Any, list[Ready]] = {}


@functools.cache
def guards() -> Any:
    """torch's TensorGuards; None where they are not as they are used here, and every call goes the long way."""
    x = torch.zeros(2, 3, dtype=torch.float32, device="cpu")
    others = x.double(), x[:1], x.t().contiguous().t(), nn.Parameter(x)
    try:
        from torch._C._dynamo import guards as private

        made: Any = private.TensorGuards
        check = made(x, dynamic_dims_sizes=[[2, 3]], dynamic_dims_strides=[[3, 1]]).check
        tell = check(x + 1) and not any(map(check, others))
    except Exception:  # they are private to torch, and may change in any way
        return None
    return made if tell else None


def guard(tensors: Sequence[Tensor]) -> Any:
    """What tells whether other tensors are as these are; never, if two of them are one."""
    sizes, strides = [list(t.shape) for t in tensors], [list(t.stride()) for t in tensors]
    return guards()(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check


def beside(
    threshold: Tensor | None, after: After | None, gate: Gate | None, renorm: Renorm | None
) -> tuple[str, tuple[Tensor, ...]]:
    """The kind of a call with these, and its parts behind weight and bias; "several" where it is of no kind."""
    if after is None and gate is None and renorm is None:
        return ("", ()) if threshold is None else ("threshold", (threshold,))
    if sum(one is not None for one in (threshold, after, gate, renorm)) > 1:
        return "several", ()
    if gate is not None:
        return "gate", (gate.weight, gate.bias)
    if after is not None:
        return "after", (after.scale, after.shift)
    return "renorm", ()


def again(
    x: Tensor,
    asked: tuple[Any, ...],
    kind: str,
    own: tuple[Tensor | None, ...],
    activation: nn.Module | None,
    track: Track | None,
    residual: Tensor | None,
    renorm: Renorm | None = None,
) -> tuple[Tensor | None, Any]:
    """y, or None where no call was like this one; and what to ``note`` it under, None if nobody shall.

    asked: rows, groups, ε and whatever else of ``standardize`` is no tensor. own: its parts, OWN[kind].
    """
    if kind == "several" or torch.compiler.is_compiling() or type(x) is not Tensor or type(asked[2]) is not float:
        return None, None
    moving: Any = None
    bounds: Any = None
    if track is not None:
        moving = (*track[1:], track.unit.momentum)
        if type(moving[-1]) not in PLAIN or type(track.unbiased) not in PLAIN:
            return None, None
    if renorm is not None:
        bounds = renorm.bounds
        if isinstance(bounds, Tensor) or not _moves(track, renorm):
            return None, None
    # Strides too, as guards pass over those of sizes of 1.
    key = (x.shape, x.stride(), asked, kind, type(activation), moving, residual is None)
    for ready in readies.get(key, ()):
        if (y := ready(x, own, activation, track, residual, bounds)) is not None:
            return y, key
    return None, key


def _moves(track: Track | None, renorm: Renorm) -> bool:
    """Whether what is corrected towards are the running statistics that the call moves."""
    if track is None:
        return False
    buffers = track.unit._buffers
    return renorm.mean is buffers["running_mean"] and renorm.std is buffers[track.second]


def note(
    key: Any, call: Any, x: Tensor, kind: str, own: Sequence[Any], track: Track | None, residual: Tensor | None
) -> None:
    """Keep what a call came to, under ``key``, if there is one; own and kind: as in ``again``."""
    if key is None:
        return
    if not isinstance(call, fused.Call) or not x.is_cpu or guards() is None:
        return
    if torch._C._len_torch_dispatch_stack():  # a mode wants to see operations, some of which a ready call has not
        return
    # Groups of one value have work that is x itself; a learned eps, parts left out, or a change of layout are more than
    # Ready knows of.
    if call.saved.plan.lone or call.saved.plan.turned or call.eps is not None or any(part is None for part in own):
        return
    # Running statistics that a kernel could not move; an input, or a residual, that was copied first.
    if (call.moved is None) is not (track is None) or fused.dense(x) is not x:
        return
    if residual is not None and residual.stride() != x.stride():
        return
    if len(readies) >= MOST:
        readies.clear()
    kinds = readies.setdefault(key, [])
    tensors = met(x, own, track, residual)
    if len(kinds) < KINDS and len(set(map(id, tensors))) == len(tensors):  # guards never find two in one
        kinds.append(Ready(call, x, tensors, residual is not None, kind))


class Ready:
    """What a call came to, and whether another would come to the same."""

    __slots__ = (
        "again",
        "check",
        "check_back",
        "clips",
        "joined",
        "keeps_y",
        "kernels",
        "kind",
        "shape",
        "threads",
        "wanted",
        "wants_x",
    )

    def __init__(self, call: fused.Call, x: Tensor, tensors: Sequence[Tensor], joined: bool, kind: str) -> None:
        self.joined, self.kind, self.shape, self.threads = joined, kind, call.shape, torch.get_num_threads()
        self.clips = call.clips
        self.keeps_y = joined and not call.clips and call.shape.low > -math.inf
        self.kernels = call.kernels.again
        self.again = self.kernels.ready(x, call.shape, call.saved.plan, call.moved, kind, call.given is not None)
        self.check, self.check_back = guard(tensors), None
        self.wants_x = x.requires_grad or (joined and call.clips and tensors[-1].requires_grad)
        self.wanted = any(tensor.requires_grad for tensor in tensors)

    def __call__(
        self,
        x: Tensor,
        own: tuple[Any, ...],
        activation: nn.Module | None,
        track: Track | None,
        residual: Tensor | None,
        bounds: tuple[float, float] | None,
    ) -> Tensor | None:
        """y, or None where this call is another than that one, for which another kind, or the long way, is tried."""
        tensors = met(x, own, track, residual)
        if not self.check(*tensors) or torch.get_num_threads() != self.threads:
            return None
        if fused._seen or population._open is not None or forward_ad._current_level >= 0:
            return None
        if activation is not None and fused._watched(activation):
            return None
        places = (0, 0, 0)
        if track is not None:
            mean, second, count = moved = tensors[-3:]
            places = mean.data_ptr(), second.data_ptr(), count.data_ptr()
        y: Tensor
        if self.wanted and torch.is_grad_enabled():
            y = apply((self, places, bounds), x, residual, *own)
        else:
            y = self.kernels.forward(self.again, places, bounds, x, residual, *own)[0]
        if track is not None:
            torch._C._increment_version(moved)
        return y

    def gradients(
        self, work: Tensor, dy: Tensor, x: Tensor, y: Tensor | None, parts: list[Tensor], wants: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """The long way: where tensors come back in another layout or type, or somebody differentiates once more."""
        kernels: Any = fused._cpu()
        parts = [part.contiguous() for part in parts]  # as kernels read them, whatever a hook made of them
        named = Parts(**dict(zip(OWN[self.kind], parts, strict=True)))
        if self.kind == "renorm":  # of what it corrected towards a backward asks whether it is there
            named = named._replace(to_mean=parts[0], to_std=parts[0])
        saved = kernels.Saved(work, self.again.plan)
        call = fused.Call(kernels, self.shape, named, kernels.moments(saved, self.shape) if self.again.given else None)
        call.layout, call.saved = self.again.stride, saved
        call.joined, call.clips = self.joined and not self.clips, self.clips
        return fused.gradients(call, dy, x, y, parts, wants)

    def reads(self, tensors: list[Tensor]) -> bool:
        """Whether a backward may go by these tensors, maps first; not yet the first one, which it learns by."""
        if self.check_back is not None:
            return bool(self.check_back(*tensors))
        maps, parts = tensors[: 3 if self.keeps_y else 2], tensors[3 if self.keeps_y else 2 :]
        stride, dtype = self.again.stride, self.again.dtype
        plain = all(t.dtype is dtype and not t.is_neg() and t.is_cpu for t in tensors)
        if plain and all(t.stride() == stride for t in maps) and all(t.is_contiguous() for t in parts):
            self.check_back = guard(tensors)
        return False


def met(x: Tensor, own: Sequence[Any], track: Track | None, residual: Tensor | None) -> list[Any]:
    """The tensors of a call: x; its own parts; a residual; the three buffers that it moves."""
    found: list[Any] = [x, *own]
    if residual is not None:
        found.append(residual)
    if track is not None:
        buffers = track.unit._buffers
        found += buffers["running_mean"], buffers[track.second], buffers["num_batches_tracked"]
    return found


class _Repeated(torch.autograd.Function):
    """As fused's function: saves its input and small tensors; its output too behind a residual sum, or instead."""

    @staticmethod
    def forward(ctx: Any, way: tuple[Ready, Any, Any], x: Tensor, residual: Tensor | None, *parts: Tensor) -> Tensor:
        ready, places, bounds = way
        y, ctx.work = ready.kernels.forward(ready.again, places, bounds, x, residual, *parts)
        ctx.ready = ready
        ctx.save_for_backward(y if ready.clips else x, y if ready.keeps_y else None, *parts)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        ready, (x, y, *parts) = ctx.ready, ctx.saved_tensors
        tensors = [dy, x, *parts] if y is None else [dy, x, y, *parts]
        if torch.is_grad_enabled() or not ready.reads(tensors):
            return ready.gradients(ctx.work, dy, x, y, parts, ctx.needs_input_grad)
        dx, dz, *found = ready.kernels.backward(ready.again, ctx.work, dy, x, y, parts, ready.wants_x)
        residual = None if not ready.joined else dx if ready.clips else dy if dz is None else dz
        return None, dx, residual, *found


# Function.apply without its look for transforms of torch.func, and for tensors that one has left behind: TensorGuards
# have seen that there are none.
apply = super(torch.autograd.Function, _Repeated).apply
