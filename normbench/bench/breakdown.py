"""Where a step's time goes: pictures, convolutions, norms, optimizer, the rest, and Python.

By torch.profiler over a few steps. On a CPU every operator has its own time, and belongs to what it was called by or,
in the backward, to what its forward was called by. On a GPU the kernels are told apart by their names, and what is left
of the time is the device waiting for Python. The profiler slows small operators down: shares are of the profiled steps.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from normbench import norms

DATA, CONVOLUTION, NORM, OPTIMIZER, OTHER, PYTHON = "data", "convolution", "norm", "optimizer", "other", "python"
PARTS = (DATA, CONVOLUTION, NORM, OPTIMIZER, OTHER, PYTHON)
MARK = "normbench::"
STEP = f"{MARK}step"
STEPS = 5
LAYERS = re.compile(r"aten::(_?conv|mkldnn_conv|cudnn_conv|miopen_conv|thnn_conv|slow_conv|linear|addmm|mm$|bmm)")
ACTIVATIONS = re.compile(r"aten::(relu|threshold_backward|clamp_min|hardtanh)|ReluBackward|HardtanhBackward")
NODE = "autograd::engine::evaluate_function"
# By kernels' names, the first that fits. Elementwise ones of methods written in plain operators are among the others.
KERNELS = (
    (OPTIMIZER, re.compile(r"multi_tensor_apply|fused_sgd|FusedSgd|fused_adam|FusedAdam", re.IGNORECASE)),
    (NORM, re.compile(r"batch_?norm|bn_fw|bn_bw|group_?norm|layer_?norm|clamp|threshold|relu", re.IGNORECASE)),
    (CONVOLUTION, re.compile(r"conv|gemm|cudnn|cutlass|xmma|wgrad|dgrad|fprop|winograd|nchwToNhwc|nhwcToNchw|gemv")),
    (DATA, re.compile(r"index_select|indexSelect|gather|Memcpy HtoD")),
)  # fmt: skip


class Loop(Protocol):
    """A training loop, step by step."""

    net: nn.Module

    def fetch(self) -> Any: ...
    def train(self, batch: Any) -> None: ...


def breakdown(loop: Loop, device: torch.device, steps: int = STEPS) -> dict[str, float]:
    """Each part's share of the profiled steps, which add up to 1; ``profiled_ms`` of one."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with _marked(loop.net), profile(activities=activities, acc_events=True) as found:
        for _ in range(steps):
            with record_function(STEP):
                with record_function(f"{MARK}{DATA}"):
                    batch = loop.fetch()
                loop.train(batch)
                if on_gpu:
                    torch.cuda.synchronize(device)
    events = found.events() or []
    total = sum(event.cpu_time_total for event in events if event.name == STEP and event.device_type == DeviceType.CPU)
    times = by_kernel(events) if on_gpu else by_operator(events)
    busy = sum(time for part, time in times.items() if part != PYTHON)
    times[PYTHON] = max(0.0, total - busy)
    whole = sum(times.values())
    shares = {part: times.get(part, 0.0) / whole for part in PARTS} if whole else dict.fromkeys(PARTS, 0.0)
    return {**shares, "profiled_ms": total / steps / 1000}


def by_operator(events: Sequence[Any]) -> dict[str, float]:
    """Microseconds of each part on a CPU; a mark's own time is its part's, a step's own is Python's."""
    forwards = {event.sequence_nr: _part(event, {}) for event in events if event.sequence_nr >= 0 and not _node(event)}
    times = dict.fromkeys(PARTS, 0.0)
    for event in events:
        times[_part(event, forwards)] += event.self_cpu_time_total
    return times


def by_kernel(events: Sequence[Any]) -> dict[str, float]:
    """Microseconds of each part on a GPU; marks, which have a time there too, are no kernels."""
    times = dict.fromkeys(PARTS, 0.0)
    ours = _kernels_of_norms()
    for event in events:
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
            part = next((part for part, pattern in KERNELS if pattern.search(event.name)), OTHER)
            times[NORM if event.name in ours else part] += event.self_device_time_total
    return times


def _part(event: Any, forwards: dict[int, str]) -> str:
    """The part that the innermost caller tells. ``forwards``: of each operator of the forward, for its backward."""
    at = event
    while at is not None:
        name = at.name
        if LAYERS.match(name):
            return CONVOLUTION
        if ACTIVATIONS.match(name):
            return NORM
        if name == STEP:
            return PYTHON if at is event else OTHER
        if name.startswith(MARK):
            return str(name.removeprefix(MARK))
        if name.startswith("Optimizer."):
            return OPTIMIZER
        if at.sequence_nr in forwards and _node(at):
            return forwards[at.sequence_nr]
        at = at.cpu_parent
    return OTHER


def _node(event: Any) -> bool:
    """Whether it is a node of the backward, or in one."""
    at = event
    while at is not None:
        if at.name.startswith(NODE):
            return True
        at = at.cpu_parent
    return False


def _kernels_of_norms() -> set[str]:
    """The names of our own kernels on CUDA."""
    try:
        from normbench.norms.cuda import family, maps
    except ImportError:  # without Triton
        return set()
    return {name for module in (family, maps) for name, value in vars(module).items() if hasattr(value, "fn")}


@contextlib.contextmanager
def _marked(net: nn.Module) -> Iterator[None]:
    """Every unit, and every BatchNorm that none took the place of, marks the time of its forward."""
    handles = []
    for module in net.modules():
        if norms.is_unit(module) or isinstance(module, nn.BatchNorm2d):
            before, after = _hooks()
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks() -> tuple[Callable[..., None], Callable[..., None]]:
    marks: list[Any] = []

    def before(*_: Any) -> None:
        marks.append(record_function(f"{MARK}{NORM}"))
        marks[-1].__enter__()

    def after(*_: Any) -> None:
        marks.pop().__exit__(None, None, None)

    return before, after
