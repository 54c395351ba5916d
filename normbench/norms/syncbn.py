"""Synchronized Batch Normalization: practice, torch.nn.SyncBatchNorm; reviewed by Wu & Johnson 2021, arXiv:2105.07576.

    μ = Σ_p n_p μ_p / Σ_p n_p        σ² = Σ_p n_p (σ_p² + (μ_p − μ)²) / Σ_p n_p
    y = γ (x − μ) / √(σ² + ε) + β
x, y: (N, C, H, W).  μ, σ²: (C,), over H, W and the images of all workers of a step; σ² biased.  μ_p, σ_p²: those of the
n_p = N_p·H·W values of rank p, so ranks may have unequal shares.  γ, β: (C,).
Train: the step's statistics. One process: of all images of its forward, whatever ``batch`` is. Several ranks of
torch.distributed: one exchange of (P, 2C + 1) numbers forward and one backward, between GPUs or CPUs; every rank must
take part in each forward. Eval: running_mean, running_var (C,), nothing exchanged: bn's. Buffers move by ``momentum``
(torch's sense) towards the step's mean and unbiased variance, alike on all ranks. Works from N = 1, if one value per
channel is not all that the step has.
With ``batch × workers`` images this is bn of that batch: a curve of its own it is not, but what bn's batch of all
workers costs and gives. Workers of a step are never run a chunk at a time.
Differs from torch.nn.SyncBatchNorm: runs on CPUs too, and at first gathers moments, not sums, so that no variance comes
out of a difference.  In one process equals torch.nn.BatchNorm2d: tests/norms/test_syncbn.py, which has the ranks too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from normbench.norms import core, plain, running
from normbench.norms.registry import Normalizer, register
from normbench.ranks import together, together_now


def reference(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    """The plain formula, as in training; x: all images of a step."""
    mu = x.mean((0, 2, 3), keepdim=True)
    var = ((x - mu) ** 2).mean((0, 2, 3), keepdim=True)
    return weight[:, None, None] * (x - mu) / torch.sqrt(var + eps) + bias[:, None, None]


class SyncBatchNorm(nn.Module):
    """Normalize each channel over the images of all workers: (N, C, H, W) → the same, then ``activation``.

    ``batch``: how many consecutive images are a worker's, of which N must be a multiple; they share statistics all the
    same. Raises InputError for an N that is none.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None

    def __init__(
        self,
        num_features: int,
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
        self.activation = activation
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        running.add(self, num_features, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(running.take_statistics)

    def forward(self, x: Tensor) -> Tensor:
        N, C, H, W = core.check_input(x, self.num_features, "syncbn")
        affine = (self.weight, self.bias)
        if not self.training and self.running_mean is not None:
            return core.normalize(x, *running.evaluation(self, x), self.eps, *affine, self.activation)
        core.workers(N, self.batch if self.training else None, "syncbn")
        if self.training and together_now() > 1:
            mean, var, values = pooled(*plain.mean_var(x, (0, 2, 3)), N * H * W)
            running.update(self, mean, var, values / (values - 1).clamp(min=1))
            return core.normalize(x, mean, var, self.eps, *affine, self.activation)
        track = running.variance(self, 1, running.unbiased(N * H * W))
        return core.standardize(x, 1, C, self.eps, *affine, self.activation, track=track)

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one training statistic; ``batch``: the images of all workers."""
        return batch * H * W

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, batch={self.batch}"


def pooled(mean: Tensor, var: Tensor, values: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance over all ranks, (1, C) each, and the number of their values; (C,) from this one."""
    C, rank = len(mean), distributed.get_rank()
    own = torch.cat([mean, var, mean.new_tensor([values])])
    table = nn.functional.pad(own[None], (0, 0, rank, together_now() - 1 - rank))  # zeros where the others write
    means, variances, counts = _Sum.apply(table).split([C, C, 1], 1)
    share = counts / counts.sum()
    mean = (share * means).sum(0, keepdim=True)
    var = (share * (variances + (means - mean).square())).sum(0, keepdim=True)
    return mean, var, counts.detach().sum()


class _Sum(torch.autograd.Function):
    """The sum over the ranks. What it is differentiated by is summed too: each rank's loss depends on every term."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _all_reduced(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Sum.apply(grads[0])


def _all_reduced(value: Tensor) -> Tensor:
    value = value.clone(memory_format=torch.contiguous_format)
    with together():
        distributed.all_reduce(value)
    return value


register(
    Normalizer(
        name="syncbn",
        unit=SyncBatchNorm,
        method="Synchronized Batch Normalization",
        paper="Wu & Johnson 2021, arXiv:2105.07576 (a review)",
        mixes_samples=True,
        train_eval_differ=True,
        joins_workers=True,
    )
)
