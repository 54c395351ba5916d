"""What the fused kernels keep between forward and backward, and who notices a change in between."""

from __future__ import annotations

import copy

import pytest
import torch
from fused_cases import FORMATS, Allocations, both_formats, both_modes, bytes_held, every_name, is_fused, small, unit_of
from norm_cases import C, gradients, pictures
from torch import Tensor


@every_name
@both_modes
@both_formats
def test_between_forward_and_backward_lie_only_the_output_and_what_is_small(
    name: str, training: bool, memory_format: torch.memory_format, maps: Tensor
) -> None:
    """Twelve float64 for each channel of each image (pn: three for each pixel), and two hundred more, are small."""
    unit = unit_of(name).train(training)
    x = maps.contiguous(memory_format=memory_format).requires_grad_()
    unit(x)
    held = bytes_held(lambda: unit(x))
    assert is_fused(unit(x))
    assert x.nbytes <= held <= x.nbytes + 8 * (small(name, x) + 200)


@every_name
def test_the_graph_saves_the_input_itself_and_no_other_map(name: str, maps: Tensor) -> None:
    unit, saved = unit_of(name), list[Tensor]()
    x = maps.requires_grad_()

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = unit(x)
    large = {tensor.data_ptr() for tensor in saved if tensor.numel() >= x.numel()}
    assert large == {x.data_ptr()}
    kept = y.grad_fn.call.saved
    assert getattr(kept, "work", kept).numel() <= small(name, x)


@every_name
@both_formats
def test_the_backward_allocates_the_gradient_and_no_other_map(
    name: str, memory_format: torch.memory_format, maps: Tensor
) -> None:
    unit = unit_of(name)
    x = maps.contiguous(memory_format=memory_format).requires_grad_()
    dy = torch.randn_like(x)
    with Allocations(x.numel()) as forward:
        y = unit(x)
    with Allocations(x.numel()) as backward:
        (dx,) = torch.autograd.grad(y, x, dy)
    assert forward.found == backward.found == ["empty_like"]
    assert x.stride() == y.stride() == dx.stride()


@every_name
def test_an_input_changed_between_forward_and_backward_is_an_error(name: str) -> None:
    leaf = pictures(4, C, 5, 3, dtype=torch.float32).requires_grad_()
    x = leaf * 1
    y = unit_of(name)(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("name", "part"), [("frn", "threshold"), ("iebn", "gate_weight"), ("iebn", "gate_bias"), ("iebn", "weight")]
)
def test_a_parameter_that_the_backward_reads_again_may_not_change_before_it(name: str, part: str) -> None:
    unit = unit_of(name)
    y = unit(pictures(4, C, 5, 3, dtype=torch.float32))
    with torch.no_grad():
        getattr(unit, part).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("name", ["bn", "brn", "gbn", "bgn", "batch_group", "iebn"])
def test_what_moves_the_running_statistics_raises_their_versions(name: str) -> None:
    """So that a graph that holds them (an evaluation before the step) tells of it."""
    unit = unit_of(name)
    before = {key: buffer._version for key, buffer in unit.named_buffers()}
    unit(pictures(4, C, 5, 3, dtype=torch.float32))
    assert len(before) == 3
    assert all(buffer._version > before[key] for key, buffer in unit.named_buffers())


@every_name
@both_formats
def test_a_second_backward_gives_the_same_and_so_does_one_after_another_forward(
    name: str, memory_format: torch.memory_format
) -> None:
    unit = unit_of(name)
    x = pictures(4, C, 5, 3, dtype=torch.float32).contiguous(memory_format=memory_format).requires_grad_()
    y = unit(x)
    first = gradients(y, x, *unit.parameters())
    unit(pictures(2, C, 7, 7, dtype=torch.float32, seed=1)).sum().backward()
    again = gradients(y, x, *unit.parameters())
    assert all(torch.equal(g, h) for g, h in zip(first, again, strict=True))


@every_name
def test_what_needs_no_gradient_keeps_nothing(name: str, maps: Tensor) -> None:
    unit = unit_of(name)
    with torch.no_grad():
        assert unit(maps).grad_fn is None
        assert bytes_held(lambda: unit(maps)) <= maps.nbytes + 1024
    for parameter in unit.parameters():
        parameter.requires_grad_(False)
    assert unit(maps).grad_fn is None
    assert not unit(maps).requires_grad


@every_name
@both_formats
def test_an_input_without_gradient_leaves_the_parameters_theirs(name: str, memory_format: torch.memory_format) -> None:
    unit = unit_of(name)
    twin = copy.deepcopy(unit)
    x = pictures(4, C, 5, 3, dtype=torch.float32).contiguous(memory_format=memory_format)
    alone = gradients(unit(x), *unit.parameters())
    together = gradients(twin(x.requires_grad_()), *twin.parameters())
    assert all(torch.equal(left, right) for left, right in zip(alone, together, strict=True))


@both_formats
def test_a_hook_may_give_back_the_saved_input_in_the_other_memory_format(memory_format: torch.memory_format) -> None:
    """As one that writes it to disk or compresses it will."""
    other = next(value for value in FORMATS.values() if value is not memory_format)
    unit = unit_of("bn", torch.float64)
    x = pictures(4, C, 5, 3).contiguous(memory_format=memory_format).requires_grad_()
    expected = gradients(unit(x), x, *unit.parameters())

    def unpack(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=other) if tensor.dim() == 4 else tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), unpack):
        y = unit(x)
    for left, right in zip(gradients(y, x, *unit.parameters()), expected, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


def test_activation_checkpoints_give_the_same() -> None:
    unit = unit_of("gn", torch.float64)
    x = pictures(4, C, 5, 3).requires_grad_()
    y = torch.utils.checkpoint.checkpoint(unit, x, use_reentrant=False)
    for left, right in zip(gradients(y, x), gradients(unit(x), x), strict=True):
        assert torch.equal(left, right)
