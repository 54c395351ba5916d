"""Does a normalizer, ours or a user's, keep its promises?  ``python -m normbench.check TARGET``.

subject.py     units and pictures for the checks
promises.py    one function a promise
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from normbench import norms, targets
from normbench.check import promises
from normbench.check.promises import Promise
from normbench.check.subject import Broken, Skipped, Subject
from normbench.errors import ConfigError, NormbenchError, one_line

__all__ = ["Verdict", "check"]


@dataclass(frozen=True)
class Verdict:
    """What came of one promise: ``kept``, ``broken`` or ``not made``; why, unless it is kept."""

    promise: str
    outcome: str
    why: str = ""


def check(target: str, options: Mapping[str, Any] | None = None, *, channels: int = 32) -> Iterator[Verdict]:
    """A verdict for every promise, in their order, as each is found out.

    target: a registered name, ``file.py:Class`` or ``package.module:Class``. options: of its constructor. channels: of
    the units that are tried. Raises UnknownName or ConfigError for a target or an option that cannot be had.
    """
    chosen = dict(options or {})
    norms.check_options(target, chosen)
    if norms.get(target, chosen).takes_domains and chosen.get("domains", 1) != 1:
        raise ConfigError(
            f"domains: got {chosen['domains']}, expected 1 here: which domain a picture is of is for the data to say"
        )
    subject = Subject(target, channels, chosen)
    return _verdicts(subject)


def _verdicts(subject: Subject) -> Iterator[Verdict]:
    for promise in promises.ALL:
        verdict = _verdict(promise, subject)
        yield verdict
        if promise is promises.can_be_made_and_run and verdict.outcome == "broken":
            return  # or the same error stands at each


def _verdict(promise: Promise, subject: Subject) -> Verdict:
    said = " ".join((promise.__doc__ or promise.__name__).split())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            promise(subject)
    except Skipped as why:
        return Verdict(said, "not made", str(why))
    except Broken as why:
        return Verdict(said, "broken", str(why))
    except NormbenchError as error:
        return Verdict(said, "broken", f"it refused: {one_line(error)}")
    except Exception as error:  # whatever a user's forward raises is the verdict
        where = targets.line_of(error, subject.row.unit)
        return Verdict(said, "broken", f"raised {type(error).__name__}: {one_line(error)[:300]}{where}")
    return Verdict(said, "kept")
