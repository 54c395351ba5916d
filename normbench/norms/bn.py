"""Batch Normalization (Ioffe & Szegedy, ICML 2015, arXiv:1502.03167).

    y = γ (x − μ) / √(σ² + ε) + β
x, y: (N, C, H, W).  μ, σ²: (C,), over H, W and the ``batch`` images of a worker; σ² biased.  γ, β: (C,).
Train: statistics of each worker. Eval: running_mean, running_var (C,), moved by ``momentum`` (torch's sense, 0.1 of the
new value) towards the mean over the workers of their mean and unbiased variance. Works from N = 1, if H·W > 1.
Differs from the paper: the moving average in place of population statistics.  Equals torch.nn.BatchNorm2d:
tests/norms/test_bn.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, running
from normbench.norms.registry import Normalizer, register


def reference(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, batch: int | None = None) -> Tensor:
    """The plain formula, as in training."""
    y = []
    for worker in x.split(batch or len(x)):
        mu = worker.mean((0, 2, 3), keepdim=True)
        var = ((worker - mu) ** 2).mean((0, 2, 3), keepdim=True)
        y.append((worker - mu) / torch.sqrt(var + eps))
    return weight[:, None, None] * torch.cat(y) + bias[:, None, None]


class BatchNorm(nn.Module):
    """Normalize each channel over the images of a worker: (N, C, H, W) → the same, then ``activation``.

    ``batch``: how many consecutive images are a worker's; None: all. Training needs N to be a multiple of it and
    raises InputError otherwise.
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

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        N, C, H, W = core.check_input(x, self.num_features, "bn")
        if self.training or self.running_mean is None:
            workers = core.workers(N, self.batch if self.training else None, "bn")
            track = running.variance(self, workers, running.unbiased(N // workers * H * W))
            return core.standardize(x, workers, C, self.eps, *core.affine(self), track=track, residual=residual)
        mean, var = running.evaluation(self, x)
        return core.normalize(x, mean, var, self.eps, *core.affine(self), residual=residual)

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one training statistic."""
        return batch * H * W

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, batch={self.batch}"


register(
    Normalizer(
        name="bn",
        unit=BatchNorm,
        method="Batch Normalization",
        paper="Ioffe & Szegedy, ICML 2015, arXiv:1502.03167",
        mixes_samples=True,
        train_eval_differ=True,
    )
)
