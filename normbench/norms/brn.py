"""Batch Renormalization (Ioffe, NIPS 2017, arXiv:1702.03275).

    σ_B = √(var_B + ε)
    r = clip(σ_B / σ, 1/r_max, r_max)      d = clip((μ_B − μ) / σ, −d_max, d_max)      constants for the gradient
    y = γ ((x − μ_B) / σ_B · r + d) + β
    then  μ ← μ + a (μ_B − μ),  σ ← σ + a (σ_B − σ)
x, y: (N, C, H, W).  μ_B, var_B: (C,), over H, W and the ``batch`` images of a worker; var_B biased.  γ, β: (C,).
μ, σ: running_mean and running_std (C,), from 0 and 1; a is ``momentum`` (torch's sense); over several workers the mean
of what each would have kept. σ is a standard deviation, not a variance: their averages differ.
Eval: y = γ (x − μ) / σ + β.  Works from N = 1, if H·W > 1.
r_max goes from 1 to 3 and d_max from 0 to 5 in straight lines: both start at step 5,000 of a run of 160,000, d_max is
there at 25,000 and r_max at 40,000, and in the same proportions of any other run (``run_steps``). A unit that does not
know how long its run is, or has ``absolute_steps``, takes these numbers as they are, the paper's. ``r_max`` and
``d_max``, where given, hold from the first step; inf is no bound. What counts is num_batches_tracked, before the step.
σ has no floor of its own: it starts at 1 and moves towards σ_B, so it stays above the smaller of 1 and √ε.
Differs from the paper: the proportions; its a and ε were not seen, ours are BatchNorm's.
With r_max = 1, d_max = 0 equals torch.nn.BatchNorm2d in training: tests/norms/test_identities.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, plain, running
from normbench.norms.core import Renorm
from normbench.norms.registry import Normalizer, register

# The paper's schedule, and the length of run that we read it for.
START, D_FULL, R_FULL, LENGTH = 5_000, 25_000, 40_000, 160_000
R_MAX, D_MAX = 3.0, 5.0


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    mean: Tensor,
    std: Tensor,
    r_max: float,
    d_max: float,
    eps: float = 1e-5,
    batch: int | None = None,
) -> Tensor:
    """The plain formula, as in training; mean, std: the running ones, (C,), before the step."""
    y = []
    for worker in x.split(batch or len(x)):
        mu = worker.mean((0, 2, 3), keepdim=True)
        sigma = torch.sqrt(((worker - mu) ** 2).mean((0, 2, 3), keepdim=True) + eps)
        r = (sigma / std[:, None, None]).clamp(1 / r_max, r_max).detach()
        d = ((mu - mean[:, None, None]) / std[:, None, None]).clamp(-d_max, d_max).detach()
        y.append((worker - mu) / sigma * r + d)
    return weight[:, None, None] * torch.cat(y) + bias[:, None, None]


class BatchRenorm(nn.Module):
    """Batch norm corrected towards its running statistics: (N, C, H, W) → the same, then ``activation``.

    ``batch`` is as in BatchNorm. ``run_steps``: how many optimizer steps the run has, if known; set it on the unit.
    """

    _version = 3  # tells its states from a BatchNorm2d's, which are version 2

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_std: Tensor
    num_batches_tracked: Tensor
    example_weight: float

    def __init__(
        self,
        num_features: int,
        r_max: float | None = None,
        d_max: float | None = None,
        absolute_steps: bool = False,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        activation: nn.Module | None = None,
        batch: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum, self.batch = num_features, eps, momentum, batch
        self.r_max, self.d_max, self.absolute_steps = r_max, d_max, absolute_steps
        self.run_steps: int | None = None
        self.activation = activation
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("running_std", torch.ones(num_features, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device))
        running.weigh_examples(self)
        self.register_load_state_dict_pre_hook(_load)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        N, C, *_ = core.check_input(x, self.num_features, "brn")
        mean, std = self._buffers["running_mean"], self._buffers["running_std"]
        assert mean is not None
        assert std is not None
        dtype = plain.at_least_float32(std.dtype)
        if std.dtype is not dtype:
            mean, std = mean.to(dtype), std.to(dtype)
        if not self.training:
            kept = (mean[None], std.square()[None])
            if self.example_weight:
                own_mean, own_var = plain.moments(x)
                kept = running.mixed(self.example_weight, (own_mean, own_var + self.eps), kept)
            return core.normalize(x, kept[0], kept[1], 0.0, *core.affine(self), residual=residual)
        workers = core.workers(N, self.batch, "brn")
        renorm = Renorm(mean, std, self._next_bounds())
        track = running.deviation(self, workers)
        return core.standardize(
            x, workers, C, self.eps, *core.affine(self), renorm=renorm, track=track, residual=residual
        )

    def take_population(self, mean: Tensor, var: Tensor) -> None:
        """Statistics of many batches, (C,) each, to evaluate by."""
        self.running_mean.copy_(mean)
        self.running_std.copy_(torch.sqrt(var + self.eps))

    def bounds(self) -> Tensor:
        """r_max and d_max of the step that comes next, (2,)."""
        bounds = self._next_bounds()
        return bounds if isinstance(bounds, Tensor) else torch.tensor(bounds, dtype=torch.float64)

    def _next_bounds(self) -> Tensor | tuple[float, float]:
        count = self._buffers["num_batches_tracked"]
        assert count is not None
        per_step = 1.0 if self.absolute_steps or self.run_steps is None else LENGTH / self.run_steps
        if running.known(count):
            return self._bounds(int(count) * per_step)
        dtype = plain.at_least_float32(self.running_std.dtype)
        bounds = self._bounds(count.to(dtype) * per_step)
        return torch.stack([plain.constant(bound, dtype, count.device) for bound in bounds])

    def _bounds(self, step: float | Tensor) -> tuple[Any, Any]:
        """r_max and d_max at ``step`` of a run of LENGTH."""
        r_max = _ramp(step, R_FULL, 1.0, R_MAX) if self.r_max is None else self.r_max
        d_max = _ramp(step, D_FULL, 0.0, D_MAX) if self.d_max is None else self.d_max
        return r_max, d_max

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one training statistic."""
        return batch * H * W

    def extra_repr(self) -> str:
        bounds = f"r_max={self.r_max}, d_max={self.d_max}, absolute_steps={self.absolute_steps}"
        return f"{self.num_features}, {bounds}, eps={self.eps}, momentum={self.momentum}, batch={self.batch}"


def _ramp(step: float | Tensor, full: int, low: float, high: float) -> float | Tensor:
    """A straight line from ``low`` at START to ``high`` at ``full``, and level before and after."""
    way = (step - START) / (full - START)
    way = way.clamp(0, 1) if isinstance(way, Tensor) else min(max(way, 0.0), 1.0)
    return low + (high - low) * way


def _load(unit: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any, _strict: bool, *lists: Any) -> None:
    """Before a load: a BatchNorm2d's statistics are left out. Its variance averages to another σ than this, and its
    mean alone would be half of a pair.
    """
    own = metadata.get("version") == BatchRenorm._version or f"{prefix}running_std" in state_dict
    running.leave_out(unit, state_dict, prefix, () if own else running.STATISTICS, metadata, lists[-1])


register(
    Normalizer(
        name="brn",
        unit=BatchRenorm,
        method="Batch Renormalization",
        paper="Ioffe, NIPS 2017, arXiv:1702.03275",
        mixes_samples=True,
        train_eval_differ=True,
        held_constant=True,
    )
)
