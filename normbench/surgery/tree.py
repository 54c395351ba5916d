"""Copy a model no further than needed: the containers on the way to what changes are new, all else is shared."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MethodType
from typing import Any

from torch import nn

from normbench.errors import InputError

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

    result = visit(root)
    for old in done.keys() - replaced.keys():  # modules may also be kept in plain attributes
        copy = done[old]
        vars(copy).update({k: _exchanged(v, done) for k, v in vars(copy).items() if k not in REGISTRIES})
    return result


def check_forwards(root: nn.Module, replaced: Collection[nn.Module]) -> None:
    """Raise InputError if a module on the way to ``replaced`` has a forward that would go on with the module it wraps.

    So has what torch.compile returns, or a module with a function of one's own set as its ``forward``.
    """
    for name, module in root.named_modules():
        forward = vars(module).get("forward")
        bound = isinstance(forward, MethodType) and forward.__self__ is module
        if forward is not None and not bound and any(m in replaced for m in module.modules()):
            raise InputError(
                f"{name or 'the model'} ({type(module).__name__}): got a forward set on the instance (torch.compile "
                "and wrappers do that), which would go on with the BatchNorms; apply the normalizer first, then wrap"
            )


def _exchanged(value: Any, done: Mapping[nn.Module, nn.Module]) -> Any:
    """``value`` with the modules in it exchanged: a module, or a plain list, tuple or dict with some."""
    if isinstance(value, nn.Module):
        return done.get(value, value)
    if type(value) in (list, tuple):
        new = [_exchanged(item, done) for item in value]
        return type(value)(new) if any(a is not b for a, b in zip(new, value, strict=True)) else value
    if type(value) is dict:
        swapped = {key: _exchanged(item, done) for key, item in value.items()}
        return swapped if any(swapped[key] is not value[key] for key in value) else value
    return value


def _own(key: str, value: Any, module: nn.Module, copy: nn.Module) -> Any:
    if key == "_load_state_dict_pre_hooks":  # these know their module
        return type(value)((i, _rebound(hook, copy)) for i, hook in value.items())
    if key in REGISTRIES:
        return value.copy()
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(value.__func__, copy)
    return value


def _rebound(hook: Any, copy: nn.Module) -> Any:
    return type(hook)(hook.hook, copy) if getattr(hook, "with_module", False) else hook
