"""No normalization: what is left of a BatchNorm2d without its statistics.

    y = γ x + β
x, y: (N, C, H, W).  No statistics, no buffers.  γ, β: (C,).
Train and eval alike.  Works from N = 1.
No paper: the arm that shows what normalizing is worth. eps is taken and not used, so that any norm's place will do.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from normbench.norms import core, running
from normbench.norms.registry import Normalizer, register


def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The plain formula."""
    return weight[:, None, None] * x + bias[:, None, None]


class Identity(nn.Module):
    """Scale and shift each channel: (N, C, H, W) → the same, then ``activation``."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        activation: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        self.activation = activation
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(running.leave_statistics_out)

    def forward(self, x: Tensor) -> Tensor:
        core.check_input(x, self.num_features, "none")
        x = x if self.affine else x.clone()  # what works in place behind it must not reach its input
        return core.scale_shift(x, self.weight, self.bias, self.activation)

    def extra_repr(self) -> str:
        return f"{self.num_features}"


register(
    Normalizer(
        name="none",
        unit=Identity,
        method="no normalization (scale and shift)",
        paper="",
        mixes_samples=False,
        train_eval_differ=False,
    )
)
