"""dyt: a squashed, scaled and shifted value, of nothing but that value."""

from __future__ import annotations

import pytest
import torch
from norm_cases import C, make, pictures
from norm_cases import Case as Of
from torch import nn

from normbench import norms


@pytest.mark.parametrize(("options", "start"), [({}, 0.5), ({"alpha_init": 1.5}, 1.5)])
def test_parameters_start_as_in_the_official_code(options: dict[str, float], start: float) -> None:
    unit = norms.build("dyt", C, **options)
    started = {key: p.tolist() for key, p in unit.named_parameters()}
    assert started == {"weight": [1.0] * C, "bias": [0.0] * C, "alpha": [start]}
    assert [id(p) for p in norms.extra_parameters(unit)] == [id(unit.alpha)], "no recipe decays it"
    assert not list(unit.buffers())


def test_is_odd_without_its_bias() -> None:
    unit, x = make(Of("dyt")), pictures(2, C, 4, 5)
    with torch.no_grad():
        unit.bias.zero_()
    assert torch.equal(unit(-x), -unit(x))


def test_stays_within_the_weight_of_the_bias() -> None:
    unit, x = make(Of("dyt")), 50 * pictures(4, C, 4, 5)
    away = (unit(x) - unit.bias[:, None, None]).abs().amax((0, 2, 3))
    assert (away <= unit.weight.abs() + 1e-12).all()
    assert (away > 0.99 * unit.weight.abs()).all()


def test_is_a_slope_near_zero() -> None:
    unit, x = make(Of("dyt")), 1e-4 * pictures(2, C, 4, 5)
    line = unit.weight[:, None, None] * unit.alpha * x + unit.bias[:, None, None]
    assert torch.allclose(unit(x), line, rtol=0, atol=1e-10)


def test_large_values_let_no_gradient_through() -> None:
    x = torch.full((1, C, 2, 2), 100.0, requires_grad=True)
    unit = norms.build("dyt", C)
    (gradient,) = torch.autograd.grad(unit(x).sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


def test_each_value_is_on_its_own() -> None:
    unit, x = make(Of("dyt")), pictures(3, C, 4, 5)
    changed = x.clone()
    changed[1, 2, 3, 4] += 1
    assert (unit(changed) != unit(x)).nonzero().tolist() == [[1, 2, 3, 4]]


def test_works_in_place_behind_it_without_an_affine_too() -> None:
    x = pictures(2, C, 3, 3).requires_grad_()
    unit = norms.build("dyt", C, affine=False, activation=nn.ReLU(inplace=True), dtype=torch.float64)
    unit(x).sum().backward()
    expected = 0.5 * (1 - torch.tanh(x / 2).square()) * (x > 0)
    assert torch.allclose(x.grad, expected)
