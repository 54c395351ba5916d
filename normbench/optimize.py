"""Optimizer, parameter groups and the learning rate of a recipe."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from normbench import norms
from normbench.options import Recipe


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Every parameter in exactly one group: the units' weight and bias, what else units learn (never decayed: TLU's
    thresholds and the like), and all the rest. Declared by the units, not guessed from names or shapes.
    """
    units = [module for module in model.modules() if norms.is_unit(module)]
    affine = _unique(parameter for unit in units for parameter in norms.affine_parameters(unit))
    extra = _unique(parameter for unit in units for parameter in norms.extra_parameters(unit))
    taken = {id(parameter) for parameter in (*affine, *extra)}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    affine_decay = recipe.weight_decay if recipe.affine_weight_decay is None else recipe.affine_weight_decay
    decays = {"network": (rest, recipe.weight_decay), "affine": (affine, affine_decay), "extra": (extra, 0.0)}
    return [{"name": name, "params": found, "weight_decay": decay} for name, (found, decay) in decays.items() if found]


def optimizer(model: nn.Module, recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW; fused: one kernel a group instead of one a parameter."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(recipe.momentum, 0.999), fused=True)
    nesterov = recipe.nesterov and recipe.momentum > 0
    return torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, nesterov=nesterov, fused=True)


def learning_rate(step: int, *, peak: float, total: int, warmup: int, recipe: Recipe) -> float:
    """The rate of step ``step`` (0, 1, … total − 1).

    Warm-up: from peak/warmup at the first step to the peak, along a line or half a cosine. Then, over the rest
    of the run: cosine to 0, or × decay at each milestone (a share of the whole run), or constant.
    """
    if step < warmup:
        part = (step + 1) / warmup
        return peak * (part if recipe.warmup == "linear" else (1 - math.cos(math.pi * part)) / 2)
    if recipe.schedule == "cosine":
        return peak * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2
    if recipe.schedule == "step":
        return peak * recipe.decay ** sum(step >= share * total for share in recipe.milestones)
    return peak


def warmup_steps(recipe: Recipe, steps_per_epoch: int, total: int) -> int:
    """Steps of warm-up; never more than half the run, so that a shortened run still trains at its peak rate."""
    return min(round(recipe.warmup_epochs * steps_per_epoch), total // 2)


def _unique(parameters: Any) -> list[nn.Parameter]:
    return list({id(parameter): parameter for parameter in parameters}.values())
