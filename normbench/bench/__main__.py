"""The command ``python -m normbench.bench``: exit 0 done, 1 nothing measured, 2 a bad command, 130 stopped."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from normbench.bench import command
from normbench.errors import NormbenchError, one_line
from normbench.spinning import spin_less

DONE, FAILED, BAD_COMMAND, STOPPED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what ``argv`` asks for; the exit code says how it ended."""
    try:
        words = sys.argv[1:] if argv is None else list(argv)
        settings = command.read(words)
        if settings is None:
            print(command.help_text(words), end="")
            return DONE
        # torch is imported from here on: whatever can be told without it has been told.
        return DONE if _mode(settings).run(settings, words) else FAILED
    except NormbenchError as error:
        print(f"normbench: {one_line(error)}", file=sys.stderr)
        return BAD_COMMAND
    except BrokenPipeError:  # whoever read the output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:  # a folder that cannot be written, a disk that fills
        print(f"normbench: {one_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("normbench: stopped; what was measured is written", file=sys.stderr)
        return STOPPED


def _mode(settings: command.AnySettings) -> Any:
    """The module whose ``run`` does it."""
    return importlib.import_module(f"normbench.bench.{settings.word or 'units'}job")


def _stop(signum: int, frame: Any) -> NoReturn:
    """A polite kill ends the run as Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    spin_less()  # as a sweep does, since the costs told here are to be those of a sweep
    # torch's profiler would tell of each start, and of a GPU that is not there.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × must not cost a run
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
