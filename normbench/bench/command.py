"""The words of the command line: ``key=value[,value…]``, checked before anything is measured. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from normbench.errors import ConfigError, UnknownName
from normbench.options import one_of

FORMATS = ("contiguous", "channels_last")
DTYPES = ("float32", "bfloat16")
UNITS, NETWORK = "units", "network"
# What ``quick=true`` puts in the place of defaults; what is given still counts.
QUICK: dict[str, Any] = {
    "shapes": ("resnet50@32",),
    "batch": (2, 8),
    "dtype": ("float32",),
    "seconds": 0.1,
}


@dataclass(frozen=True)
class Settings:
    """What is measured, and how long. None: see the key's line in ``KEYS``."""

    norm: tuple[str, ...] = ("all",)
    shapes: tuple[str, ...] = ("resnet50@32", "resnet50@224", "inception_v3")
    arch: tuple[str, ...] = ()
    size: int = 32
    batch: tuple[int, ...] = (2, 8, 32, 128)
    memory_format: tuple[str, ...] = FORMATS
    dtype: tuple[str, ...] = DTYPES
    device: str = "auto"
    threads: int | None = None
    rounds: int = 5
    seconds: float = 0.3
    limit_mib: float | None = None
    peers: bool = True
    quick: bool = False
    out: str = "bench"
    given: Mapping[str, str] = field(default_factory=dict)  # the words as they were typed

    @property
    def mode(self) -> str:
        return NETWORK if self.arch else UNITS


KEYS = {
    "norm": "normalizers by name, or file.py:Class; all: every registered one",
    "shapes": "networks whose site shapes are taken, @ the side of their pictures",
    "arch": "networks for whole training steps, in place of shapes",
    "size": "with arch: the side of its pictures",
    "batch": "images in a batch",
    "memory_format": "layout of pictures and maps",
    "dtype": "of pictures and maps; parameters stay float32 (arch: autocast)",
    "device": "auto, cpu, cuda, cuda:<number>, mps",
    "threads": "of a CPU; none: torch's own number",
    "rounds": "least rounds of a shape (three do after 5 × seconds)",
    "seconds": "least time of all rounds of a shape together",
    "limit_mib": "leave out shapes that need more; none: half of what is free,",
    "peers": "also others' layers: torch's, and timm's where it is installed",
    "quick": "a few small shapes and rounds, to see that it works",
    "out": "the folder that files are left in",
}
MORE = {"limit_mib": "and on a CPU at most 2048"}  # second lines

HELP = """\
python -m normbench.bench [KEY=VALUE[,VALUE...] ...]

Measures forward + backward of every normalizer with its activation, beside nn.BatchNorm2d + ReLU and beside a memory
copy of the same bytes, and leaves bench.csv, summary.md, bench.png, bench.svg and bench.json.

  python -m normbench.bench quick=true
  python -m normbench.bench norm=bn,gn shapes=resnet50@32 batch=2,32 dtype=float32
  python -m normbench.bench arch=resnet50 size=32 batch=2,32 norm=bn,gn     # whole training steps: steps.csv, steps.md

Keys and their defaults
{keys}

Exit code: 0 done; 1 nothing could be measured; 2 a bad command, nothing measured; 130 stopped by Ctrl-C, what was
measured is written.
"""


def read(words: Sequence[str]) -> Settings | None:
    """The settings that ``words`` give; None if help is asked for. Raises ConfigError."""
    if any(word in ("--help", "-h", "help") for word in words):
        return None
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or word.startswith("-"):
            _refuse(word)
        if key not in KEYS:
            raise UnknownName("key", key, KEYS)
        if key in given:
            raise ConfigError(f"{key}: given twice; give its values as one list, {key}={given[key]},{value}")
        given[key] = value
    values = {key: PARSERS.get(key, _names)(key, value) for key, value in given.items()}
    _check_together(values)
    quick = QUICK if values.get("quick") else {}
    return Settings(**{**quick, **values}, given=given)


def help_text() -> str:
    """Every key with its default."""
    defaults = {f.name: f.default for f in fields(Settings)}
    words = {key: f"{key}={_shown(defaults[key])}" for key in KEYS}
    width = max(map(len, words.values()))
    lines = [f"  {words[key]:<{width}}  {KEYS[key]}" for key in KEYS]
    for key, more in MORE.items():
        lines.insert(list(KEYS).index(key) + 1, f"  {'':<{width}}  {more}")
    return HELP.format(keys="\n".join(lines))


def _refuse(word: str) -> None:
    if word.startswith("-"):
        raise ConfigError(f"unknown flag {word!r}; keys have no dashes: {word.lstrip('-').split('=')[0]}=…; see --help")
    raise UnknownName("command or key", word, KEYS, f"Give keys as {word}=…; see --help.")


def _check_together(values: Mapping[str, Any]) -> None:
    """Keys of the other mode."""
    if values.get("arch"):
        for key in ("shapes", "limit_mib", "peers"):
            if key in values:
                raise ConfigError(f"{key}: does not go with arch=…, which measures whole training steps; leave one out")
    elif "size" in values:
        raise ConfigError("size: goes with arch=… only; a network's shapes take theirs behind @, as in resnet50@32")


def _words(key: str, value: str) -> list[str]:
    words = [word.strip() for word in value.split(",")]
    if not all(words):
        raise ConfigError(f"{key}: got {value!r}, expected values with a comma between them")
    if len(set(words)) < len(words):
        raise ConfigError(f"{key}: got {value!r}, in which a value stands twice")
    return words


def _names(key: str, value: str) -> tuple[str, ...]:
    return tuple(_words(key, value))


def _counts(key: str, value: str) -> tuple[int, ...]:
    return tuple(_count(key, word) for word in _words(key, value))


def _chosen(choices: tuple[str, ...]) -> Callable[[str, str], tuple[str, ...]]:
    def parse(key: str, value: str) -> tuple[str, ...]:
        for word in (words := _words(key, value)):
            one_of(key, word, choices)
        return tuple(words)

    return parse


def _count(key: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"{key}: got {value!r}, expected a whole number, 1 or more")
    return int(value)


def _number(key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ConfigError(f"{key}: got {value!r}, expected a number, 0 or more")
    return number


def _flag(key: str, value: str) -> bool:
    one_of(key, value.lower(), ("true", "false"))
    return value.lower() == "true"


def _text(key: str, value: str) -> str:
    if not value:
        raise ConfigError(f"{key}: got nothing; give {key}=…")
    return value


def _optional(parse: Callable[[str, str], Any]) -> Callable[[str, str], Any]:
    return lambda key, value: None if value.lower() in ("none", "auto") else parse(key, value)


PARSERS: dict[str, Callable[[str, str], Any]] = {
    "batch": _counts, "memory_format": _chosen(FORMATS), "dtype": _chosen(DTYPES), "size": _count, "rounds": _count,
    "threads": _optional(_count), "seconds": _number, "limit_mib": _optional(_number), "peers": _flag, "quick": _flag,
    "device": _text, "out": _text,
}  # fmt: skip


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    return str(default).lower() if isinstance(default, bool) or default is None else str(default)
