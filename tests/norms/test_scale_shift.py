"""Scales and thresholds alone, without statistics: equal to plain PyTorch, the long way and the short one."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from fused_cases import both_formats
from repeated_cases import Scaled, assert_equal, inputs, late, step, tlu, warm, went_soon
from torch import Tensor

from normbench.norms import core, fused


@both_formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("what", ["scaled", "threshold", "threshold of a sum"])
def test_scales_and_thresholds_come_to_the_same_bits(
    what: str, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    given, joined = inputs(memory_format, dtype), what == "threshold of a sum"
    unit = warm(Scaled("weight", "bias") if what == "scaled" else tlu(), given, joined)
    soon, found = step(unit, given, joined)
    assert soon
    assert_equal(found, late(copy.deepcopy(unit), given, joined))
    x, residual, dy = (t.detach().double().requires_grad_() for t in given)
    unit.double().zero_grad()
    if what == "scaled":
        y = (x * unit.weight[:, None, None] + unit.bias[:, None, None]).relu()
    else:
        y = torch.maximum(x + residual if joined else x, unit.threshold[:, None, None])
    y.backward(dy)
    expected = {"x": x.grad, "residual": residual.grad} | {name: p.grad for name, p in unit.named_parameters()}
    for name, value in expected.items():
        if value is not None:
            torch.testing.assert_close(found[name].double(), value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wants", list(itertools.product([True, False], repeat=3)), ids=str)
def test_a_threshold_of_a_sum_whoever_wants_a_gradient(wants: tuple[bool, bool, bool]) -> None:
    x, residual, dy = inputs()
    given = [x.detach().requires_grad_(wants[0]), residual.detach().requires_grad_(wants[1]), dy]
    unit = tlu()
    unit.requires_grad_(wants[2])
    for _ in range(3):
        assert_equal(step(unit, given, joined=True)[1], late(copy.deepcopy(unit), given, joined=True))
    with fused.unfused():
        plain = step(unit, given, joined=True)[1]
    found = step(unit, given, joined=True)[1]
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("other", [(1, 6, 1, 1), (4, 1, 5, 5), (6, 5, 5)], ids=str)
def test_a_threshold_of_a_sum_with_what_broadcasts(other: tuple[int, ...]) -> None:
    unit, x, residual = tlu(), inputs()[0], torch.randn(other, requires_grad=True)
    for _ in range(2):
        torch.testing.assert_close(unit(x, residual), torch.maximum(x + residual, unit.threshold[:, None, None]))
    assert [g.shape for g in torch.autograd.grad(unit(x, residual).sum(), (x, residual))] == [x.shape, residual.shape]


@pytest.mark.parametrize("what", ["scaled", "threshold", "threshold of a sum"])
def test_scales_and_thresholds_are_differentiable_twice(what: str) -> None:
    given, joined = inputs(dtype=torch.float64), what == "threshold of a sum"
    unit = warm(Scaled("weight", "bias") if what == "scaled" else tlu(), given, joined)
    maps = tuple(given[: 1 + joined])
    assert torch.autograd.gradcheck(unit, maps)
    assert torch.autograd.gradgradcheck(unit, maps)
    assert went_soon(unit(*maps))


@pytest.mark.parametrize("learned", [True, False], ids=["threshold", "residual alone"])
def test_a_residuals_own_gradient_is_differentiable(learned: bool) -> None:
    x, residual, _ = inputs(dtype=torch.float64)
    unit = tlu().double().requires_grad_(learned)
    x = x.detach()
    wanted = [residual, *unit.parameters()] if learned else [residual]

    def given(residual: Tensor, *_: Tensor) -> Tensor:
        return unit(x, residual)

    for _ in range(3):
        assert torch.autograd.gradgradcheck(given, wanted)


def test_what_cuts_nothing_keeps_its_input() -> None:
    """So its output may be edited, as that of any product."""
    x = inputs()[0]
    for _ in range(3):
        y = core.scale_shift(x, None, None)
        y.add_(1)
        y.sum().backward()


def test_one_of_weight_and_bias_alone_goes_the_long_way() -> None:
    unit, given = Scaled("weight", "bias"), inputs()
    for parts in (("weight", "bias"), ("weight",), ("bias",), ()):
        for name in {"weight", "bias"} - set(parts):
            unit.register_parameter(name, None)
        expected = late(copy.deepcopy(unit), given)
        for _ in range(3):
            soon, found = step(unit, given)
        assert soon == (len(parts) == 2)
        assert_equal(found, expected)
        unit = Scaled("weight", "bias")
