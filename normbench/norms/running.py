"""Running statistics: their buffers, their update as the mean over virtual workers, and a BatchNorm2d checkpoint's.

Momentum counts as in torch: 0.1 is the share of the new value; None keeps the plain average of all batches. running_var
takes the unbiased variance (of a single value the biased one, to stay finite).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normbench.errors import ConfigError
from normbench.norms import population
from normbench.norms.call import Track
from normbench.norms.plain import at_least_float32, pool, segments
from normbench.norms.plain import moments as of_planes

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
BATCHNORM_KEYS = ("weight", "bias", *STATISTICS)


def add(module: nn.Module, length: int | None, device: Any = None, dtype: Any = None) -> None:
    """Register running_mean (zeros) and running_var (ones), (length,) each; None each while the length is unknown."""
    mean = None if length is None else torch.zeros(length, device=device, dtype=dtype)
    var = None if length is None else torch.ones(length, device=device, dtype=dtype)
    module.register_buffer("running_mean", mean)
    module.register_buffer("running_var", var)
    module.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device))
    weigh_examples(module)


def known(count: Tensor) -> bool:
    """Whether a number can be read here and now: no device is to be waited for, no graph of a compiler's or a recording
    is in the making, which would hold what the number is today.
    """
    watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack()
    return type(count) is Tensor and count.is_cpu and not watched


def weigh_examples(module: Any) -> None:
    """Let evaluation mix an image's own moments in (``evaluation``), once ``example_weight`` is above its 0."""
    module.example_weight = 0.0


def set_example_weight(model: nn.Module, share: float) -> int:
    """Inference example weighing: let every unit that keeps running moments evaluate an image by a mixture, in which
    the image's own moments have the share ``share`` (0: running statistics alone). How many units do.

    Training is what it was, so the share can be chosen after it; on pictures that are neither trained on nor tested.
    Summers & Dinneen, ICLR 2020, arXiv:1906.03548. ConfigError for a share outside 0 … 1.
    """
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ConfigError(f"example weight: got {share!r}, expected a share from 0 to 1, such as 0.1")
    units = [module for module in model.modules() if "example_weight" in vars(module)]
    for unit in units:
        unit.example_weight = float(share)  # type: ignore[assignment]
    return len(units)


def variance(unit: Any, workers: int, unbiased: float | Tensor) -> Track | None:
    """To move running_mean and running_var towards μ and σ² of each worker, (workers, K): see ``move``.

    ``unbiased`` turns σ² into its estimate. None for a unit without running statistics.
    """
    if unit._buffers["num_batches_tracked"] is None:
        return None
    return Track(unit, "running_var", "var", workers, unbiased)


def of_segments(track: Track, x: Tensor, var: Tensor) -> Track:
    """``track``, whose estimates are those of segments of x (core.segmented), which differ in size; var: (rows, G)."""
    rows, G = var.shape
    sizes = len(x) // rows * segments(x[0].numel(), G, 1, var.device)[0].to(var.dtype)
    return track._replace(unbiased=sizes / (sizes - 1).clamp(min=1))


def deviation(unit: Any, workers: int) -> Track:
    """To move running_mean and running_std towards μ and √(σ² + ε) of each worker, (workers, K)."""
    return Track(unit, "running_std", "std", workers, eps=unit.eps)


def total(unit: Any, workers: int) -> Track | None:
    """To move running_mean and running_var towards the moments of all the workers' values, by rows that are ghosts.

    There is an equal number of ghosts for each worker. running_var is m₂ − m², of running first and second moments of
    all values, so that what varies from one batch to the next counts in it. Kept without that difference, which
    cancels: with the share a of the new value

        V ← (1 − a) V + a v + a (1 − a) (m − e)²        m ← (1 − a) m + a e
    """
    if unit._buffers["num_batches_tracked"] is None:
        return None
    return Track(unit, "running_var", "total", workers)


def update(unit: Any, mean: Tensor, var: Tensor, unbiased: float | Tensor, around: Tensor | None = None) -> None:
    """Move running_mean and running_var, where there are some, towards moments of the workers, (workers, K) each.

    around: the variance kept is that around this, (1, K), in place of the mean.
    """
    if (track := variance(unit, len(mean), unbiased)) is not None:
        move(track, mean, var, around)


@torch.no_grad()
def update_var(unit: Any, mean: Tensor, var: Tensor) -> None:
    """Move running_var alone, where there is one, towards the mean over the workers of ``var``, (workers, K)."""
    if unit.num_batches_tracked is not None:
        population.met(unit, mean, var)
        unit.num_batches_tracked.add_(1)
        _towards(unit, "running_var", var)


@torch.no_grad()
def move(track: Track, mean: Tensor, var: Tensor, around: Tensor | None = None) -> None:
    """Move the buffers by mean and biased variance of the rows of a batch, (rows, K) each, and count it.

    The update is linear, so the mean of what each worker would have kept is one update by the mean statistic. The CPU
    kernels do the same as a part of their forward (cpu/moving.py).
    """
    unit = track.unit
    population.met(unit, mean, var)
    unit.num_batches_tracked.add_(1)
    if track.kind == "total":
        _move_total(unit, track.workers, mean, var)
        return
    if around is not None:
        var = var + (mean - around).square()
    second = torch.sqrt(var + track.eps) if track.kind == "std" else var * track.unbiased
    for name, new in (("running_mean", mean), (track.second, second)):
        _towards(unit, name, new)


