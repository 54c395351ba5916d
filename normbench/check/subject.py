"""The normalizer that is checked: units of it, pictures for them, and what each promise says of it in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normbench import norms

# Small, uneven maps; enough images for workers of two.
N, H, W = 6, 5, 4


class Broken(Exception):
    """A promise that is not kept; the message says what was got and what was expected."""


class Skipped(Exception):
    """A promise that this normalizer does not make; the message says why."""


@dataclass(frozen=True)
class Subject:
    """A normalizer by its name, the channels of its units, and its options."""

    name: str
    channels: int = 32
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> norms.Normalizer:
        return norms.get(self.name, self.options)

    def unit(self, dtype: torch.dtype = torch.float64, *, training: bool = True, trained: int = 0, **given: Any) -> Any:
        """A unit with a ReLU behind it and affine parameters off their start; ``trained``: after so many forwards."""
        torch.manual_seed(0)
        activation = given.pop("activation", nn.ReLU())
        made = norms.build(self.name, self.channels, activation=activation, dtype=dtype, **given, **self.options)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, dtype=torch.float64).to(parameter))
        for step in range(trained):
            made(self.pictures(dtype=dtype, seed=10 + step) * (1 + 0.2 * step) + 0.1 * step)
        return made.train(training)

    def pictures(self, *shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
        """Values of another mean and spread in each channel: (N, C, H, W), of ``shape`` = (N, H, W)."""
        n, height, width = shape or (N, H, W)
        draws = torch.Generator().manual_seed(seed)
        x = torch.randn(n, self.channels, height, width, generator=draws, dtype=torch.float64)
        spread = torch.linspace(0.5, 2.0, self.channels, dtype=torch.float64)[:, None, None]
        return (x * spread + spread).to(dtype)

    def least(self, images: int) -> int:
        """``images``, or the smallest batch that the method trains on where that is larger."""
        return max(images, self.row.least_batch)


def forward(unit: nn.Module, x: Tensor, seed: int = 3) -> Tensor:
    """The unit's output, its random draws (dropout and the like) made from ``seed``."""
    torch.manual_seed(seed)
    y = unit(x)
    if not isinstance(y, Tensor):
        raise Broken(f"a forward gave {type(y).__name__}, expected a tensor of the input's shape")
    return y


def alike(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Raise Broken if two outputs differ by more than ``tolerance``, or one is not finite."""
    if got.shape != expected.shape:
        raise Broken(f"{what}: got shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    apart = (got.double() - expected.double()).abs().max().item()
    if not apart <= tolerance:
        raise Broken(f"{what}: differs by {apart:.2g}, expected {tolerance:.0e} at most")


def finite(tensor: Tensor | None, what: str) -> None:
    """Raise Broken for a tensor with inf or NaN in it."""
    if tensor is not None and not tensor.isfinite().all():
        raise Broken(f"{what}: got values that are not finite")
