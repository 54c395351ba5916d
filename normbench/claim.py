"""Who works on a cell: numbered files, one for each attempt, made by one living process at a time.

The owner of attempt n made ``running-<n>.json``; whoever finds it dead makes n + 1. A file of a number is made once
(link(2) fails where there is one), so of all that saw n dead exactly one goes on, on this machine or another.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normbench.files import read_json, temporary, write_json

# Seconds between two signs of life of an owner, and after which a silent one of another machine counts as dead.
BEAT, STALE = 10.0, 120.0
NAME = "running-{}.json"


def process(pid: int | None = None) -> dict[str, Any]:
    """This process, or another's number, so that it is not mistaken for a later one of the same number: with the time
    it was born at (clock ticks since boot), where the system tells, and the machine (or container) as a hash.
    """
    pid = os.getpid() if pid is None else pid
    found: dict[str, Any] = {"pid": pid, "host": _host()}
    with contextlib.suppress(OSError, IndexError):
        found["born"] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return found


def _host() -> str:
    """What has its own process numbers: a machine since it was started, a container."""
    words = [platform.node(), str(uuid.getnode())]
    with contextlib.suppress(OSError):
        words = [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:12]


def alive(path: Path) -> bool:
    """Whether the owner of a claim lives: by its process number on this machine, by its signs of life on others."""
    content = read_json(path)
    if content.get("host") == _host() and isinstance(content.get("pid"), int):
        return _runs(content)
    try:
        return _disk_time(path.parent) - path.stat().st_mtime < STALE
    except OSError:
        return False


def _runs(content: Mapping[str, Any]) -> bool:
    pid = content["pid"]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    born = process(pid).get("born")
    return content.get("born", born) == born and not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Dead, but its parent has not asked how it ended."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return False


def _disk_time(folder: Path) -> float:
    """Now, by the clock of the disk that ``folder`` lies on, which may be a server's."""
    try:
        with temporary(folder / "clock") as path:
            path.touch()
            return path.stat().st_mtime
    except OSError:  # a store that cannot be written
        return time.time()


def newest(folder: Path) -> tuple[int, Path | None]:
    """Number and file of the last attempt that somebody claimed in a cell's folder; 0 and None if there is none."""
    found = [(int(match[1]), path) for path in _listed(folder) if (match := _pattern.fullmatch(path.name))]
    return max(found, default=(0, None))


_pattern = re.compile(r"running-(\d+)\.json")


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def take(folder: Path, number: int, content: Mapping[str, Any]) -> Path | None:
    """Claim attempt ``number`` for this process: its file, or None if somebody else did, or came further.

    The files of earlier attempts go.
    """
    path = folder / NAME.format(number)
    with temporary(path) as own:
        write_json(own, {**process(), **content})
        try:
            os.link(own, path)  # whole, or not at all
        except FileExistsError:
            return None
    if newest(folder)[0] > number:  # the file was gone because somebody is further than its owner was
        path.unlink(missing_ok=True)
        return None
    for earlier in _listed(folder):
        if (match := _pattern.fullmatch(earlier.name)) and int(match[1]) < number:
            earlier.unlink(missing_ok=True)
    return path


def beat(path: Path) -> None:
    """A sign of life."""
    with contextlib.suppress(OSError):
        os.utime(path)
