"""Ghost Batch Normalization (Hoffer, Hubara & Soudry, NeurIPS 2017, arXiv:1705.08741; rules of Summers & Dinneen).

    y = γ (x − μ) / √(σ² + ε) + β
x, y: (N, C, H, W).  μ, σ²: (C,) of each ghost batch, ``ghost_size`` consecutive images inside a worker's ``batch``;
over these and H, W; σ² biased.  γ, β: (C,), shared.  A worker of fewer images is one ghost batch.
Train: statistics of each ghost batch. Eval: running_mean, running_var (C,), any number of images.
running_mean and running_var are moments of all of a worker's images, whatever the ghost_size, moved once a step by
``momentum`` (torch's sense): running_var is m₂ − m² of running E[x] and E[x²], normbench/norms/running.py. So it is a
biased variance, and holds what varies between batches; BatchNorm2d's does not. Over several workers: the mean of what
each would have kept. Works from N = 1, if H·W > 1.
Differs from Summers & Dinneen (ICLR 2020, arXiv:1906.03548): momentum 0.1, the harness's, where their code has 0.01;
their ghost size for each data set was not seen, 16 is the example of their code. Images that do not split: an error.
With ghost_size = N equals torch.nn.BatchNorm2d in training, with 1 InstanceNorm2d: tests/norms/test_identities.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, groups, running
from normbench.norms.registry import Normalizer, register


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, *, ghost_size: int, eps: float = 1e-5, batch: int | None = None
) -> Tensor:
    """The plain formula, as in training."""
    y = []
    for worker in x.split(batch or len(x)):
        for ghost in worker.split(ghost_size):
            mu = ghost.mean((0, 2, 3), keepdim=True)
            var = ((ghost - mu) ** 2).mean((0, 2, 3), keepdim=True)
            y.append((ghost - mu) / torch.sqrt(var + eps))
    return weight[:, None, None] * torch.cat(y) + bias[:, None, None]


class GhostBatchNorm(nn.Module):
    """Normalize each channel over the images of a ghost batch: (N, C, H, W) → the same, then ``activation``.

    ``batch`` is as in BatchNorm. Raises InputError for a ``ghost_size`` that does not divide a worker's images.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None

    def __init__(
        self,
        num_features: int,
        ghost_size: int = 16,
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
        self.ghost_size, self.activation = ghost_size, activation
        if batch is not None:
            groups.ghost(batch, ghost_size, "gbn")
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        running.add(self, num_features, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(running.take_statistics)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        N, C, *_ = core.check_input(x, self.num_features, "gbn")
        if self.training:
            workers = core.workers(N, self.batch, "gbn")
            ghosts = N // groups.ghost(N // workers, self.ghost_size, "gbn")
            track = running.total(self, workers)
            return core.standardize(x, ghosts, C, self.eps, *core.affine(self), track=track, residual=residual)
        if self.running_mean is None:
            return core.standardize(x, 1, C, self.eps, *core.affine(self), residual=residual)
        mean, var = running.evaluation(self, x)
        return core.normalize(x, mean, var, self.eps, *core.affine(self), residual=residual)

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one training statistic."""
        return min(self.ghost_size, batch) * H * W

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, ghost_size={self.ghost_size}, eps={self.eps}, momentum={self.momentum}, "
            f"batch={self.batch}"
        )


register(
    Normalizer(
        name="gbn",
        unit=GhostBatchNorm,
        method="Ghost Batch Normalization",
        paper="Hoffer, Hubara & Soudry, NeurIPS 2017, arXiv:1705.08741",
        mixes_samples=True,
        train_eval_differ=True,
    )
)
