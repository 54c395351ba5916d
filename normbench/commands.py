"""What normbench's commands have in common: how they begin, their exit codes, and errors as one line on stderr."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from normbench.errors import NormbenchError, one_line

DONE, FAILED, BAD_COMMAND, STOPPED = 0, 1, 2, 130


def begin() -> None:
    """For a process that is a command and nothing else: a polite kill ends it as Ctrl-C does, so that what it has under
    way is closed; and a terminal without ± or × costs a letter, not the run.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's word
            signal.signal(number, _stop)


def _stop(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def hush() -> None:
    """Nobody reads any more: what is still buffered would be tried again, and fail again, when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def ended(command: Callable[[], int], who: str = "normbench", *, mend: str = "", stopped: str = "stopped") -> int:
    """The exit code of a command, whatever happens in it; errors that nobody foresaw go on as they are.

    NormbenchError: 2.  OSError, such as a disk that fills: 1.  A reader who went away (``| head``): 1, without a word.
    Ctrl-C, or a kill after ``begin``: 130.  who: begins each line.  mend: follows an OSError.  stopped: after Ctrl-C.
    """
    try:
        return command()
    except NormbenchError as error:
        print(f"{who}: {one_line(error)}", file=sys.stderr)
        return BAD_COMMAND
    except BrokenPipeError:
        hush()
        return FAILED
    except OSError as error:
        print(f"{who}: {one_line(error)}{mend}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"{who}: {stopped}", file=sys.stderr)
        return STOPPED
