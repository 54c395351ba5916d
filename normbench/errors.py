"""Every error normbench raises on purpose: what was got, what was expected, how to mend it.

    NormbenchError
    ├── ConfigError        a command, a config value, a name or an option
    │   └── UnknownName    with the choices and the near one
    ├── InputError         a tensor or a model that a unit or the surgery cannot take
    ├── DataError          pictures that are missing, empty, damaged or too few
    └── StoreError         a results folder that cannot be read or written
        └── LostCellError  a cell that was another's, or deleted, when something should be written to it

All are ValueErrors too, so that library users can catch them without importing this module. LostRankError is none of
the family: it tells of another process.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable


class NormbenchError(ValueError):
    """The root of the family."""


class ConfigError(NormbenchError):
    """A bad command line, config file, name or option."""


class InputError(NormbenchError):
    """A tensor or model that cannot be taken as it is."""


class DataError(NormbenchError):
    """Pictures that are missing, empty, damaged or too few."""


class StoreError(NormbenchError):
    """A results folder that cannot be read or written."""


class LostCellError(StoreError):
    """A cell that another process took over, or somebody deleted, while it was at work."""


class LostRankError(RuntimeError):
    """Another rank went away, so that what needs all of them cannot be done."""


class UnknownName(ConfigError):
    """A name that is not among the choices.

    ``what`` is the kind of thing ("normalizer"), ``got`` the word given, ``choices`` the words that exist,
    ``mend`` anything more that helps.
    """

    def __init__(self, what: str, got: str, choices: Iterable[str], mend: str = "") -> None:
        self.what, self.got, self.choices = what, got, sorted(set(choices))
        near = nearest(got, self.choices)
        hint = f" Did you mean {near!r}?" if near else ""
        listing = f" Choices: {', '.join(self.choices)}." if self.choices else ""
        super().__init__(f"unknown {what} {got!r}.{hint}{listing}{' ' + mend if mend else ''}")


def nearest(got: str, choices: Iterable[str]) -> str | None:
    """The choice that ``got`` most likely meant, or None when nothing is near."""
    lower, word = {choice.lower(): choice for choice in choices}, got.lower()
    near = difflib.get_close_matches(word, list(lower), n=max(1, len(lower)), cutoff=0.5)
    if not near:
        return None

    def likeness(choice: str) -> tuple[bool, float, int]:
        """The same letters in another order, then as many as possible in order, then a common beginning."""
        alike = difflib.SequenceMatcher(None, choice, word).ratio()
        beginning = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(choice, word, strict=False))
        return sorted(choice) == sorted(word), alike, len(list(beginning))

    return lower[max(near, key=likeness)]


def one_line(error: BaseException) -> str:
    """An exception's message on one line; its type's name if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
