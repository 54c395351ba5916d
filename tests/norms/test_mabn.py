"""mabn: averages over steps forward and backward, against a plain loop; centred convolutions."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from norm_cases import C, gradients, make, pictures
from norm_cases import Case as Of
from torch import Tensor, nn

from normbench import norms
from normbench.norms import mabn
from normbench.surgery import apply

f64 = torch.float64
EPS = 1e-5


class Plain:
    """One worker, step by step in a list: E[x²] and E[g z] of all steps, newest last."""

    def __init__(self, window: int, warmup_steps: int, clip_start: int, decay: float) -> None:
        self.window, self.warmup_steps, self.clip_start, self.decay = window, warmup_steps, clip_start, decay
        self.squares: list[Tensor] = []
        self.grads: list[Tensor] = []
        self.s = torch.ones(C, dtype=f64)

    def step(self, x: Tensor, weight: Tensor, bias: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """y, ∂L/∂x and ∂L/∂γ."""
        self.squares.append(x.square().mean((0, 2, 3)))
        t = len(self.squares)
        full = t > self.window and t >= self.warmup_steps
        chi = torch.stack(self.squares[-self.window :]).mean(0) if full else self.squares[-1]
        r = (torch.sqrt(chi + EPS) / torch.sqrt(self.s + EPS)).clamp(0.2, 5)
        r = r if t > max(self.clip_start, self.warmup_steps) else torch.ones_like(r)
        self.s = self.decay * self.s + (1 - self.decay) * chi
        z = x / torch.sqrt(chi + EPS)[:, None, None]
        grad = slopes * weight[:, None, None]
        self.grads.append((grad * r[:, None, None] * z).mean((0, 2, 3)))
        earlier = torch.stack(self.grads[-self.window : -1]) if full and self.window > 1 else None
        dx = mabn.reference_gradient(grad, x, r, chi, earlier, EPS)
        rz = r[:, None, None] * z
        return weight[:, None, None] * rz + bias[:, None, None], dx, (slopes * rz).sum((0, 2, 3))


WAYS: list[dict[str, Any]] = [
    {"window": 1, "warmup_steps": 0, "clip_start": 0, "decay": 0.5},
    {"window": 3, "warmup_steps": 0, "clip_start": 2, "decay": 0.9},
    {"window": 2, "warmup_steps": 5, "clip_start": 0, "decay": 0.98},
    {"window": 4, "warmup_steps": 0, "clip_start": 1000, "decay": 0.98},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_ten_steps_are_those_of_a_plain_loop(way: dict[str, Any]) -> None:
    unit, plain = make(Of("mabn", way)), Plain(**way)
    for step in range(10):
        x = (pictures(4, C, 4, 3, seed=step) * (1 + 0.5 * step)).requires_grad_()
        slopes = pictures(4, C, 4, 3, seed=100 + step)
        y = unit(x)
        dx, of_weight = torch.autograd.grad((y * slopes).sum(), (x, unit.weight))
        weight, bias = unit.weight.detach(), unit.bias.detach()
        for ours, theirs in zip((y, dx, of_weight), plain.step(x.detach(), weight, bias, slopes), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)
        assert torch.allclose(unit.running_square, plain.s, rtol=1e-12)
        for name, values in (("window_square", plain.squares), ("window_grad", plain.grads)):
            kept = getattr(unit, name)
            for t in range(max(0, step + 1 - unit.window), step + 1):
                assert torch.allclose(kept[(t + 1) % unit.window], values[t], rtol=1e-10, atol=1e-12)


def test_with_a_window_of_one_it_is_division_by_the_root_mean_square() -> None:
    """In the gradient too, where r is 1."""
    x = pictures(4, C, 5, 3).requires_grad_()
    ours = norms.build("mabn", C, window=1, dtype=f64)
    for _ in range(3):
        y = ours(x)
        expected = x / torch.sqrt(x.square().mean((0, 2, 3), keepdim=True) + EPS)
        assert torch.allclose(y, expected, rtol=0, atol=1e-12)
        assert torch.allclose(gradients(y, x)[0], gradients(expected, x)[0], rtol=1e-9, atol=1e-9)


def test_the_correction_goes_to_1_where_statistics_stand_still() -> None:
    unit = norms.build("mabn", C, window=2, warmup_steps=0, clip_start=0, decay=0.5, dtype=f64)
    x = pictures(4, C, 5, 3)
    for _ in range(60):
        y = unit(x)
    assert torch.allclose(y, unit.eval()(x), rtol=0, atol=1e-12)
    assert torch.allclose(unit.running_square, x.square().mean((0, 2, 3)))
    affine = unit(2 * x) - 2 * unit(x)
    assert torch.allclose(affine, torch.zeros_like(x), atol=1e-12), "evaluation is affine"


def test_the_window_is_32_images_where_none_is_given() -> None:
    windows = {1: 32, 2: 16, 8: 4, 32: 1, 64: 1, None: 16}
    assert {batch: norms.build("mabn", C, batch=batch).window for batch in windows} == windows


def test_a_backward_writes_the_slot_of_its_own_forward() -> None:
    """Also when another forward came in between, and none at all under no_grad."""
    unit = make(Of("mabn", {"window": 3, "warmup_steps": 0}))
    first, second = (unit(pictures(4, C, 4, 3, seed=seed).requires_grad_()) for seed in (0, 1))
    first.sum().backward()
    assert [bool(slot.any()) for slot in unit.window_grad] == [False, True, False]
    second.sum().backward()
    assert [bool(slot.any()) for slot in unit.window_grad] == [False, True, True]
    with torch.no_grad():
        unit(pictures(4, C, 4, 3))
    assert not unit.window_grad[0].any()
    assert not any(buffer.requires_grad for buffer in unit.buffers())


def test_a_stopped_unit_goes_on_bit_for_bit() -> None:
    def steps(unit: Any, seeds: range) -> Tensor:
        for seed in seeds:
            x = pictures(4, C, 4, 3, seed=seed).requires_grad_()
            y = unit(x)
            (dx,) = gradients(y, x)
        return torch.cat([y.detach(), dx])

    options = {"window": 3, "warmup_steps": 2, "clip_start": 4}
    whole, first = make(Of("mabn", options), batch=2), make(Of("mabn", options), batch=2)
    steps(first, range(5))
    content = io.BytesIO()
    torch.save(first.state_dict(), content)
    content.seek(0)
    second = make(Of("mabn", options), batch=2)
    second.load_state_dict(torch.load(content, weights_only=True))
    steps(whole, range(5))
    assert torch.equal(steps(second, range(5, 9)), steps(whole, range(5, 9)))


def test_a_second_derivative_is_refused() -> None:
    x = pictures(4, C, 4, 3).requires_grad_()
    (g,) = torch.autograd.grad(make(Of("mabn"))(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, C, 3, bias=True), nn.BatchNorm2d(C)
        self.conv2, self.bn2 = nn.Conv2d(C, C, 3, groups=2, padding=1, padding_mode="reflect"), nn.BatchNorm2d(C)
        self.conv3 = nn.Conv2d(C, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.conv3(self.bn2(self.conv2(x)))


def test_convolutions_before_a_unit_work_with_centred_weights() -> None:
    plain = Net()
    before = copy.deepcopy(plain.state_dict())
    model = apply(plain, "mabn")
    assert (type(plain.conv1), type(model.conv1)) == (nn.Conv2d, mabn.CenteredConv2d)
    assert (type(model.conv2), type(model.conv3)) == (mabn.CenteredConv2d, nn.Conv2d)
    assert model.conv1.weight is plain.conv1.weight
    assert list(dict(model.named_parameters())) == list(dict(plain.named_parameters()))
    for conv in (model.conv1, model.conv2):
        centred = copy.deepcopy(plain.get_submodule("conv1" if conv is model.conv1 else "conv2"))
        with torch.no_grad():
            centred.weight -= centred.weight.mean((1, 2, 3), keepdim=True)
        assert centred.weight.mean((1, 2, 3)).abs().max() < 1e-7
        x = torch.randn(2, conv.in_channels, 7, 5)
        torch.testing.assert_close(conv(x), centred(x))
    model(torch.randn(2, 3, 9, 9)).sum().backward()
    assert plain.conv1.weight.grad.sum((1, 2, 3)).abs().max() < 1e-4, "the gradient is centred too"
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())
    assert type(copy.deepcopy(model).conv1) is mabn.CenteredConv2d


def test_a_constant_added_to_the_convolutions_input_changes_nothing() -> None:
    """What subtracting the mean would have done."""
    model = apply(Net(), "mabn").double()
    x = torch.randn(2, 3, 9, 9, dtype=f64)
    torch.testing.assert_close(model.conv1(x + 3), model.conv1(x))


def test_a_convolution_with_a_forward_of_its_own_stays() -> None:
    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    model = apply(nn.Sequential(Own(3, C, 1), nn.BatchNorm2d(C)), "mabn")
    assert type(model.get_submodule("0")) is Own
