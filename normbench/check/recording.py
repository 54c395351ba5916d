"""The promise that a training step can be recorded in a CUDA graph and replayed, tried on a tape."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from normbench.check.subject import Skipped, Subject, alike, forward
from normbench.check.tape import Tape, TapeRecorder

STEPS = 3


class _Step:
    """A forward and backward over pictures that lie in one place; what they give lies in another."""

    def __init__(self, unit: nn.Module, x: Tensor) -> None:
        self.unit, self.x = unit, x
        self.y, self.grad = x.clone(), x.clone()

    def __call__(self) -> None:
        x = self.x.detach().requires_grad_()
        y = self.unit(x)
        y.square().sum().backward()
        assert x.grad is not None
        self.y.copy_(y.detach())
        self.grad.copy_(x.grad)
        self.unit.zero_grad()


def a_step_can_be_recorded(subject: Subject) -> None:
    """does the same when a training step is recorded in a CUDA graph and replayed, unless it says why not (no_graph)"""
    if subject.row.no_graph:
        raise Skipped(subject.row.no_graph)
    unit, x = subject.unit(batch=2), subject.pictures()
    forward(unit, x)  # what is made at the first forward is there
    recorded, eager = _Step(unit, x.clone()), _Step(copy.deepcopy(unit), x.clone())
    replay = TapeRecorder().record(recorded)
    for step in range(STEPS):
        for one in (recorded, eager):
            one.x.copy_(subject.pictures(seed=30 + step))
        torch.manual_seed(step)
        replay()
        torch.manual_seed(step)
        with Tape():  # what knows that it is looked at takes the same way
            eager()
        for what in ("y", "grad"):
            alike(getattr(recorded, what), getattr(eager, what), 1e-9, f"{what} of step {step + 1}, replayed")
    for key, value in eager.unit.named_buffers():
        alike(recorded.unit.get_buffer(key), value, 1e-9, f"buffer {key}, replayed")
