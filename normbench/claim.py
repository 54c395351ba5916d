"""Who works on a cell: a file made by one living process at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normbench.files import read_json, write_json


def process(pid: int | None = None) -> dict[str, Any]:
    """This process, or another's number, so that it is not mistaken for a later one of the same number: with the time
    it was born at (clock ticks since boot) and the boot, where the system tells.
    """
    pid = os.getpid() if pid is None else pid
    found: dict[str, Any] = {"pid": pid}
    with contextlib.suppress(OSError, IndexError):
        found["born"] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return found


def alive(claim: Mapping[str, Any]) -> bool:
    pid = claim.get("pid")
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    found = process(pid)
    return all(claim.get(key, found.get(key)) == found.get(key) for key in ("born", "boot"))


def take(path: Path, content: Mapping[str, Any]) -> bool:
    """Create the file with its content, unless a living process has. What a dead one left is taken over."""
    own = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write_json(own, content)
    try:
        for _ in range(2):
            try:
                os.link(own, path)  # whole, or not at all
            except FileExistsError:
                if alive(read_json(path)):
                    return False
                path.unlink(missing_ok=True)
            else:
                return True
        return False
    finally:
        own.unlink(missing_ok=True)
