"""Where small maps go by lanes, and where one by one: python scripts/small_maps.py [norm] [rounds]

Lanes: norms/cpu/small.py. Times a unit's steps, forward and backward with ReLU, in one thread, both ways in turn, over
sizes of maps and numbers of images. Below 1, lanes are quicker; * marks where ``plan.goes_by_lanes`` chooses them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from normbench import machine, norms
from normbench.norms import repeated
from normbench.norms.cpu import plan

CHANNELS = 256
SIDES, IMAGES = (2, 3, 4, 5, 7, 8, 10, 12, 14), (2, 4, 8, 16, 32)
OPTIONS = {"bgn": {"num_groups": 32}}


def stepper(norm: str, shape: tuple[int, ...], by_lanes: bool) -> Callable[[], float]:
    """A step that goes one way whenever it is made, and the seconds that it took."""
    unit = norms.build(norm, shape[1], activation=nn.ReLU(), **OPTIONS.get(norm, {}))
    x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)
    kept: dict[object, plan.Plan] = {}

    def step() -> float:
        with_lanes, plans = plan.goes_by_lanes, plan.plans
        plan.goes_by_lanes, plan.plans = (lambda *_: by_lanes), kept
        repeated.readies.clear()
        unit(x).backward(dy)  # the long way, which finds the plan
        begin = time.perf_counter()
        unit(x).backward(dy)
        taken = time.perf_counter() - begin
        plan.goes_by_lanes, plan.plans = with_lanes, plans
        return taken

    return step


def main(norm: str = "bn", rounds: str = "40") -> None:
    torch.set_num_threads(1)
    machine.keep_memory()
    own = norm != "bgn"
    print(f"{norm}, {CHANNELS} channels: time by lanes over time map by map; rows: H = W, columns: images")
    print("     " + "".join(f"{images:>8}" for images in IMAGES))
    for side in SIDES:
        line = f"{side:4} "
        for images in IMAGES:
            ways = [stepper(norm, (images, CHANNELS, side, side), by_lanes) for by_lanes in (True, False)]
            ratios = [one / other for one, other in ([way() for way in ways] for _ in range(int(rounds)))]
            chosen = "*" if plan.goes_by_lanes(side * side, images, own) else " "
            line += f"{statistics.median(ratios):7.2f}{chosen}"
        print(line, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
