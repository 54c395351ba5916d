"""iebn: its start, its gate, and the statistics of a BatchNorm2d."""

from __future__ import annotations

import pytest
import torch
from norm_cases import C, gradients, make, pictures
from norm_cases import Case as Of
from torch import nn

from normbench import norms


def test_parameters_start_as_in_the_official_code() -> None:
    unit = norms.build("iebn", C)
    for parameter, value in ((unit.weight, 1), (unit.bias, 0), (unit.gate_weight, 0), (unit.gate_bias, -1)):
        assert torch.equal(parameter.detach(), torch.full((C,), float(value)))
    assert {id(p) for p in norms.extra_parameters(unit)} == {id(unit.gate_weight), id(unit.gate_bias)}


@pytest.mark.parametrize("training", [True, False])
def test_starts_as_batchnorm_times_0_2689(training: bool) -> None:
    ours, theirs = norms.build("iebn", C, dtype=torch.float64), nn.BatchNorm2d(C, dtype=torch.float64)
    for seed in range(3):
        x = pictures(4, C, 5, 3, seed=seed)
        ours(x), theirs(x)
    for key, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[key], value, rtol=0, atol=1e-12), key
    x = pictures(4, C, 5, 3, seed=9)
    expected = 0.2689414213699951 * theirs.train(training)(x)
    assert torch.allclose(ours.train(training)(x), expected, rtol=0, atol=1e-12)


def test_with_its_gate_open_it_is_batchnorm() -> None:
    unit = norms.build("iebn", C, dtype=torch.float64)
    with torch.no_grad():
        unit.gate_bias.fill_(20)
    x = pictures(4, C, 5, 3)
    assert torch.allclose(unit(x), nn.BatchNorm2d(C, dtype=torch.float64)(x), rtol=0, atol=1e-8)


@pytest.mark.parametrize("training", [True, False])
def test_the_gate_is_of_the_image_alone(training: bool) -> None:
    """The gate is what the outputs less β are in proportion to, where the statistics are the same."""
    unit = make(Of("iebn")).train(training)
    with torch.no_grad():
        unit.bias.zero_()
    x = pictures(4, C, 5, 3)
    gate = torch.sigmoid(unit.gate_weight * x.mean((2, 3)) + unit.gate_bias)
    y = unit(x)
    with torch.no_grad():
        unit.gate_weight.zero_()
        unit.gate_bias.fill_(40)
    unit.load_state_dict({**unit.state_dict(), "running_mean": torch.zeros(C), "running_var": torch.ones(C)})
    assert torch.allclose(y, unit(x) * gate[..., None, None], rtol=1e-10, atol=1e-12)


def test_on_one_pixel_the_mean_is_the_value() -> None:
    unit = make(Of("iebn"))
    x = pictures(4, C, 1, 1)
    normalized = (x - x.mean(0)) / torch.sqrt(x.var(0, correction=0) + 1e-5)
    weight, bias, g, h = (p[:, None, None] for p in (unit.weight, unit.bias, unit.gate_weight, unit.gate_bias))
    assert torch.allclose(unit(x), weight * torch.sigmoid(g * x + h) * normalized + bias, atol=1e-12)


def test_gradients_reach_the_gate_and_go_through_its_mean() -> None:
    unit = make(Of("iebn")).eval()
    x = pictures(4, C, 5, 3).requires_grad_()
    gate_weight, gate_bias, through = gradients(unit(x), unit.gate_weight, unit.gate_bias, x)
    assert gate_weight.abs().min() > 0
    assert gate_bias.abs().min() > 0
    slope = unit.weight * torch.sigmoid(unit.gate_weight * x.mean((2, 3)) + unit.gate_bias)
    y = x * slope.detach()[..., None, None] / torch.sqrt(unit.running_var[:, None, None] + unit.eps)
    assert not torch.allclose(through, gradients(y, x)[0])
