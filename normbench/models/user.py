"""An architecture of the user's own: ``file.py:callable`` or ``package.module:callable``.

The callable is given ``num_classes`` if it takes it, and whatever stands in ``arch.options``; it returns a model with
nn.BatchNorm2d in it.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from normbench.errors import ConfigError, UnknownName
from normbench.options import ArchOptions
from normbench.targets import load


def check(options: ArchOptions) -> None:
    """Raise ConfigError or UnknownName if the callable cannot be loaded or does not take its options. Calls nothing."""
    _arguments(options, num_classes=1)


def build(options: ArchOptions, num_classes: int) -> nn.Module:
    """Call it. Raises ConfigError if what comes back is no model."""
    model = load(options.name, "architecture")[0](**_arguments(options, num_classes))
    if not isinstance(model, nn.Module):
        raise ConfigError(f"arch={options.name}: expected it to return a torch.nn.Module, got {type(model).__name__}")
    return model


def _arguments(options: ArchOptions, num_classes: int) -> dict[str, Any]:
    for key in ("zero_init", "aux", "phase"):
        if value := getattr(options, key):
            text = str(value).lower()
            mend = f"{options.name} is a net of your own; give it as arch.options.…={text}"
            raise ConfigError(f"arch.{key}={text}: {mend}")
    signature = inspect.signature(load(options.name, "architecture")[0])
    takes, anything = _takes(signature)
    for option in options.options:
        if option == "num_classes":
            raise ConfigError(f"arch.options.num_classes: {options.name} is given the number of classes of the data")
        if option not in takes and not anything:
            raise UnknownName(f"option of {options.name}", option, takes - {"num_classes"})
    arguments = dict(options.options)
    if "num_classes" in takes or anything:
        arguments["num_classes"] = num_classes
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"arch={options.name}: {error}; give it as arch.options.<name>=…") from error
    return arguments


def _takes(signature: inspect.Signature) -> tuple[set[str], bool]:
    """The keywords a callable names, and whether it takes any."""
    parameters = signature.parameters.values()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)
