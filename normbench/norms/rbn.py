"""Representative Batch Normalization (Gao, Han, Li, Cheng & Peng, CVPR 2021).

    x' = x + m a(x)                        a: mean over H, W
    z = (x' − μ) / √(σ² + ε)               μ, σ²: of x'
    y = γ sigmoid(v a(z) + h) z + β
x, y: (N, C, H, W).  a: (N, C).  μ, σ²: (C,), over H, W and the ``batch`` images of a worker; σ² biased.  γ, β: (C,).
m, v, h: ``center_weight``, ``gate_weight``, ``gate_bias``, (C,), from 0, 0 and 1: the unit starts as BatchNorm × 0.731.
Train and eval differ as BatchNorm's do, in μ and σ² alone; running_mean and running_var (C,) are as BatchNorm's, of
x'. The calibrations, m and the gate, are of the image at hand in both. Works from N = 1, if H·W > 1.
Neither x' nor z is made: x' is x plus a constant of each map, so all follows from the maps' means and variances.
Differs from the official code: that writes x' over its input; its parameters are (1, C, 1, 1), and so decayed by rules
that ask for the number of axes; here m, v and h are never decayed. Accuracies of the paper were not seen.
With m = v = 0 equals BatchNorm with γ sigmoid(h): tests/norms/test_rbn.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, plain, running
from normbench.norms.registry import Normalizer, register

EXTRA = ("center_weight", "gate_weight", "gate_bias")


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    center_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    eps: float = 1e-5,
    batch: int | None = None,
    kept: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The plain formula, as in training; ``kept``: running mean and variance (C,), as in evaluation."""
    m, v, h = (parameter[:, None, None] for parameter in (center_weight, gate_weight, gate_bias))
    z = []
    for worker in (x + m * x.mean((2, 3), keepdim=True)).split(batch or len(x)):
        mu = worker.mean((0, 2, 3), keepdim=True)
        var = ((worker - mu) ** 2).mean((0, 2, 3), keepdim=True)
        if kept is not None:
            mu, var = (value[:, None, None] for value in kept)
        z.append((worker - mu) / torch.sqrt(var + eps))
    gate = torch.sigmoid(v * torch.cat(z).mean((2, 3), keepdim=True) + h)
    return weight[:, None, None] * gate * torch.cat(z) + bias[:, None, None]


class RepresentativeBatchNorm(nn.Module):
    """Batch norm, with the mean of each map moved before it and a gate on it after: (N, C, H, W) → the same.

    Then ``activation``. ``batch`` is as in BatchNorm.
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
        factory = {"device": device, "dtype": dtype}
        core.add_affine(self, num_features, affine, **factory)
        self.center_weight = nn.Parameter(torch.zeros(num_features, **factory))
        self.gate_weight = nn.Parameter(torch.zeros(num_features, **factory))
        self.gate_bias = nn.Parameter(torch.ones(num_features, **factory))
        running.add(self, num_features, **factory)
        self.register_load_state_dict_pre_hook(_load)

    def forward(self, x: Tensor) -> Tensor:
        N, C, H, W = core.check_input(x, self.num_features, "rbn")
        own, within = plain.moments(x)  # of each channel of each image
        moved = own * self.center_weight
        if self.training or self.running_mean is None:
            workers = core.workers(N, self.batch if self.training else None, "rbn")
            mean, var = plain.pool(own + moved, within, workers, C)
            running.update(self, mean, var, running.unbiased(N // workers * H * W))
        else:
            mean, var = running.evaluation(self, x, (own + moved, within))
        mean, var = plain.spread(mean, N, C), plain.spread(var, N, C)
        of_z = (own + moved - mean) * torch.rsqrt(var + self.eps)
        gate = torch.sigmoid(torch.addcmul(self.gate_bias, of_z, self.gate_weight))
        weight = gate if self.weight is None else gate * self.weight
        return plain.normalize(x, mean - moved, var, self.eps, weight, self.bias, self.activation)

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one training statistic."""
        return batch * H * W

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, batch={self.batch}"


def _load(unit: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any, _strict: bool, *lists: Any) -> None:
    """Before a load: one without calibrations, whatever its version, is a BatchNorm2d's."""
    if not any(prefix + key in state_dict for key in EXTRA):
        metadata = {**metadata, "version": nn.BatchNorm2d._version}
    running.leave_out(unit, state_dict, prefix, (), metadata, lists[-1])


register(
    Normalizer(
        name="rbn",
        unit=RepresentativeBatchNorm,
        method="Representative Batch Normalization",
        paper="Gao, Han, Li, Cheng & Peng, CVPR 2021",
        mixes_samples=True,
        train_eval_differ=True,
    )
)
