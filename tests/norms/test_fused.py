"""Who takes the fused kernels and who does not, what they keep for the backward, and how they go with all of torch."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from norm_cases import CASES, C, Case, gradients, make, pictures
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from normbench import norms
from normbench.errors import InputError
from normbench.norms import fused, operators
from normbench.norms.call import Parts, Shape

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
both_formats = pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
NAMES = ("bn", "ln", "in", "gn", "pn", "bgn", "frn", "brn", "gbn", "batch_group", "iebn", "proxy")
every_name = pytest.mark.parametrize("name", NAMES)
OPTIONS: dict[str, dict[str, Any]] = {
    "gn": {"num_groups": 3}, "bgn": {"num_groups": 3}, "batch_group": {"num_groups": 3}, "proxy": {"num_groups": 3},
    "gbn": {"ghost_size": 2}, "brn": {"r_max": 1.2, "d_max": 0.3},
}  # fmt: skip


def unit_of(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A unit with ReLU that takes the kernels, with parameters drawn at random."""
    return make(Case(name, OPTIONS.get(name, {}) | options), dtype=dtype, activation=nn.ReLU())


def is_fused(y: Tensor) -> bool:
    """Whether the last thing done was done by the kernels."""
    return isinstance(getattr(y.grad_fn, "call", None), fused.Call)


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "kernels_for", lambda *_: None)


@pytest.fixture
def maps() -> Tensor:
    """Maps that are large beside all that is small."""
    return pictures(8, C, 32, 32, dtype=torch.float32)


@pytest.fixture
def unwritten() -> Iterator[None]:
    """Memory that nobody has written yet holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


class Allocations(TorchDispatchMode):
    """Notes the operations that make a tensor of as many values as x in memory of its own."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.values, self.found = values, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        old = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
        for tensor in result if isinstance(result, tuple | list) else (result,):
            new = isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in old
            if new and tensor.numel() >= self.values:
                self.found.append(func.overloadpacket.__name__)
        return result


