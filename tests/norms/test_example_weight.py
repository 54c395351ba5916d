"""Inference example weighing: an image's own moments mixed into the running ones, in evaluation alone."""

from __future__ import annotations

import copy

import pytest
import torch
from norm_cases import CASES, C, Case, make, pictures
from torch import nn

import normbench
from normbench import norms
from normbench.errors import ConfigError
from normbench.norms import running

WEIGHED = [
    case for case in CASES if case.options.get("eval_stats") != "batch" and norms.set_example_weight(make(case), 0)
]
every_weighed = pytest.mark.parametrize("case", WEIGHED, ids=str)
# running_mean and running_var of every channel, so that the formula can be written down for all of them.
PER_CHANNEL = [case for case in WEIGHED if case.name in ("bn", "gbn", "syncbn", "online")]


def trained(case: Case, steps: int = 3) -> nn.Module:
    """A unit whose running moments are neither fresh nor those of the next pictures."""
    unit = make(case, activation=nn.ReLU() if case.name == "evonorm_b0" else None)
    for step in range(steps):
        unit(pictures(8, C, 5, 4, seed=step) * (1 + 0.3 * step) + 0.2 * step)
    return unit.eval()


def weighed(unit: nn.Module, share: float) -> nn.Module:
    twin = copy.deepcopy(unit)
    assert norms.set_example_weight(twin, share) == 1
    return twin


def test_every_method_with_running_moments_takes_part() -> None:
    kept = {name for name in norms.names() if any(key.startswith("running_") for key in make(Case(name)).state_dict())}
    assert {case.name for case in WEIGHED} >= kept


@pytest.mark.parametrize("case", PER_CHANNEL, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_formula_by_mean_squares(case: Case, share: float) -> None:
    """Card tests 1 and 3: written with first and second moments, as the method's authors do."""
    unit, x = trained(case), pictures(4, C, 6, 3, seed=9)
    m, v = unit.running_mean, unit.running_var
    e1, e2 = x.mean((2, 3)), x.square().mean((2, 3))
    mu = share * e1 + (1 - share) * m
    var = share * e2 + (1 - share) * (v + m**2) - mu**2
    z = (x - mu[..., None, None]) / torch.sqrt(var + unit.eps)[..., None, None]
    expected = unit.weight[:, None, None] * z + unit.bias[:, None, None]
    if case.name == "online":  # whose unit divides by the root of the image's mean square afterwards, or clamps
        expected = (
            copy.deepcopy(unit).eval()._modules["clamp"](expected)
            if unit.clamp
            else expected / torch.sqrt(expected.square().mean((1, 2, 3), keepdim=True) + unit.eps)
        )
    assert torch.allclose(weighed(unit, share)(x), expected, atol=1e-10)


@every_weighed
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_an_image_does_not_depend_on_the_others(case: Case, share: float) -> None:
    """Tests 1 and 6."""
    unit, x = weighed(trained(case), share), pictures(4, C, 5, 4, seed=9)
    assert torch.allclose(unit(x), torch.cat([unit(image[None]) for image in x]), atol=1e-12)


@every_weighed
def test_some_weight_changes_evaluation_and_none_does_not(case: Case) -> None:
    unit, x = trained(case), pictures(4, C, 5, 4, seed=9)
    assert torch.equal(weighed(unit, 0.0)(x), unit(x))
    assert not torch.allclose(weighed(unit, 0.5)(x), unit(x), atol=1e-3)


@every_weighed
def test_training_and_the_buffers_know_nothing_of_it(case: Case) -> None:
    """Test 5."""
    x, plain = pictures(8, C, 5, 4, seed=9), trained(case)
    unit = weighed(plain, 0.7)
    assert torch.equal(copy.deepcopy(unit).train()(x), copy.deepcopy(plain).train()(x))
    unit(x)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, unit.state_dict()[key]), key


def test_with_all_the_weight_bn_is_instance_norm_and_batch_group_group_norm() -> None:
    """Test 2."""
    x = pictures(4, C, 5, 4, seed=9)
    unit = weighed(trained(Case("bn")), 1.0)
    assert torch.allclose(unit(x), nn.functional.instance_norm(x, weight=unit.weight, bias=unit.bias), atol=1e-12)
    for name in ("batch_group", "bgn"):
        unit = weighed(trained(Case(name, {"num_groups": 3})), 1.0)
        expected = nn.functional.group_norm(x, 3, unit.weight, unit.bias, unit.eps)
        assert torch.allclose(unit(x), expected, atol=1e-12), name


@pytest.mark.parametrize("case", [case for case in WEIGHED if case.name in ("bn", "gbn", "syncbn", "iebn")], ids=str)
def test_an_image_whose_moments_are_the_running_ones_does_not_care(case: Case) -> None:
    """Test 4."""
    unit, x = trained(case), pictures(1, C, 5, 4, seed=9)
    unit.running_mean.copy_(x.mean((0, 2, 3)))
    unit.running_var.copy_(x.var((0, 2, 3), correction=0))
    for share in (0.2, 1.0):
        assert torch.allclose(weighed(unit, share)(x), unit(x), atol=1e-12)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_no_image_is_further_out_than_its_weight_allows(share: float) -> None:
    """Test 7: the image's mean, normalized, is within √((1 − α)/α)."""
    unit = weighed(trained(Case("bn")), share)
    nn.init.ones_(unit.weight), nn.init.zeros_(unit.bias)
    x = pictures(1, C, 5, 4) + 1e6
    assert unit(x).mean((2, 3)).abs().max() <= ((1 - share) / share) ** 0.5 + 1e-6


def test_the_mixture_has_no_negative_variance() -> None:
    e, s = torch.tensor([[1e4]]), torch.tensor([[0.0]])
    mean, var = running.mixed(0.5, (e, s), (e.clone(), s.clone()))
    assert mean.item() == 1e4
    assert var.item() == 0


def test_a_whole_model_is_set_at_once_and_after_training() -> None:
    model = normbench.apply(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)), "bn")
    assert norms.set_example_weight(model, 0.25) == 2
    assert norms.set_example_weight(normbench.apply(nn.Sequential(nn.BatchNorm2d(4)), "ln"), 0.25) == 0
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert norms.set_example_weight(normbench.apply(plain, "bnp"), 0.25) == 0, "its moments are of layers' inputs"
    with pytest.raises(ConfigError, match="from 0 to 1"):
        norms.set_example_weight(model, 1.5)
