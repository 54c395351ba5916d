"""Where segments in channels_last go by stretches, and where by maps that are made first: python scripts/stretches.py

Stretches: norms/cpu/stretches.py; maps: norms/cpu/turned.py, segments.py. Times bgn's steps, forward and backward with
ReLU, in one thread, both ways in turn. Below 1, stretches are quicker; * marks where ``plan.goes_by_stretches`` chooses
them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from normbench import machine, norms
from normbench.norms import repeated
from normbench.norms.cpu import plan
from normbench.norms.plain import first_features

# N, C, H = W, groups.
CASES = [
    (32, 48, 35, 32), (32, 256, 16, 48), (32, 128, 16, 256), (32, 2048, 4, 4096), (32, 128, 16, 1024),
    (32, 512, 4, 4096), (32, 64, 32, 30), (32, 128, 16, 100), (8, 64, 56, 37), (32, 64, 32, 63), (4, 64, 32, 63),
    (32, 512, 16, 300), (64, 512, 7, 500), (64, 2048, 7, 511), (8, 64, 56, 5000), (64, 3, 64, 700),
]  # fmt: skip


def stepper(shape: tuple[int, ...], groups: int, batch: int | None, by_stretches: bool) -> Callable[[], float]:
    """A step that goes one way whenever it is made, and the seconds that it took."""
    options: dict[str, Any] = {"num_groups": groups, "group_fit": "uneven", "batch": batch}
    unit = norms.build("bgn", shape[1], activation=nn.ReLU(), **options)
    x, dy = (torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in range(2))
    x.requires_grad_()
    plans: dict[Any, plan.Plan] = {}
    readies: dict[Any, list[repeated.Ready]] = {}

    def step() -> float:
        before = plan.goes_by_stretches, plan.plans, repeated.readies
        plan.goes_by_stretches, plan.plans, repeated.readies = (lambda *_: by_stretches), plans, readies
        x.grad = None
        begin = time.perf_counter()
        unit(x).backward(dy)
        taken = time.perf_counter() - begin
        plan.goes_by_stretches, plan.plans, repeated.readies = before
        return taken

    for _ in range(3):  # after which calls go the short way
        step()
    return step


def main(rounds: str = "10") -> None:
    torch.set_num_threads(1)
    machine.keep_memory()
    print("stretches  pixels of one  images of a row   N x C x H x W, groups: time by stretches over time by maps")
    for N, C, H, groups in CASES:
        S = H * H
        begins = first_features(C * S, groups, torch.device("cpu"))
        T = len((begins % S).unique())
        for batch in (None, 1):
            ways = [stepper((N, C, H, H), groups, batch, by_stretches) for by_stretches in (True, False)]
            ratios = [one / other for one, other in ([way() for way in ways] for _ in range(int(rounds)))]
            chosen = "*" if plan.goes_by_stretches(begins, S) else " "
            found = f"{statistics.median(ratios):.2f}{chosen}"
            print(f"{T:9}  {S / T:13.1f}  {batch or N:15}   {N} x {C} x {H} x {H}, {groups}: {found}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
