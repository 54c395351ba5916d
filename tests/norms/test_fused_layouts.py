"""However input, output and gradients lie in memory, the fused kernels give the same."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from fused_cases import FORMATS, both_formats, both_modes, every_name, is_fused, unit_of
from norm_cases import C, gradients, pictures
from torch import Tensor

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows and columns exchanged": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "images and channels exchanged": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every other image": lambda x: torch.stack([x, -x], 1).flatten(0, 1)[::2],
    "every other channel": lambda x: torch.stack([x, -x], 2).flatten(1, 2)[:, ::2],
    "every other column": lambda x: torch.stack([x, -x], 4).flatten(3)[..., ::2],
    "channels_last, every other image": lambda x: (
        torch.stack([x, -x], 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)[::2]
    ),
    "not from the start of its memory": lambda x: torch.cat([-x, x])[len(x) :],
    "flipped": lambda x: x.flip(3).flip(3),
}


@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS)
@every_name
def test_however_the_input_lies_in_memory_the_result_is_the_same(name: str, lay: Callable[[Tensor], Tensor]) -> None:
    unit = unit_of(name, torch.float64)
    twin = copy.deepcopy(unit)
    leaf = pictures(4, C, 5, 3).requires_grad_()
    x = lay(leaf)
    assert torch.equal(x, leaf)
    y, expected = unit(x), twin(leaf)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    for left, right in zip(gradients(y, leaf), gradients(expected, leaf), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-11)


@every_name
def test_images_that_are_all_one_image_are_taken_as_their_copies_are(name: str) -> None:
    """``expand`` gives a tensor whose images lie in the same memory."""
    unit = unit_of(name, torch.float64)
    twin = copy.deepcopy(unit)
    one = pictures(1, C, 5, 3)
    torch.testing.assert_close(unit(one.expand(4, -1, -1, -1)), twin(one.repeat(4, 1, 1, 1)), rtol=0, atol=1e-12)


@every_name
@both_modes
@both_formats
@pytest.mark.parametrize("shape", [(4, C, 5, 3), (4, C, 1, 1), (4, C, 1, 7)], ids=str)
def test_output_and_gradient_lie_in_memory_as_the_input_does(
    name: str, training: bool, memory_format: torch.memory_format, shape: tuple[int, ...]
) -> None:
    x = pictures(*shape, dtype=torch.float32).contiguous(memory_format=memory_format).requires_grad_()
    y = unit_of(name).train(training)(x)
    (dx,) = torch.autograd.grad(y, x, torch.randn_like(x))
    assert is_fused(y)
    assert y.is_contiguous(memory_format=memory_format)
    assert dx.is_contiguous(memory_format=memory_format)


@every_name
@both_formats
def test_however_the_gradient_that_comes_in_lies_in_memory_the_result_is_the_same(
    name: str, memory_format: torch.memory_format
) -> None:
    other = next(value for value in FORMATS.values() if value is not memory_format)
    unit = unit_of(name, torch.float64)
    x = pictures(4, C, 5, 3).contiguous(memory_format=memory_format).requires_grad_()
    y = unit(x)
    inputs = (x, *unit.parameters())
    for dy, way in (
        (torch.randn_like(y), lambda dy: dy.contiguous(memory_format=other)),
        (torch.randn_like(y), LAYOUTS["every other image"]),
        (torch.ones_like(y), lambda dy: dy.new_ones(()).expand(dy.shape)),
        (
            torch.arange(C, dtype=y.dtype)[:, None, None].expand(y.shape).clone(),
            lambda dy: dy[:1, :, :1, :1].expand_as(y),
        ),
    ):
        expected = torch.autograd.grad(y, inputs, dy.contiguous(memory_format=memory_format), retain_graph=True)
        got = torch.autograd.grad(y, inputs, way(dy), retain_graph=True)
        assert all(torch.equal(left, right) for left, right in zip(got, expected, strict=True))
