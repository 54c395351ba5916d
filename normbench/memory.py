"""Memory that is free to this process: what the machine has left, and what its control groups still allow it."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

CONTROL_GROUPS = Path("/sys/fs/cgroup")
# What a control group of version 2 and one of version 1 call their limit, what is used, and that share of it which is
# only a copy of files and is given up when memory is wanted.
NAMES = (
    ("memory.max", "memory.current", r"^(?:in)?active_file (\d+)$"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", r"^total_(?:in)?active_file (\d+)$"),
)


def free_mib() -> float:
    """MiB that this process and its children can still have, swap left out; infinite where it cannot be told."""
    found = [_of_machine(), *(_of_group(folder) for folder in groups())]
    return min((free for free in found if free is not None), default=float("inf"))


def groups() -> list[Path]:
    """Folders of the control groups that count this process's memory: its own and all above, of version 2 and of 1."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        path = PurePath(group.lstrip("/"))
        if not controllers:
            found += [CONTROL_GROUPS / part for part in (path, *path.parents)]
        elif "memory" in controllers.split(","):
            found += [CONTROL_GROUPS / "memory" / part for part in (path, *path.parents)]
    return found


def _of_machine() -> float | None:
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None


def _of_group(folder: Path) -> float | None:
    """What a group's limit leaves; None if it has none."""
    for limit, used, files in NAMES:
        try:
            most = int((folder / limit).read_text())
            given_up = sum(map(int, re.findall(files, (folder / "memory.stat").read_text(), re.MULTILINE)))
            return max(0, most - int((folder / used).read_text()) + given_up) / 2**20
        except (OSError, ValueError):  # "max": no limit
            continue
    return None
