"""What a unit costs in a network beyond its kernels: python scripts/overhead.py [norm] [batch] [arch] [rounds]

Times whole training steps of four networks in turn, and tells each by its ratio to the first:

    untouched   with nn.BatchNorm2d and nn.ReLU
    <norm>      with our units
    empty       with units that only go through an autograd function, the shortest way there is, and keep what ours
                keep: what Python and autograd ask for being met at all
    free        without norms and rectifiers: the floor

A unit of ours can come down to ``empty`` and what its kernels take, and no further.
"""

from __future__ import annotations

import copy
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import normbench
from normbench import machine, models, norms
from normbench.options import ArchOptions

SIDE = 32


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.joined = residual is not None
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _, weight, bias = ctx.saved_tensors
        return grads[0], grads[0] if ctx.joined else None, weight, bias


through = super(torch.autograd.Function, _Through).apply  # as norms/repeated.py has it


class Empty(nn.Module):
    """A unit that computes nothing."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = unit.weight, unit.bias

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return through(x, residual, self._parameters["weight"], self._parameters["bias"])


def exchanged(net: nn.Module, which: Callable[[nn.Module], bool], made: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """``net`` with some of its modules exchanged."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if which(child):
                setattr(module, name, made(child))
    return net


def is_normalizer(module: nn.Module) -> bool:
    """Whether it is a unit that normalizes (frn has activations of its own that stand alone)."""
    return norms.is_unit(module) and hasattr(module, "weight")


def networks(norm: str, arch: str) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    plain = models.build(ArchOptions(arch), num_classes=10, picture_size=SIDE)
    ours = normbench.apply(copy.deepcopy(plain), norm)
    return {
        "untouched": plain,
        norm: ours,
        "empty": exchanged(copy.deepcopy(ours), is_normalizer, Empty),
        "free": exchanged(
            copy.deepcopy(plain), lambda m: isinstance(m, nn.BatchNorm2d | nn.ReLU), lambda _: nn.Identity()
        ),
    }


def stepper(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], tuple[float, float]]:
    """A training step; the microseconds of its forward, and of its backward and update."""
    update = torch.optim.SGD(net.train().parameters(), lr=0.0, momentum=0.9, fused=True)

    def step() -> tuple[float, float]:
        update.zero_grad(set_to_none=True)
        begin = time.perf_counter()
        loss = nn.functional.cross_entropy(net(x), y)
        middle = time.perf_counter()
        loss.backward()
        update.step()
        return 1e6 * (middle - begin), 1e6 * (time.perf_counter() - middle)

    return step


def main(norm: str = "bn", batch: str = "2", arch: str = "resnet20", rounds: str = "60") -> None:
    machine.keep_memory()
    x, y = torch.randn(int(batch), 3, SIDE, SIDE), torch.randint(10, (int(batch),))
    steps = {name: stepper(net, x, y) for name, net in networks(norm, arch).items()}
    for step in steps.values():
        for _ in range(5):
            step()
    gc.disable()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(int(rounds)):
        for name in random.sample(list(steps), len(steps)):
            times = [steps[name]() for _ in range(3)]
            found[name].append(tuple(map(statistics.median, zip(*times, strict=True))))  # type: ignore[arg-type]
    print(f"{arch}, {SIDE} px, batch {batch}, {torch.get_num_threads()} threads, medians of {rounds} rounds in turn")
    for name, times in found.items():
        forward, backward = (statistics.median(part) for part in zip(*times, strict=True))
        ratios = [sum(own) / sum(base) for own, base in zip(times, found["untouched"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{name:10} forward {forward:7.0f} µs  backward and update {backward:7.0f} µs  "
            f"ratio {middle:.3f} ({low:.3f}–{high:.3f})"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
