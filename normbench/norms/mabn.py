"""Moving Average Batch Normalization (Yan, Wan, Zhang, Zhang, Wei & Sun, ICLR 2020, OpenReview SkgGjRVKDS).

    χ = the mean over the last m steps of E[x²]          z = x / √(χ + ε)
    r = clip(√(χ + ε) / √(s + ε), 1/5, 5)                a constant for the gradient; 1 in the first steps
    y = γ r z + β             then  s ← s + (1 − decay) (χ − s)
backward, not its derivative:  g = γ r ∂L/∂y      ∂L/∂x = (g − z · the mean over the last m steps of E[g z]) / √(χ + ε)
x, y: (N, C, H, W).  E: over H, W and the ``batch`` images of a worker, (C,).  γ, β: (C,).
s: running_square (C,), from 1: a mean square, since no mean is subtracted; in its place the convolution before the unit
works with W − mean(W), over all but the output channels (surgery, ``CenteredConv2d``). The last m steps, this one
included: window_square and window_grad (m, C), slots in turn. m is ``window``; None: 32 / batch, 16 for no batch. What
counts is num_batches_tracked, this step included: averages are the step's own up to step m and before step
``warmup_steps``, r is 1 up to the larger of ``warmup_steps`` and ``clip_start``.
Several workers: each has its own E, and earlier steps in common, the mean over the workers.
Train: writes its state in the backward too, so no compiling, no second derivative; a backward belongs to its forward's
slot, whenever it comes. Eval: y = γ x / √(s + ε) + β.  Works from N = 1.
Differs from the paper: only convolutions right before a unit are centred. That the first step is number 1, and that
E[g z] has the same warm-up as E[x²], is our reading; the official code's two files start r at step 100 and at 1000, the
default here, whatever the length of the run.
The paper's batch of 2 is of images that share statistics, inside a large step: batch=2, workers=128.
With window=1 and r = 1 equals autograd's x / √(E[x²] + ε): tests/norms/test_mabn.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from normbench.norms import core, plain, population, running
from normbench.norms.convolution import Reweighted, adopt
from normbench.norms.registry import Normalizer, register

REAL_BATCH, USUAL_BATCH = 32, 2
R_MAX = 5.0


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    square: Tensor,
    earlier: Tensor | None = None,
    clipped: bool = False,
    eps: float = 1e-5,
    batch: int | None = None,
) -> Tensor:
    """The plain formula, as in training, not its gradient.

    square: s before the step. earlier: E[x²] of the m − 1 steps before, (m − 1, C); None in the warm-up. clipped: r is
    not 1.
    """
    y = []
    for worker in x.split(batch or len(x)):
        own = (worker**2).mean((0, 2, 3))
        chi = own if earlier is None else torch.cat([earlier, own[None]]).mean(0)
        r = torch.sqrt(chi + eps) / torch.sqrt(square + eps)
        r = r.clamp(1 / R_MAX, R_MAX).detach() if clipped else torch.ones_like(r)
        y.append(worker * (r / torch.sqrt(chi + eps))[:, None, None])
    return weight[:, None, None] * torch.cat(y) + bias[:, None, None]


def reference_gradient(grad: Tensor, x: Tensor, r: Tensor, chi: Tensor, earlier: Tensor | None, eps: float) -> Tensor:
    """∂L/∂x of one worker. grad: ∂L/∂(r z); r, chi: (C,); earlier: E[g z] of the m − 1 steps before."""
    sigma = torch.sqrt(chi + eps)[:, None, None]
    z, g = x / sigma, grad * r[:, None, None]
    own = (g * z).mean((0, 2, 3))
    mean = own if earlier is None else torch.cat([earlier, own[None]]).mean(0)
    return (g - z * mean[:, None, None]) / sigma


class MovingAverageBatchNorm(nn.Module):
    """Divide each channel by its root mean square of the last steps: (N, C, H, W) → the same, then ``activation``.

    ``batch`` is as in BatchNorm.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_square: Tensor
    window_square: Tensor
    window_grad: Tensor
    num_batches_tracked: Tensor
    example_weight: float

    def __init__(
        self,
        num_features: int,
        window: int | None = None,
        warmup_steps: int = 100,
        clip_start: int = 1000,
        decay: float = 0.98,
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
        self.window = window or max(1, REAL_BATCH // (batch or USUAL_BATCH))
        self.warmup_steps, self.clip_start, self.decay = warmup_steps, clip_start, decay
        self.activation = activation
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        self.register_buffer("running_square", torch.ones(num_features, device=device, dtype=dtype))
        for name in ("window_square", "window_grad"):
            self.register_buffer(name, torch.zeros(self.window, num_features, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device))
        running.weigh_examples(self)
        self.register_load_state_dict_pre_hook(_load)

    def forward(self, x: Tensor) -> Tensor:
        N, *_ = core.check_input(x, self.num_features, "mabn")
        if not self.training:
            square = self.running_square.to(plain.at_least_float32(self.running_square.dtype))[None]
            if self.example_weight:
                square = square + self.example_weight * (plain.mean_square(x) - square)
            affine = (self.weight, self.bias)
            return core.normalize(x, torch.zeros_like(square), square, self.eps, *affine, self.activation)
        z = _Normalize.apply(x, self, core.workers(N, self.batch, "mabn"))
        return core.scale_shift(z, self.weight, self.bias, self.activation)

    @torch.no_grad()
    def begin(self, square: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Count a step and keep its E[x²], ``square`` (workers, C). χ and r, the same; the step's slot (m, 1), as a
        mask; whether the averages are of the window.
        """
        count, dtype = self.num_batches_tracked.add_(1), square.dtype
        population.met(self, torch.zeros_like(square), square)
        slot = (torch.arange(self.window, device=count.device) == count % self.window)[:, None]
        full = (count > self.window) & (count >= self.warmup_steps)
        chi = self.average("window_square", square, slot, full)
        s = self.running_square.to(dtype)
        r = (torch.sqrt(chi + self.eps) / torch.sqrt(s + self.eps)).clamp(1 / R_MAX, R_MAX)
        r = torch.where(count > max(self.clip_start, self.warmup_steps), r, 1.0)
        self.running_square.copy_(s.lerp(chi.mean(0), 1 - self.decay))
        return chi, r, slot, full

    def take_population(self, _mean: Tensor, square: Tensor) -> None:
        """E[x²] of many batches, (C,), to evaluate by."""
        self.running_square.copy_(square)

    @torch.no_grad()
    def average(self, name: str, own: Tensor, slot: Tensor, full: Tensor) -> Tensor:
        """Put the workers' ``own`` values (workers, C) into the slot of a window; each one's average, (workers, C)."""
        window = getattr(self, name)
        values = window.to(own.dtype)
        earlier = values.masked_fill(slot, 0.0).sum(0)
        window.copy_(torch.where(slot, own.mean(0), values))
        return torch.where(full, (earlier + own) / self.window, own)

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one training statistic, of which the window holds some steps."""
        return self.window * batch * H * W

    def extra_repr(self) -> str:
        steps = f"window={self.window}, warmup_steps={self.warmup_steps}, clip_start={self.clip_start}"
        return f"{self.num_features}, {steps}, decay={self.decay}, eps={self.eps}, batch={self.batch}"


class _Normalize(torch.autograd.Function):
    """r z, and the backward that is not its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, unit: MovingAverageBatchNorm, workers: int) -> Tensor:
        C = x.shape[1]
        square = plain.mean_square(x).view(workers, -1, C).mean(1)
        chi, r, ctx.slot, ctx.full = unit.begin(square)
        ctx.unit, inverse = unit, torch.rsqrt(chi + unit.eps)
        rz = _by_worker(x, r * inverse)
        ctx.save_for_backward(rz, r * inverse, inverse / r)
        return rz

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        # With grad = ∂L/∂(r z): g z = grad · r z, (g − z E) / √(χ + ε) = grad · r / √(χ + ε) − r z · E / (r √(χ + ε)).
        (grad,), (rz, of_grad, of_z) = grads, ctx.saved_tensors
        workers, C = of_grad.shape
        products = (grad.to(of_grad.dtype) * rz).mean((2, 3))
        own = products.view(workers, -1, C).mean(1)
        average = ctx.unit.average("window_grad", own, ctx.slot, ctx.full)
        return _by_worker(grad, of_grad) - _by_worker(rz, average * of_z), None, None


def _by_worker(x: Tensor, a: Tensor) -> Tensor:
    """Every worker's images times its factors: x (N, C, H, W), a (workers, C)."""
    factors = plain.spread(a, *x.shape[:2])
    return (x * factors[..., None, None]).to(x.dtype)


class CenteredConv2d(Reweighted):
    """A Conv2d with W − mean(W) in the place of its weight W, over all but the output channels."""

    def reweigh(self, weight: Tensor) -> Tensor:
        return weight - weight.mean((1, 2, 3), keepdim=True)


def _load(unit: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any, _strict: bool, *lists: Any) -> None:
    """Before a load: a BatchNorm2d's statistics are left out, since its variance is around a mean."""
    own = any(prefix + key in state_dict for key in ("running_square", "window_square", "window_grad"))
    running.leave_out(unit, state_dict, prefix, () if own else running.STATISTICS, metadata, lists[-1])


register(
    Normalizer(
        name="mabn",
        unit=MovingAverageBatchNorm,
        method="Moving Average Batch Normalization",
        paper="Yan, Wan, Zhang, Zhang, Wei & Sun, ICLR 2020, OpenReview SkgGjRVKDS",
        mixes_samples=True,
        train_eval_differ=True,
        drop_in=False,
        convolution=lambda convolution, _unit: adopt(CenteredConv2d, convolution),
        own_gradient=True,
        keeps_statistics=True,
    )
)
