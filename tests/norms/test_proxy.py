"""proxy: the moments of its grid, exact and in the limit; the gradient through them; every activation and dtype."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from norm_cases import C, gradients, make, pictures, reference
from norm_cases import Case as Of
from torch import Tensor, nn

from normbench import norms
from normbench.norms.proxy import grid_moments, normal_grid, relu_moments, upper_ends

f64 = {"dtype": torch.float64}
PAIRS = [(g, b) for g in (-2.0, -0.3, 1e-8, 0.5, 1.0, 40.0) for b in (-60.0, -2.0, -1e-3, 0.0, 0.7, 300.0)]


def moments(gamma: Tensor, beta: Tensor, n: int = 256) -> tuple[Tensor, Tensor]:
    grid = normal_grid(n)
    return relu_moments(gamma, beta, grid, upper_ends(grid))


def pair() -> tuple[Tensor, Tensor]:
    gamma, beta = torch.tensor(PAIRS, **f64).unbind(1)
    return gamma.requires_grad_(), beta.requires_grad_()


@pytest.mark.parametrize("n", [1, 2, 3, 64, 255, 256])
def test_the_sums_give_what_the_pushed_grid_gives(n: int) -> None:
    gamma, beta = pair()
    ours, theirs = moments(gamma, beta, n), grid_moments(nn.ReLU(), gamma, beta, normal_grid(n))
    scale = gamma.detach().abs() + beta.detach().abs()
    for power, left, right in zip((1, 2), ours, theirs, strict=True):
        assert ((left - right).abs() <= 1e-12 * scale.clamp(min=1) ** power).all()
        for g, h in zip(gradients(left, gamma, beta), gradients(right, gamma, beta), strict=True):
            assert torch.allclose(g, h, rtol=1e-12, atol=1e-12 * scale.max().item() ** (power - 1))


def test_gradcheck_of_the_sums() -> None:
    gamma, beta = torch.tensor([-1.3, 0.4, 0.9], **f64), torch.tensor([0.3, -0.6, 0.1], **f64)
    inputs = (gamma.requires_grad_(), beta.requires_grad_())
    assert torch.autograd.gradcheck(moments, inputs)
    assert torch.autograd.gradgradcheck(moments, inputs)


@pytest.mark.parametrize("beta", [-1.0, 0.0, 1.0])
def test_a_weight_of_zero_is_a_constant(beta: float) -> None:
    gamma, bias = torch.zeros(1, **f64, requires_grad=True), torch.full((1,), beta, **f64, requires_grad=True)
    mean, var = moments(gamma, bias)
    assert mean.item() == max(beta, 0)
    assert var.item() == 0
    for g in (*gradients(mean, gamma, bias), *gradients(var, gamma, bias)):
        assert g.isfinite().all()


@pytest.mark.parametrize("n", [256, 4096])
def test_the_grid_approaches_the_normal_distribution(n: int) -> None:
    """Card: m = β Φ(k) + |γ| φ(k), E[z²] = (β² + γ²) Φ(k) + β |γ| φ(k), with k = β/|γ|."""
    gamma, beta = torch.tensor([1.0, -0.7, 2.0], **f64), torch.tensor([0.0, 0.5, -0.4], **f64)
    k = beta / gamma.abs()
    normal = torch.distributions.Normal(0.0, 1.0)
    Phi, phi = normal.cdf(k), normal.log_prob(k).exp()
    m = beta * Phi + gamma.abs() * phi
    v = (beta**2 + gamma**2) * Phi + beta * gamma.abs() * phi - m**2
    mean, var = moments(gamma, beta, n)
    tolerance = 1e-3 if n == 4096 else 1e-2
    assert torch.allclose(mean, m, rtol=tolerance, atol=0)
    assert torch.allclose(var, v, rtol=tolerance, atol=0)


def test_the_numbers_of_the_card() -> None:
    grid = normal_grid(256)
    assert torch.allclose(grid, torch.special.ndtri((torch.arange(256, **f64) + 0.5) / 256), atol=1e-12)
    assert grid.var(correction=0).item() == pytest.approx(0.9950, abs=5e-5)
    assert normal_grid(64).var(correction=0).item() == pytest.approx(0.9803, abs=5e-5)
    mean, var = moments(torch.ones(1, **f64), torch.zeros(1, **f64))
    assert (mean.item(), var.item()) == (pytest.approx(0.39857, abs=5e-6), pytest.approx(0.33864, abs=5e-6))
    _, var = moments(torch.ones(1, **f64), torch.full((1,), -2.0, **f64))
    assert var.item() == pytest.approx(0.00471, abs=5e-6)


def test_on_normal_pictures_the_output_has_the_moments_of_the_card() -> None:
    x = torch.randn(8, 4, 64, 64, generator=torch.Generator().manual_seed(0), **f64)
    y = norms.build("proxy", 4, activation=nn.ReLU(), **f64)(x)
    v = 0.34085
    assert y.mean((0, 2, 3)).abs().max() < 0.03
    assert torch.allclose(y.var((0, 2, 3), correction=0), torch.full((4,), v / (v + 0.03), **f64), rtol=0.05)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU(), nn.Tanh()], ids=str)
def test_what_follows_the_proxy_exactly_is_standardized_exactly(activation: nn.Module) -> None:
    """Every channel is the grid itself; base eps makes up for the grid's variance, proxy_eps is none."""
    grid = normal_grid(256)
    x = torch.stack([grid[torch.randperm(256, generator=torch.Generator().manual_seed(c))] for c in range(C)])
    eps = 1 - grid.var(correction=0).item()
    unit = make(Of("proxy", {"eps": eps, "proxy_eps": 0.0}), activation=activation)
    y = unit(x.view(1, C, 16, 16))
    assert torch.allclose(y.mean((2, 3)), torch.zeros(1, C, **f64), atol=1e-12)
    assert torch.allclose(y.var((2, 3), correction=0), torch.ones(1, C, **f64), atol=1e-10)


