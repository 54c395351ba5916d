"""Batch/group normalization for very small batches (Summers & Dinneen, "Four Things", ICLR 2020, arXiv:1906.03548).

    y = γ (x − μ) / √(σ² + ε) + β
x, y: (N, C, H, W).  μ, σ²: (G,) of each ghost batch, ``ghost_size`` consecutive images inside a worker's ``batch``;
over these, H, W and the C/G channels of a group; σ² biased.  γ, β: (C,).  A worker of fewer images is one ghost batch.
Train: statistics of each ghost batch and group. Eval, of any number of images: running_mean and running_var (C,), which
are per channel and of all of a worker's images as gbn keeps them, pooled over each group: mean of the means; mean of
the variances plus variance of the means. Works from N = 1. Where G does not divide C: normbench/norms/groups.py.
Differs from the paper: where G does not divide C its code takes C // (C // G) groups, we their gcd; momentum 0.1 where
it has 0.01; what it mixes of the image into the statistics in evaluation is left out, as by its default. Which G and
ghost size it takes at which batch was not seen; 32 and 2 are the example of its code.
With ghost_size = N equals bgn, with 1 gn, with G = C gbn, in training: tests/norms/test_identities.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, groups, plain, running
from normbench.norms.registry import Normalizer, register

DEFAULT_GROUPS = 32


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    ghost_size: int,
    eps: float = 1e-5,
    batch: int | None = None,
) -> Tensor:
    """The plain formula, as in training."""
    C = x.shape[1]
    y = []
    for worker in x.split(batch or len(x)):
        for ghost in worker.split(ghost_size):
            normalized = torch.empty_like(ghost)
            for g in range(num_groups):
                members = [c for c in range(C) if (c * num_groups) // C == g]
                mu = ghost[:, members].mean()
                var = ((ghost[:, members] - mu) ** 2).mean()
                normalized[:, members] = (ghost[:, members] - mu) / torch.sqrt(var + eps)
            y.append(normalized)
    return weight[:, None, None] * torch.cat(y) + bias[:, None, None]


class GhostGroupNorm(nn.Module):
    """Normalize groups of channels over the images of a ghost batch: (N, C, H, W) → the same, then ``activation``.

    ``num_groups`` becomes the effective number. ``batch`` is as in BatchNorm. Raises InputError for a number that does
    not divide C (``strict``), and for a ``ghost_size`` that does not divide a worker's images.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    example_weight: float

    def __init__(
        self,
        num_features: int,
        num_groups: int | None = None,
        group_fit: str | None = None,
        ghost_size: int = 2,
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
        wanted, self.group_fit = groups.choose(num_groups, group_fit, DEFAULT_GROUPS, "gcd")
        what = f"num_features={num_features}"
        self.num_groups = groups.fit(num_features, wanted, self.group_fit, "batch_group", what)
        if batch is not None:
            groups.ghost(batch, ghost_size, "batch_group")
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        running.add(self, num_features, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(running.take_statistics)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        N, *_ = core.check_input(x, self.num_features, "batch_group")
        G = self.num_groups
        if self.training:
            workers = core.workers(N, self.batch, "batch_group")
            ghosts = N // groups.ghost(N // workers, self.ghost_size, "batch_group")
            track = running.total(self, workers)
            return core.standardize(
                x, ghosts, G, self.eps, *core.affine(self), track=track, by_channel=True, residual=residual
            )
        if self.running_mean is None:
            return core.standardize(x, 1, G, self.eps, *core.affine(self), residual=residual)
        kept = plain.pool(*running.statistics(self), 1, G)
        if self.example_weight:
            kept = running.mixed(self.example_weight, plain.pool(*plain.moments(x), N, G), kept)
        return core.normalize(x, kept[0], kept[1], self.eps, *core.affine(self), residual=residual)

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one training statistic, in the smallest group."""
        return min(self.ghost_size, batch) * (self.num_features // self.num_groups) * H * W

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, num_groups={self.num_groups}, ghost_size={self.ghost_size}, eps={self.eps}, "
            f"momentum={self.momentum}, batch={self.batch}"
        )


register(
    Normalizer(
        name="batch_group",
        unit=GhostGroupNorm,
        method="batch/group normalization of ghost batches and channel groups",
        paper="Summers & Dinneen, ICLR 2020, arXiv:1906.03548",
        mixes_samples=True,
        train_eval_differ=True,
    )
)
