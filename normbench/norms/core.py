"""What every normalizer shares: input checks, moments, pooling over images × channels, scale and shift.

A unit takes ``moments(x)``, (N, C) each, does a few lines of algebra on them and ends in ``normalize`` or
``scale_shift``; the memory traffic is all in here. Care points, once for all:

- statistics are at least float32 whatever the input, and float64 for float64;
- variance is biased, from centred values, so never below zero (no E[x²] − E[x]²);
- pooled variance is the mean of the variances plus the variance of the means, both again from centred values;
- the output has the input's dtype and, where its layout allows, its memory format.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.errors import InputError


def check_input(x: Tensor, num_features: int, name: str) -> tuple[int, int, int, int]:
    """(N, C, H, W) of a batch that the unit ``name`` can take; raises InputError for any other tensor."""
    if x.dim() != 4:
        raise InputError(
            f"{name}: got a tensor of {x.dim()} axes, shape {tuple(x.shape)}, expected (N, C, H, W) with "
            f"C={num_features}; give one picture as x[None]"
        )
    if x.shape[1] != num_features:
        raise InputError(
            f"{name}: got {x.shape[1]} channels, shape {tuple(x.shape)}, expected (N, C, H, W) with "
            f"C={num_features}; build the unit with num_features={x.shape[1]} or permute the axes"
        )
    if not x.is_floating_point():
        raise InputError(f"{name}: got {x.dtype}, expected a floating-point tensor; convert it with x.float()")
    if x.numel() == 0:
        raise InputError(f"{name}: got an empty tensor, shape {tuple(x.shape)}, expected one picture and pixel or more")
    N, C, H, W = x.shape
    return N, C, H, W


def workers(N: int, batch: int | None, name: str) -> int:
    """How many groups of ``batch`` consecutive images ``N`` images are; raises InputError if they do not split."""
    if batch is None:
        return 1
    if N % batch:
        near = max(N // batch, 1) * batch
        raise InputError(
            f"{name}: got {N} images, which do not split into workers of batch={batch}; "
            f"give a multiple of {batch}, such as {near}, or leave the incomplete batch out (drop_last)"
        )
    return N // batch


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype that statistics of ``dtype`` values are kept in."""
    return torch.promote_types(dtype, torch.float32)


class _MeanVar(torch.autograd.Function):
    """Mean and biased variance over ``dims``: two passes forward, and one elementwise pass backward.

    Left to autograd the same lines keep two more copies of x and take about twice as long.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        mean = x.mean(dims, keepdim=True, dtype=at_least_float32(x.dtype))
        return mean, (x - mean).square_().mean(dims, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x, mean), (grad_mean, grad_var) = ctx.saved_tensors, grads
        values = x.numel() // mean.numel()
        a = grad_var * (2 / values)
        b = torch.addcmul(grad_mean / values, mean, a, value=-1)
        return torch.addcmul(b, x, a).to(x.dtype), None


def mean_var(x: Tensor, dims: tuple[int, ...], keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of ``x`` over ``dims``, at least float32."""
    mean, var = _MeanVar.apply(x, dims)
    return (mean, var) if keepdim else (mean.squeeze(dims), var.squeeze(dims))


class _MeanSquare(torch.autograd.Function):
    """Mean of squares over H, W: one pass forward, and one elementwise pass backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.to(at_least_float32(x.dtype)).square().mean((2, 3))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        a = grads[0] * (2 / (x.shape[2] * x.shape[3]))
        return (x * a[:, :, None, None]).to(x.dtype)


def mean_square(x: Tensor) -> Tensor:
    """Mean square of each channel of each image, not centred: x (N, C, H, W) → (N, C), at least float32."""
    return _MeanSquare.apply(x)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of each image: x (N, C, H, W) → (N, C) each."""
    return mean_var(x, (2, 3))


