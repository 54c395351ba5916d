"""Brings W&B up to what stores hold: runs made or completed, and left alone where nothing has changed."""

from __future__ import annotations

import contextlib
import fcntl
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from normbench import records
from normbench.errors import StoreError
from normbench.files import legible
from normbench.track import fragments
from normbench.track.cell import Content, read
from normbench.track.runs import Runs

LOCK = ".tracking"
STALE = "of an earlier attempt, which W&B keeps; for the new ones push to another project (WANDB_PROJECT=…)"


def push(folder: Path, runs: Runs) -> Counter[str]:
    """Push one sweep; how many cells were ``sent``, ``unchanged`` and ``stale`` (runs.show), or are ``left out``.

    Left out are those that no table counts (records.LEFT_OUT): a copied one is no repetition, and one that cannot be
    read would take from its run what that has.
    Raises StoreError while another process does, and whatever W&B raises: what was sent by then stays, and the next
    push goes on from there.
    """
    with alone(folder):
        found, _ = records.read_cells(folder)
        left_out = {cell["cell_id"] for cell in found if cell["status"] in records.LEFT_OUT}
        contents = [read(path) for path in records.cells_of(folder) if legible(path.name) not in left_out]
        there = runs.digests(contents)
        counts = Counter({"left out": len(left_out)})
        for content in _shown(contents, folder.name):
            if there.get(content.id) == content.digest:
                counts["unchanged"] += 1
            else:
                counts[runs.show(content, end=True)] += 1
    return counts


def told(folder: Path, runs: Runs, counts: Counter[str]) -> str:
    """What was done, on one line."""
    new = counts["sent"] + counts["stale"]
    text = f"{folder}: {new} {'written' if runs.offline else 'sent'}, {counts['unchanged']} unchanged"
    if counts["left out"]:
        text += f", {counts['left out']} left out ({' or '.join(records.LEFT_OUT)})"
    if counts["stale"]:
        text += f"; {counts['stale']} of them with curves {STALE}"
    where = fragments.sending(folder) if runs.offline else runs.url
    return f"{text}; {where}" if new else text


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Have the sweep's runs to oneself: two writers of a run would overwrite each other's rows.

    Raises StoreError when another process has them. A store that cannot be written to is taken as it is.
    """
    try:
        file = (folder / LOCK).open("w")
    except OSError:
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{str(folder)!r} is being mirrored by its sweep, or by another push; push it when that is done"
            ) from None
        yield


def _shown(contents: Sequence[Content], what: str) -> Iterable[Content]:
    """The cells, with a bar on a terminal."""
    if not sys.stderr.isatty():
        yield from contents
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=len(contents))
        for content in contents:
            progress.update(task, description=f"{what}: {content.name}")
            yield content
            progress.advance(task)