def _towards(unit: Any, name: str, new: Tensor) -> None:
    buffer = getattr(unit, name)
    buffer.lerp_(new.mean(0).to(buffer.dtype), share_of_new(unit, buffer.dtype))


def _move_total(unit: Any, workers: int, mean: Tensor, var: Tensor) -> None:
    old_mean, old_var = statistics(unit)
    mean, var = (value.to(old_mean.dtype) for value in pool(mean, var, workers, old_mean.shape[1]))
    share = share_of_new(unit, old_mean.dtype)
    apart = (old_mean - mean).square().mean(0)
    unit.running_var.copy_(old_var[0].lerp(var.mean(0) + (1 - share) * apart, share))
    unit.running_mean.copy_(old_mean[0].lerp(mean.mean(0), share))


def share_of_new(unit: Any, dtype: torch.dtype) -> float | Tensor:
    """The share of the new value, the batch counted already."""
    if unit.momentum is None:
        share: Tensor = unit.num_batches_tracked.to(at_least_float32(dtype)).reciprocal().to(dtype)
        return share
    return unit.momentum


def statistics(unit: Any) -> tuple[Tensor, Tensor]:
    """Running mean and variance as (1, K) each, at least float32."""
    dtype = at_least_float32(unit.running_var.dtype)
    return unit.running_mean.to(dtype)[None], unit.running_var.to(dtype)[None]


def evaluation(unit: Any, x: Tensor, moments: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Mean and variance to evaluate x (N, C, H, W) by: the running ones, (1, K) each, or mixed with each image's own.

    moments: the images' own, (N, C) each, where they are known already.
    """
    found = statistics(unit)
    if not unit.example_weight:
        return found
    own = pool(*(moments or of_planes(x)), len(x), found[0].shape[1])
    return mixed(unit.example_weight, own, found)


def mixed(share: float, own: tuple[Tensor, Tensor], kept: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of a mixture of two: ``share`` of the images' ``own`` moments, the rest of the ``kept`` ones.

        μ = α e + (1 − α) m        σ² = α s + (1 − α) v + α (1 − α) (e − m)²
    e, s: (N, K); m, v: (1, K). Summers & Dinneen, arXiv:1906.03548, where σ² is written as mean square less μ², which
    is the same and cancels.
    """
    dtype = torch.promote_types(own[0].dtype, kept[0].dtype)
    e, s, m, v = (value.to(dtype) for value in (*own, *kept))
    return torch.lerp(m, e, share), torch.lerp(v, s, share) + share * (1 - share) * (e - m).square()


def unbiased(values: int) -> float:
    """What turns the biased variance of so many values into the unbiased estimate; 1 for a single value."""
    return values / max(values - 1, 1)


def untrack(unit: Any) -> None:
    """No running statistics, so that evaluation takes the batch's own: torch's ``track_running_stats=False``."""
    for key in STATISTICS:
        setattr(unit, key, None)


def leave_statistics_out(
    unit: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any, _strict: bool, *lists: list[str]
) -> None:
    """A load_state_dict pre-hook for units without running statistics: a BatchNorm2d's are left out, and said."""
    leave_out(unit, state_dict, prefix, STATISTICS, metadata, lists[-1])


def take_statistics(
    unit: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any, _strict: bool, *lists: list[str]
) -> None:
    """A load_state_dict pre-hook for units whose statistics mean what a BatchNorm2d's do: they are taken over."""
    leave_out(unit, state_dict, prefix, (), metadata, lists[-1])


_last_load: list[str] | None = None


def leave_out(
    unit: nn.Module, state_dict: dict[str, Any], prefix: str, keys: Sequence[str], metadata: Any, load: list[str]
) -> None:
    """Take ``keys``, and an affine pair that the unit has not, out of a BatchNorm2d's ``state_dict``, and say so.

    What the unit has and a BatchNorm2d has not (a threshold) keeps its value, so that ``strict`` loading goes through.
    ``load`` is the list of errors torch passes to every module of one load: by its identity each load warns once.
    """
    global _last_load
    _count(unit, state_dict, prefix, metadata)
    keys = [*keys, *(key for key in ("weight", "bias") if getattr(unit, key, None) is None)]
    left = [prefix + key for key in keys if prefix + key in state_dict]
    if not left and metadata.get("version") != nn.BatchNorm2d._version:
        return
    for key in left:
        del state_dict[key]
    own = dict(unit.named_parameters(recurse=False)) | dict(unit.named_buffers(recurse=False))
    kept = [prefix + key for key in own if key not in ("weight", "bias") and prefix + key not in state_dict]
    state_dict.update({key: own[key.removeprefix(prefix)] for key in kept})
    if (left or kept) and load is not _last_load:
        _last_load = load
        without = f" left out, since they have no meaning here: {', '.join(left)}" if left else ""
        unchanged = f" kept as they were: {', '.join(kept)}" if kept else ""
        warnings.warn(
            f"{type(unit).__name__} from a BatchNorm2d's state:{';'.join(filter(None, (without, unchanged)))} "
            "(and likewise at this model's other units)",
            UserWarning,
            stacklevel=2,
        )


def _count(unit: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
    """States from before torch 0.4.1 have statistics and no num_batches_tracked: as there, the unit's own stays."""
    old = (metadata.get("version") or 0) < nn.BatchNorm2d._version
    own = getattr(unit, "num_batches_tracked", None)
    if old and own is not None and f"{prefix}running_mean" in state_dict:
        state_dict.setdefault(f"{prefix}num_batches_tracked", own)
