"""The words of the command line: folders, and ``key=value`` between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from normbench.errors import ConfigError, UnknownName

KEYS = ("baseline", "power")


@dataclass(frozen=True)
class Asked:
    """folders: as they were named.  baseline: a line's label, None for ``bn``.  power: differences in points."""

    folders: tuple[str, ...]
    baseline: str | None = None
    power: tuple[float, ...] = ()


def read(words: Sequence[str]) -> Asked:
    """What the words ask for. Raises ConfigError; a word with ``=`` that is there as a folder is a folder."""
    given: dict[str, str] = {}
    folders = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or (key not in KEYS and Path(word).exists()):
            folders.append(word)
            continue
        if key not in KEYS:
            raise UnknownName("key", key, KEYS, "A folder's name needs no key; see --help.")
        if key in given:
            raise ConfigError(f"{key}: given twice; expected it once")
        if not value.strip():
            raise ConfigError(f"{key}: got nothing; expected {key}={'bn' if key == 'baseline' else '0.5'}; see --help")
        given[key] = value.strip()
    if not folders:
        raise ConfigError("no folder named; expected runs/ or runs/<name>, as normbench.sweep leaves them; see --help")
    return Asked(tuple(folders), given.get("baseline"), _points(given["power"]) if "power" in given else ())


def _points(value: str) -> tuple[float, ...]:
    """Differences, in the order given, each once."""
    try:
        found = tuple(dict.fromkeys(float(word) for word in value.split(",")))
    except ValueError:
        found = (math.nan,)
    if not all(0 < points <= 100 for points in found):
        raise ConfigError(
            f"power: got {value!r}, expected differences of top-1 in points, above 0 and at most 100: power=0.2,0.5,1"
        )
    return found
