"""Population statistics: moments of many batches, against those of all their values at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import normbench
from normbench import norms
from normbench.norms import population

IMAGES, BATCH = 24, 2
# Who keeps something that training statistics may take the place of.
KEEPERS = [
    *("bn", "bgn", "brn", "gbn", "batch_group", "iebn", "sn", "evonorm_b0", "rbn", "bcn", "bkn", "cbn", "mbn", "mabn"),
    *("online", "bne", "ic", "syncbn"),
]


def unit(name: str) -> nn.Module:
    options = {"num_groups": 2} if name in ("bgn", "batch_group", "bcn") else {}
    return norms.build(name, 4, activation=nn.ReLU(), batch=BATCH, **options).double()


def pictures() -> torch.Tensor:
    """Images that differ from each other much more than their pixels do, so that batches of two do."""
    torch.manual_seed(3)
    return torch.randn(IMAGES, 4, 5, 3, dtype=torch.float64) + 5 * torch.randn(IMAGES, 4, 1, 1, dtype=torch.float64)


def gathered(module: nn.Module, x: torch.Tensor, at_once: int) -> tuple[torch.Tensor, torch.Tensor]:
    with population.gathering() as met, torch.no_grad():
        for part in x.split(at_once):
            module.train()(part)
    ((_, mean, var),) = met.found.values()
    return mean, var


@pytest.mark.parametrize("at_once", [BATCH, 8, IMAGES])
@pytest.mark.parametrize("name", ["bn", "gbn", "iebn", "brn", "sn", "evonorm_b0", "bne", "cbn", "mbn", "ic"])
def test_they_are_the_moments_of_all_values(name: str, at_once: int) -> None:
    x = pictures()
    mean, var = gathered(unit(name), x, at_once)
    assert torch.allclose(mean, x.mean((0, 2, 3)), atol=1e-12)
    assert torch.allclose(var, x.var((0, 2, 3), correction=0), atol=1e-12)


def test_a_mean_of_batch_variances_would_be_another_number() -> None:
    x = pictures()
    within = torch.stack([part.var((0, 2, 3), correction=0) for part in x.split(BATCH)]).mean(0)
    assert (gathered(unit("bn"), x, BATCH)[1] / within).min() > 1.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cpu_kernels_tell_them_too(dtype: torch.dtype) -> None:
    x = pictures().to(dtype)
    mean, var = gathered(norms.build("bn", 4, batch=BATCH).to(dtype), x, 8)
    assert torch.allclose(mean.to(dtype), x.mean((0, 2, 3)), rtol=1e-5)
    assert torch.allclose(var.to(dtype), x.var((0, 2, 3), correction=0), rtol=1e-5)


def test_large_means_cost_no_digits() -> None:
    x = pictures() + 1e6
    assert torch.allclose(gathered(unit("bn"), x, BATCH)[1], x.var((0, 2, 3), correction=0), rtol=1e-6)


@pytest.mark.parametrize("name", KEEPERS)
def test_settled_they_change_evaluation_and_only_that(name: str) -> None:
    module, x = unit(name), pictures()
    with torch.no_grad():
        module.train()(x)
        before = module.eval()(x)
        weights = [parameter.clone() for parameter in module.parameters()]
        with population.gathering() as met:
            for part in x.split(BATCH):
                module.train()(part)
        assert met.settle() == 1
        after = module.eval()(x)
    assert after.isfinite().all()
    assert not torch.equal(before, after)
    assert all(torch.equal(old, new) for old, new in zip(weights, module.parameters(), strict=True))


def test_settled_batch_norm_evaluates_by_the_data_themselves() -> None:
    module, x = unit("bn"), pictures()
    with population.gathering() as met, torch.no_grad():
        module.train()(x)
    met.settle()
    with torch.no_grad():
        y = module.eval()(x)
    mu, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    assert torch.allclose(y, ((x - mu) / torch.sqrt(var + 1e-5)).relu(), atol=1e-12)


def test_batch_renorm_and_mabn_keep_what_they_divide_by() -> None:
    x = pictures()
    for name, buffer, wanted in (
        ("brn", "running_std", torch.sqrt(x.var((0, 2, 3), correction=0) + 1e-5)),
        ("mabn", "running_square", x.square().mean((0, 2, 3))),
    ):
        module = norms.build(name, 4, batch=BATCH, eps=1e-5).double()
        with population.gathering() as met, torch.no_grad():
            for part in x.split(8):
                module.train()(part)
        met.settle()
        assert torch.allclose(getattr(module, buffer), wanted, atol=1e-12), name


def test_methods_without_running_statistics_tell_nothing() -> None:
    net = normbench.apply(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "gn", num_groups=2)
    with population.gathering() as met, torch.no_grad():
        net.train()(torch.randn(4, 3, 5, 5))
    assert met.settle() == 0


def test_outside_of_gathering_nothing_is_kept() -> None:
    module = unit("bn")
    with population.gathering() as met:
        pass
    module.train()(pictures())
    assert not met.found
    assert not population.wanted()
    assert math.isfinite(float(module.running_mean.sum()))
