"""A unit between two calls: whatever is done to its parameters, buffers and surroundings, the next call sees it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fused_cases import every_name, is_fused, unit_of
from norm_cases import C, gradients, pictures
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from normbench import norms
from normbench.errors import InputError
from normbench.norms import fused

TRACKED = ("bn", "bgn", "brn", "gbn", "batch_group", "iebn")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_as_new(unit: Any, x: Tensor, fused: bool = True) -> None:
    """The unit gives what one that has not been called before, and has its state, gives."""
    new = unit_of(type_name(unit), x.dtype)
    new.load_state_dict(unit.state_dict())
    x = x.detach().requires_grad_()
    y, expected = unit(x), new(x)
    assert is_fused(y) is fused
    torch.testing.assert_close(y, expected)
    for left, right in zip(gradients(y, x), gradients(expected, x), strict=True):
        torch.testing.assert_close(left, right)
    for key, buffer in new.named_buffers():
        torch.testing.assert_close(unit.get_buffer(key), buffer)


def type_name(unit: nn.Module) -> str:
    return next(name for name in norms.names() if norms.get(name).unit is type(unit))


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "converted and back": lambda unit: unit.double().half().float(),
    "another parameter": lambda unit: setattr(unit, "weight", nn.Parameter(torch.rand(C) + 0.5)),
    "other data": lambda unit: setattr(unit.weight, "data", torch.rand(C) + 0.5),
    "data that does not lie side by side": lambda unit: setattr(unit.weight, "data", torch.rand(2 * C)[::2]),
    "a state loaded": lambda unit: unit.load_state_dict({k: v + 1 for k, v in unit.state_dict().items()}),
    "a state assigned": lambda unit: unit.load_state_dict(
        {k: v + 1 for k, v in unit.state_dict().items()}, assign=True
    ),
}


@every_name
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_unit_is_as_one_made_so(name: str, change: Callable[[nn.Module], object]) -> None:
    unit, x = unit_of(name), pictures(4, C, 5, 3, dtype=torch.float32)
    unit(x).sum().backward()
    change(unit)
    assert_as_new(unit, x, fused=unit.weight.is_contiguous())


@every_name
def test_a_unit_converted_to_float64_takes_float64(name: str) -> None:
    unit, x = unit_of(name), pictures(4, C, 5, 3)
    unit(x.float()).sum().backward()
    assert_as_new(unit.double(), x)


def test_a_parameter_that_has_become_too_short_is_an_error_and_not_read_beyond_its_end() -> None:
    unit, x = unit_of("bn"), pictures(4, C, 5, 3, dtype=torch.float32)
    unit(x)
    unit.weight.data = unit.weight.data[:2]
    with pytest.raises(RuntimeError):
        unit(x)


@every_name
def test_a_parameter_that_needs_a_gradient_no_longer_has_none(name: str) -> None:
    unit, x = unit_of(name), pictures(4, C, 5, 3, dtype=torch.float32)
    unit(x).sum().backward()
    unit.zero_grad(set_to_none=True)
    unit.weight.requires_grad_(False)
    unit(x).sum().backward()
    assert unit.weight.grad is None
    assert unit.bias.grad is not None
    unit.weight.requires_grad_(True)
    unit(x).sum().backward()
    assert unit.weight.grad is not None


@every_name
def test_a_parametrized_weight_is_the_one_that_counts(name: str) -> None:
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    unit, x = unit_of(name), pictures(4, C, 5, 3, dtype=torch.float32)
    unit(x)
    twin = copy.deepcopy(unit)
    parametrize.register_parametrization(unit, "weight", Twice())
    with torch.no_grad():
        twin.weight.mul_(2)
    y = unit(x)
    torch.testing.assert_close(y, twin(x))
    y.sum().backward()
    assert unit.parametrizations.weight.original.grad is not None


@pytest.mark.parametrize(("name", "part"), [("bn", "weight"), ("frn", "threshold"), ("iebn", "gate_weight")])
def test_a_pruned_parameter_is_the_one_that_counts(name: str, part: str) -> None:
    unit, x = unit_of(name), pictures(4, C, 5, 3, dtype=torch.float32)
    unit(x)
    twin = copy.deepcopy(unit)
    prune.custom_from_mask(unit, part, torch.arange(C) % 2)
    with torch.no_grad():
        getattr(twin, part).mul_(torch.arange(C) % 2)
    torch.testing.assert_close(unit(x), twin(x))


@pytest.mark.parametrize("name", TRACKED)
def test_every_training_step_is_counted_and_no_evaluation(name: str) -> None:
    unit, x = unit_of(name), pictures(4, C, 5, 3, dtype=torch.float32)
    for step in range(3):
        unit(x)
        assert unit.num_batches_tracked.item() == step + 1
    unit.eval()(x)
    with torch.no_grad():
        unit.train()(x)
    assert unit.num_batches_tracked.item() == 4
    assert unit.num_batches_tracked.dtype is torch.long


@pytest.mark.parametrize("name", TRACKED)
@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0, None])
def test_a_changed_momentum_holds_from_the_next_step(name: str, momentum: float | None) -> None:
    """And the kernels' average is that of plain PyTorch."""
    unit, x = unit_of(name, torch.float64), pictures(4, C, 5, 3)
    unit(x)
    unit.momentum = momentum
    twin = copy.deepcopy(unit)
    for seed in range(2):
        x = pictures(4, C, 5, 3, seed=seed)
        unit(x)
        with fused.unfused():
            twin(x)
    for key, buffer in twin.named_buffers():
        torch.testing.assert_close(unit.get_buffer(key), buffer, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["bn", "bgn", "gbn", "batch_group", "iebn"])
