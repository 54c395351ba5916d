"""rms: the mean square of every pixel, and no bias."""

from __future__ import annotations

import pytest
import torch
from norm_cases import C, gradients, make, pictures
from norm_cases import Case as Of
from torch import nn

import normbench
from normbench import norms


def test_its_one_parameter_and_eps_are_as_timms() -> None:
    unit = norms.build("rms", C)
    assert unit.eps == 1e-6
    assert {key: p.tolist() for key, p in unit.named_parameters()} == {"weight": [1.0] * C}
    assert norms.affine_parameters(unit) == [unit.weight]


@pytest.mark.parametrize("maps", [(4, 5), (1, 1)])
def test_is_torchs_rmsnorm_with_the_channels_last(maps: tuple[int, int]) -> None:
    unit, theirs = make(Of("rms")), nn.RMSNorm(C, eps=1e-6, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(unit.weight)
    x = pictures(3, C, *maps).requires_grad_()
    ours, expected = unit(x), theirs(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.allclose(ours, expected, rtol=0, atol=1e-12)
    for g, h in zip(gradients(ours, x, unit.weight), gradients(expected, x, theirs.weight), strict=True):
        assert torch.allclose(g, h, rtol=1e-10, atol=1e-10)


def test_every_pixel_has_the_rms_of_the_weights() -> None:
    unit = norms.build("rms", C, eps=0.0, dtype=torch.float64)
    with torch.no_grad():
        unit.weight.fill_(-1.7)
    y = unit(pictures(2, C, 4, 5))
    assert torch.allclose(y.square().mean(1).sqrt(), torch.full((2, 4, 5), 1.7, dtype=torch.float64))


def test_ignores_the_scale_of_every_pixel_but_not_a_shift() -> None:
    unit = norms.build("rms", C, eps=0.0, dtype=torch.float64)
    x = pictures(2, C, 4, 5)
    scale = pictures(2, 1, 4, 5, seed=1).abs() + 0.5
    assert torch.allclose(unit(scale * x), unit(x), rtol=0, atol=1e-12)
    assert not torch.allclose(unit(x + 1), unit(x), rtol=0, atol=0.1)


def test_permutes_with_the_pixels() -> None:
    unit, x = make(Of("rms")), pictures(2, C, 4, 5)
    order = torch.tensor([7, 3, 1, 0, 2, 4, 6, 5, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8])
    shuffled = x.flatten(2)[..., order].view(x.shape)
    assert torch.allclose(unit(shuffled), unit(x).flatten(2)[..., order].view(x.shape), rtol=0, atol=1e-14)


def test_a_pixel_of_zeros_stays_zero_with_the_slope_of_eps() -> None:
    x = torch.zeros(1, C, 2, 2, dtype=torch.float64, requires_grad=True)
    y = norms.build("rms", C, dtype=torch.float64)(x)
    assert torch.equal(y, torch.zeros_like(y))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(gradient, torch.full_like(x, 1000.0))


def test_float16_squares_do_not_overflow() -> None:
    x = torch.full((1, C, 4, 4), 1000.0, dtype=torch.float16)
    assert torch.equal(norms.build("rms", C)(x), torch.ones_like(x))


def test_a_batchnorms_bias_and_eps_do_not_carry_over() -> None:
    model = nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C, eps=1e-3))
    unit = normbench.apply(model, "rms").get_submodule("1")
    assert (unit.eps, unit.bias) == (1e-6, None)
    with pytest.warns(UserWarning, match=r"left out.*running_mean.*bias"):
        unit.load_state_dict(model[1].state_dict())
