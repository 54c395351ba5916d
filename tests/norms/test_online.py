"""online: image by image, forward and backward, against a plain loop; the order of images; what is kept."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from norm_cases import C, make, pictures
from norm_cases import Case as Of
from torch import Tensor, nn

from normbench import norms
from normbench.norms import online

f64 = torch.float64
FREE: dict[str, Any] = {"clamp": None, "alpha_fwd": 0.7, "alpha_bkw": 0.8}
STATE = ("running_mean", "running_var", "grad_along", "grad_mean")


def step(unit: Any, seed: int, images: int = 6) -> tuple[Tensor, Tensor]:
    """y and ∂L/∂x of a step."""
    x, slopes = pictures(images, C, 4, 3, seed=seed).requires_grad_(), pictures(images, C, 4, 3, seed=100 + seed)
    y = unit(x)
    return y.detach(), torch.autograd.grad((y * slopes).sum(), x)[0]


@pytest.mark.parametrize("batch", [1, 2, 3, 6, None])
@pytest.mark.parametrize("options", [FREE, {"alpha_fwd": 0.999, "alpha_bkw": 0.99, "clamp": None}], ids=str)
def test_steps_are_those_of_a_plain_loop(batch: int | None, options: dict[str, Any]) -> None:
    """Outputs, gradients, and the four that are kept: the mean of what each worker has in the end."""
    unit = make(Of("online", options), batch=batch)
    m, v, p, u = (
        torch.zeros(C, dtype=f64),
        torch.ones(C, dtype=f64),
        torch.zeros(C, dtype=f64),
        torch.zeros(C, dtype=f64),
    )
    weight, bias = unit.weight.detach(), unit.bias.detach()
    a = options["alpha_fwd"]
    for seed in range(3):
        x, slopes = pictures(6, C, 4, 3, seed=seed), pictures(6, C, 4, 3, seed=100 + seed)
        y, dx = step(unit, seed)
        expected = online.reference(x, weight, bias, mean=m, var=v, alpha_fwd=a, clamp=None, batch=batch)
        assert torch.allclose(y, expected, rtol=0, atol=1e-10)
        ends = []
        for images, given in zip(x.split(batch or 6), slopes.split(batch or 6), strict=True):
            own_m, own_v, stds = m, v, []
            for image in images:
                stds.append(torch.sqrt(own_v + unit.eps))
                mu, var = image.mean((1, 2)), image.var((1, 2), correction=0)
                own_v = a * own_v + (1 - a) * var + a * (1 - a) * (mu - own_m) ** 2
                own_m = own_m + (1 - a) * (mu - own_m)
            std = torch.stack(stds)
            normed = online.reference(images, torch.ones(C), torch.zeros(C), mean=m, var=v, alpha_fwd=a, clamp=None)
            grad = given * weight[:, None, None]
            theirs, own_p, own_u = online.reference_gradient(grad, normed, std, p, u, options["alpha_bkw"])
            own, dx = dx[: len(images)], dx[len(images) :]
            assert torch.allclose(own, theirs, rtol=1e-10, atol=1e-10)
            ends.append(torch.stack([own_m, own_v, own_p, own_u]))
        m, v, p, u = torch.stack(ends).mean(0)
        for name, kept in zip(STATE, (m, v, p, u), strict=True):
            assert torch.allclose(getattr(unit, name), kept, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [{}, FREE, {"layer_scaling": True}], ids=str)
def test_a_batch_of_n_is_n_batches_of_one(options: dict[str, Any]) -> None:
    whole, alone = make(Of("online", options)), make(Of("online", options))
    for seed in range(3):
        x, slopes = pictures(5, C, 4, 3, seed=seed), pictures(5, C, 4, 3, seed=9 + seed)
        x.requires_grad_()
        y = whole(x)
        dx = torch.autograd.grad((y * slopes).sum(), x)[0]
        for image, slope, expected, grad in zip(x.split(1), slopes.split(1), y.split(1), dx.split(1), strict=True):
            one = image.detach().requires_grad_()
            got = alone(one)
            assert torch.allclose(got, expected, rtol=0, atol=1e-11)
            assert torch.allclose(torch.autograd.grad((got * slope).sum(), one)[0], grad, rtol=1e-9, atol=1e-11)
        for name in STATE:
            assert torch.allclose(getattr(whole, name), getattr(alone, name), rtol=1e-10, atol=1e-11)


def test_statistics_that_stand_still_standardize() -> None:
    unit = norms.build("online", C, alpha_fwd=0.9, dtype=f64)
    x = pictures(1, C, 6, 5).expand(400, C, 6, 5)
    unit(x)
    standard = (x[:1] - x[:1].mean((2, 3), keepdim=True)) / x[:1].std((2, 3), correction=0, keepdim=True)
    assert torch.allclose(unit(x)[-1:], standard.clamp(-5, 5), atol=1e-4)


def test_without_control_the_gradient_is_divided_by_the_deviation() -> None:
    unit = norms.build("online", C, **{**FREE, "alpha_bkw": 1.0}, dtype=f64)
    step(unit, 0)
    std = torch.sqrt(unit.running_var.clone() + unit.eps)
    slopes = pictures(6, C, 4, 3, seed=101)
    _, dx = step(unit, 1)
    assert torch.allclose(dx[0], slopes[0] / std[:, None, None], rtol=1e-10, atol=1e-12)


def test_the_control_makes_the_gradient_orthogonal_to_ones_and_to_the_output_on_average() -> None:
    """As batch norm's is; a gradient with a steady part along both."""
    unit = norms.build("online", C, clamp=None, alpha_fwd=0.99, alpha_bkw=0.9, affine=False, dtype=f64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1200, C, 4, 4, generator=generator, dtype=f64).requires_grad_()
    y = unit(x)
    slopes = 1 + 0.5 * y.detach() + torch.randn(x.shape, generator=generator, dtype=f64)
    dx = torch.autograd.grad((y * slopes).sum(), x)[0][200:]
    assert dx.mean((0, 2, 3)).abs().max() < 0.02
    assert (dx * y.detach()[200:]).mean((0, 2, 3)).abs().max() < 0.05


