"""What every normalizer stands on: input checks, and the functions in which all memory traffic is.

A unit is a few lines that say which images and channels share statistics; standardize, normalize and, for groups that
are not of whole channels, segmented and positional do the rest, by fused kernels where there are some for the device
and dtype, and in plain PyTorch everywhere else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.errors import InputError
from normbench.norms import fused, plain, repeated, running
from normbench.norms.call import After, Gate, Moments, Parts, Renorm, Track

__all__ = [
    "After",
    "Gate",
    "Renorm",
    "add_affine",
    "affine",
    "check_input",
    "kernels_here",
    "measured",
    "normalize",
    "parameter",
    "positional",
    "scale_shift",
    "segmented",
    "standardize",
    "thresholded",
    "workers",
]

NEITHER = (None, None)
NONE_OF_THREE = (None, None, None)


def check_input(x: Tensor, num_features: int, name: str) -> tuple[int, int, int, int]:
    """(N, C, H, W) of a batch that the unit ``name`` can take; raises InputError for any other tensor."""
    shape = x.shape
    if len(shape) == 4 and shape[1] == num_features and x.numel() and x.is_floating_point():
        return shape
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
    raise InputError(f"{name}: got an empty tensor, shape {tuple(x.shape)}, expected one picture and pixel or more")


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
    track: Track | None = None,
    by_channel: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """activation(γ (x − μ) / √(σ² + ε) + β) by the moments of x itself.

    x, y: (N, C, H, W). μ, σ²: (rows, groups); row r is N/rows consecutive images (rows must divide N), group(c) =
    (c·groups)//C; σ² biased. γ, β: ``weight`` and ``bias``, (C,). Beside these

    - ``centered=False``: σ² is the mean square and μ = 0 (frn);
    - ``threshold``: τ (C,), max(·, τ) in place of an activation (TLU);
    - ``renorm``: γ (x̂ r + d) + β with batch renormalization's r and d, for groups = C;
    - ``gate``: γ times a factor of each channel of each image (iebn);
    - ``after``: scale and shift behind the activation (proxy);
    - ``track``: running statistics to move by μ and σ² (running.py), or, ``by_channel``, by those of each channel,
      (rows, C), whatever the groups are (not with a gate);
    - ``residual``: added before the activation, or threshold; what broadcasts with x.
    """
    kind, beside = repeated.beside(threshold, after, gate, renorm)
    asked, own = (rows, groups, eps, centered, by_channel), (weight, bias, *beside)
    y, key = repeated.again(x, asked, kind, own, activation, track, residual, renorm)
    if y is not None:
        return y
    parts = Parts(weight, bias, threshold, *(after or NEITHER), *(gate or NEITHER), *(renorm or NONE_OF_THREE))
    kernels = fused.kernels_for(x, eps, parts, activation)
    if residual is not None and not fused.joins(kernels, residual, x, parts):
        apart: dict[str, Any] = {"centered": centered, "renorm": renorm, "gate": gate, "by_channel": by_channel}
        bare = standardize(x, rows, groups, eps, weight, bias, track=track, **apart)
        return plain.ended(bare + residual, activation, threshold, after)
    if kernels is not None:
        more = centered, by_channel, track, residual
        y, call = fused.standardize(kernels, x, rows, groups, eps, activation, parts, *more)
        repeated.note(key, call, x, kind, own, track, residual)
        return y
    options: dict[str, Any] = {"threshold": threshold, "renorm": renorm, "gate": gate, "after": after}
    options |= {"centered": centered, "by_channel": by_channel}
    y, mean, var = plain.standardize(x, rows, groups, eps, weight, bias, activation, **options)
    if track is not None:
        running.move(track, mean, var)
    return y


def measured(
    x: Tensor,
    rows: int,
    groups: int,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: nn.Module | None = None,
    *,
    renorm: Renorm | None = None,
    gate: Gate | None = None,
    by_channel: bool = False,
) -> tuple[Tensor, Moments]:
    """``standardize``, and the μ and σ² that it was done by.

    ``by_channel``: those of each channel, (rows, C), whatever the groups are (not with a gate).
    """
    parts = Parts(weight, bias, None, *NEITHER, *(gate or NEITHER), *(renorm or NONE_OF_THREE))
    kernels = fused.kernels_for(x, eps, parts, activation)
    if kernels is not None:
        y, found = fused.standardize(kernels, x, rows, groups, eps, activation, parts, True, by_channel)
        return y, Moments(*found.tensors())
    options: dict[str, Any] = {"renorm": renorm, "gate": gate, "by_channel": by_channel}
    y, mean, var = plain.standardize(x, rows, groups, eps, weight, bias, activation, **options)
    return y, Moments(mean, var)


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
    residual: Tensor | None = None,
) -> Tensor:
    """activation(γ (x − μ) / √(σ² + ε) + β) by given moments: x (N, C, H, W); mean, var (rows, groups); γ, β (C,).

    ``residual`` as in ``standardize``.
    """
    parts = Parts(weight, bias, threshold, *NEITHER, *(gate or NEITHER))
    kernels = fused.kernels_for(x, eps, parts, activation)
    if mean.requires_grad or var.requires_grad or isinstance(eps, Tensor):
        kernels = None
    if residual is not None and not fused.joins(kernels, residual, x, parts):
        bare = normalize(x, mean, var, eps, weight, bias, gate=gate)
        return plain.ended(bare + residual, activation, threshold)
    if kernels is None:
        return plain.normalize(x, mean, var, eps, weight, bias, activation, threshold=threshold, gate=gate)
    return fused.normalize(kernels, x, (mean, var), eps, activation, parts, residual)


def kernels_here(x: Tensor) -> bool:
    """Whether ``x`` takes the kernels here and now, so that to look at a value waits for no device, breaks no graph."""
    return x.is_cpu and not torch.compiler.is_compiling() and fused.kernels_for(x, 0.0, Parts(), None) is not None


def scale_shift(x: Tensor, weight: Tensor | None, bias: Tensor | None, activation: nn.Module | None = None) -> Tensor:
    """activation(γ x + β): x (N, C, H, W); γ, β (C,)."""
    own = (weight, bias)
    y, key = repeated.again(x, repeated.AS_IT_IS, "", own, activation, None, None)
    if y is not None:
        return y
    parts = Parts(weight, bias)
    kernels = fused.kernels_for(x, 0.0, parts, activation)
    if kernels is None:
        return plain.scale_shift(x, weight, bias, activation)
    y, call = fused.scale_shift(kernels, x, activation, parts)
    repeated.note(key, call, x, "", own, None, None)
    return y


def thresholded(x: Tensor, threshold: Tensor, residual: Tensor | None = None) -> Tensor:
    """max(x, τ), or max(x + residual, τ): x (N, C, H, W); τ (C,); a residual that broadcasts with x."""
    kind, own = "threshold alone", (threshold,)
    y, key = repeated.again(x, repeated.AS_IT_IS, kind, own, None, None, residual)
    if y is not None:
        return y
    parts = Parts(threshold=threshold)
    kernels = fused.kernels_for(x, 0.0, parts, None)
    if residual is not None and not fused.joins(kernels, residual, x, Parts()):  # y tells all of a threshold alone
        return thresholded(x + residual, threshold)
    if kernels is None:
        return plain.thresholded(x, threshold)
    y, call = fused.scale_shift(kernels, x, None, parts, residual)
    repeated.note(key, call, x, kind, own, None, residual)
    return y


def positional(
    x: Tensor, eps: float, unbiased: bool, weight: Tensor | None, bias: Tensor | None, activation: nn.Module | None
) -> Tensor:
    """activation(γ (x − μ) / √(σ² + ε) + β), μ and σ² of each pixel over its channels: x (N, C, H, W); γ, β (C,)."""
    parts = Parts(weight, bias)
    kernels = fused.kernels_for(x, eps, parts, activation)
    alone = (weight is None) != (bias is None)
    if kernels is None or kernels is fused.operators or alone or not hasattr(kernels, "positional"):
        return plain.positional(x, eps, unbiased, weight, bias, activation)
    return fused.positional(kernels.positional, x, eps, unbiased, activation, parts)


def segmented(
    x: Tensor,
    rows: int,
    groups: int,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: nn.Module | None = None,
    *,
    given: tuple[Tensor, Tensor] | None = None,
    track: Track | None = None,
) -> Tensor:
    """activation(γ (x − μ) / √(σ² + ε) + β) by the moments of segments of images, which may begin amid a channel.

    x: (N, C, H, W), whose D = C·H·W features, in that order, are cut: group(d) = (d·groups)//D. μ, σ²: (rows, groups);
    row r is N/rows consecutive images; σ² biased. γ, β: (C,). ``given``: μ and σ² where they are not x's own.
    ``track``: of the kind "var", with a worker for each row; its unbiased estimate is found here, by the size of each
    segment. On CPU a tensor in channels_last is copied into the order that segments are of, and y back, where these
    begin at many pixels, close together (cpu/plan.py, ``goes_by_stretches``).
    """
    own, key = (weight, bias), None
    if given is None:
        y, key = repeated.again(x, (rows, groups, eps, "segments"), "", own, activation, track, None)
        if y is not None:
            return y
    (_, C, H, W), parts = x.shape, Parts(weight, bias)
    D = C * H * W
    kernels = fused.kernels_for(x, eps, parts, activation) if groups < D else None  # those of one value each are slower
    learned = given is not None and (given[0].requires_grad or given[1].requires_grad)
    if kernels is not None and x.is_cpu and not learned:
        if given is not None:
            return fused.normalize(kernels, x, given, eps, activation, parts, cut=True)
        y, call = fused.standardize(kernels, x, rows, groups, eps, activation, parts, track=track, cut=True)
        repeated.note(key, call, x, "", own, track, None)
        return y
    if groups % C == 0 and D % groups == 0 and x.is_contiguous() and given is None:  # strips of maps, as if maps
        strips = x.view(len(x), groups, D // groups, 1)
        weight, bias = (None if part is None else part.repeat_interleave(groups // C) for part in own)
        track = None if track is None else track._replace(unbiased=running.unbiased(len(x) // rows * (D // groups)))
        return standardize(strips, rows, groups, eps, weight, bias, activation, track=track).view(x.shape)
    y, found = plain.segmented(x, rows, groups, eps, weight, bias, activation, given)
    if track is not None and found is not None:
        running.move(running.of_segments(track, x, found[1]), *found)
    return y


def affine(unit: nn.Module) -> tuple[Tensor | None, Tensor | None, nn.Module | None]:
    """γ, β and the activation of a unit."""
    return parameter(unit, "weight"), parameter(unit, "bias"), unit._modules.get("activation")


def parameter(unit: nn.Module, name: str) -> Any:
    """``unit.name``, sooner: as an attribute it is looked for in four places, which takes longer than small kernels."""
    try:
        return unit._parameters[name]
    except KeyError:  # parametrized or pruned: made of other parameters
        return getattr(unit, name)


def add_affine(module: nn.Module, num_features: int, affine: bool, **factory: Any) -> None:
    """Register weight (γ, ones) and bias (β, zeros), both (C,); None each without ``affine``."""
    weight = nn.Parameter(torch.ones(num_features, **factory)) if affine else None
    bias = nn.Parameter(torch.zeros(num_features, **factory)) if affine else None
    module.register_parameter("weight", weight)
    module.register_parameter("bias", bias)
