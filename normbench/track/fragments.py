"""The runs that W&B wrote offline: folders ``wandb/offline-run-<time>-<id>``, which ``wandb sync`` sends later.

``wandb sync`` adds the rows of a folder after those that the run has already, so each row may lie in one folder only:

- a cell that has not changed since it was written is not written again;
- one that has changed is written anew, whole, and its earlier folder goes, as long as that was not sent;
- where it was sent (W&B puts a ``.synced`` file there), the new folder has the rows that came since.

What a folder holds stands in a file of ours in it. Without that file, or the folder, the cell counts as not written.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from normbench.files import read_json, write_json
from normbench.track.cell import Content

RECORD = "normbench.json"


def base(folder: Path) -> Path:
    """Where W&B puts its ``wandb/``: ``WANDB_DIR``, else the sweep's folder."""
    return Path(os.environ.get("WANDB_DIR") or folder)


def sending(folder: Path) -> str:
    """What sends them, for people."""
    return f"to send it:  wandb sync {base(folder)}/wandb/offline-run-*"


class Written(NamedTuple):
    """Of a cell: the digest as it was written last; how many of its epochs were sent, and the curves of these."""

    digest: str = ""
    epochs: int = 0
    curves: str = ""


def written(folder: Path, content: Content) -> Written:
    """What was written of the cell and sent; nothing, if it was not."""
    found = _all(folder, content)
    records = [read_json(path / RECORD) for path in found]
    sent = [record for path, record in zip(found, records, strict=True) if _sent(path)]
    # Of two attempts that came equally far the first gave the rows.
    furthest = max(sent, key=lambda record: record.get("epochs", 0), default={})
    digest = str(records[-1].get("digest", "")) if records else ""
    return Written(digest, furthest.get("epochs", 0), str(furthest.get("curves", "")))


def make_room(folder: Path, content: Content) -> None:
    """Take away what was written of the cell and not sent."""
    for path in _all(folder, content):
        if not _sent(path):
            shutil.rmtree(path, ignore_errors=True)


def note(folder: Path, content: Content) -> None:
    """Write down what the newest folder of the cell holds."""
    for path in _all(folder, content)[-1:]:
        write_json(path / RECORD, record(content))


def record(content: Content) -> dict[str, Any]:
    """What tells later whether a cell has changed: of all of it, of its curves, and how many epochs these have."""
    return {"digest": content.digest, "curves": content.curves(content.epochs), "epochs": content.epochs}


def _all(folder: Path, content: Content) -> list[Path]:
    """The oldest first: their names begin with the time, and end with a number where that is not enough."""
    return sorted((base(folder) / "wandb").glob(f"offline-run-*-{content.id}*"))


def _sent(path: Path) -> bool:
    return any(path.glob("*.synced"))
