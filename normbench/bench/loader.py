"""The words of ``python -m normbench.bench loader``: keys of its own, and those of a cell. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from normbench import grid
from normbench.bench.values import asks_for_help, count, count_or_zero, list_of, number, text
from normbench.cell import Cell
from normbench.errors import ConfigError, UnknownName
from normbench.options import AUTO

PARSERS = {"loaders": list_of(count_or_zero), "rounds": count, "seconds": number, "out": text}
DEFAULTS = {"arch": "resnet50", "data": "imagenet", "norm": "bn"}
ABOUT = "images a second that the loader of a streamed set gives, beside the network's"
HELP = """\
python -m normbench.bench loader [KEY=VALUE ...]

How many images a second the loader can give, without a network, for each number of its processes, and how many the
network can take, without the loader: which of the two is the limit, and how many processes would be enough.

  python -m normbench.bench loader data.root=/data/imagenet batch=64 loaders=1,2,4,8
  python -m normbench.bench loader data.root=/data/imagenet data.prepared=/data/copy arch=resnet18 device=cuda

Keys, beside all those of a cell (python -m normbench.sweep --help), of which arch=resnet50 data=imagenet norm=bn here
  loaders=0,1,2,4   processes that read and decode; 0: the one that trains
  rounds=5          turns of each
  seconds=2         of a turn, about
  out=bench         folder for loader.csv, loader.md and loader.json

Exit code: 0 done; 1 nothing measured; 2 a bad command, nothing measured; 130 stopped by Ctrl-C, nothing written.
"""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how long."""

    word: ClassVar[str] = "loader"

    cell: Cell
    loaders: tuple[int, ...] = (0, 1, 2, 4)
    rounds: int = 5
    seconds: float = 2.0
    out: str = "bench"


def read(words: Sequence[str]) -> Settings | None:
    """The settings that ``words`` give, those after the mode; None if help is asked for. Raises ConfigError."""
    if asks_for_help(words):
        return None
    own: dict[str, Any] = {}
    rest = []
    for word in words:
        key, _, value = word.partition("=")
        if key not in PARSERS:
            rest.append(word)
        elif key in own:
            raise ConfigError(f"{key}: given twice; expected it once")
        else:
            own[key] = PARSERS[key](key, value)
    given = {word.partition("=")[0] for word in rest}
    for key in given & {*grid.SWEEP_KEYS}:
        raise UnknownName("key", key, PARSERS, "It is of a sweep; here nothing is swept or recorded.")
    if "data.loaders" in given:
        raise ConfigError("data.loaders: is what is measured here; give the numbers as loaders=1,2,4")
    defaults = [f"{key}={value}" for key, value in DEFAULTS.items() if key not in given]
    try:
        cells = grid.read([*defaults, *rest]).cells
    except UnknownName as error:
        if error.what != "key":
            raise
        raise UnknownName("key", error.got, [*PARSERS, *error.choices]) from None
    if len(cells) > 1:
        raise ConfigError(f"got {len(cells)} cells; expected one value for each key but loaders")
    auto = [key for key in ("memory_format", "amp") if getattr(cells[0].cell, key) == AUTO]
    if auto:
        raise ConfigError(f"{auto[0]}: got auto, which a sweep measures at its start; expected a value here")
    return Settings(cells[0].cell, **own)
