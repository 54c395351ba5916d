"""The command ``python -m normbench.bench``: exit 0 done, 1 nothing measured, 2 a bad command, 130 stopped."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from normbench.bench import command
from normbench.commands import DONE, FAILED, begin, ended
from normbench.spinning import spin_less


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what ``argv`` asks for; the exit code says how it ended."""
    words = sys.argv[1:] if argv is None else list(argv)
    return ended(lambda: _bench(words), stopped="stopped; what was measured is written")


def _bench(words: list[str]) -> int:
    settings = command.read(words)
    if settings is None:
        print(command.help_text(words), end="")
        return DONE
    # torch is imported from here on: whatever can be told without it has been told.
    return DONE if _mode(settings).run(settings, words) else FAILED


def _mode(settings: command.AnySettings) -> Any:
    """The module whose ``run`` does it."""
    return importlib.import_module(f"normbench.bench.{settings.word or 'units'}job")


if __name__ == "__main__":
    spin_less()  # as a sweep does, since the costs told here are to be those of a sweep
    # torch's profiler would tell of each start, and of a GPU that is not there.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    begin()
    sys.exit(main())
