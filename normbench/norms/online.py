"""Online Normalization (Chiley et al., NeurIPS 2019, arXiv:1905.05894).

Per channel, image by image, t = 0, 1, …; μ_t, σ_t²: moments of image t over H, W, biased:

    y_t = (x_t − m) / √(v + ε)
    then  v ← a_f v + (1 − a_f) σ_t² + a_f (1 − a_f) (μ_t − m)²      m ← m + (1 − a_f) (μ_t − m)
backward, image by image in the same order, not its derivative, with g = ∂L/∂y:
    g' = g_t − (1 − a_b) p y_t                          p ← p + mean(g' y_t)
    ∂L/∂x_t = g' / √(v + ε) − (1 − a_b) u               u ← u + mean(∂L/∂x_t)
The output is γ y + β, clamped to ± ``clamp`` (5; None: not at all); with ``layer_scaling`` (the paper's experiments)
divided, in place of that, by each image's root mean square over C, H, W, with ε in the root.
x, y: (N, C, H, W).  γ, β: (C,).  m, v, p, u: running_mean, running_var, grad_along, grad_mean (C,), from 0, 1, 0, 0.
a_f, a_b: ``alpha_fwd``, ``alpha_bkw``; these decays are per image, not per step.
Several workers: each goes through its ``batch`` images from the state that all had, and the mean of their ends is kept.
Train: results depend on the order of the images. The backward writes state too, so no compiling, no second derivative.
Eval: y by m and v as they are, then as in training.  Works from N = 1.
In place of one image after another the recurrences are solved by doubling, log₂ of the batch rounds.
Differs from the paper: no; its a_f, a_b for CIFAR-10 are 0.9990234375, 0.9921875. Workers are ours.
A batch of N equals N of 1: tests/norms/test_online.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from normbench.norms import core, plain, population, running
from normbench.norms.registry import Normalizer, register


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    mean: Tensor,
    var: Tensor,
    alpha_fwd: float = 0.999,
    eps: float = 1e-5,
    clamp: float | None = 5.0,
    batch: int | None = None,
) -> Tensor:
    """The plain formula, as in training, not its gradient; mean, var: m and v before the step, (C,)."""
    y = []
    for worker in x.detach().split(batch or len(x)):
        m, v = mean, var
        for image in worker:
            y.append((image - m[:, None, None]) / torch.sqrt(v + eps)[:, None, None])
            mu = image.mean((1, 2))
            sigma2 = ((image - mu[:, None, None]) ** 2).mean((1, 2))
            v = alpha_fwd * v + (1 - alpha_fwd) * sigma2 + alpha_fwd * (1 - alpha_fwd) * (mu - m) ** 2
            m = m + (1 - alpha_fwd) * (mu - m)
    scaled = weight[:, None, None] * torch.stack(y) + bias[:, None, None]
    return scaled if clamp is None else scaled.clamp(-clamp, clamp)


def reference_gradient(
    grad: Tensor, y: Tensor, std: Tensor, along: Tensor, mean: Tensor, alpha_bkw: float
) -> tuple[Tensor, Tensor, Tensor]:
    """∂L/∂x of one worker's images, and p and u after them. grad: ∂L/∂y; std: √(v + ε) of each image, (N, C)."""
    found = []
    for g, image, s in zip(grad, y, std, strict=True):
        g = g - (1 - alpha_bkw) * along[:, None, None] * image
        along = along + (g * image).mean((1, 2))
        dx = g / s[:, None, None] - (1 - alpha_bkw) * mean[:, None, None]
        mean = mean + dx.mean((1, 2))
        found.append(dx)
    return torch.stack(found), along, mean


