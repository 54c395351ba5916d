"""normbench: which normalizer to use at which batch size, and what it costs.

    normbench.apply(model, "bgn", num_groups=16)   a copy of any model with its BatchNorms replaced
    normbench.build("gn", 64)                      one unit
    normbench.names()                              the registry
    normbench.norms, normbench.surgery             where these are at home, with what else is there

Lazy: importing normbench imports neither torch nor anything else; the first use of a name does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normbench.norms import build, names
    from normbench.surgery import apply

__version__ = "0.1.0"
__all__ = ["apply", "build", "names"]

_MODULES = ("norms", "surgery")
_HOMES = {"apply": "normbench.surgery", "build": "normbench.norms", "names": "normbench.norms"}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"normbench.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'normbench' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, *_MODULES, "__version__"]
