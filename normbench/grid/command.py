"""A command line's overrides as axes: Hydra's grammar, our errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString
from hydra.errors import HydraException

from normbench.errors import ConfigError
from normbench.grid.configs import existing


@dataclass(frozen=True)
class Axis:
    """One override: the key and its values; ``swept`` when it was written as a list."""

    key: str
    values: list[Any]
    swept: bool


def parse(overrides: Sequence[str]) -> tuple[list[Axis], list[Path]]:
    """The axes in order, and the folders that ``hydra.searchpath`` adds. Raises ConfigError for what cannot be read."""
    parser, axes, search = OverridesParser.create(), {}, []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            raise ConfigError(f"cannot read {text!r}; expected {_mend(text)}") from error
        key = override.key_or_group
        if override.is_delete():
            raise ConfigError(f"cannot remove {key!r}; give it another value, or null for its default")
        if key == "hydra.searchpath":
            named = override.value()
            search += [
                existing(str(folder).removeprefix("file://"))
                for folder in (named if isinstance(named, list) else [named])
            ]
        elif key.split(".")[0] == "hydra":
            raise ConfigError(
                f"{key}: normbench composes with Hydra but runs the grid itself; only hydra.searchpath is read"
            )
        elif key in axes:
            raise ConfigError(f"{key} is given twice; give it once, with all its values: {key}=a,b")
        else:
            axes[key] = Axis(key, _values(override), override.is_sweep_override())
    return list(axes.values()), search


def _mend(text: str) -> str:
    """What to write in place of an override that Hydra's grammar does not read; its own words name its tokens."""
    key, equals, value = text.partition("=")
    if not equals:
        return f"key=value, such as {key.strip() or 'batch'}=…"
    if value.endswith(","):
        return f"a value after the last comma, or {key}={value.rstrip(',')}"
    if value.count("(") != value.count(")"):
        return "as many closing as opening brackets"
    return f"key=value or key=value,value,…; other characters in quotes within quotes: \"{key}='{value}'\""


def _values(override: Override) -> list[Any]:
    key, value = override.key_or_group, override.value()
    if isinstance(value, Glob):
        return [value]
    if isinstance(value, IntervalSweep):
        raise ConfigError(f"{key}: an interval has no end of values; expected a list, range() or glob()")
    values = list(override.sweep_iterator()) if override.is_sweep_override() else [value]
    if not values:
        raise ConfigError(f"{key}: got a range without a number in it, expected one or more values")
    if any(isinstance(item, Glob) for item in values):
        raise ConfigError(f"{key}: got a glob within a list, expected it alone: {key}='glob(a*)'")
    return [item.text if isinstance(item, QuotedString) else item for item in values]
