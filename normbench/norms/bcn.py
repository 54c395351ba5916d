"""Batch-Channel Normalization (Qiao, Wang, Liu, Shen & Yuille 2019, arXiv:1911.09738; also in arXiv:1903.10520v2).

    z = γ (x − m) / √(v + ε) + β                     per channel
    y = a (z − μ) / √(σ² + ε) + b                    μ, σ² of z, per group of channels of each image
x, y, z: (N, C, H, W).  m, v: (C,).  γ, β: ``weight`` and ``bias`` (C,).  μ, σ²: (N, G), over H, W and the C/G channels
of a group.  a, b: ``group_weight`` and ``group_bias`` (G,), one per group, from 1 and 0. v and σ² biased.
Where G does not divide C: normbench/norms/groups.py.
Train: m and v are the moments over H, W and the ``batch`` images of a worker, as bn's; with ``estimated`` (the paper's
for small batches) they are running_mean and running_var, constants for the gradient, and then move by
    v ← v + s (mean (x − m)² − v)      m ← m + s (mean x − m)      m on the right: that before the step
so v holds what varies between batches; s is ``momentum``. Over several workers: the mean of what each would have
kept.
Eval: running_mean and running_var for m and v.  Works from N = 1, if H·W > 1; estimated, on a single value too.
Differs from the paper: estimated, the official code has s as a buffer, 0 until the training script sets it, by a
schedule that was not found; here it is BatchNorm's 0.1, our choice. Whether it normalizes before or after it moves m
and v was not seen: here before. ε of both norms is one option. Meant for convolutions with standardized weights, which
are not part of it here. A ``weight`` that starts at 0 (the end of a residual branch) is γ, whose scale is undone by the
second norm.
Equals bn, then gn with a and b: tests/norms/test_bcn.py.
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
    group_weight: Tensor,
    group_bias: Tensor,
    num_groups: int,
    estimated: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-5,
    batch: int | None = None,
) -> Tensor:
    """The plain formula, as in training; estimated: m and v, (C,), before the step."""
    C = x.shape[1]
    z = []
    for worker in x.split(batch or len(x)):
        m = worker.mean((0, 2, 3), keepdim=True)
        v = ((worker - m) ** 2).mean((0, 2, 3), keepdim=True)
        if estimated is not None:
            m, v = (value[:, None, None] for value in estimated)
        z.append(weight[:, None, None] * (worker - m) / torch.sqrt(v + eps) + bias[:, None, None])
    batch_normed, y = torch.cat(z), torch.empty_like(x)
    for g in range(num_groups):
        members = [c for c in range(C) if (c * num_groups) // C == g]
        own = batch_normed[:, members]
        mu = own.mean((1, 2, 3), keepdim=True)
        var = ((own - mu) ** 2).mean((1, 2, 3), keepdim=True)
        y[:, members] = group_weight[g] * (own - mu) / torch.sqrt(var + eps) + group_bias[g]
    return y


class BatchChannelNorm(nn.Module):
    """Batch norm, then group norm with a scale and shift per group: (N, C, H, W) → the same, then ``activation``.

    ``batch`` is as in BatchNorm. ``num_groups`` becomes the effective number; InputError if the number given does not
    divide C (``strict``).
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    group_weight: nn.Parameter | None
    group_bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        num_groups: int | None = None,
        group_fit: str | None = None,
        estimated: bool = False,
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
        asked, fit = groups.choose(num_groups, group_fit, DEFAULT_GROUPS, "gcd")
        self.num_groups = groups.fit(num_features, asked, fit, "bcn", f"num_features={num_features}")
        self.estimated, self.activation = estimated, activation
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        for name, make in (("group_weight", torch.ones), ("group_bias", torch.zeros)):
            made = nn.Parameter(make(self.num_groups, device=device, dtype=dtype)) if affine else None
            self.register_parameter(name, made)
        running.add(self, num_features, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(_load)

    def forward(self, x: Tensor) -> Tensor:
        N, C, H, W = core.check_input(x, self.num_features, "bcn")
        workers = core.workers(N, self.batch if self.training else None, "bcn")
        dtype, x = x.dtype, x.to(plain.at_least_float32(x.dtype))  # or the second norm subtracts what was rounded
        if self.training and not self.estimated:
            track = running.variance(self, workers, running.unbiased(N // workers * H * W))
            z = core.standardize(x, workers, C, self.eps, self.weight, self.bias, track=track)
        else:
            kept = running.statistics(self) if self.training else running.evaluation(self, x)
            m, v = (value.clone() for value in kept)
            z = core.normalize(x, m, v, self.eps, self.weight, self.bias)
            if self.training:
                self._estimate(x, m)
        affine = (self._by_channel(self.group_weight), self._by_channel(self.group_bias))
        return core.standardize(z, N, self.num_groups, self.eps, *affine, self.activation).to(dtype)

    @torch.no_grad()
    def _estimate(self, x: Tensor, m: Tensor) -> None:
        """Move the buffers towards the moments around ``m``, (1, C), the mean before the step.

        The mean over workers of as many images each is that over all images.
        """
        mean, var = (value[None] for value in plain.mean_var(x, (0, 2, 3)))
        running.update(self, mean, var, 1.0, around=m)

    def _by_channel(self, value: Tensor | None) -> Tensor | None:
        """(G,) → (C,)."""
        if value is None:
            return None
        return plain.spread(value[None], 1, self.num_features).expand(1, self.num_features).flatten().contiguous()

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one training statistic, of the norm that has fewer."""
        of_a_group = self.num_features // self.num_groups * H * W
        return of_a_group if self.estimated else min(batch * H * W, of_a_group)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, num_groups={self.num_groups}, estimated={self.estimated}, eps={self.eps}, "
            f"momentum={self.momentum}, batch={self.batch}"
        )


def _load(unit: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any, _strict: bool, *lists: Any) -> None:
    """Before a load: one without a second scale, whatever its version, is a BatchNorm2d's."""
    if not any(prefix + key in state_dict for key in ("group_weight", "group_bias")):
        metadata = {**metadata, "version": nn.BatchNorm2d._version}
    running.leave_out(unit, state_dict, prefix, (), metadata, lists[-1])


register(
    Normalizer(
        name="bcn",
        unit=BatchChannelNorm,
        method="Batch-Channel Normalization",
        paper="Qiao, Wang, Liu, Shen & Yuille 2019, arXiv:1911.09738",
        mixes_samples=True,
        train_eval_differ=True,
        keeps_statistics=True,
    )
)