def test_of_the_identity_the_bias_drops_out() -> None:
    unit = make(Of("proxy"), activation=nn.Identity())
    x = pictures(3, C, 5, 4)
    y = nn.functional.layer_norm(x, x.shape[1:])
    gamma = unit.weight[:, None, None]
    expected = gamma * y / torch.sqrt(gamma**2 * normal_grid(256).var(correction=0) + 0.03)
    assert torch.allclose(unit(x), expected, rtol=0, atol=1e-12)


OTHERS: list[nn.Module] = [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.SiLU(inplace=True), nn.PReLU(C, 0.1, **f64)]


@pytest.mark.parametrize("activation", OTHERS, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"num_groups": 2, "quantiles": 40}, {"learn_proxy": True, "proxy_eps": 0.2}], ids=str
)
def test_every_activation_is_the_plain_formula(activation: nn.Module, options: dict[str, object]) -> None:
    case = Of("proxy", options)
    unit = make(case, activation=copy.deepcopy(activation))
    x = pictures(4, C, 4, 3).requires_grad_()
    got, expected, inputs = unit(x), reference(unit, case, x), (x, *unit.parameters())
    assert torch.allclose(got, expected, rtol=0, atol=1e-10)
    for g, h in zip(gradients(got, *inputs), gradients(expected, *inputs), strict=True):
        assert torch.allclose(g, h, rtol=1e-10, atol=1e-9)


def test_the_gradient_goes_through_the_moments() -> None:
    """Without m and v in it gradcheck would fail."""
    unit = make(Of("proxy"), activation=nn.ReLU())
    x = pictures(2, C, 4, 3)
    scale, shift = unit.after(torch.float64)
    apart = (unit(x) - shift[:, None, None]) / scale[:, None, None]
    detached = apart * scale.detach()[:, None, None] + shift.detach()[:, None, None]
    affine = (unit.weight, unit.bias)
    for g, h in zip(gradients(unit(x), *affine), gradients(detached, *affine), strict=True):
        assert not torch.allclose(g, h, rtol=1e-2)


def test_learned_proxies_start_as_none_and_are_extra_parameters() -> None:
    unit = norms.build("proxy", C, learn_proxy=True, activation=nn.ReLU(), **f64)
    x = pictures(2, C, 4, 3)
    assert torch.equal(unit(x), norms.build("proxy", C, activation=nn.ReLU(), **f64)(x))
    assert {id(p) for p in norms.extra_parameters(unit)} == {id(unit.proxy_bias), id(unit.proxy_scale)}
    assert set(dict(norms.build("proxy", C, learn_proxy=True).named_parameters())) == {"weight", "bias"}


def test_a_learned_proxy_is_a_normal_distribution_of_that_mean_and_spread() -> None:
    unit = make(Of("proxy", {"learn_proxy": True}), activation=nn.ReLU())
    with torch.no_grad():
        unit.proxy_bias.fill_(0.5)
        unit.proxy_scale.fill_(0.25)
    proxy = (unit.weight * (0.5 + 1.25 * normal_grid(256)[:, None]) + unit.bias).relu()
    scale, shift = unit.after(torch.float64)
    assert torch.allclose(scale, torch.rsqrt(proxy.var(0, correction=0) + 0.03), rtol=1e-12)
    assert torch.allclose(shift, -proxy.mean(0) * scale, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.PReLU()], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_its_activation_in_every_dtype(activation: nn.Module, affine: bool) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        unit = norms.build("proxy", C, affine=affine, activation=copy.deepcopy(activation), dtype=dtype).to(dtype)
        x = pictures(2, C, 4, 3, dtype=dtype)
        y = unit(x)
        exact = copy.deepcopy(unit).double()(x.double())
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), exact, rtol=0, atol=32 * torch.finfo(dtype).eps)


def test_a_converted_unit_is_as_exact_as_one_made_in_float64() -> None:
    for activation in (nn.ReLU(), nn.GELU()):
        late = norms.build("proxy", C, activation=activation).double()
        early = norms.build("proxy", C, activation=activation, **f64)
        x = pictures(2, C, 4, 3)
        assert torch.equal(late(x), early(x))
        assert late.half().double().grid.dtype == torch.float64
        assert not list(late.buffers())


def test_moves_with_its_parameters() -> None:
    with torch.device("meta"):
        unit = norms.build("proxy", C, activation=nn.ReLU())
    assert unit.grid.device.type == "meta"
    assert unit(torch.zeros(2, C, 3, 3, device="meta")).shape == (2, C, 3, 3)
    unit = unit.to_empty(device="cpu")
    assert torch.equal(unit.grid, normal_grid(256))


def test_a_closed_channel_has_a_bounded_gain() -> None:
    """γ → 0: at most 1/√0.03 of what comes in."""
    unit = norms.build("proxy", C, activation=nn.ReLU(), **f64)
    with torch.no_grad():
        unit.weight.fill_(1e-12)
        unit.bias.fill_(1.0)
    scale, _ = unit.after(torch.float64)
    assert torch.allclose(scale, torch.full((C,), 1 / math.sqrt(0.03), **f64))
    assert unit(pictures(2, C, 4, 3)).abs().max() < 1e-9
