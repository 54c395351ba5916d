"""Units that add a residual before their activation, by the fused kernels and behind them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused_cases import Allocations, both_formats, both_modes, call_of, is_fused, unit_of
from norm_cases import CASES, C, Case, gradients, make, pictures
from torch import Tensor, nn

from normbench import norms


def of_residual(unit: Any, x: Tensor, residual: Any) -> Tensor:
    """What a unit with a residual computes, by the unit without an activation."""
    activation, unit.activation = unit.activation, None
    y = unit(x) + residual
    unit.activation = activation
    return activation(y)


RESIDUAL = [name for name in norms.names() if norms.get(name).takes_residual]


def test_who_takes_a_residual() -> None:
    assert set(RESIDUAL) == {"bn", "ln", "in", "gn", "bgn", "brn", "gbn", "batch_group", "ws"}


@pytest.mark.parametrize("case", [case for case in CASES if case.name in RESIDUAL], ids=str)
@both_modes
@pytest.mark.parametrize("batch", [None, 2], ids=["together", "workers"])
def test_a_residual_is_added_before_the_activation(case: Case, training: bool, batch: int | None) -> None:
    unit = make(case, activation=nn.ReLU(), batch=batch)
    unit(pictures(4, C, 5, 3, seed=2))
    unit.train(training)
    x, residual = pictures(4, C, 5, 3).requires_grad_(), pictures(4, C, 5, 3, seed=1).requires_grad_()
    twin = copy.deepcopy(unit)
    twin.activation = None
    y, expected = unit(x, residual), torch.relu(twin(x) + residual)
    inputs = (x, residual)
    slopes = gradients(y, *inputs, *unit.parameters()), gradients(expected, *inputs, *twin.parameters())
    for left, right in zip((y, *slopes[0]), (expected, *slopes[1]), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10)
    for key, buffer in twin.named_buffers():
        assert torch.equal(unit.get_buffer(key), buffer)
    if case.name != "bgn":  # whose groups may be pieces of a map
        assert is_fused(y)
        assert call_of(y).joined


@both_formats
@pytest.mark.parametrize("activation", [nn.ReLU(), None], ids=["relu", "none"])
def test_with_a_residual_the_output_is_kept_and_no_third_map(
    activation: nn.Module | None, memory_format: torch.memory_format, maps: Tensor
) -> None:
    """The residual is not: its gradient is that of the output as far as the activation let it through."""
    unit, saved = norms.build("bn", C, activation=activation), list[Tensor]()
    x = maps.contiguous(memory_format=memory_format).requires_grad_()
    residual = torch.randn_like(x).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = unit(x, residual)
    large = {tensor.data_ptr() for tensor in saved if tensor.numel() >= x.numel()}
    assert large == {x.data_ptr(), *([y.data_ptr()] if activation else [])}
    dy = torch.randn_like(x)
    with Allocations(x.numel()) as forward:
        y = unit(x, residual)
    with Allocations(x.numel()) as backward:
        dx, slope = torch.autograd.grad(y, (x, residual), dy)
    assert (forward.found, backward.found) == (["empty_like"], ["empty_like"] * (2 if activation else 1))
    assert x.stride() == y.stride() == dx.stride() == slope.stride()


@both_formats
def test_whoever_needs_a_gradient_beside_a_residual_has_it(memory_format: torch.memory_format) -> None:
    unit = unit_of("bn", torch.float64)
    x, residual = pictures(4, C, 5, 3).contiguous(memory_format=memory_format), pictures(4, C, 5, 3, seed=1)
    tensors = (x, residual, unit.weight, unit.bias)
    expected = gradients(of_residual(unit, x.requires_grad_(), residual.requires_grad_()), *tensors)
    for wanted in ([0], [1], [0, 1], [2], [1, 3], [0, 2]):
        for i, tensor in enumerate(tensors):
            tensor.requires_grad_(i in wanted)
        y = unit(x, residual)
        assert is_fused(y)
        for i, slope in zip(wanted, gradients(y, *(tensors[i] for i in wanted)), strict=True):
            torch.testing.assert_close(slope, expected[i], rtol=0, atol=1e-10)
    for tensor in tensors:
        tensor.requires_grad_(False)
    torch.testing.assert_close(unit(x, residual), of_residual(unit, x, residual))


def test_a_residual_that_is_the_input_itself_adds_its_gradient() -> None:
    unit, x = unit_of("bn", torch.float64), pictures(4, C, 5, 3).requires_grad_()
    (got,), (expected,) = gradients(unit(x, x), x), gradients(of_residual(unit, x, x), x)
    torch.testing.assert_close(got, expected)


RESIDUALS: dict[str, Callable[[Tensor], Any]] = {
    "one pixel": lambda x: x[:, :, :1, :1],
    "one image": lambda x: x[:1],
    "a number": lambda x: 0.5,
    "of float32": lambda x: x.float(),
    "negative, by a flag": lambda x: torch._neg_view(x),
    "larger": lambda x: torch.stack([x, -x]),
}


@pytest.mark.parametrize("way", RESIDUALS.values(), ids=RESIDUALS)
@pytest.mark.parametrize("name", ["bn", "bgn"])
@both_modes
def test_a_residual_that_the_kernels_cannot_take_is_added_behind_them(
    name: str, training: bool, way: Callable[[Tensor], Any]
) -> None:
    unit, x = unit_of(name, torch.float64).train(training), pictures(4, C, 5, 3)
    residual = way(pictures(4, C, 5, 3, seed=1))
    torch.testing.assert_close(unit(x, residual), of_residual(unit, x, residual))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_adds_behind_the_unit_and_keeps_its_type(dtype: torch.dtype) -> None:
    unit, x = unit_of("bn"), pictures(4, C, 5, 3, dtype=dtype)
    y = unit(x, x)
    assert y.dtype is dtype
    torch.testing.assert_close(y, of_residual(unit, x, x))


def test_a_hook_at_the_activation_sees_the_sum() -> None:
    unit, seen = unit_of("bn", torch.float64), list[Tensor]()
    x, residual = pictures(4, C, 5, 3), pictures(4, C, 5, 3, seed=1)
    expected = of_residual(unit, x, residual)
    unit.activation.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    torch.testing.assert_close(unit(x, residual), expected)
    torch.testing.assert_close(seen[0].relu(), expected)


def test_an_output_changed_before_the_backward_is_an_error() -> None:
    """As it is behind nn.ReLU: what the activation let through is read from it."""
    y = unit_of("bn")(*(pictures(4, C, 5, 3, dtype=torch.float32) for _ in range(2)))
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), None], ids=str)
@both_modes
def test_second_derivatives_with_a_residual_are_those_of_the_plain_way(
    activation: nn.Module | None, training: bool
) -> None:
    unit = make(Case("bn"), activation=activation).train(training)
    bare = make(Case("bn")).train(training)
    x, residual = pictures(4, C, 5, 3).requires_grad_(), pictures(4, C, 5, 3, seed=1).requires_grad_()

    def second(y: Tensor, unit: Any) -> list[Tensor]:
        inputs = (x, residual, unit.weight, unit.bias)
        slopes = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
        return [*slopes, *torch.autograd.grad(sum(s.square().sum() for s in slopes), inputs)]

    added = bare(x) + residual
    expected = second(added if activation is None else activation(added), bare)
    for left, right in zip(second(unit(x, residual), unit), expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["bn", "gn", "brn"])
def test_compiled_units_with_a_residual_train_as_eager_ones_do(name: str) -> None:
    torch.compiler.reset()
    eager = unit_of(name, torch.float64)
    twin = copy.deepcopy(eager)
    x, residual = pictures(4, C, 5, 3).requires_grad_(), pictures(4, C, 5, 3, seed=1).requires_grad_()
    y = torch.compile(twin, fullgraph=True, backend="aot_eager")(x, residual)
    expected = eager(x, residual)
    got = gradients(y, x, residual, *twin.parameters())
    for left, right in zip((y, *got), (expected, *gradients(expected, x, residual, *eager.parameters())), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
    for key, buffer in eager.named_buffers():
        torch.testing.assert_close(twin.get_buffer(key), buffer, rtol=0, atol=1e-12)


def test_an_exported_unit_adds_its_residual_and_vmap_takes_one() -> None:
    unit = unit_of("bn", torch.float64).eval()
    x, residual = pictures(4, C, 5, 3), pictures(4, C, 5, 3, seed=1)
    expected = unit(x, residual)
    torch.testing.assert_close(torch.export.export(unit, (x, residual)).module()(x, residual), expected)
    mapped = torch.func.vmap(lambda image, other: unit(image[None], other[None])[0])(x, residual)
    torch.testing.assert_close(mapped, expected)
