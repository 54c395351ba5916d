"""Second derivatives by the fused kernels, and who refuses them."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from fused_cases import both_formats, both_modes, unit_of
from norm_cases import CASES, C, Case, gradients, make, pictures
from torch import Tensor, nn

from normbench import norms
from normbench.errors import InputError
from normbench.norms import fused


@pytest.mark.parametrize("case", CASES, ids=str)
@both_modes
@both_formats
def test_second_derivatives_are_those_of_the_plain_way(
    case: Case,
    training: bool,
    memory_format: torch.memory_format,
) -> None:
    if training and norms.get(case.name).own_gradient:
        pytest.skip("refused, since its gradient is not its derivative")
    if case.name == "brn" and training:
        pytest.skip("refused: test_batch_renormalization_refuses_to_be_differentiated_twice")
    unit = make(case, activation=nn.ReLU()).train(training)
    x = pictures(4, C, 5, 3).contiguous(memory_format=memory_format).requires_grad_()
    twin = copy.deepcopy(unit)  # what the first call keeps may enter the next

    def second(unit: nn.Module) -> list[Tensor]:
        y, inputs = unit(x), (x, *unit.parameters())
        slopes = torch.autograd.grad(
            y, inputs, torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape), create_graph=True
        )
        return [*slopes, *torch.autograd.grad(sum(s.square().sum() for s in slopes), inputs, allow_unused=True)]

    fused_way = second(unit)
    with fused.unfused():
        plain_way = second(twin)
    for left, right in zip(fused_way, plain_way, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            torch.testing.assert_close(left, right, rtol=0, atol=1e-9 * max(1, right.abs().max().item()))


def test_batch_renormalization_refuses_to_be_differentiated_twice() -> None:
    x = pictures(4, C, 5, 3).requires_grad_()
    y = unit_of("brn", torch.float64)(x)
    with pytest.raises(InputError, match=r"cannot be differentiated twice.*NORMBENCH_KERNELS=off"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    torch.autograd.grad(y.sum(), x)


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_parameter_changed_before_a_twice_differentiable_backward_is_not_taken_as_it_is_now(part: str) -> None:
    """An error, as with nn.BatchNorm2d, or the gradient as it was; never that of values that the forward had not."""
    unit = unit_of("bn", torch.float64)
    x = pictures(4, C, 5, 3).requires_grad_()
    y = unit(x)
    (expected,) = gradients(y, x)
    with torch.no_grad():
        getattr(unit, part).mul_(-2)
    slope = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape).square()
    with contextlib.suppress(RuntimeError):  # "modified by an inplace operation"
        (got,) = torch.autograd.grad(y, x, slope, create_graph=True)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["gn", "proxy"])
def test_a_unit_used_twice_has_the_same_gradients_with_create_graph_and_without(name: str) -> None:
    """Its parameters are then behind its input too."""
    unit = unit_of(name, torch.float64)
    x = pictures(4, C, 5, 3).requires_grad_()
    y = unit(unit(x)).square().sum()
    inputs = (x, *unit.parameters())
    expected = torch.autograd.grad(y, inputs, retain_graph=True)
    for left, right in zip(torch.autograd.grad(y, inputs, create_graph=True), expected, strict=True):
        torch.testing.assert_close(left, right)
