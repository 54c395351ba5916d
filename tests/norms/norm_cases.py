"""The units that the tests in this folder run over: every normalizer, and each path through those with several."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normbench import norms
from normbench.norms import bgn, bn, frn, gn, in_, ln, none, pn

C = 6
REFERENCES = {"none": none, "bn": bn, "ln": ln, "in": in_, "gn": gn, "pn": pn, "bgn": bgn, "frn": frn}


@dataclass(frozen=True)
class Case:
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


CASES = [
    *(Case(name) for name in norms.names()),
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
]


def make(
    case: Case, dtype: torch.dtype = torch.float64, batch: int | None = None, activation: nn.Module | None = None
) -> Any:
    """The case's unit, with parameters drawn at random."""
    unit = norms.build(case.name, C, activation=activation, batch=batch, dtype=dtype, **case.options)
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


def reference(unit: Any, case: Case, x: Tensor) -> Tensor:
    """The plain formula of the method's file with the unit's parameters, as in training."""
    options: dict[str, Any] = {} if case.name == "none" else {"eps": unit.eps}
    if case.name in ("gn", "bgn"):
        options["num_groups"] = unit.num_groups
    if case.name in ("bn", "bgn"):
        options["batch"] = unit.batch
    if case.name == "pn":
        options["unbiased"] = unit.unbiased
    if case.name == "frn":
        options["threshold"] = unit.threshold
        options["eps"] = unit.eps if unit.eps_l is None else unit.eps + unit.eps_l.abs()
    return REFERENCES[case.name].reference(x, unit.weight, unit.bias, **options)


def gradients(y: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Of an uneven sum of y, so that no gradient vanishes by symmetry."""
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape).square()
    return list(torch.autograd.grad((y * weights).sum(), inputs, retain_graph=True))
