"""bn beside torch.nn.BatchNorm2d: outputs, gradients and buffers, step by step."""

from __future__ import annotations

import pytest
import torch
from norm_cases import gradients, pictures
from torch import nn

from normbench import norms


@pytest.mark.parametrize("momentum", [0.1, 0.7, 0.0, 1.0, None])
@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (2, 3, 1, 1), (1, 3, 2, 2)], ids=str)
def test_equals_torch_over_several_steps(momentum: float | None, shape: tuple[int, ...]) -> None:
    options = {"eps": 1e-3, "momentum": momentum, "dtype": torch.float64}
    ours, theirs = norms.build("bn", 3, **options), nn.BatchNorm2d(3, **options)
    for seed in range(4):
        x = pictures(*shape, seed=seed).requires_grad_()
        a, b = ours(x), theirs(x)
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
        for g, h in zip(gradients(a, x, *ours.parameters()), gradients(b, x, *theirs.parameters()), strict=True):
            assert torch.allclose(g, h, rtol=1e-11, atol=1e-10)
        for key, value in theirs.state_dict().items():
            assert torch.allclose(ours.state_dict()[key], value, rtol=0, atol=1e-12), key
    x = pictures(*shape, seed=9)
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), rtol=0, atol=1e-12)


def test_its_state_loads_into_a_batchnorm() -> None:
    ours, theirs = norms.build("bn", 3), nn.BatchNorm2d(3)
    ours(pictures(4, 3, 5, 2).float())
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(theirs.running_var, ours.running_var)


def test_one_value_per_channel_gives_the_bias_and_finite_buffers() -> None:
    unit = norms.build("bn", 3)
    y = unit(torch.full((1, 3, 1, 1), 7.0))
    assert torch.equal(y, torch.zeros_like(y))
    assert torch.allclose(unit.running_mean, torch.full((3,), 0.7))
    assert torch.allclose(unit.running_var, torch.full((3,), 0.9))
