"""EvoNorm-B0, normalization and activation in one (Liu, Brock, Simonyan & Le, NeurIPS 2020, arXiv:2004.02967).

    y = γ x / max(√(σ_b² + ε), v x + √(σ_i² + ε)) + β
x, y: (N, C, H, W).  σ_b²: (C,), over H, W and the ``batch`` images of a worker.  σ_i²: (N, C), over H, W.  Both biased;
no mean is subtracted.  γ, β: (C,).  v: (C,), from 1.
Train: as above. Eval: running_var (C,) in place of σ_b², moved by ``momentum`` towards the mean over the workers of
σ_b², biased as in the official code (timm keeps the unbiased one); σ_i² is of the image at hand. Works from N = 1.
It stands in the place of the rectifier that follows (RECTIFIERS: ReLU and its relatives). A site without one, or with
another activation, which is kept, gets γ x + β alone, without v and buffers: official and timm's code without the
nonlinearity do not normalize either. So of the ResNets take the pre-activation ones; in the others, which the official
code refuses, the norm before every sum is scale and shift alone.
Differs from the paper, whose text was not seen: the formula is that of the official ResNet code; that relatives of the
ReLU are replaced too is our choice. eps is the replaced BatchNorm's, as there; timm has 1e-3 for B0. Losses of NaN were
reported of public ports.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, plain, running
from normbench.norms.registry import Normalizer, register

RECTIFIERS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus,
)  # fmt: skip


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    v: Tensor,
    eps: float = 1e-5,
    batch: int | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """The plain formula, as in training; ``kept``: running variance (C,), as in evaluation."""
    y = []
    for worker in x.split(batch or len(x)):
        of_batch = worker.var((0, 2, 3), correction=0, keepdim=True) if kept is None else kept[:, None, None]
        of_image = worker.var((2, 3), correction=0, keepdim=True)
        slope = v[:, None, None] * worker
        y.append(worker / torch.maximum(torch.sqrt(of_batch + eps), slope + torch.sqrt(of_image + eps)))
    return weight[:, None, None] * torch.cat(y) + bias[:, None, None]


class EvoNormB0(nn.Module):
    """Divide by a deviation of the batch or the image: (N, C, H, W) → the same, in place of norm and rectifier.

    ``batch`` is as in BatchNorm.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    v: nn.Parameter | None
    running_var: Tensor | None
    example_weight: float

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
        takes_over = isinstance(activation, RECTIFIERS)
        self.activation = None if takes_over else activation
        factory = {"device": device, "dtype": dtype}
        core.add_affine(self, num_features, affine, **factory)
        self.register_parameter("v", nn.Parameter(torch.ones(num_features, **factory)) if takes_over else None)
        self.register_buffer("running_var", torch.ones(num_features, **factory) if takes_over else None)
        count = torch.zeros((), dtype=torch.long, device=device) if takes_over else None
        self.register_buffer("num_batches_tracked", count)
        running.weigh_examples(self)
        self.register_load_state_dict_pre_hook(_load)

    def forward(self, x: Tensor) -> Tensor:
        N, C, *_ = core.check_input(x, self.num_features, "evonorm_b0")
        if self.v is None:
            x = x if self.weight is not None else x.clone()  # what works in place behind it must not reach its input
            return core.scale_shift(x, self.weight, self.bias, self.activation)
        mean, var = plain.moments(x)
        of_batch = plain.spread(self._of_batch(mean, var), N, C)
        floor, of_image = (torch.sqrt(value + self.eps)[..., None, None] for value in (of_batch, var))
        wide = x.to(var.dtype)
        # max(f, g) = f + relu(g − f), because the backward of maximum takes several times as long on CPU.
        above = torch.relu(torch.addcmul(of_image - floor, wide, self.v[:, None, None]))
        return plain.scale_shift(wide / (floor + above), self.weight, self.bias).to(x.dtype)

    def _of_batch(self, mean: Tensor, var: Tensor) -> Tensor:
        """The variance of the batch, (workers, C), from the moments of each channel of each image."""
        N, C = mean.shape
        if not self.training and self.running_var is not None:
            kept = self.running_var.to(var.dtype)[None]
            return torch.lerp(kept, var, self.example_weight) if self.example_weight else kept  # no mean is kept
        workers = core.workers(N, self.batch if self.training else None, "evonorm_b0")
        of_mean, found = plain.pool(mean, var, workers, C)
        if self.training:
            running.update_var(self, of_mean, found)
        return found

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one training statistic."""
        return batch * H * W

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, batch={self.batch}, "
            f"nonlinearity={self.v is not None}"
        )


def _load(unit: Any, state_dict: dict[str, Any], prefix: str, metadata: Any, _strict: bool, *lists: Any) -> None:
    """Before a load: of a BatchNorm2d's statistics the variance is taken, if there is one here; the mean never."""
    keys = running.STATISTICS if unit.running_var is None else ("running_mean",)
    running.leave_out(unit, state_dict, prefix, keys, metadata, lists[-1])


register(
    Normalizer(
        name="evonorm_b0",
        unit=EvoNormB0,
        method="EvoNorm-B0, normalization and activation by batch and image variance",
        paper="Liu, Brock, Simonyan & Le, NeurIPS 2020, arXiv:2004.02967",
        mixes_samples=True,
        train_eval_differ=True,
        own_activation=True,
        drop_in=False,
    )
)