def pool(mean: Tensor, var: Tensor, rows: int, groups: int) -> tuple[Tensor, Tensor]:
    """Moments of unions: (N, C) each → (rows, groups) each.

    Row r is N/rows consecutive images (rows must divide N); group(c) = (c·groups)//C, which is C/groups consecutive
    channels where groups divides C and sizes that differ by one where it does not. Exact, since all (n, c) hold equally
    many values.
    """
    N, C = mean.shape
    if C % groups:
        return _pool_uneven(*pool(mean, var, rows, C), groups)
    if rows == N and groups == C:
        return mean, var
    shape = (rows, N // rows, groups, C // groups)
    mean, between = mean_var(mean.reshape(shape), (1, 3))
    return mean, between + var.reshape(shape).mean((1, 3))


def spread(value: Tensor, rows: int, features: int) -> Tensor:
    """The inverse of ``pool``: (R, G) → (rows, features), each value where its group was.

    One row, or one group, is left to broadcasting: (1, ·) and (·, 1).
    """
    R, G = value.shape
    if features % G:
        value = value.flatten().index_select(0, segments(features, G, R, value.device)[1]).view(R, features)
    elif 1 < G < features:
        value = value[:, :, None].expand(R, G, features // G).reshape(R, features)
    if 1 < R < rows:
        value = value[:, None].expand(R, rows // R, value.shape[1]).reshape(rows, -1)
    return value


def segments(D: int, G: int, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sizes (G,) of the groups group(d) = (d·G)//D, and the group of every feature of every row, flat: (rows·D,)."""
    edges = (torch.arange(G + 1, device=device) * D + (G - 1)).div(G, rounding_mode="floor")
    sizes = edges.diff()
    index = torch.arange(G, device=device).repeat_interleave(sizes, output_size=D)
    if rows > 1:
        index = (index + torch.arange(rows, device=device)[:, None] * G).flatten()
    return sizes, index


def _pool_uneven(mean: Tensor, var: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Moments of groups whose sizes differ by one: (R, D) each → (R, groups) each, by segment sums."""
    R, D = mean.shape
    sizes, index = segments(D, groups, R, mean.device)

    def average(value: Tensor) -> Tensor:  # flat, because index_add in one dimension is the quick one
        total = value.new_zeros(R * groups).index_add(0, index, value.flatten())
        return total.view(R, groups) / sizes

    pooled = average(mean)
    apart = mean - pooled.flatten().index_select(0, index).view(R, D)
    return pooled, average(var + apart.square())


def coefficients(
    mean: Tensor, var: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """a, b with γ (x − μ) / √(σ² + ε) + β = a x + b, of the shapes that the four broadcast to."""
    a = torch.rsqrt(var + eps)
    if weight is not None:
        a = a * weight
    return a, -mean * a if bias is None else torch.addcmul(bias, mean, a, value=-1)


def scale_shift(x: Tensor, a: Tensor | None, b: Tensor | None, activation: nn.Module | None = None) -> Tensor:
    """activation(a x + b): x (N, C, H, W); a, b broadcast to (N, C), or None for 1 and 0; computed in a's dtype."""
    if a is None:
        y = x
    elif b is None:
        y = (x * a[..., None, None]).to(x.dtype)
    else:
        y = torch.addcmul(b[..., None, None], x, a[..., None, None]).to(x.dtype)
    return y if activation is None else activation(y)


def normalize(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: nn.Module | None = None,
) -> Tensor:
    """activation(γ (x − μ) / √(σ² + ε) + β): x (N, C, H, W); mean, var (rows, groups) as from ``pool``; γ, β (C,)."""
    N, C = x.shape[:2]
    a, b = coefficients(spread(mean, N, C), spread(var, N, C), eps, weight, bias)
    return scale_shift(x, a, b, activation)


def add_affine(module: nn.Module, num_features: int, affine: bool, **factory: Any) -> None:
    """Register weight (γ, ones) and bias (β, zeros), both (C,); None each without ``affine``."""
    weight = nn.Parameter(torch.ones(num_features, **factory)) if affine else None
    bias = nn.Parameter(torch.zeros(num_features, **factory)) if affine else None
    module.register_parameter("weight", weight)
    module.register_parameter("bias", bias)
