"""What stands behind a key's ``=``: words, counts, numbers, flags. Each parser raises ConfigError. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any

from normbench.errors import ConfigError
from normbench.options import AUTO, one_of

Parser = Callable[[str, str], Any]


def asks_for_help(words: Sequence[str]) -> bool:
    return any(word in ("--help", "-h", "help") for word in words)


def key(default: Any, parse: Parser, text: str, more: str = "") -> Any:
    """A dataclass field that is a key of the command line: how it is read, and its line (or two) of the help."""
    return field(default=default, metadata={"parse": parse, "text": text, "more": more})


def names(key: str, value: str) -> tuple[str, ...]:
    """Words with a comma between them, each once."""
    words = [word.strip() for word in value.split(",")]
    if not all(words):
        raise ConfigError(f"{key}: got {value!r}, expected values with a comma between them")
    if len(set(words)) < len(words):
        raise ConfigError(f"{key}: got {value!r}, in which a value stands twice")
    return tuple(words)


def list_of(parse: Parser) -> Parser:
    """Values with a comma between them, each once."""
    return lambda key, value: tuple(parse(key, word) for word in names(key, value))


def counts(key: str, value: str) -> tuple[int, ...]:
    return tuple(count(key, word) for word in names(key, value))


def chosen(*choices: str) -> Parser:
    """Some of ``choices``."""

    def parse(key: str, value: str) -> tuple[str, ...]:
        for word in (words := names(key, value)):
            one_of(key, word, choices)
        return words

    return parse


def choice(*choices: str) -> Parser:
    """One of ``choices``."""

    def parse(key: str, value: str) -> str:
        one_of(key, value, choices)
        return value

    return parse


def count(key: str, value: str) -> int:
    return _whole(key, value, 1)


def count_or_zero(key: str, value: str) -> int:
    return _whole(key, value, 0)


def number(key: str, value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise ConfigError(f"{key}: got {value!r}, expected a number, 0 or more")
    return found


def flag(key: str, value: str) -> bool:
    one_of(key, value.lower(), ("true", "false"))
    return value.lower() == "true"


def text(key: str, value: str) -> str:
    if not value:
        raise ConfigError(f"{key}: got nothing; give {key}=…")
    return value


def optional(parse: Parser) -> Parser:
    """``none`` or ``auto`` too."""
    return lambda key, value: None if value.lower() in ("none", "auto") else parse(key, value)


def auto_or(parse: Parser) -> Parser:
    """``auto`` as it stands, or what ``parse`` makes of it."""
    return lambda key, value: AUTO if value.lower() == AUTO else parse(key, value)


def shown(default: Any) -> str:
    """A default as it would be typed."""
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    return str(default).lower() if isinstance(default, bool) or default is None else str(default)


def _whole(key: str, value: str, least: int) -> int:
    if not value.isdecimal() or int(value) < least:
        raise ConfigError(f"{key}: got {value!r}, expected a whole number, {least} or more")
    return int(value)
