"""``python -m normbench.check TARGET [option=value …]``: a verdict per promise; exit code 1 if one is broken."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from normbench.check import Verdict, check
from normbench.commands import hush
from normbench.errors import ConfigError, NormbenchError
from normbench.grid.command import parse

MARKS = {"kept": "kept", "broken": "BROKEN", "not made": "-"}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code: 0, 1 if a promise is broken, 2 for a target or option that cannot be had."""
    parser = argparse.ArgumentParser(
        prog="python -m normbench.check", description="Does a normalizer keep its promises? One verdict for each."
    )
    parser.add_argument("target", help="a registered name, path/to/file.py:Class or package.module:Class")
    parser.add_argument("option", nargs="*", help="options of its constructor, such as num_groups=8")
    parser.add_argument("--channels", type=int, default=32, help="of the units that are tried (32)")
    given = parser.parse_args(argv)
    broken = made = 0
    try:
        for verdict in check(given.target, _options(given.option), channels=given.channels):
            print(_told(verdict), flush=True)
            broken += verdict.outcome == "broken"
            made += verdict.outcome != "not made"
    except NormbenchError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{given.target}: {made - broken} of {made} promises kept")
    return 1 if broken else 0


def _options(texts: Sequence[str]) -> dict[str, Any]:
    """The options of one normalizer, read as a sweep reads them."""
    axes, _ = parse(texts)
    for axis in axes:
        if axis.swept:
            raise ConfigError(
                f"{axis.key}: got {len(axis.values)} values, expected one; check them one after the other"
            )
    return {axis.key: axis.values[0] for axis in axes}


def _told(verdict: Verdict) -> str:
    lines = [f"{MARKS[verdict.outcome]:7} {verdict.promise}"]
    lines += textwrap.wrap(verdict.why, 110, initial_indent=" " * 10, subsequent_indent=" " * 10)
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # whoever read along has seen enough
        hush()
        sys.exit(1)
