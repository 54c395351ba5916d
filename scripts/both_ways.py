"""Steps of a unit that go one of two ways of cpu/plan.py, for scripts that time both in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from normbench.norms import repeated
from normbench.norms.cpu import plan

MakeUnit = Callable[[], nn.Module]


def ratio(choice: str, make: MakeUnit, x: Tensor, dy: Tensor, rounds: int) -> float:
    """Median time of a step where the function ``choice`` of plan.py says yes, over that where it says no."""
    yes, no = (_stepper(choice, answer, make(), x, dy) for answer in (True, False))
    return statistics.median(one / other for one, other in ((yes(), no()) for _ in range(rounds)))


def _stepper(choice: str, answer: bool, unit: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], float]:
    """A step that goes one way whenever it is made, forward and backward, and the seconds that it took."""
    plans: dict[Any, plan.Plan] = {}
    readies: dict[Any, list[repeated.Ready]] = {}

    def step() -> float:
        before = getattr(plan, choice), plan.plans, repeated.readies
        setattr(plan, choice, lambda *_: answer)
        plan.plans, repeated.readies = plans, readies
        x.grad = None
        begin = time.perf_counter()
        unit(x).backward(dy)
        taken = time.perf_counter() - begin
        setattr(plan, choice, before[0])
        plan.plans, repeated.readies = before[1:]
        return taken

    for _ in range(3):  # after which calls go the short way
        step()
    return step
