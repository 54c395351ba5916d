"""Convolutions that a method puts in the place of a model's own."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

T = TypeVar("T", bound=nn.Module)


def adopt(kind: type[T], module: nn.Module) -> T:
    """A ``kind``, a subclass of ``module``'s class, that shares parameters, buffers and all else with ``module``.

    ``kind.__init__`` is not called; what it adds is set by the caller.
    """
    made = kind.__new__(kind)
    registries = {key: value.copy() for key, value in vars(module).items() if isinstance(value, dict | set)}
    made.__dict__.update(vars(module) | registries)
    return made
