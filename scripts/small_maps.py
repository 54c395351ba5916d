"""Where small maps go by lanes, and where one by one: python scripts/small_maps.py [norm] [train|eval] [rounds]

Lanes: norms/cpu/small.py. Times a unit's steps, forward and backward with ReLU, in one thread, both ways in turn, over
sizes of maps and numbers of images. Below 1, lanes are quicker; * marks where ``plan.goes_by_lanes`` chooses them.
"""

from __future__ import annotations

import sys

import torch
from both_ways import ratio
from torch import nn

from normbench import machine, norms
from normbench.norms.cpu import plan

CHANNELS = 128
SIDES, IMAGES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14), (2, 4, 8, 16, 32, 128)
OPTIONS = {"bgn": {"num_groups": 32}}


def main(norm: str = "bn", mode: str = "train", rounds: str = "40") -> None:
    torch.set_num_threads(1)
    machine.keep_memory()
    own, training = norm != "bgn", mode == "train"

    def make() -> nn.Module:
        return norms.build(norm, CHANNELS, activation=nn.ReLU(), **OPTIONS.get(norm, {})).train(training)

    print(f"{norm}, {mode}, {CHANNELS} channels: time by lanes over time map by map; rows: H = W, columns: images")
    print("     " + "".join(f"{images:>8}" for images in IMAGES))
    for side in SIDES:
        line = f"{side:4} "
        for images in IMAGES:
            x = torch.randn(images, CHANNELS, side, side, requires_grad=True)
            found = ratio("goes_by_lanes", make, x, torch.randn(x.shape), int(rounds))
            chosen = "*" if plan.goes_by_lanes(side * side, images, own, not training) else " "
            line += f"{found:7.2f}{chosen}"
        print(line, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
