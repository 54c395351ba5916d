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

from normbench.norms import fused
from normbench.norms.call import Moments
from normbench.norms.plain import at_least_float32, pool

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
BATCHNORM_KEYS = ("weight", "bias", *STATISTICS)


def add(module: nn.Module, length: int | None, device: Any = None, dtype: Any = None) -> None:
    """Register running_mean (zeros) and running_var (ones), (length,) each; None each while the length is unknown."""
    mean = None if length is None else torch.zeros(length, device=device, dtype=dtype)
    var = None if length is None else torch.ones(length, device=device, dtype=dtype)
    module.register_buffer("running_mean", mean)
    module.register_buffer("running_var", var)
    module.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device))


def update(unit: Any, found: Moments, unbiased: float | Tensor) -> None:
    """Move the buffers towards the workers' statistics, (workers, K) each; ``unbiased`` turns var into its estimate.

    The update is linear, so the mean of what each worker would have kept is one update by the mean statistic.
    """
    count = unit._buffers["num_batches_tracked"]
    if count is None:
        return
    count.add_(1)
    if not isinstance(unbiased, Tensor) and fused.move(unit, "running_var", found, unbiased=unbiased):
        return
    mean, var = found.tensors()
    _move(unit, running_mean=mean, running_var=var * unbiased)


def update_var(unit: Any, var: Tensor) -> None:
    """Move running_var alone towards the mean over the workers of ``var``, (workers, K)."""
    if unit.num_batches_tracked is not None:
        unit.num_batches_tracked.add_(1)
        _move(unit, running_var=var)


def update_std(unit: Any, found: Moments) -> None:
    """Move running_mean and running_std towards the mean over the workers of μ and √(σ² + ε), (workers, K) each."""
    unit.num_batches_tracked.add_(1)
    if not fused.move(unit, "running_std", found, eps=unit.eps, kind="std"):
        mean, var = found.tensors()
        _move(unit, running_mean=mean, running_std=torch.sqrt(var + unit.eps))


@torch.no_grad()
def update_total(unit: Any, found: Moments, workers: int) -> None:
    """Move the buffers towards the moments of all the workers' values: mean and biased var, (rows, K) each.

    The rows are ghosts, an equal number of them for each worker. running_var is m₂ − m², of running first and second
    moments of all values, so that what varies from one batch to the next counts in it. Kept without that difference,
    which cancels: with the share a of the new value

        V ← (1 − a) V + a v + a (1 − a) (m − e)²        m ← (1 − a) m + a e

    Over several workers the mean of what each would have kept.
    """
    if unit.num_batches_tracked is None:
        return
    unit.num_batches_tracked.add_(1)
    if fused.move(unit, "running_var", found, workers=workers, kind="total"):
        return
    old_mean, old_var = statistics(unit)
    mean, var = (value.to(old_mean.dtype) for value in pool(*found.tensors(), workers, old_mean.shape[1]))
    share = share_of_new(unit, old_mean.dtype)
    apart = (old_mean - mean).square().mean(0)
    unit.running_var.copy_(old_var[0].lerp(var.mean(0) + (1 - share) * apart, share))
    unit.running_mean.copy_(old_mean[0].lerp(mean.mean(0), share))


@torch.no_grad()
def _move(unit: Any, **statistics: Tensor) -> None:
    """Move the buffers of these names towards the mean over the workers of their new values, (workers, K) each."""
    for name, new in statistics.items():
        buffer = getattr(unit, name)
        buffer.lerp_(new.mean(0).to(buffer.dtype), share_of_new(unit, buffer.dtype))


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
