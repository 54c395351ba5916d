"""bcn: batch norm and group norm in a row, and the estimates that stand for the batch."""

from __future__ import annotations

import copy

import pytest
import torch
from norm_cases import C, gradients, make, pictures, reference
from norm_cases import Case as Of
from torch import Tensor, nn

from normbench import norms

f64 = torch.float64
ESTIMATED = Of("bcn", {"estimated": True, "num_groups": 3})


def in_a_row(unit: nn.Module, x: Tensor, first: nn.Module | None = None) -> Tensor:
    """bn and gn of this registry, with the unit's parameters."""
    bn, gn = first or norms.build("bn", C, dtype=f64, batch=unit.batch), nn.GroupNorm(3, C, dtype=f64)
    with torch.no_grad():
        bn.weight.copy_(unit.weight), bn.bias.copy_(unit.bias)
        gn.weight.copy_(unit.group_weight.repeat_interleave(2)), gn.bias.copy_(unit.group_bias.repeat_interleave(2))
    return gn(bn(x))


@pytest.mark.parametrize("batch", [None, 2, 1])
def test_it_is_bn_then_gn(batch: int | None) -> None:
    unit = make(Of("bcn", {"num_groups": 3}), batch=batch)
    x = pictures(4, C, 4, 3).requires_grad_()
    y, expected = unit(x), in_a_row(unit, x)
    assert torch.allclose(y, expected, rtol=0, atol=1e-12)
    assert torch.allclose(gradients(y, x)[0], gradients(expected, x)[0], rtol=1e-9, atol=1e-9)


def test_the_second_scale_and_shift_are_one_per_group() -> None:
    unit = norms.build("bcn", C, num_groups=3)
    assert unit.group_weight.tolist() == [1, 1, 1]
    assert unit.group_bias.tolist() == [0, 0, 0]
    assert norms.build("bcn", 96).num_groups == 32
    assert norms.build("bcn", 48).num_groups == 16
    assert norms.extra_parameters(unit) == [unit.group_weight, unit.group_bias]


def test_instance_norm_of_batch_norm_is_instance_norm() -> None:
    """With a group for every channel, where the first scale and shift are 1 and 0, and eps is nothing."""
    x = pictures(4, C, 5, 3)
    ours = norms.build("bcn", C, num_groups=C, eps=0.0, dtype=f64)
    assert torch.allclose(ours(x), norms.build("in", C, eps=0.0, dtype=f64)(x), rtol=0, atol=1e-12)


def test_estimates_that_do_not_move_leave_group_norm_of_scale_and_shift() -> None:
    """The card's s = 0, m = 0, v = 1."""
    unit = make(Of("bcn", {**ESTIMATED.options, "momentum": 0.0, "eps": 0.0}))
    x = pictures(4, C, 5, 3)
    affine = unit.weight[:, None, None] * x + unit.bias[:, None, None]
    gn = nn.functional.group_norm(affine, 3, unit.group_weight.repeat(2, 1).T.flatten(), eps=0.0)
    gn = gn + unit.group_bias.repeat(2, 1).T.flatten()[:, None, None]
    for _ in range(2):
        assert torch.allclose(unit(x), gn, rtol=0, atol=1e-11)


@pytest.mark.parametrize("batch", [None, 1, 2])
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_estimates_move_by_the_moments_around_the_old_mean(batch: int | None, momentum: float | None) -> None:
    unit = make(Of("bcn", {**ESTIMATED.options, "momentum": momentum}), batch=batch)
    m, v = torch.zeros(C, dtype=f64), torch.ones(C, dtype=f64)
    for step in range(3):
        x = pictures(4, C, 4, 3, seed=step).requires_grad_()
        options = {"estimated": (m, v), "num_groups": 3, "batch": batch}
        second = {"group_weight": unit.group_weight, "group_bias": unit.group_bias}
        expected = norms.bcn.reference(x, unit.weight, unit.bias, **options, **second)
        y = unit(x)
        assert torch.allclose(y, expected, rtol=0, atol=1e-10)
        theirs = gradients(expected, x, *unit.parameters())
        for g, h in zip(gradients(y, x, *unit.parameters()), theirs, strict=True):
            assert torch.allclose(g, h, rtol=1e-9, atol=1e-9)
        s = 1 / (step + 1) if momentum is None else momentum
        x = x.detach()
        v = (1 - s) * v + s * (x - m[:, None, None]).square().mean((0, 2, 3))
        m = (1 - s) * m + s * x.mean((0, 2, 3))
        assert torch.allclose(unit.running_mean, m, rtol=0, atol=1e-12)
        assert torch.allclose(unit.running_var, v, rtol=0, atol=1e-12)


def test_estimated_training_gives_what_evaluation_gives_before_the_step() -> None:
    unit = make(ESTIMATED, activation=nn.ReLU())
    for seed in range(3):
        x = pictures(4, C, 5, 3, seed=seed)
        expected = copy.deepcopy(unit).eval()(x)
        assert torch.equal(unit(x), expected)


@pytest.mark.parametrize("case", [Of("bcn"), ESTIMATED], ids=str)
def test_pictures_that_are_all_the_same_give_finite_outputs(case: Of) -> None:
    for x in (pictures(1, C, 4, 3).expand(4, C, 4, 3), torch.full((4, C, 4, 3), 7.0, dtype=f64)):
        x = x.clone().requires_grad_()
        y = make(case)(x)
        assert y.isfinite().all()
        assert gradients(y, x)[0].isfinite().all()


def test_a_group_norm_does_not_lose_what_half_precision_rounds() -> None:
    x = (pictures(4, C, 8, 8) * 0.5 + 100).bfloat16()
    exact = reference(make(Of("bcn", {"num_groups": 3})), Of("bcn"), x.double())
    got = make(Of("bcn", {"num_groups": 3}), dtype=torch.float32)(x)
    assert (got.double() - exact).abs().max() < 0.01 * exact.abs().max()


def test_estimates_resume_and_stay_where_the_batchnorm_had_none() -> None:
    from normbench.surgery import apply

    unit, x = make(ESTIMATED), pictures(4, C, 5, 3)
    unit(x)
    again = norms.build("bcn", C, dtype=f64, **ESTIMATED.options)
    again.load_state_dict(unit.state_dict())
    assert torch.equal(unit(x), again(x))
    plain = nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C, track_running_stats=False))
    assert apply(plain, "bcn", estimated=True).get_submodule("1").running_mean is not None