@pytest.mark.parametrize("key", ["running_mean", "running_var", "num_batches_tracked"])
def test_buffers_of_another_type_than_the_input_are_moved_all_the_same(name: str, key: str) -> None:
    unit, x = unit_of(name), pictures(4, C, 5, 3, dtype=torch.float32)
    twin = copy.deepcopy(unit)
    other = torch.int32 if key == "num_batches_tracked" else torch.float64
    setattr(unit, key, unit.get_buffer(key).to(other))
    assert is_fused(unit(x))
    twin(x)
    for own, buffer in twin.named_buffers():
        torch.testing.assert_close(unit.get_buffer(own).to(buffer.dtype), buffer)


@every_name
def test_another_number_of_threads_between_forward_and_backward_changes_no_bit(name: str) -> None:
    unit = unit_of(name)
    x = pictures(4, C, 80, 80, dtype=torch.float32).requires_grad_()
    torch.set_num_threads(1)
    expected = gradients(unit(x), x, *unit.parameters()) if name not in TRACKED else None
    y = copy.deepcopy(unit)(x)
    torch.set_num_threads(2)
    first = gradients(y, x)
    torch.set_num_threads(1)
    assert torch.equal(gradients(y, x)[0], first[0])
    assert expected is None or torch.equal(first[0], expected[0])


@every_name
def test_another_default_device_is_not_where_the_kernels_allocate(name: str) -> None:
    unit = unit_of(name)
    x = pictures(4, C, 5, 3, dtype=torch.float32).requires_grad_()
    expected = copy.deepcopy(unit)(x)
    with torch.device("meta"):
        y = unit(x)
        y.sum().backward()
    assert torch.equal(y, expected)
    assert x.grad is not None
    assert x.grad.is_cpu


@pytest.mark.parametrize("name", ["bn", "frn", "iebn", "brn"])
def test_a_unit_converted_between_the_passes_is_an_error_and_no_memory_is_spoilt(name: str) -> None:
    unit = norms.build(name, 4, activation=nn.ReLU()).double()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    y = unit(x)
    unit.float()
    with pytest.raises(InputError, match="converted"):
        y.sum().backward()
