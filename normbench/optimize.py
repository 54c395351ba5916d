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

    With an anchor other than zero the weights are a group of their own, ``anchored``, that the optimizer leaves alone.
    """
    units = [module for module in model.modules() if norms.is_unit(module)]
    affine = _unique(parameter for unit in units for parameter in norms.affine_parameters(unit))
    extra = _unique(parameter for unit in units for parameter in norms.extra_parameters(unit))
    weights = {id(p) for unit in units for name, p in unit.named_parameters() if name.rpartition(".")[2] == "weight"}
    anchored = [p for p in affine if id(p) in weights] if recipe.affine_anchor != "zero" else []
    taken = {id(parameter) for parameter in (*affine, *extra)}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    pulled = {id(parameter) for parameter in anchored}
    affine = [parameter for parameter in affine if id(parameter) not in pulled]
    decays = {
        "network": (rest, recipe.weight_decay),
        "affine": (affine, _affine_decay(recipe)),
        "anchored": (anchored, 0.0),
        "extra": (extra, 0.0),
    }
    return [{"name": name, "params": found, "weight_decay": decay} for name, (found, decay) in decays.items() if found]


def optimizer(model: nn.Module, recipe: Recipe, lr: float, *, recorded: bool = False) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW; fused: one kernel a group instead of one a parameter.

    Anchors of ``recipe.affine_anchor=init`` are the values that the weights have now. recorded: its steps will be.
    """
    groups = parameter_groups(model, recipe)
    anchored: list[nn.Parameter] = next((group["params"] for group in groups if group["name"] == "anchored"), [])
    if recipe.optimizer == "adamw":
        made: torch.optim.Optimizer = torch.optim.AdamW(
            groups, lr=lr, betas=(recipe.momentum, 0.999), fused=True, capturable=recorded
        )
    else:
        nesterov = recipe.nesterov and recipe.momentum > 0
        made = torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, nesterov=nesterov, fused=True)
    if recorded:  # its first steps are not, and that is no mistake
        made._warned_capturable_if_run_uncaptured = True
    if anchored and _affine_decay(recipe):
        made.register_step_pre_hook(Pull(anchored, recipe))
    return made


class Pull:
    """Decay towards an anchor, before an optimizer's step: as each optimizer decays towards zero.

    SGD adds λ (γ − anchor) to the gradient (Summers & Dinneen, ICLR 2020, arXiv:1906.03548: the penalty
    λ/2 Σ (γ − 1)²), AdamW takes lr λ (γ − anchor) off the weight.
    """

    def __init__(self, weights: list[nn.Parameter], recipe: Recipe) -> None:
        self.weights, self.decay, self.coupled = weights, _affine_decay(recipe), recipe.optimizer == "sgd"
        one = recipe.affine_anchor == "one"
        self.anchors = [torch.ones_like(w) if one else w.detach().clone() for w in weights]

    @torch.no_grad()
    def __call__(self, update: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        rate = next(group["lr"] for group in update.param_groups if group["name"] == "anchored")
        for weight, anchor in zip(self.weights, self.anchors, strict=True):
            if weight.grad is None:  # the optimizer leaves it alone, too
                continue
            if self.coupled:
                weight.grad.add_(weight - anchor, alpha=self.decay)
            else:
                weight.lerp_(anchor, rate * self.decay)


def _affine_decay(recipe: Recipe) -> float:
    return recipe.weight_decay if recipe.affine_weight_decay is None else recipe.affine_weight_decay


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
