"""Segments of images: the kernels against plain PyTorch, which test_bgn.py holds to the formula."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fused_cases import Allocations, both_formats, call_of
from repeated_cases import assert_equal, inputs, late, step, warm, went_soon
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from normbench import norms
from normbench.norms import core, fused, plain

# Groups of the 210 features of 6 channels of 5 × 7: fewer than channels, even and not; more, even and not; of one or
# two features; of one each, which no kernel takes.
GROUPS = (5, 4, 30, 12, 17, 44, 130, 210)
f64 = torch.float64


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = f64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=f64).to(dtype)


def given_of(rows: int, groups: int) -> tuple[Tensor, Tensor]:
    return drawn(rows, groups, seed=5), drawn(rows, groups, seed=6).square() + 0.1


def results(
    x: Tensor,
    rows: int,
    groups: int,
    affine: bool = True,
    activation: nn.Module | None = None,
    given: tuple[Tensor, Tensor] | None = None,
    wants_x: bool = True,
) -> list[Tensor]:
    """y, and the gradients of x, if wanted, and of γ and β, from an uneven loss."""
    C = x.shape[1]
    own = [drawn(C, seed=seed, dtype=x.dtype).requires_grad_() for seed in (1, 2)] if affine else []
    x = x.detach().requires_grad_(wants_x)
    y = core.segmented(x, rows, groups, 1e-5, *(own or (None, None)), activation, given=given)
    dy = drawn(*y.shape, seed=3, dtype=x.dtype)
    return [y.detach(), *torch.autograd.grad(y, [x, *own] if wants_x else own, dy)]


def is_fused(x: Tensor, groups: int) -> bool:
    y = core.segmented(x.detach().requires_grad_(), 1, groups, 1e-5, None, None)
    return (call := call_of(y)) is not None and call.shape.cut


@both_formats
@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.ReLU6()], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("groups", GROUPS)
def test_they_are_what_the_plain_form_gives(
    groups: int, rows: int, activation: nn.Module | None, memory_format: torch.memory_format
) -> None:
    x = (2 * drawn(4, 6, 5, 7) + 1).contiguous(memory_format=memory_format)
    takes_kernels = groups < 210
    assert is_fused(x, groups) == takes_kernels
    for affine in (True, False):
        for given in (None, given_of(rows, groups)):
            found = results(x, rows, groups, affine, activation, given)
            with fused.unfused():
                expected = results(x, rows, groups, affine, activation, given)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
            for map_ in found[: 1 + takes_kernels]:
                assert map_.is_contiguous(memory_format=memory_format)


# Large ones; in channels_last: cut where no group begins, and rows of images in blocks, the last one smaller; more
# channels than are taken at a time; made maps of first; maps of a few pixels, gone over crosswise.
LARGE = [(3, 5, 96, 97), (9, 24, 20, 20), (16, 520, 4, 4), (4, 520, 9, 7), (40, 130, 3, 3), (50, 700, 2, 1)]


@both_formats
@pytest.mark.parametrize("fixed", [False, True], ids=["own", "given"])
@pytest.mark.parametrize("rows", [1, "all"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_maps_in_threads(
    shape: tuple[int, ...], threads: int, rows: int | str, fixed: bool, memory_format: torch.memory_format
) -> None:
    before, N, C = torch.get_num_threads(), shape[0], shape[1]
    torch.set_num_threads(threads)
    try:
        x = (drawn(*shape, dtype=torch.float32) * 3 + 2).contiguous(memory_format=memory_format)
        R = N if rows == "all" else 1
        given = given_of(R, C + 2) if fixed else None
        found = results(x, R, C + 2, activation=nn.ReLU(), given=given)
        alone = results(x, R, C + 2, activation=nn.ReLU(), given=given, wants_x=False)
        assert torch.equal(alone[0], found[0])
        for one, other in zip(alone[1:], found[2:], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))
        with fused.unfused():
            expected = results(x.double(), R, C + 2, activation=nn.ReLU(), given=given)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    finally:
        torch.set_num_threads(before)


@both_formats
@pytest.mark.parametrize("shape", [(4, 6, 1, 1), (1, 6, 3, 3), (2, 1, 4, 5)], ids=str)
def test_maps_of_a_pixel_one_image_and_one_channel(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    x = (drawn(*shape) + 1).contiguous(memory_format=memory_format)
    for groups in (2, 4, 5):
        found = results(x, 1, groups)
        with fused.unfused():
            expected = results(x, 1, groups)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@both_formats
def test_a_mean_far_above_the_spread_costs_no_digits(memory_format: torch.memory_format) -> None:
    x = (1000 + drawn(4, 6, 32, 32)).float().contiguous(memory_format=memory_format)
    expected = nn.functional.batch_norm(x.double(), None, None, training=True)
    theirs = (nn.functional.batch_norm(x, None, None, training=True).double() - expected).abs().max()
    with fused.unfused():
        ours_exact = core.segmented(x.double(), 1, 12, 1e-5, None, None)
    ours = (core.segmented(x, 1, 12, 1e-5, None, None).double() - ours_exact).abs().max()
    assert ours <= 2 * theirs


@both_formats
def test_gradients_are_the_derivatives_once_and_twice(memory_format: torch.memory_format) -> None:
    x = drawn(2, 3, 3, 5).contiguous(memory_format=memory_format)
    x, weight, bias = (t.requires_grad_() for t in (x, drawn(3, seed=1), drawn(3, seed=2)))
    for groups in (2, 7):
        for given in (None, given_of(1, groups)):

            def run(x: Tensor, weight: Tensor, bias: Tensor, groups: int = groups, given: object = given) -> Tensor:
                return core.segmented(x, 1, groups, 1e-5, weight, bias, given=given)  # type: ignore[arg-type]

            assert torch.autograd.gradcheck(run, (x, weight, bias))
            assert torch.autograd.gradgradcheck(run, (x, weight, bias))


@both_formats
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_move_as_in_the_plain_form(
    momentum: float | None, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = drawn(4, 6, 5, 7, dtype=torch.float32).contiguous(memory_format=memory_format)
    for groups in (5, 12, 17):
        options: dict[str, Any] = {"num_groups": groups, "group_fit": "uneven", "batch": 2, "momentum": momentum}
        found, expected = (norms.build("bgn", 6, **options) for _ in range(2))
        for times in (1, 2):
            with monkeypatch.context() as patch:
                patch.setattr("normbench.norms.running.move", None)  # the kernel does it
                found(times * x)
            with fused.unfused():
                expected(times * x)
        assert found.running_var._version == 2
        for one, other in zip(found.buffers(), expected.buffers(), strict=True):
            torch.testing.assert_close(one, other)
        found.eval(), expected.eval()
        with fused.unfused():
            y = expected(x)
        torch.testing.assert_close(found(x), y)


def test_a_gradient_that_statistics_want_goes_the_plain_way() -> None:
    x, (mean, var) = drawn(4, 6, 5, 7), given_of(1, 5)
    mean.requires_grad_()
    y = core.segmented(x, 1, 5, 1e-5, None, None, given=(mean, var))
    (slope,) = torch.autograd.grad(y.sum(), mean)
    sizes, _ = plain.segments(210, 5, 1, x.device)
    torch.testing.assert_close(slope[0], -4 * sizes / torch.sqrt(var[0] + 1e-5))


@both_formats
@pytest.mark.parametrize("fixed", [True, False])
def test_what_is_not_finite_goes_no_further_than_its_group(fixed: bool, memory_format: torch.memory_format) -> None:
    """By given statistics no further than itself."""
    x, groups = drawn(4, 6, 5, 7).contiguous(memory_format=memory_format).requires_grad_(), 5
    y = core.segmented(x, 1, groups, 1e-5, None, None, given=given_of(1, groups) if fixed else None)
    dy = torch.ones_like(y)
    dy[1, 2, 3, 4] = torch.inf
    (dx,) = torch.autograd.grad(y, x, dy)
    assert int((~dx.isfinite()).sum()) == (1 if fixed else 4 * 210 // groups)


@both_formats
@pytest.mark.parametrize("given", [None, given_of(2, 17)], ids=["own", "given"])
@pytest.mark.parametrize("wants", [(False, True, False), (False, False, True), (True, False, False)], ids=str)
def test_gradients_that_some_want(
    wants: tuple[bool, bool, bool], given: tuple[Tensor, Tensor] | None, memory_format: torch.memory_format
) -> None:
    x = drawn(4, 6, 5, 7).contiguous(memory_format=memory_format)
    weight, bias = drawn(6, seed=1), drawn(6, seed=2)
    x.requires_grad_(wants[0]), weight.requires_grad_(wants[1]), bias.requires_grad_(wants[2])
    inputs = [t for t in (x, weight, bias) if t.requires_grad]

    def gradients() -> tuple[Tensor, ...]:
        y = core.segmented(x, 2, 17, 1e-5, weight, bias, nn.ReLU(), given=given)
        return torch.autograd.grad(y, inputs, drawn(4, 6, 5, 7, seed=3))

    with fused.unfused():
        expected = gradients()
    for one, other in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_inputs_and_gradients_with_gaps_in_memory() -> None:
    x, dy = drawn(4, 6, 10, 14)[:, :, ::2, ::2], drawn(1, 6, 5, 7).expand(4, 6, 5, 7)
    for layout in (x, x.contiguous(memory_format=torch.channels_last)):
        leaf = layout.detach().requires_grad_()
        y = core.segmented(leaf, 1, 17, 1e-5, None, None)
        with fused.unfused():
            expected = core.segmented(leaf, 1, 17, 1e-5, None, None)
        torch.testing.assert_close(y, expected)
        found, other = (torch.autograd.grad(out, leaf, dy)[0] for out in (y, expected))
        torch.testing.assert_close(found, other)


@both_formats
@pytest.mark.parametrize("batch", [1, 2, None])
def test_the_number_of_threads_changes_no_bit(batch: int | None, memory_format: torch.memory_format) -> None:
    before, found = torch.get_num_threads(), []
    x = drawn(4, 6, 96, 97, dtype=torch.float32).contiguous(memory_format=memory_format)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            unit = norms.build("bgn", 6, num_groups=17, group_fit="uneven", batch=batch)
            leaf = x.clone().requires_grad_()
            y = unit(leaf)
            y.sum().backward()
            found.append([y, leaf.grad, *unit.buffers(), *(parameter.grad for parameter in unit.parameters())])
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


@both_formats
@pytest.mark.parametrize("batch", [2, None])
@pytest.mark.parametrize("groups", [4, 9, 12])
def test_calls_like_one_before_come_to_the_same_bits(
    groups: int, batch: int | None, memory_format: torch.memory_format
) -> None:
    given = inputs(memory_format)
    unit = warm(norms.build("bgn", 6, num_groups=groups, group_fit="uneven", batch=batch), given)
    expected = late(copy.deepcopy(unit), given)
    soon, found = step(unit, given)
    assert soon
    assert_equal(found, expected)


def test_a_ready_call_is_differentiable_twice() -> None:
    unit = norms.build("bgn", 6, num_groups=9, group_fit="uneven").double()
    x, _, dy = inputs(torch.channels_last, f64)
    warm(unit, [x, x.detach().requires_grad_(), dy])
    assert torch.autograd.gradgradcheck(unit, (x,))
    assert went_soon(unit(x))


@both_formats
@pytest.mark.parametrize("training", [True, False])
def test_compiled_graphs_hold_the_kernels(training: bool, memory_format: torch.memory_format) -> None:
    torch.compiler.reset()
    x = drawn(4, 6, 5, 7).contiguous(memory_format=memory_format).requires_grad_()
    options: dict[str, Any] = {"num_groups": 9, "group_fit": "uneven", "size": (5, 7), "activation": nn.ReLU()}
    eager = norms.build("bgn", 6, **options).double().train(training)
    eager.running_var.uniform_(1, 2)
    twin = copy.deepcopy(eager)
    kept, graphs = [], CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(twin, fullgraph=True, backend=graphs)
    for unit in (eager, compiled):
        y = unit(x)
        slopes = torch.autograd.grad(y, [x, *unit.parameters()], drawn(4, 6, 5, 7, seed=3))
        kept.append([y, *slopes, *(buffer.clone() for buffer in unit.buffers())])
    assert any("normbench.standardize" in str(node.target) for graph in graphs.graphs for node in graph.graph.nodes)
    for one, other in zip(*kept, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert kept[1][0].is_contiguous(memory_format=memory_format)


@both_formats
@pytest.mark.parametrize("groups", [5, 12])
def test_no_map_is_made_but_y_and_dx(groups: int, memory_format: torch.memory_format) -> None:
    x = drawn(4, 6, 20, 20, dtype=torch.float32).contiguous(memory_format=memory_format).requires_grad_()
    dy = torch.ones_like(x)
    with Allocations(x.numel()) as made:
        core.segmented(x, 1, groups, 1e-5, None, None, nn.ReLU()).backward(dy)
    assert made.found == ["empty_like", "empty_like"]
