"""Who stands in the table: every registered normalizer, a few more settings of them, and peers that are installed."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normbench import norms
from normbench.bench.statistics import BASELINE

# What makes a unit: for (C, H, W), whether a ReLU follows, and the dtype of the maps.
Make = Callable[["Place"], nn.Module]


@dataclass(frozen=True)
class Place:
    """Where a unit is to stand: N maps of (C, H, W), ``dtype`` of the maps, ``activation``: a ReLU follows."""

    N: int
    C: int
    H: int
    W: int
    activation: bool
    dtype: torch.dtype


@dataclass(frozen=True)
class Contestant:
    """One line of the table. kind: ``baseline``, ``norm`` or ``peer``. norm: its name in the registry, if any."""

    label: str
    kind: str
    make: Make
    norm: str = ""
    least_batch: int = 1


# Settings that take another way through the code than a method's defaults. bgn with more groups than channels cuts maps
# into strips; with groups that do not divide, pieces are neither maps nor strips.
EXTRA: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "bgn G=2C": ("bgn", lambda C: {"num_groups": 2 * C, "group_fit": "uneven"}),
    "bgn G=3C/4": ("bgn", lambda C: {"num_groups": 3 * C // 4, "group_fit": "uneven"}),
}


def baseline() -> Contestant:
    """What everyone is compared with: as torchvision's networks have it, the ReLU in place."""
    return Contestant(BASELINE, "baseline", lambda place: _with_relu(nn.BatchNorm2d(place.C), place))


def of_registry(names: Iterable[str], *, extra: bool = True) -> list[Contestant]:
    """The normalizers ``names``, each followed by its ``extra`` settings; ``all`` is every registered one.

    Raises UnknownName and ConfigError as ``norms.get`` does.
    """
    found: list[Contestant] = []
    for name in dict.fromkeys(word for given in names for word in (norms.names() if given == "all" else [given])):
        least = norms.get(name).least_batch
        found.append(Contestant(name, "norm", _unit(name, lambda C: {}), name, least))
        for label, (of, options) in EXTRA.items():
            if extra and of == name:
                found.append(Contestant(label, "norm", _unit(name, options), name, least))
    return found


def _unit(name: str, options: Callable[[int], dict[str, Any]]) -> Make:
    """The unit as surgery makes it: the activation it is given is not in place."""
    return lambda place: norms.build(
        name, place.C, activation=nn.ReLU() if place.activation else None, batch=place.N, **options(place.C)
    )


def peers(device: torch.device) -> tuple[list[Contestant], list[str]]:
    """Others' layers that can be measured here, and a line for each that cannot."""
    found = [
        Contestant("nn.GroupNorm", "peer", _group_norm),
        Contestant(
            "nn.InstanceNorm2d", "peer", lambda place: _with_relu(nn.InstanceNorm2d(place.C, affine=True), place)
        ),
    ]
    left: list[str] = []
    try:
        frn = importlib.import_module("timm.layers").FilterResponseNormTlu2d
        found.append(Contestant("timm FRN", "peer", lambda place: frn(place.C, apply_act=place.activation)))
    except (ImportError, AttributeError) as error:
        why = "timm is not installed" if isinstance(error, ModuleNotFoundError) else f"timm has none: {error}"
        left.append(f"timm's FilterResponseNormTlu2d: {why}")
    if device.type == "cuda" and _process_group():
        found.append(Contestant("nn.SyncBatchNorm", "peer", lambda place: _with_relu(nn.SyncBatchNorm(place.C), place)))
    else:
        left.append("nn.SyncBatchNorm: it needs CUDA and a process group of two or more; alone it is nn.BatchNorm2d")
    return found, left


def _process_group() -> bool:
    group = torch.distributed
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1


def _group_norm(place: Place) -> nn.Module:
    """32 groups where they divide. Parameters in the maps' dtype: mixed ones are not taken on every device."""
    return _with_relu(nn.GroupNorm(math.gcd(32, place.C), place.C), place).to(place.dtype)


def _with_relu(layer: nn.Module, place: Place) -> nn.Module:
    return nn.Sequential(layer, nn.ReLU(inplace=True)) if place.activation else layer
