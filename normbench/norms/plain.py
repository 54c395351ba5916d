"""The moment family in plain PyTorch: any device, any dtype, differentiated by autograd.

What the kernels compute is tested against this, and this against the formulas in the methods' files. Care points:

- statistics are at least float32 whatever the input, and float64 for float64;
- variance is biased, from centred values, so never below zero (no E[x²] − E[x]²);
- pooled variance is the mean of the variances plus the variance of the means, both again from centred values;
- the output has the input's dtype and, where its layout allows, its memory format.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms.call import After, Gate, Renorm


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype that statistics of ``dtype`` values are kept in."""
    return torch.promote_types(dtype, torch.float32)


def constant(value: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as a tensor (), filled on its device: nothing is copied there, which a recording would not allow."""
    return value.to(dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=device)


class _Threshold(torch.autograd.Function):
    """max(y, τ), with a tie's gradient for τ, as relu's at 0 is not y's; autograd's own halves it.

    A product with the mask, because on CPU ``where`` and ``masked_fill`` take five to ten times as long.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, threshold: Tensor) -> Tensor:
        return torch.maximum(y, threshold[:, None, None])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (y, threshold), (grad,) = ctx.saved_tensors, grads
        above = grad * (y <= threshold[:, None, None]).logical_not()  # NaN passes
        return above, (grad - above).sum((0, 2, 3))


def thresholded(y: Tensor, threshold: Tensor) -> Tensor:
    """max(y, τ): y (N, C, H, W), τ (C,)."""
    return _Threshold.apply(y, threshold.to(y.dtype))


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
    """Mean of squares over ``dims``: one pass forward, and one elementwise pass backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dims: tuple[int, ...]) -> Tensor:
        return x.to(at_least_float32(x.dtype)).square().mean(dims, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.values = inputs[0].numel() // output.numel()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return (x * (grads[0] * (2 / ctx.values))).to(x.dtype), None


def mean_square(x: Tensor, dims: tuple[int, ...] = (2, 3), keepdim: bool = False) -> Tensor:
    """Mean square over ``dims``, by default of each channel of each image; not centred, at least float32."""
    square = _MeanSquare.apply(x, dims)
    return square if keepdim else square.squeeze(dims)


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
    sizes = first_features(D, G, device).diff()
    index = torch.arange(G, device=device).repeat_interleave(sizes, output_size=D)
    if rows > 1:
        index = (index + torch.arange(rows, device=device)[:, None] * G).flatten()
    return sizes, index


def first_features(D: int, G: int, device: torch.device) -> Tensor:
    """The first feature of each of those groups, and D, (G + 1,)."""
    return (torch.arange(G + 1, device=device) * D + (G - 1)).div(G, rounding_mode="floor")


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
    mean: Tensor, var: Tensor, eps: float | Tensor, weight: Tensor | None, bias: Tensor | None
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


def standardize(
    x: Tensor,
    rows: int,
    groups: int,
    eps: float | Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: nn.Module | None = None,
    *,
    centered: bool = True,
    threshold: Tensor | None = None,
    renorm: Renorm | None = None,
    gate: Gate | None = None,
    after: After | None = None,
    by_channel: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``core.standardize``, of which this is the plain form."""
    plane_mean, plane_var = moments(x)
    if centered:
        mean, var = pool(plane_mean, plane_var, rows, groups)
    else:
        square, _ = pool(mean_square(x), plane_var, rows, groups)
        mean, var = torch.zeros_like(square), square
    if renorm is not None:
        renormalized = _renormalized(mean, var, eps, weight, bias, renorm)
        weight, bias = (spread(value, *x.shape[:2]) for value in renormalized)
    y = normalize(x, mean, var, eps, weight, bias, activation, threshold=threshold, gate=gate, after=after)
    if by_channel:
        mean, var = pool(plane_mean, plane_var, rows, x.shape[1])
    return y, mean.detach(), var.detach()


def normalize(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float | Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: nn.Module | None = None,
    *,
    threshold: Tensor | None = None,
    gate: Gate | None = None,
    after: After | None = None,
) -> Tensor:
    """See ``core.normalize``, of which this is the plain form."""
    N, C = x.shape[:2]
    if gate is not None:
        factor = torch.sigmoid(torch.addcmul(gate.bias, moments(x)[0], gate.weight))
        weight = factor if weight is None else factor * weight
    a, b = coefficients(spread(mean, N, C), spread(var, N, C), eps, weight, bias)
    return ended(scale_shift(x, a, b), activation, threshold, after)


def ended(
    y: Tensor, activation: nn.Module | None, threshold: Tensor | None = None, after: After | None = None
) -> Tensor:
    """What comes after scale and shift: the activation or a threshold, and scale and shift again."""
    if activation is not None:
        y = activation(y)
    if threshold is not None:
        y = thresholded(y, threshold)
    return y if after is None else scale_shift(y, after.scale, after.shift)


def _renormalized(
    mean: Tensor, var: Tensor, eps: float | Tensor, weight: Tensor | None, bias: Tensor | None, to: Renorm
) -> tuple[Tensor, Tensor]:
    """γ r and γ d + β of batch renormalization, (rows, C): r and d are constants for the gradient."""
    with torch.no_grad():
        r_max, d_max = to.bounds.to(var.dtype) if isinstance(to.bounds, Tensor) else to.bounds
        r = (torch.sqrt(var + eps) / to.std).clamp(1 / r_max, r_max)
        d = ((mean - to.mean) / to.std).clamp(-d_max, d_max)
    a = r if weight is None else r * weight
    b = d if weight is None else d * weight
    return a, b if bias is None else b + bias


def positional(
    x: Tensor, eps: float, unbiased: bool, weight: Tensor | None, bias: Tensor | None, activation: nn.Module | None
) -> Tensor:
    """See ``core.positional``, of which this is the plain form."""
    C = x.shape[1]
    mean, var = mean_var(x, (1,), keepdim=True)
    if unbiased:
        var = var * (C / (C - 1) if C > 1 else float("nan"))
    y = (x - mean) * torch.rsqrt(var + eps)
    y = scale_shift(y, weight, bias).to(x.dtype)
    return y if activation is None else activation(y)


def segmented(
    x: Tensor,
    rows: int,
    groups: int,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: nn.Module | None = None,
    given: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """See ``core.segmented``, of which this is the plain form; y, and μ and σ²."""
    mean, var = segment_moments(x, rows, groups) if given is None else given
    D, maps = x[0].numel(), (len(mean), 1, *x.shape[1:])
    m, v = (spread(value, len(value), D).expand(-1, D).reshape(maps) for value in (mean, var))
    a = torch.rsqrt(v + eps)
    a = a if weight is None else a * weight[:, None, None]
    # x first: the output takes the layout of the first operand
    y = (x.unflatten(0, (len(mean), -1)) - m) * a
    y = y if bias is None else y + bias[:, None, None]
    return ended(y.flatten(0, 1).to(x.dtype), activation), (mean.detach(), var.detach())


def segment_moments(x: Tensor, rows: int, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, (rows, groups) each, of segments of images: group(d) = (d·groups)//D."""
    D = x[0].numel()
    if D % groups == 0:
        return mean_var(x.reshape(rows, -1, groups, D // groups), (1, 3))
    mean, var = mean_var(x.reshape(rows, -1, D), (1,))
    return pool(mean, var, rows, groups)