def bytes_held(run: Callable[[], object]) -> int:
    """What ``run`` allocates and does not give back."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    del kept
    return sum(event.self_cpu_memory_usage for event in profiler.events())


def small(name: str, x: Tensor) -> int:
    """How many numbers may be kept beside x and y."""
    N, C, H, W = x.shape
    return 3 * N * H * W if name == "pn" else 12 * N * C


# What is kept for the backward.


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


# Who takes the kernels.


@every_name
@both_modes
@pytest.mark.parametrize("activation", [None, nn.ReLU, nn.ReLU6], ids=["none", "relu", "relu6"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_float32_and_float64_take_the_kernels(
    name: str, training: bool, activation: type[nn.Module] | None, dtype: torch.dtype
) -> None:
    unit = norms.build(name, C, activation=activation and activation(), dtype=dtype, **OPTIONS.get(name, {}))
    y = unit.train(training)(pictures(4, C, 5, 3, dtype=dtype).requires_grad_())
    clipped_by_itself = activation is nn.ReLU6 and name == "proxy"
    assert is_fused(y) is not clipped_by_itself


@both_modes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_name
def test_half_precision_takes_the_plain_way(name: str, training: bool, dtype: torch.dtype) -> None:
    for unit_dtype in (dtype, torch.float32):
        y = unit_of(name, unit_dtype).train(training)(pictures(4, C, 5, 3, dtype=dtype).requires_grad_())
        assert not is_fused(y)


@pytest.mark.parametrize(
    ("unit_dtype", "dtype"), [(torch.float64, torch.float32), (torch.float32, torch.float64)], ids=str
)
@both_modes
@every_name
def test_a_unit_of_another_type_than_its_input_takes_the_plain_way(
    name: str, training: bool, unit_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    y = unit_of(name, unit_dtype).train(training)(pictures(4, C, 5, 3, dtype=dtype).requires_grad_())
    assert not is_fused(y)
    assert y.dtype == dtype


HOOKS: dict[str, Callable[[nn.Module, Callable[..., None]], Any]] = {
    "forward": nn.Module.register_forward_hook,
    "before-forward": nn.Module.register_forward_pre_hook,
    "backward": nn.Module.register_full_backward_hook,
    "before-backward": nn.Module.register_full_backward_pre_hook,
}


@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS.keys())
@pytest.mark.parametrize("name", ["bn", "gn"])
def test_a_hook_at_the_activation_is_called(name: str, register: Callable[..., Any]) -> None:
    unit, calls = unit_of(name), list[object]()
    handle = register(unit.activation, lambda *_: calls.append(None))
    x = pictures(4, C, 5, 3, dtype=torch.float32).requires_grad_()
    unit(x).sum().backward()
    assert len(calls) == 1
    handle.remove()
    assert is_fused(unit(x))


def test_hooks_at_the_unit_itself_are_called_and_it_takes_the_kernels() -> None:
    unit, calls = unit_of("bn"), list[object]()
    unit.register_forward_hook(lambda *_: calls.append("forward"))
    unit.register_full_backward_hook(lambda *_: calls.append("backward"))
    y = unit(pictures(4, C, 5, 3, dtype=torch.float32).requires_grad_())
    y.sum().backward()
    assert calls == ["forward", "backward"]


def test_another_activation_than_a_clip_is_called_as_it_is() -> None:
    class Leaky(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.leaky_relu(x, 0.5)

    unit, bare = norms.build("gn", C, num_groups=3, activation=Leaky()), norms.build("gn", C, num_groups=3)
    x = pictures(4, C, 5, 3, dtype=torch.float32)
    torch.testing.assert_close(unit(x), nn.functional.leaky_relu(bare(x), 0.5))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own, of its vmap
@every_name
def test_vmap_and_jacobians_take_the_plain_way(name: str) -> None:
    """The transforms of torch.func, over a unit that does not move."""
    unit = unit_of(name, torch.float64)
    unit(pictures(4, C, 3, 2))
    unit.eval()
    x = pictures(4, C, 3, 2)
    mapped = torch.func.vmap(lambda image: unit(image[None])[0])(x)
    torch.testing.assert_close(mapped, torch.cat([unit(image[None]) for image in x]))
    loss = lambda x: unit(x).square().sum()  # noqa: E731
    x.requires_grad_()
    (expected,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(torch.func.jacrev(loss)(x), expected)


@every_name
@both_modes
def test_a_subclass_of_tensor_stays_one(name: str, training: bool) -> None:
    class Marked(Tensor):
        pass

    unit = unit_of(name).train(training)
    twin = copy.deepcopy(unit)
    x = pictures(4, C, 5, 3, dtype=torch.float32)
    y = unit(x.as_subclass(Marked))
    assert type(y) is Marked
    torch.testing.assert_close(y.as_subclass(Tensor), twin(x))


@every_name
@both_modes
def test_fake_tensors_pass_through(name: str, training: bool) -> None:
    with FakeTensorMode() as mode:
        x = mode.from_tensor(pictures(4, C, 5, 3, dtype=torch.float32))
        unit = norms.build(name, C, activation=nn.ReLU(), **OPTIONS.get(name, {})).train(training)
        assert unit(x).shape == x.shape


@pytest.mark.parametrize("name", ["bn", "gbn", "brn", "gn"])
@both_modes
def test_units_made_in_inference_mode_work_there(name: str, training: bool) -> None:
    x = pictures(4, C, 5, 3, dtype=torch.float32)
    expected = unit_of(name).train(training)(x)
    with torch.inference_mode():
        assert torch.equal(unit_of(name).train(training)(x), expected)


@every_name
def test_integers_are_refused_in_words_as_ever(name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: got torch.int64, expected a floating-point tensor; convert"):
        unit_of(name)(torch.zeros(2, C, 4, 4, dtype=torch.long))


def test_normbench_kernels_off_sends_everybody_the_plain_way() -> None:
    code = (
        "import torch; from normbench import norms\n"
        "y = norms.build('bn', 4)(torch.randn(2, 4, 3, 3))\n"
        "kernels, last = norms.kernels(torch.device('cpu')), type(y.grad_fn).__name__\n"
    )
    here = dict[str, Any]()
    exec(code, here)
    assert (here["kernels"], here["last"]) == ("fused", "_FusedBackward")
    environment = os.environ | {"NORMBENCH_KERNELS": "off"}
    told = [sys.executable, "-c", code + "print(kernels, last)"]
    done = subprocess.run(told, env=environment, capture_output=True, text=True, check=True)
    kernels, last = done.stdout.split()
    assert kernels == "plain"
    assert last != "_FusedBackward"


# How tensors may lie in memory.

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


# With a residual.


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
        assert y.grad_fn.call.joined  # type: ignore[union-attr]


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


# Twice differentiated.


@pytest.mark.parametrize("case", CASES, ids=str)
@both_modes
@both_formats
def test_second_derivatives_are_those_of_the_plain_way(
    case: Case,
    training: bool,
    memory_format: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
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
    without_kernels(monkeypatch)
    for left, right in zip(fused_way, second(twin), strict=True):
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


# In a graph.


@pytest.mark.parametrize("name", ["bn", "gn", "frn", "brn", "gbn", "iebn", "bgn"])
def test_compiled_units_train_as_eager_ones_do(name: str) -> None:
    torch.compiler.reset()
    eager = unit_of(name, torch.float64)
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for step in range(2):
        x = pictures(4, C, 5, 3, seed=step).requires_grad_()
        y, expected = compiled(x), eager(x)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
        for left, right in zip(
            gradients(y, x, *twin.parameters()), gradients(expected, x, *eager.parameters()), strict=True
        ):
            torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
        for key, buffer in eager.named_buffers():
            torch.testing.assert_close(twin.get_buffer(key), buffer, rtol=0, atol=1e-12)


def test_a_compiled_channels_last_unit_gives_channels_last() -> None:
    torch.compiler.reset()
    unit = unit_of("bn")
    x = pictures(4, C, 5, 3, dtype=torch.float32).contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = copy.deepcopy(unit)(x)
    y = torch.compile(unit, fullgraph=True, backend="aot_eager")(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert dx.is_contiguous(memory_format=torch.channels_last)


def test_the_graph_of_a_compiled_unit_holds_the_operators() -> None:
    torch.compiler.reset()
    seen = list[str]()

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    unit = unit_of("bn")
    torch.compile(unit, fullgraph=True, backend=backend)(pictures(4, C, 5, 3, dtype=torch.float32))
    assert sum("normbench.standardize" in target for target in seen) == 1


@pytest.mark.parametrize("name", ["bn", "iebn", "frn"])
def test_an_exported_unit_evaluates_as_the_unit_does(name: str) -> None:
    unit = unit_of(name)
    unit(pictures(4, C, 5, 3, dtype=torch.float32))
    unit.eval()
    x = pictures(4, C, 5, 3, dtype=torch.float32, seed=1)
    program = torch.export.export(unit, (x,))
    torch.testing.assert_close(program.module()(x), unit(x))


OPERANDS = {
    "affine": ("weight", "bias"),
    "threshold and after": ("weight", "bias", "threshold", "scale", "shift"),
    "gate": ("weight", "gate_weight", "gate_bias"),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@both_formats
@pytest.mark.parametrize("names", OPERANDS.values(), ids=OPERANDS)
@pytest.mark.parametrize("given", [False, True], ids=["own", "given"])
def test_the_operators_keep_the_rules_of_torch(
    names: tuple[str, ...], given: bool, memory_format: torch.memory_format
) -> None:
    """Their schema is true, their shapes without values are right, and they go with autograd and compilation."""
    rows, groups = 2, 3
    x = pictures(4, C, 5, 3).contiguous(memory_format=memory_format).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.rand(C, dtype=torch.float64, generator=generator).add_(0.5).requires_grad_()  # noqa: E731
    parts = Parts(**{name: draw() for name in names})
    moments = (
        (torch.zeros(rows, groups, dtype=x.dtype), torch.ones(rows, groups, dtype=x.dtype)) if given else (None, None)
    )
    shape = Shape(rows, groups, 1e-5, True, 0.0, float("inf"))
    kinds = (
        "test_schema",
        "test_autograd_registration",
        "test_faketensor",
        *(["test_aot_dispatch_dynamic"] * (not given)),
    )
    torch.library.opcheck(operators.forward, (x, *shape, *parts, *moments), test_utils=kinds)
    with torch.no_grad():
        work = operators.forward(x, *shape, *parts, *moments)[1]
    still = (None if part is None else part.detach() for part in parts[:7])
    torch.library.opcheck(operators.backward, (torch.ones_like(x), x.detach(), work, *shape, *still, False, given))


@pytest.mark.parametrize("given", [False, True], ids=["of x", "given"])
@both_formats
def test_the_operator_gives_out_no_number_that_it_has_not_written(
    given: bool, memory_format: torch.memory_format, unwritten: None
) -> None:
    x = pictures(4, C, 5, 3).contiguous(memory_format=memory_format)
    moments = (torch.zeros(2, 3, dtype=x.dtype), torch.ones(2, 3, dtype=x.dtype)) if given else (None, None)
    y, work = operators.forward(x, *Shape(2, 3, 1e-5, True, 0.0, float("inf")), *Parts(), *moments)
    assert not y.isnan().any()
    assert not work.isnan().any()


# With the rest of torch.


@every_name
@both_modes
@both_formats
def test_no_result_comes_from_memory_that_was_not_written(
    name: str, training: bool, memory_format: torch.memory_format, unwritten: None
) -> None:
    unit = unit_of(name).train(training)
    x = pictures(4, C, 5, 3, dtype=torch.float32).contiguous(memory_format=memory_format).requires_grad_()
    y = unit(x)
    assert is_fused(y)
    for tensor in (y, *gradients(y, x, *unit.parameters()), *unit.buffers()):
        assert not tensor.isnan().any()


@every_name
@both_modes
def test_autocast_leaves_float32_as_it_is(name: str, training: bool) -> None:
    unit = unit_of(name).train(training)
    twin = copy.deepcopy(unit)
    x = pictures(4, C, 5, 3, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = unit(x)
    assert y.dtype == torch.float32
    assert is_fused(y)
    assert torch.equal(y, twin(x))
    (dx,) = gradients(y, x)
    assert dx.dtype == torch.float32


@every_name
@both_modes
def test_a_unit_that_was_trained_can_be_copied_and_saved(name: str, training: bool) -> None:
    x = pictures(4, C, 5, 3, dtype=torch.float32)
    unit = unit_of(name)
    unit(x).sum().backward()
    unit.train(training)
    file = io.BytesIO()
    torch.save(unit, file)
    file.seek(0)
    loaded, copied = torch.load(file, weights_only=False), copy.deepcopy(unit)
    expected = unit(x)
    for twin in (loaded, copied):
        assert torch.equal(twin(x), expected)
        for key, buffer in unit.named_buffers():
            assert torch.equal(twin.get_buffer(key), buffer)
