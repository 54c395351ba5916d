"""Where small maps go by lanes, and where one by one: python scripts/small_maps.py [norm] [train|eval] [rounds]

Lanes: norms/cpu/small.py. Times a unit's steps, forward and backward with ReLU, in one thread, both ways in turn, over
sizes of maps and numbers of images. Below 1, lanes are quicker; * marks where ``plan.goes_by_lanes`` chooses them.
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

CHANNELS = 128
SIDES, IMAGES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14), (2, 4, 8, 16, 32, 128)
OPTIONS = {"bgn": {"num_groups": 32}}


def stepper(norm: str, training: bool, shape: tuple[int, ...], by_lanes: bool) -> Callable[[], float]:
    """A step that goes one way whenever it is made, and the seconds that it took."""
    unit = norms.build(norm, shape[1], activation=nn.ReLU(), **OPTIONS.get(norm, {})).train(training)
    x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)
    plans: dict[Any, plan.Plan] = {}
    readies: dict[Any, list[repeated.Ready]] = {}

    def step() -> float:
        before = plan.goes_by_lanes, plan.plans, repeated.readies
        plan.goes_by_lanes, plan.plans, repeated.readies = (lambda *_: by_lanes), plans, readies
        x.grad = None
        begin = time.perf_counter()
        unit(x).backward(dy)
        taken = time.perf_counter() - begin
        plan.goes_by_lanes, plan.plans, repeated.readies = before
        return taken

    for _ in range(3):  # after which calls go the short way
        step()
    return step


def main(norm: str = "bn", mode: str = "train", rounds: str = "40") -> None:
    torch.set_num_threads(1)
    machine.keep_memory()
    own, training = norm != "bgn", mode == "train"
    print(f"{norm}, {mode}, {CHANNELS} channels: time by lanes over time map by map; rows: H = W, columns: images")
    print("     " + "".join(f"{images:>8}" for images in IMAGES))
    for side in SIDES:
        line = f"{side:4} "
        for images in IMAGES:
            ways = [stepper(norm, training, (images, CHANNELS, side, side), by_lanes) for by_lanes in (True, False)]
            ratios = [one / other for one, other in ([way() for way in ways] for _ in range(int(rounds)))]
            chosen = "*" if plan.goes_by_lanes(side * side, images, own, not training) else " "
            line += f"{statistics.median(ratios):7.2f}{chosen}"
        print(line, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
