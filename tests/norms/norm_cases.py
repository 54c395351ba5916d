"""The units that the tests in this folder run over: every normalizer, and each path through those with several."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normbench import norms
from normbench.norms import gn, online

C = 6
REFERENCES: dict[str, Any] = {name: sys.modules[norms.get(name).unit.__module__] for name in norms.names()}
# Whose running_mean and running_var are kept as a BatchNorm2d's, and whose are moments of all values, per channel.
AS_BATCHNORM, OF_ALL_VALUES = ("bn", "bgn", "iebn", "bcn", "syncbn", "bkn", "cbn", "ic"), ("gbn", "batch_group")
# Which of a BatchNorm2d's statistics mean the same in a unit that keeps C of each.
TAKEN = {
    **dict.fromkeys(
        (*AS_BATCHNORM, *OF_ALL_VALUES, "sn", "rbn", "online", "bne"),
        ("running_mean", "running_var", "num_batches_tracked"),
    ),
    "evonorm_b0": ("running_var", "num_batches_tracked"),
}
# What makes a method's training forward a function of its input: its random draws are in the files of their own.
WITHOUT_DRAWS: dict[str, dict[str, Any]] = {"ic": {"drop": 0.0}}
# Normalization and activation in one: without a rectifier after them they are scale and shift alone, so they get one.
IN_ONE = ("evonorm_b0", "evonorm_s0")
# Whose unit is another method's, which speaks for itself.
SPEAKS = {"ws": "gn"}


@dataclass(frozen=True)
class Case:
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


CASES = [
    *(Case(name, WITHOUT_DRAWS.get(name, {})) for name in norms.names()),
    Case("gn", {"num_groups": 3}),
    Case("gn", {"num_groups": 4, "group_fit": "uneven"}),
    Case("gn", {"num_groups": 4, "group_fit": "gcd"}),
    Case("pn", {"unbiased": True}),
    Case("bgn", {"num_groups": 1}),
    Case("bgn", {"num_groups": 3}),
    Case("bgn", {"num_groups": 6}),
    Case("bgn", {"num_groups": 12, "group_fit": "gcd"}),
    Case("bgn", {"num_groups": 4, "group_fit": "uneven"}),
    Case("bgn", {"num_groups": 17, "group_fit": "uneven"}),
    Case("bgn", {"num_groups": 5, "group_fit": "uneven", "eval_stats": "batch"}),
    Case("frn", {"learn_eps": True}),
    Case("brn", {"r_max": 1.2, "d_max": 0.3}),
    Case("brn", {"r_max": 1000.0}),
    Case("gbn", {"ghost_size": 2}),
    Case("batch_group", {"ghost_size": 16, "num_groups": 3}),
    Case("batch_group", {"ghost_size": 2, "num_groups": 1}),
    Case("batch_group", {"num_groups": 6}),
    Case("batch_group", {"num_groups": 4, "group_fit": "uneven"}),
    Case("mabn", {"window": 3, "warmup_steps": 0}),
    Case("mabn", {"window": 1}),
    Case("bcn", {"num_groups": 3}),
    Case("bcn", {"num_groups": 4, "group_fit": "uneven"}),
    Case("online", {"alpha_fwd": 0.6, "alpha_bkw": 0.7, "clamp": 1.5}),
    Case("online", {"alpha_fwd": 0.5, "layer_scaling": True}),
    Case("cbn", {"window": 3, "burnin": 0}),
    Case("cbn", {"window": 2, "burnin": 0, "valid": "paper", "eps_outside": True}),
    Case("mbn", {"memory": 2, "eta": 0.4, "eta_warmup": 0, "double_forward": False}),
    Case("mbn", {"memory": 3, "memory_decay": 0.5, "var_mode": "within"}),
    Case("mbn", {"eta": 1.0}),
    Case("proxy", {"num_groups": 3}),
    Case("proxy", {"num_groups": 4, "group_fit": "uneven", "quantiles": 11}),
    Case("proxy", {"learn_proxy": True, "proxy_eps": 0.1}),
    Case("evonorm_s0", {"num_groups": 3}),
    Case("evonorm_s0", {"num_groups": 4, "group_fit": "uneven"}),
    Case("dyt", {"alpha_init": 1.5}),
    Case("ws", {"num_groups": 3}),
    Case("bnp", {"base": "gn", "num_groups": 3}),
]


def build(case: Case, activation: nn.Module | None = None, **options: Any) -> Any:
    """The case's unit as it is made; with a ReLU, if it is nothing without one."""
    if activation is None and case.name in IN_ONE:
        activation = nn.ReLU()
    return norms.build(case.name, C, activation=activation, **case.options, **options)


