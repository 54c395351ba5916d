"""Instance Enhancement Batch Normalization (Liang, Huang, Liang & Yang, AAAI 2020, arXiv:1908.04008).

    δ = sigmoid(g m + h)          m: mean over H, W of x itself
    y = γ δ (x − μ) / √(σ² + ε) + β
x, y: (N, C, H, W).  μ, σ²: (C,), over H, W and the ``batch`` images of a worker; σ² biased.  m, δ: (N, C).  γ, β: (C,).
g, h: ``gate_weight`` and ``gate_bias``, (C,), from 0 and −1, so that the unit starts as BatchNorm times 0.2689.
Train and eval differ as BatchNorm's do, in μ and σ² alone; running_mean and running_var (C,) are BatchNorm's too. The
gate is of the image at hand in both. Works from N = 1, if H·W > 1.
Differs from the official code: that leaves BatchNorm in the shortcuts, the paper's text replaces all, and so do we. It
decays g and h as other weights; here they count among the parameters beside γ and β, which recipes do not decay.
With h = ∞ equals torch.nn.BatchNorm2d: tests/norms/test_iebn.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, running
from normbench.norms.core import Gate
from normbench.norms.registry import Normalizer, register

GATE_BIAS = -1.0


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    gate_weight: Tensor,
    gate_bias: Tensor,
    eps: float = 1e-5,
    batch: int | None = None,
) -> Tensor:
    """The plain formula, as in training."""
    y = []
    for worker in x.split(batch or len(x)):
        mu = worker.mean((0, 2, 3), keepdim=True)
        var = ((worker - mu) ** 2).mean((0, 2, 3), keepdim=True)
        y.append((worker - mu) / torch.sqrt(var + eps))
    delta = torch.sigmoid(gate_weight * x.mean((2, 3)) + gate_bias)[..., None, None]
    return weight[:, None, None] * delta * torch.cat(y) + bias[:, None, None]


class InstanceEnhancementBatchNorm(nn.Module):
    """Batch norm with a gate on γ for each channel of each image: (N, C, H, W) → the same, then ``activation``.

    ``batch`` is as in BatchNorm.
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
        self.gate_weight = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        self.gate_bias = nn.Parameter(torch.full((num_features,), GATE_BIAS, device=device, dtype=dtype))
        running.add(self, num_features, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(_load)

    def forward(self, x: Tensor) -> Tensor:
        N, C, H, W = core.check_input(x, self.num_features, "iebn")
        gate = Gate(core.parameter(self, "gate_weight"), core.parameter(self, "gate_bias"))
        if self.training or self.running_mean is None:
            workers = core.workers(N, self.batch if self.training else None, "iebn")
            track = running.variance(self, workers, running.unbiased(N // workers * H * W))
            return core.standardize(x, workers, C, self.eps, *core.affine(self), gate=gate, track=track)
        mean, var = running.evaluation(self, x)
        return core.normalize(x, mean, var, self.eps, *core.affine(self), gate=gate)

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one training statistic."""
        return batch * H * W

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, batch={self.batch}"


def _load(unit: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any, _strict: bool, *lists: Any) -> None:
    """Before a load: one without a gate, whatever its version, is a BatchNorm2d's."""
    if not any(prefix + key in state_dict for key in ("gate_weight", "gate_bias")):
        metadata = {**metadata, "version": nn.BatchNorm2d._version}
    running.leave_out(unit, state_dict, prefix, (), metadata, lists[-1])


register(
    Normalizer(
        name="iebn",
        unit=InstanceEnhancementBatchNorm,
        method="Instance Enhancement Batch Normalization",
        paper="Liang, Huang, Liang & Yang, AAAI 2020, arXiv:1908.04008",
        mixes_samples=True,
        train_eval_differ=True,
    )
)
