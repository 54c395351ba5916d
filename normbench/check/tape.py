"""What a CUDA graph does, on a CPU: a tape of tensor operations, recorded without effect and replayed without Python.

As in a graph, operations read and write the tensors they met while they were recorded, and what Python decided then
stays decided. What would wait for the device, or bring numbers to it from Python, is refused, as a graph refuses it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from normbench.check.subject import Broken
from normbench.norms.fused import unfused

aten = torch.ops.aten
WAITS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.masked_select.default)
BRINGS = (aten.lift_fresh.default,)


class Tape(TorchDispatchMode):
    """Operations as they were called, and what they gave."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self._unfused = contextlib.ExitStack()
        self.made: set[int] = set()  # storages that operations of the tape made
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # tensors from outside that were written, as they were

    def __enter__(self) -> Any:
        self._unfused.enter_context(unfused())  # a tape sees nothing of the fused kernels
        return super().__enter__()

    def __exit__(self, *found: Any) -> None:
        super().__exit__(*found)
        self._unfused.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in WAITS or func in BRINGS:
            what = "waits for the device" if func in WAITS else "brings numbers from Python to the device"
            raise Broken(f"{func} {what}: a graph cannot hold it")
        for tensor in _written(func, args, kwargs):
            if _place(tensor) not in self.made:
                self.before.setdefault(_place(tensor), (_whole(tensor), _whole(tensor).clone()))
        out = func(*args, **kwargs)
        known = {_place(tensor) for tensor in _tensors((args, kwargs))}
        self.made |= {_place(tensor) for tensor in _tensors(out)} - known
        self.calls.append((func, args, kwargs, out))
        return out

    @torch.no_grad()
    def undo(self) -> None:
        """Bring what was written back to what it was."""
        for tensor, before in self.before.values():
            tensor.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        """Call all operations again, on the same tensors, into the same tensors."""
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(out), _tensors(again), strict=True):
                if _place(old) != _place(new):
                    old.copy_(new)


class TapeRecorder:
    """A ``graph.Recorder`` for the CPU."""

    def __init__(self) -> None:
        self.tape = Tape()

    def run(self, work: Callable[[], None]) -> None:
        """See ``graph.Recorder``."""
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See ``graph.Recorder``. Raises Broken for what a graph cannot hold."""
        state = torch.get_rng_state()
        try:
            with self.tape:
                work()
        finally:
            torch.set_rng_state(state)
            self.tape.undo()
        return self.tape.replay


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The arguments that an operation writes to; torch's batch norms do not declare it."""
    for i, argument in enumerate(func._schema.arguments):
        declared = argument.alias_info is not None and argument.alias_info.is_write
        if declared or argument.name in ("running_mean", "running_var"):
            yield from _tensors(kwargs.get(argument.name, args[i] if i < len(args) else None))


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor's memory, as bytes."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
