"""Values that are not finite, by given statistics: an activation passes them, or cuts them off, as in plain PyTorch.

So y and the gradient of x are the same. The gradient of γ is where they pass; where they are cut off, plain PyTorch
makes NaN of 0 times infinity, and the kernels, in which what is cut off does not count, do not. torch's ReLU6 lets NaN
pass but no gradient, the kernels both.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fused_cases import both_formats
from torch import Tensor, nn

from normbench.norms import core, fused

MEAN, VAR = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
# By maps, in two layouts; by lanes; of one pixel.
SHAPES = [(4, 3, 12, 5), (8, 3, 2, 2), (4, 3, 1, 1)]
WAYS: dict[str, Callable[..., Tensor]] = {
    "none": lambda x, w, b, _: core.normalize(x, MEAN, VAR, 1e-3, w, b),
    "relu": lambda x, w, b, _: core.normalize(x, MEAN, VAR, 1e-3, w, b, nn.ReLU()),
    "relu6": lambda x, w, b, _: core.normalize(x, MEAN, VAR, 1e-3, w, b, nn.ReLU6()),
    "sum": lambda x, w, b, other: core.normalize(x, MEAN, VAR, 1e-3, w, b, nn.ReLU(), residual=other),
    "segments": lambda x, w, b, _: core.segmented(
        x, 1, 2, 1e-3, w, b, nn.ReLU(), given=(MEAN[:, :2], VAR[:, :2])
    ),
    "scale": lambda x, w, b, _: core.scale_shift(x, w, b, nn.ReLU()),
    "relu alone": lambda x, w, b, _: core.scale_shift(x, None, None, nn.ReLU()) + 0 * (w + b)[:, None, None],
    "threshold": lambda x, w, b, _: core.normalize(x, MEAN, VAR, 1e-3, w, b, threshold=b),
}  # fmt: skip


def outcome(
    way: Callable[..., Tensor], shape: tuple[int, ...], layout: torch.memory_format, value: float
) -> list[Tensor]:
    """y, and the gradients of x and γ, where one value of x is ``value``."""
    draw = torch.Generator().manual_seed(1)
    x, other = (torch.randn(shape, generator=draw, dtype=torch.float64).contiguous(memory_format=layout) for _ in "xo")
    x[1, 1, -1, -1] = value
    own = [torch.tensor([0.5, 2, -1], dtype=torch.float64), torch.tensor([1.0, 0.25, -0.5], dtype=torch.float64)]
    x, weight, *_ = inputs = [t.requires_grad_() for t in (x, *own, other)]
    y = way(*inputs)
    return [y.detach(), *torch.autograd.grad(y, [x, weight], torch.randn(shape, generator=draw, dtype=torch.float64))]


@both_formats
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", WAYS)
def test_they_are_as_in_plain_pytorch(
    name: str, shape: tuple[int, ...], value: float, memory_format: torch.memory_format
) -> None:
    if name == "relu6" and value != value:
        pytest.skip("torch's ReLU6 lets NaN pass, but no gradient")
    found = outcome(WAYS[name], shape, memory_format, value)
    with fused.unfused():
        expected = outcome(WAYS[name], shape, memory_format, value)
    passes = name == "none" or (value > 0 and name != "relu6")
    for one, plain in zip(found[: 2 + passes], expected, strict=False):
        torch.testing.assert_close(one, plain, equal_nan=True)
    assert passes or found[2].isfinite().all() or value != value