@pytest.mark.parametrize("training", [True, False])
def test_the_clamp_comes_before_the_activation_and_layer_scaling_in_its_place(training: bool) -> None:
    x = pictures(4, C, 5, 3) * 10
    free = make(Of("online", {"clamp": None})).train(training)(x)
    assert torch.equal(make(Of("online"), activation=nn.GELU()).train(training)(x), nn.GELU()(free.clamp(-5, 5)))
    scaled = make(Of("online", {"layer_scaling": True}), activation=nn.GELU()).train(training)(x)
    rms = torch.sqrt(free.square().mean((1, 2, 3), keepdim=True) + 1e-5)
    assert torch.allclose(scaled, nn.GELU()(free / rms), rtol=0, atol=1e-12)


def test_evaluation_is_affine_within_the_clamp() -> None:
    unit = make(Of("online", {"clamp": None}))
    step(unit, 0)
    unit.eval()
    x, z = pictures(2, C, 4, 3), pictures(2, C, 4, 3, seed=1)
    assert torch.allclose(unit((x + z) / 2), (unit(x) + unit(z)) / 2, rtol=0, atol=1e-12)


def test_the_order_of_the_images_matters() -> None:
    x = pictures(4, C, 4, 3)
    assert not torch.allclose(make(Of("online", FREE))(x).flip(0), make(Of("online", FREE))(x.flip(0)))


def test_nothing_is_kept_of_gradients_where_there_are_none() -> None:
    unit = make(Of("online"))
    with torch.no_grad():
        unit(pictures(4, C, 4, 3))
    unit(pictures(4, C, 4, 3)).sum().backward()  # a frozen trunk: of weight and bias alone
    assert not unit.grad_along.any()
    assert not unit.grad_mean.any()
    assert unit.num_batches_tracked == 2
    assert unit.weight.grad is not None


def test_a_stopped_unit_goes_on_bit_for_bit() -> None:
    whole, first = make(Of("online"), batch=2), make(Of("online"), batch=2)
    for seed in range(4):
        step(whole, seed), step(first, seed)
    content = io.BytesIO()
    torch.save(first.state_dict(), content)
    content.seek(0)
    second = make(Of("online"), batch=2)
    second.load_state_dict(torch.load(content, weights_only=True))
    for seed in range(4, 7):
        for ours, theirs in zip(step(second, seed), step(whole, seed), strict=True):
            assert torch.equal(ours, theirs)
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in whole.state_dict().items())


def test_a_second_derivative_is_refused() -> None:
    x = pictures(4, C, 4, 3).requires_grad_()
    (g,) = torch.autograd.grad(make(Of("online"))(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


@pytest.mark.parametrize("T", [1, 2, 3, 5, 8, 33])
def test_doubling_solves_the_recurrence(T: int) -> None:
    generator = torch.Generator().manual_seed(T)
    factor, rise = (torch.randn(2, T, C, generator=generator, dtype=f64) for _ in range(2))
    h, expected = torch.randn(C, generator=generator, dtype=f64), []
    got = online.recur(factor, rise, h)
    h = h.expand(2, C)
    for t in range(T):
        expected.append(h)
        h = factor[:, t] * h + rise[:, t]
    torch.testing.assert_close(got, torch.stack([*expected, h], 1))


def test_a_batchnorms_mean_and_variance_carry_over() -> None:
    bn = nn.BatchNorm2d(C, dtype=f64)
    bn(pictures(4, C, 4, 3))
    unit = norms.build("online", C, clamp=None, dtype=f64)
    with pytest.warns(UserWarning, match="kept as they were: grad_along, grad_mean"):
        unit.load_state_dict(bn.state_dict())
    x = pictures(4, C, 4, 3, seed=1)
    assert torch.allclose(unit.eval()(x), copy.deepcopy(bn).eval()(x), rtol=0, atol=1e-12)
