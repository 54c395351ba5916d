"""Where segments in channels_last go by stretches, and where by maps that are made first: python scripts/stretches.py

Stretches: norms/cpu/stretches.py; maps: norms/cpu/turned.py, segments.py. Times bgn's steps, forward and backward with
ReLU, in one thread, both ways in turn. Below 1, stretches are quicker; * marks where ``plan.goes_by_stretches`` chooses
them.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from both_ways import ratio
from torch import nn

from normbench import machine, norms
from normbench.norms.cpu import plan
from normbench.norms.plain import first_features

# N, C, H = W, groups.
CASES = [
    (32, 48, 35, 32), (32, 256, 16, 48), (32, 128, 16, 256), (32, 2048, 4, 4096), (32, 128, 16, 1024),
    (32, 512, 4, 4096), (32, 64, 32, 30), (32, 128, 16, 100), (8, 64, 56, 37), (32, 64, 32, 63), (4, 64, 32, 63),
    (32, 512, 16, 300), (64, 512, 7, 500), (64, 2048, 7, 511), (8, 64, 56, 5000), (64, 3, 64, 700),
]  # fmt: skip


def main(rounds: str = "10") -> None:
    torch.set_num_threads(1)
    machine.keep_memory()
    print("stretches  pixels of one  images of a row   N x C x H x W, groups: time by stretches over time by maps")
    for N, C, H, groups in CASES:
        S = H * H
        begins = first_features(C * S, groups, torch.device("cpu"))
        T = len((begins % S).unique())
        for batch in (None, 1):
            options: dict[str, Any] = {"num_groups": groups, "group_fit": "uneven", "batch": batch}
            make = functools.partial(norms.build, "bgn", C, activation=nn.ReLU(), **options)
            x, dy = (torch.randn(N, C, H, H).contiguous(memory_format=torch.channels_last) for _ in range(2))
            found = ratio("goes_by_stretches", make, x.requires_grad_(), dy, int(rounds))
            chosen = "*" if plan.goes_by_stretches(begins, S) else " "
            shape = f"{N} x {C} x {H} x {H}, {groups}"
            print(f"{T:9}  {S / T:13.1f}  {batch or N:15}   {shape}: {found:.2f}{chosen}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
