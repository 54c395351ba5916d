"""A command line's overrides as axes: Hydra's grammar, our errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString
from hydra.errors import HydraException

from normbench.errors import ConfigError, one_line
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
            mend = (
                "put what is not plain ASCII in quotes within: \"name='é'\""
                if not text.isascii()
                else "key=value,value,…"
            )
            raise ConfigError(f"cannot read {text!r}: {one_line(error)}; expected key=value, or {mend}") from None
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


def _values(override: Override) -> list[Any]:
    key, value = override.key_or_group, override.value()
    if isinstance(value, Glob):
        return [value]
    if isinstance(value, IntervalSweep):
        raise ConfigError(f"{key}: an interval has no end of values; expected a list, range() or glob()")
    values = list(override.sweep_iterator()) if override.is_sweep_override() else [value]
    if any(isinstance(item, Glob) for item in values):
        raise ConfigError(f"{key}: got a glob within a list, expected it alone: {key}='glob(a*)'")
    return [item.text if isinstance(item, QuotedString) else item for item in values]
