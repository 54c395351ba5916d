"""Proxy Normalization (Labatie, Masters, Eaton-Rosen & Luschi, NeurIPS 2021, arXiv:2106.03743).

    x̂ = (x − μ) / √(σ² + ε)
    z = φ(γ x̂ + β)
    y = (z − m) / √(v + ε_p)           m, v: mean and variance of φ(γ Y + β) for Y normal (0, 1)
x, y: (N, C, H, W).  μ, σ²: (N, G), over H, W and the C/G channels of a group, G = 1 by default; σ² biased.
γ, β, m, v: (C,), the gradient goes through m and v too.  φ: the activation that follows; without one (the last norm of
a ResNet's block, before the sum) the unit is x̂ with γ and β, group norm.  ε_p: ``proxy_eps``, 0.03, meant to be large.
Y is a grid of n = ``quantiles`` mid-point quantiles of the normal distribution; m and v (biased) are over its n values.
For a ReLU they are had exactly from sums over the grid's upper end, since it is sorted; any other φ gets the grid.
Train and eval alike.  Works from N = 1.  Where G does not divide C: normbench/norms/groups.py.
Differs from the paper, whose text was not seen: grid, n and ε_p are those of a third-party port, the number of groups
is our choice. ``learn_proxy``, Y normal (b, (1 + g)²) with ``proxy_bias`` b and ``proxy_scale`` g (C,) from 0, is a
reconstruction of medium to low confidence; said to be decayed in the paper, they are not by our recipes.
Without an activation equals torch.nn.GroupNorm: tests/norms/test_identities.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, fused, groups, plain, running
from normbench.norms.core import After
from normbench.norms.registry import Normalizer, register

DEFAULT_GROUPS = 1


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: nn.Module | None,
    num_groups: int = 1,
    eps: float = 1e-5,
    proxy_eps: float = 0.03,
    quantiles: int = 256,
    proxy_bias: Tensor | float = 0.0,
    proxy_scale: Tensor | float = 0.0,
) -> Tensor:
    """The plain formula, for any activation."""
    C = x.shape[1]
    y = torch.empty_like(x)
    for g in range(num_groups):
        members = [c for c in range(C) if (c * num_groups) // C == g]
        mu = x[:, members].mean((1, 2, 3), keepdim=True)
        var = ((x[:, members] - mu) ** 2).mean((1, 2, 3), keepdim=True)
        y[:, members] = (x[:, members] - mu) / torch.sqrt(var + eps)
    z = weight[:, None, None] * y + bias[:, None, None]
    if activation is None:
        return z
    p = (torch.arange(quantiles, dtype=torch.float64) + 0.5) / quantiles
    Y = 2**0.5 * torch.erfinv(2 * p - 1)[:, None].to(x.dtype)
    proxy = activation((weight * (proxy_bias + (1 + proxy_scale) * Y) + bias)[..., None, None])
    m, v = proxy.mean(0), proxy.var(0, correction=0)
    return (activation(z) - m) / torch.sqrt(v + proxy_eps)


def normal_grid(quantiles: int) -> Tensor:
    """The mid-point quantiles of the normal distribution, ascending, (n,) in float64."""
    p = (torch.arange(quantiles, dtype=torch.float64, device="cpu") + 0.5) / quantiles
    return 2**0.5 * torch.erfinv(2 * p - 1)


def upper_ends(grid: Tensor) -> Tensor:
    """Of the points of a sorted grid from the i-th on, i = 0 … n: their share, mean, sum of squares / n; (n + 1, 3).

    The sum of squares is about their own mean, which keeps the variance made of it free of cancellation.
    """
    n = len(grid)
    count = torch.arange(n, -1, -1, dtype=grid.dtype, device=grid.device)
    ends = torch.stack((grid, grid.square())).flip(1).cumsum(1).flip(1)
    sums, squares = torch.cat((ends, ends.new_zeros(2, 1)), 1)
    mean = sums / count.clamp(min=1)
    return torch.stack((count / n, mean, (squares - sums * mean).clamp(min=0) / n), 1)


def relu_moments(gamma: Tensor, beta: Tensor, grid: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of relu(γ Y + β) over the Y of the grid: γ, β (C,) → (C,) each, in the grid's dtype.

    The grid is symmetric, so γ counts by |γ|; what is not zero then is an end of the sorted grid, of which ``ends``
    (see ``upper_ends``) knows the moments. Exact, and so is the gradient wherever there is one.
    """
    slope, beta = gamma.to(grid.dtype).abs(), beta.to(grid.dtype)
    first = torch.searchsorted(grid, (-beta / slope).detach(), right=True)  # 0/0: after the last, where all are zero
    share, mean, squares = ends[first].unbind(1)
    inside = slope * mean + beta
    return share * inside, slope.square() * squares + share * (1 - share) * inside.square()


