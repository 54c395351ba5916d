"""Who takes the fused kernels and who does not, and how they go with the rest of torch."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused_cases import OPTIONS, both_formats, both_modes, every_name, is_fused, unit_of
from norm_cases import C, gradients, pictures
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from normbench import norms
from normbench.errors import InputError


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