def make(
    case: Case, dtype: torch.dtype = torch.float64, batch: int | None = None, activation: nn.Module | None = None
) -> Any:
    """The case's unit, with parameters drawn at random."""
    unit = build(case, activation, batch=batch, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in unit.named_parameters():
            if name != "eps_l":
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return unit


def pictures(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Random values, of another mean and spread in every channel."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    scale = torch.linspace(0.5, 2, shape[1], dtype=torch.float64)[:, None, None]
    return (x * scale + 2 * scale - 1).to(dtype)


def splits(case: Case, images: int, batch: int | None = None) -> bool:
    """Whether the workers' images split into the case's ghost batches."""
    ghost = case.options.get("ghost_size", norms.get(case.name).options.get("ghost_size", 1))
    worker = batch or images
    return worker % min(ghost, worker) == 0


def reference(unit: Any, case: Case, x: Tensor, **more: Any) -> Tensor:
    """The plain formula of the method's file with the unit's parameters and buffers, as in its next training step."""
    options: dict[str, Any] = {} if case.name in ("none", "dyt", "nf") else {"eps": unit.eps}
    known = inspect.signature(REFERENCES[case.name].reference).parameters
    learned = ("gate_weight", "gate_bias", "center_weight", "mean_weight", "var_weight", "threshold", "alpha", "v")
    keys = (
        "base",
        "num_groups",
        "batch",
        "ghost_size",
        "unbiased",
        "group_weight",
        "group_bias",
        "alpha_fwd",
        *learned,
    )
    for key in keys:
        if hasattr(unit, key) and key in known:
            options[key] = getattr(unit, key)
    if case.name == "frn":
        options["eps"] = unit.eps if unit.eps_l is None else unit.eps + unit.eps_l.abs()
    if case.name == "nf":
        options["activation"] = unit.activation
    if case.name == "brn":
        r_max, d_max = unit.bounds().tolist()
        options |= {"mean": unit.running_mean.clone(), "std": unit.running_std.clone(), "r_max": r_max, "d_max": d_max}
    if case.name == "mabn":
        options |= of_mabn(unit)
    if case.name == "cbn":
        options |= of_cbn(unit)
    if case.name == "mbn":
        options |= of_mbn(unit, len(x))
    if case.name == "online":
        clamp = None if unit.clamp is None else unit.clamp.max_val
        options |= {"mean": unit.running_mean.clone(), "var": unit.running_var.clone(), "clamp": clamp}
        y = online.reference(x, unit.weight, unit.bias, **options)
        return layer_scaled(unit, y) if unit.layer_scaling else y
    if case.name == "proxy":
        options |= {key: getattr(unit, key) for key in ("activation", "proxy_eps", "quantiles")}
        options |= {key: p for key, p in unit.named_parameters() if key.startswith("proxy")}
    return REFERENCES[case.name].reference(x, unit.weight, unit.bias, **options, **more)


def of_mabn(unit: Any) -> dict[str, Any]:
    """What the formula of mabn's next step is to know."""
    step, m = int(unit.num_batches_tracked) + 1, unit.window
    earlier = unit.window_square[[slot for slot in range(m) if slot != step % m]].clone()
    full, clipped = step > m and step >= unit.warmup_steps, step > max(unit.clip_start, unit.warmup_steps)
    return {"square": unit.running_square.clone(), "earlier": earlier if full else None, "clipped": clipped}


def of_cbn(unit: Any) -> dict[str, Any]:
    """What the formula of cbn's next step is to know, for a unit without a convolution."""
    options = {"valid": unit.valid, "eps_outside": unit.eps_outside}
    if unit.num_batches_tracked < unit.burnin_steps():
        return options
    kept = slice(0, int(unit.window_count))
    mean, square, shift = (getattr(unit, f"window_{key}")[kept].clone() for key in ("mean", "square", "shift"))
    return {**options, "means": mean, "squares": square + 2 * shift * mean - shift**2}


def of_mbn(unit: Any, images: int) -> dict[str, Any]:
    """What the formula of mbn's next step is to know."""
    m = min(int(unit.mem_count), unit.memory)
    kept = {
        "means": unit.mem_mean[len(unit.mem_mean) - m :].clone(),
        "variances": unit.mem_var[len(unit.mem_var) - m :].clone(),
    }
    share = unit.share(images if unit.batch is None else unit.batch)
    return {**kept, "eta": share, "memory_decay": unit.memory_decay, "var_mode": unit.var_mode}


def layer_scaled(unit: Any, y: Tensor) -> Tensor:
    return y / torch.sqrt(y.square().mean((1, 2, 3), keepdim=True) + unit.eps)


def evaluation(unit: Any, case: Case, x: Tensor) -> Tensor:
    """The plain formula in evaluation, of a unit with running statistics."""
    if case.name == "evonorm_b0":
        return reference(unit, case, x, kept=unit.running_var)
    if case.name in ("sn", "rbn"):
        return reference(unit, case, x, kept=(unit.running_mean, unit.running_var))
    if case.name == "mbn":
        of = of_mbn(unit, len(x))
        alpha = unit.memory_decay ** torch.arange(len(of["means"]) - 1, -1, -1, dtype=x.dtype)[:, None]
        alpha = alpha / alpha.sum()
        mean, eps = (alpha * of["means"]).sum(0), unit.eps
        apart = (of["means"] - mean) ** 2 if unit.var_mode == "total" else 0.0
        var = (alpha * (of["variances"] + apart)).sum(0)
    elif case.name == "cbn" and unit.eps_outside:
        mean, var, eps = unit.running_mean, (torch.sqrt(unit.running_var) + unit.eps) ** 2, 0.0
    elif hasattr(unit, "running_square"):
        mean, var, eps = torch.zeros(C, dtype=x.dtype), unit.running_square, unit.eps
    elif hasattr(unit, "running_std"):
        mean, var, eps = unit.running_mean, unit.running_std**2, 0.0
    else:
        mean, var, eps = unit.running_mean, unit.running_var, unit.eps
        if mean.dim() == 2:  # of a single domain
            mean, var = mean[0], var[0]
        groups = len(mean) if hasattr(unit, "group_weight") else getattr(unit, "num_groups", len(mean))
        if groups != len(mean):  # kept per channel, used per group
            members = [[c for c in range(C) if (c * groups) // C == (own * groups) // C] for own in range(C)]
            var = torch.stack([var[m].mean() + mean[m].var(correction=0) for m in members])
            mean = torch.stack([mean[m].mean() for m in members])
    G, D = len(mean), x[0].numel()
    group = [(d * G) // D for d in range(D)]
    y = ((x.flatten(1) - mean[group]) / torch.sqrt(var[group] + eps)).view(x.shape)
    if hasattr(unit, "gate_weight"):
        y = y * torch.sigmoid(unit.gate_weight * x.mean((2, 3)) + unit.gate_bias)[..., None, None]
    y = y * unit.weight[:, None, None] + unit.bias[:, None, None]
    if hasattr(unit, "group_weight"):
        of = [(c * unit.num_groups) // C for c in range(C)]
        y = gn.reference(y, unit.group_weight[of], unit.group_bias[of], num_groups=unit.num_groups, eps=unit.eps)
    if hasattr(unit, "layer_scaling"):
        y = layer_scaled(unit, y) if unit.layer_scaling else unit.clamp(y)
    return y


def gradients(y: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Of an uneven sum of y, so that no gradient vanishes by symmetry."""
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape).square()
    return list(torch.autograd.grad((y * weights).sum(), inputs, retain_graph=True))