def grid_moments(activation: nn.Module, gamma: Tensor, beta: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of φ(γ Y + β) over the Y of the grid, pushed through φ: γ, β (C,) → (C,) each."""
    y = torch.addcmul(beta, grid[:, None], gamma)[..., None, None]  # n pictures of one pixel: φ may know of channels,
    y = y.to(next((p.dtype for p in activation.parameters()), y.dtype))  # and have parameters, which set its dtype
    mean, var = plain.mean_var(activation(y), (0, 2, 3))
    return mean.to(gamma.dtype), var.to(gamma.dtype)


class ProxyNorm(nn.Module):
    """Group norm, the activation, and what standardizes it by its proxy: (N, C, H, W) → the same.

    ``num_groups`` becomes the effective number. Raises InputError if the number given does not divide C (``strict``).
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    proxy_bias: nn.Parameter | None
    proxy_scale: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        num_groups: int | None = None,
        group_fit: str | None = None,
        proxy_eps: float = 0.03,
        quantiles: int = 256,
        learn_proxy: bool = False,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        activation: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.proxy_eps, self.quantiles = num_features, eps, proxy_eps, quantiles
        wanted, self.group_fit = groups.choose(num_groups, group_fit, DEFAULT_GROUPS, "gcd")
        self.num_groups = groups.fit(num_features, wanted, self.group_fit, "proxy", f"num_features={num_features}")
        self.activation = activation
        factory = {"device": device, "dtype": dtype}
        core.add_affine(self, num_features, affine, **factory)
        for name in ("proxy_bias", "proxy_scale"):
            learned = learn_proxy and activation is not None
            self.register_parameter(name, nn.Parameter(torch.zeros(num_features, **factory)) if learned else None)
        self._make_grid(torch.empty(0, device=device).device)
        self.register_load_state_dict_pre_hook(running.leave_statistics_out)

    def forward(self, x: Tensor) -> Tensor:
        N, *_ = core.check_input(x, self.num_features, "proxy")
        after = None if self.activation is None else self.after(x.dtype)
        return core.standardize(x, N, self.num_groups, self.eps, *core.affine(self), after=after)

    def after(self, dtype: torch.dtype) -> After:
        """What standardizes the activation, for inputs of ``dtype``."""
        assert self.activation is not None
        gamma, beta = self._proxy_affine(plain.at_least_float32(dtype))
        if type(self.activation) is nn.ReLU:
            return After(*fused.proxy(gamma, beta, self.grid, self.ends, self.proxy_eps, self._relu_proxy))
        mean, var = grid_moments(self.activation, gamma, beta, self.grid.to(gamma.dtype))
        return After(*self._standardizing(mean, var, gamma.dtype))

    def _relu_proxy(self, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        return self._standardizing(*relu_moments(gamma, beta, self.grid, self.ends), gamma.dtype)

    def _standardizing(self, mean: Tensor, var: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scale = torch.rsqrt(var + self.proxy_eps)
        return scale.to(dtype), (-mean * scale).to(dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, num_groups={self.num_groups}, eps={self.eps}, proxy_eps={self.proxy_eps}, "
            f"quantiles={self.quantiles}, learn_proxy={self.proxy_bias is not None}"
        )

    def _proxy_affine(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """γ and β as they act on a standard normal Y."""
        if self.weight is None or self.bias is None:
            gamma = self.grid.new_ones(self.num_features, dtype=dtype)
            beta = torch.zeros_like(gamma)
        else:
            dtype = torch.promote_types(dtype, self.weight.dtype)
            gamma, beta = self.weight.to(dtype), self.bias.to(dtype)
        if self.proxy_bias is not None and self.proxy_scale is not None:
            gamma, beta = torch.addcmul(gamma, gamma, self.proxy_scale), torch.addcmul(beta, gamma, self.proxy_bias)
        return gamma, beta

    def _make_grid(self, device: torch.device) -> None:
        # Not buffers: they are no statistics to average over workers, and a conversion of the unit must not round them.
        dtype = torch.float32 if device.type == "mps" else torch.float64  # which has no float64
        grid = normal_grid(self.quantiles)
        self.grid, self.ends = (t.to(device, dtype) for t in (grid, upper_ends(grid)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ProxyNorm:
        """Where parameters go (``to``, ``cuda``), the grid follows; in its own dtype."""
        super()._apply(fn, recurse)
        self._make_grid(fn(torch.empty(0, device=self.grid.device)).device)
        return self


register(
    Normalizer(
        name="proxy",
        unit=ProxyNorm,
        method="Proxy Normalization of layer or group norm with its activation",
        paper="Labatie, Masters, Eaton-Rosen & Luschi, NeurIPS 2021, arXiv:2106.03743",
        mixes_samples=False,
        train_eval_differ=False,
        own_activation=True,
        drop_in=False,
    )
)
