"""Copy a model no further than needed: the containers on the way to what changes are new, all else is shared."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MethodType
from typing import Any

from torch import nn

# What a module registers: parameters, buffers, children, hooks. A copy has its own, so that the original keeps its own.
REGISTRIES = {key for key, value in vars(nn.Module()).items() if isinstance(value, dict | set)}


def shallow(module: nn.Module) -> nn.Module:
    """A new module of the same class that shares parameters, buffers and children with ``module``."""
    copy = type(module).__new__(type(module))
    copy.__dict__.update({key: _own(key, value, module, copy) for key, value in vars(module).items()})
    return copy


def graft(root: nn.Module, replaced: Mapping[nn.Module, nn.Module], opened: Collection[nn.Module] = ()) -> nn.Module:
    """``root`` with modules exchanged: old → new of ``replaced``. ``opened`` are copied too, to be added to.

    Each module is copied once, so one that is used in several places stays one.
    """
    done: dict[nn.Module, nn.Module] = dict(replaced)

    def visit(module: nn.Module) -> nn.Module:
        if module in done:
            return done[module]
        if not any(m in replaced or m in opened for m in module.modules()):
            return module
        copy = done[module] = shallow(module)
        for name, child in module._modules.items():
            copy._modules[name] = None if child is None else visit(child)
        return copy

    return visit(root)


def _own(key: str, value: Any, module: nn.Module, copy: nn.Module) -> Any:
    if key in REGISTRIES:
        return value.copy()
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(value.__func__, copy)
    return value
