"""How cells end: from an exception, or from what is left of a process."""

from __future__ import annotations

import os
import re
import signal
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normbench import memory

Result = dict[str, Any]

# What a process may do to itself.
WORDS = {
    signal.SIGSEGV: "a segmentation fault",
    signal.SIGBUS: "a bus error",
    signal.SIGABRT: "an abort",
    signal.SIGFPE: "an arithmetic fault",
    signal.SIGILL: "an illegal instruction",
}


def of_exception(error: BaseException, last: Mapping[str, Any]) -> Result:
    """Status, reason, how far the cell came (``last``: its last row), and where it failed."""
    from normbench.errors import one_line
    from normbench.machine import out_of_memory
    from normbench.meter import DivergedError, StoppedError

    if isinstance(error, DivergedError):
        return {"status": "diverged", "reason": str(error), **error.reached}
    if isinstance(error, StoppedError):
        return {"status": "interrupted", "reason": str(error), **error.reached}
    status = "oom" if out_of_memory(error) else "error"
    text = "".join(traceback.format_exception(error))
    reason = f"{type(error).__name__}: {one_line(error)}"[:500]
    return {"status": status, "reason": reason, **reached(last), "traceback": text}


def reached(last: Mapping[str, Any]) -> Result:
    """How far a cell came, by the last row of it."""
    return {"epoch": last.get("epoch"), "step": last.get("step"), "last_loss": last.get("train_loss")}


def of_process(status: int, out_of_memory: bool, log: str = "") -> Result:
    """Status and reason of a cell whose process left no result. status: as waitpid gives it.

    out_of_memory: the kernel has ended a process for want of memory meanwhile.
    """
    if not os.WIFSIGNALED(status):
        code = os.waitstatus_to_exitcode(status)
        return {"status": "error", "reason": f"its process ended with exit code {code} and no result{_told(log)}"}
    number = os.WTERMSIG(status)
    named = signal.Signals(number) if number in set(signal.Signals) else None
    name = named.name if named else f"signal {number}"
    if number == signal.SIGKILL and out_of_memory:
        return {"status": "oom", "reason": "the system ran out of memory and killed its process (SIGKILL)"}
    words = WORDS.get(named) if named else None
    reason = f"its process ended by {words} ({name}){_place(log)}" if words else f"its process was killed ({name})"
    return {"status": "killed", "reason": reason}


def _told(log: str) -> str:
    """The last line that a process said, if it said something."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return f"; its last words: {lines[-1][:200]}" if lines else ""


def _place(log: str) -> str:
    """Where Python was, as faulthandler left it in the log: outside the libraries, if it came from there."""
    _, told, frames = log.rpartition("most recent call first):")
    found = re.findall(r'^  File "([^"\n]+)", line (\d+)', frames, re.MULTILINE) if told else []
    own = [frame for frame in found if "/lib/python" not in frame[0] and not frame[0].startswith("<")] or found
    return f" at {'/'.join(Path(own[0][0]).parts[-2:])}:{own[0][1]}" if own else ""


def memory_kills() -> int:
    """How many processes the kernel has ended for want of memory: in this process's control group, and at all."""
    count = 0
    for path in _counters():
        try:
            count += sum(int(found) for found in re.findall(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE))
        except OSError:
            continue
    return count


def _counters() -> list[Path]:
    """Where Linux counts them: control groups of version 2 and of version 1, and the whole system."""
    kinds = ("memory.events", "memory.oom_control")
    return [Path("/proc/vmstat"), *(folder / kind for folder in memory.groups() for kind in kinds)]
