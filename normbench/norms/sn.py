"""Switchable Normalization (Luo, Ren, Peng, Zhang & Li, ICLR 2019, arXiv:1806.10779).

    w = softmax(a)          w' = softmax(b)
    μ = w₁ μ_in + w₂ μ_ln + w₃ μ_bn          σ² = w'₁ σ²_in + w'₂ σ²_ln + w'₃ σ²_bn
    y = γ (x − μ) / √(σ² + ε) + β
x, y: (N, C, H, W).  in: (N, C), over H, W.  ln: (N, 1), over C, H, W.  bn: (1, C) of each worker, over H, W and its
``batch`` images. All σ² biased.  a, b: ``mean_weight`` and ``var_weight``, (3,), from 1.  γ, β: (C,).
Train: as above. Eval: running_mean and running_var (C,) in place of μ_bn and σ²_bn, moved by ``momentum`` towards the
mean over the workers of both, biased; from 0 and 0, as official. in and ln are of the image at hand in both modes.
``using_bn=False``: in and ln alone, a and b (2,), no buffers; then no image sees another. Works from N = 1.
Differs from the official code: σ²_in is unbiased there, and NaN on 1 × 1 maps; biased here, and with it the others.
σ²_ln and σ²_bn are from centred values, not E[x²] − E[x]². Buffers (C,), not (1, C, 1), so that a BatchNorm2d's are
taken over (in a network made by ``apply`` they start as its own, 0 and 1); γ, β (C,), not (1, C, 1, 1). a and b are
never decayed. The statistics pass before evaluation (``using_moving_average=False``) is left out; momentum=None, the
plain average of all training batches, is the nearest.
With a, b on one of the three equals in, ln or bn: tests/norms/test_sn.py.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, plain, running
from normbench.norms.registry import Normalizer, register


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    mean_weight: Tensor,
    var_weight: Tensor,
    eps: float = 1e-5,
    batch: int | None = None,
    kept: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The plain formula, as in training; ``kept``: running mean and variance (C,), as in evaluation."""
    y = []
    for worker in x.split(batch or len(x)):
        pools = [(2, 3), (1, 2, 3), (0, 2, 3)][: len(mean_weight)]
        means = [worker.mean(over, keepdim=True) for over in pools]
        variances = [((worker - mu) ** 2).mean(over, keepdim=True) for mu, over in zip(means, pools, strict=True)]
        if kept is not None:
            means[2:], variances[2:] = [kept[0][:, None, None]], [kept[1][:, None, None]]
        mu = sum(w * one for w, one in zip(torch.softmax(mean_weight, 0), means, strict=True))
        var = sum(w * one for w, one in zip(torch.softmax(var_weight, 0), variances, strict=True))
        y.append((worker - mu) / torch.sqrt(var + eps))
    return weight[:, None, None] * torch.cat(y) + bias[:, None, None]


class SwitchableNorm(nn.Module):
    """Normalize by a learned mixture of instance, layer and batch statistics: (N, C, H, W) → the same.

    Then ``activation``. ``batch`` is as in BatchNorm.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    mean_weight: nn.Parameter
    var_weight: nn.Parameter
    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(
        self,
        num_features: int,
        using_bn: bool = True,
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
        self.using_bn, self.activation = using_bn, activation
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        for name in ("mean_weight", "var_weight"):
            self.register_parameter(name, nn.Parameter(torch.ones(2 + using_bn, device=device, dtype=dtype)))
        if using_bn:
            running.add(self, num_features, device=device, dtype=dtype)
            assert self.running_var is not None
            self.running_var.zero_()
        self.register_load_state_dict_pre_hook(_load)

    def forward(self, x: Tensor) -> Tensor:
        N, C, *_ = core.check_input(x, self.num_features, "sn")
        image = plain.moments(x)
        pairs = [image, plain.pool(*image, N, 1)]
        if self.using_bn:
            pairs.append(self._of_batch(*image))
        mean, var = self._mixed([plain.spread(value, N, C).expand(N, C) for value in chain(*zip(*pairs, strict=True))])
        return core.normalize(x, mean, var, self.eps, self.weight, self.bias, self.activation)

    def _mixed(self, statistics: list[Tensor]) -> Tensor:
        """The convex mixtures (2, N, C) of the means, which come first, and of the variances, (N, C) each."""
        logits = torch.stack((self.mean_weight, self.var_weight))
        shares = torch.softmax(logits.to(plain.at_least_float32(logits.dtype)), 1)
        return (shares[..., None, None] * torch.stack(statistics).unflatten(0, shares.shape)).sum(1)

    def _of_batch(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Batch norm's mean and variance, (workers, C) each, from those of each channel of each image."""
        N, C = mean.shape
        if not self.training and self.running_mean is not None:
            return running.evaluation(self, mean, (mean, var))
        workers = core.workers(N, self.batch if self.training else None, "sn")
        found = plain.pool(mean, var, workers, C)
        if self.training:
            running.update(self, *found, 1.0)
        return found

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one training statistic, of those mixed the one with most."""
        return max(batch, self.num_features) * H * W if self.using_bn else self.num_features * H * W

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, using_bn={self.using_bn}, eps={self.eps}, momentum={self.momentum}, "
            f"batch={self.batch}"
        )


def _load(unit: Any, state_dict: dict[str, Any], prefix: str, metadata: Any, _strict: bool, *lists: Any) -> None:
    """Before a load: one without mixing weights, whatever its version, is a BatchNorm2d's."""
    own = any(prefix + key in state_dict for key in ("mean_weight", "var_weight"))
    version = metadata.get("version") if own else nn.BatchNorm2d._version
    keys = () if unit.using_bn else running.STATISTICS
    running.leave_out(unit, state_dict, prefix, keys, {**metadata, "version": version}, lists[-1])


register(
    Normalizer(
        name="sn",
        unit=SwitchableNorm,
        method="Switchable Normalization",
        paper="Luo, Ren, Peng, Zhang & Li, ICLR 2019, arXiv:1806.10779",
        mixes_samples=True,
        train_eval_differ=True,
    )
)