class OnlineNorm(nn.Module):
    """Normalize each image by those before it: (N, C, H, W) → the same, then ``activation``.

    ``batch`` is as in BatchNorm.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor
    grad_along: Tensor
    grad_mean: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        alpha_fwd: float = 0.999,
        alpha_bkw: float = 0.99,
        clamp: float | None = 5.0,
        layer_scaling: bool = False,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        activation: nn.Module | None = None,
        batch: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.batch = num_features, eps, batch
        self.alpha_fwd, self.alpha_bkw = alpha_fwd, alpha_bkw
        self.layer_scaling = layer_scaling
        self.clamp: nn.Module | None = None if clamp is None or layer_scaling else nn.Hardtanh(-clamp, clamp)
        self.activation = activation
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        running.add(self, num_features, device=device, dtype=dtype)
        for name in ("grad_along", "grad_mean"):
            self.register_buffer(name, torch.zeros(num_features, device=device, dtype=dtype))
        self.register_load_state_dict_pre_hook(_load)

    def forward(self, x: Tensor) -> Tensor:
        N, *_ = core.check_input(x, self.num_features, "online")
        affine = (self.weight, self.bias)
        behind: nn.Module | None = self.clamp or (None if self.layer_scaling else self.activation)
        if self.training:
            z = _Normalize.apply(x, self, core.workers(N, self.batch, "online"))
            y = core.scale_shift(z, *affine, behind)
        else:
            y = core.normalize(x, *running.evaluation(self, x), self.eps, *affine, behind)
        if self.layer_scaling:
            return core.standardize(y, N, 1, self.eps, None, None, self.activation, centered=False)
        return y if behind is self.activation or self.activation is None else self.activation(y)

    @torch.no_grad()
    def go_through(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """m and v at every image, (N, C) each, by the images' moments, (workers, batch, C) each; keep the last."""
        a, dtype = self.alpha_fwd, mean.dtype
        population.met(self, mean.flatten(0, 1), var.flatten(0, 1))
        m = recur(torch.full_like(mean, a), (1 - a) * mean, self.running_mean.to(dtype))
        rise = (1 - a) * (var + a * (mean - m[:, :-1]).square())
        v = recur(torch.full_like(mean, a), rise, self.running_var.to(dtype))
        self.num_batches_tracked.add_(1)
        self.running_mean.copy_(m[:, -1].mean(0))
        self.running_var.copy_(v[:, -1].mean(0))
        return m[:, :-1].flatten(0, 1), v[:, :-1].flatten(0, 1)

    @torch.no_grad()
    def control(self, grad: Tensor, y: Tensor, square: Tensor, product: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """p and u at every image, (N, C) each; keep the last.

        By the means over H, W of ∂L/∂y, y, y² and ∂L/∂y · y, and √(v + ε), of each image: (workers, batch, C) each.
        """
        b, dtype = 1 - self.alpha_bkw, grad.dtype
        p = recur(1 - b * square, product, self.grad_along.to(dtype))
        u = recur(torch.full_like(y, 1 - b), (grad - b * p[:, :-1] * y) / std, self.grad_mean.to(dtype))
        self.grad_along.copy_(p[:, -1].mean(0))
        self.grad_mean.copy_(u[:, -1].mean(0))
        return p[:, :-1].flatten(0, 1), u[:, :-1].flatten(0, 1)

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one training statistic: those of about 1 / (1 − a_f) images."""
        return round(1 / max(1 - self.alpha_fwd, 1e-9)) * H * W

    def extra_repr(self) -> str:
        ways = f"layer_scaling={self.layer_scaling}, eps={self.eps}, batch={self.batch}"
        return f"{self.num_features}, alpha_fwd={self.alpha_fwd}, alpha_bkw={self.alpha_bkw}, {ways}"


def recur(factor: Tensor, rise: Tensor, start: Tensor) -> Tensor:
    """h with h_0 = start, h_{t+1} = factor_t · h_t + rise_t: (workers, T, C) each, start (C,) → (workers, T + 1, C).

    By doubling: after round k every entry stands for the 2^k steps that end at it.
    """
    T, reach = rise.shape[1], 1
    while reach < T:
        later = rise[:, reach:] + factor[:, reach:] * rise[:, :-reach]
        rise = torch.cat([rise[:, :reach], later], 1)
        factor = torch.cat([factor[:, :reach], factor[:, reach:] * factor[:, :-reach]], 1)
        reach *= 2
    return torch.cat([start.expand_as(rise[:, :1]), factor * start + rise], 1)


class _Normalize(torch.autograd.Function):
    """(x − m) / √(v + ε), and the backward that is not its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, unit: OnlineNorm, workers: int) -> Tensor:
        C = x.shape[1]
        mean, var = (value.view(workers, -1, C) for value in plain.moments(x))
        m, v = unit.go_through(mean, var)
        y = core.normalize(x, m, v, unit.eps, None, None)
        std = torch.sqrt(v + unit.eps).view_as(mean)
        apart = mean - m.view_as(mean)
        ctx.unit = unit
        ctx.save_for_backward(y, apart / std, (var + apart.square()) / std.square(), std)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,), (y, mean, square, std) = grads, ctx.saved_tensors
        exact = grad.to(std.dtype)
        of_grad, product = (value.mean((2, 3)).view_as(std) for value in (exact, exact * y))
        p, u = ctx.unit.control(of_grad, mean, square, product, std)
        b, std = 1 - ctx.unit.alpha_bkw, std.flatten(0, 1)
        dx = exact / std[..., None, None] - y * (b * p / std)[..., None, None] - (b * u)[..., None, None]
        return dx.to(grad.dtype), None, None


def _load(unit: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any, _strict: bool, *lists: Any) -> None:
    """Before a load: one without the controls of the gradient, whatever its version, is a BatchNorm2d's."""
    if not any(prefix + key in state_dict for key in ("grad_along", "grad_mean")):
        metadata = {**metadata, "version": nn.BatchNorm2d._version}
    running.leave_out(unit, state_dict, prefix, (), metadata, lists[-1])


register(
    Normalizer(
        name="online",
        unit=OnlineNorm,
        method="Online Normalization",
        paper="Chiley et al., NeurIPS 2019, arXiv:1905.05894",
        mixes_samples=True,
        train_eval_differ=True,
        own_gradient=True,
        keeps_statistics=True,
    )
)
