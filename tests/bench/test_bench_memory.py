"""What a forward keeps is counted to the byte."""

from __future__ import annotations

import weakref

import torch
from torch import nn

from normbench import norms
from normbench.bench.memory import MIB, kept_mib, state_mib

MAP = 4 * 8 * 16 * 16 * 4 / MIB  # MiB of x


def x() -> torch.Tensor:
    return torch.randn(4, 8, 16, 16, requires_grad=True)


def test_a_product_keeps_its_factors_once_and_no_parameters() -> None:
    a, b = x(), x()
    assert kept_mib(lambda: a * b, nn.Module()) == 2 * MAP
    assert kept_mib(lambda: a * a, nn.Module()) == MAP
    scaled = nn.Linear(16, 16, bias=False)
    assert kept_mib(lambda: scaled(a), scaled) == MAP


def test_torchs_pair_keeps_input_and_output_and_ours_the_input() -> None:
    given, statistics = x(), 0.001
    pair = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    assert abs(kept_mib(lambda: pair(given), pair) - 2 * MAP) < statistics
    unit = norms.build("bn", 8, activation=nn.ReLU())
    assert abs(kept_mib(lambda: unit(given), unit) - MAP) < statistics


def test_what_the_forward_made_is_freed() -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def forward() -> torch.Tensor:
        y = torch.relu(x())  # its graph saves y itself
        made.append(weakref.ref(y))
        return y

    assert kept_mib(forward, nn.Module()) == MAP
    assert made[0]() is None


def test_state_is_parameters_and_buffers() -> None:
    assert state_mib(nn.BatchNorm2d(8)) * MIB == 4 * 8 * 4 + 8
