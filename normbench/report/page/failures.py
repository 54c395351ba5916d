"""The cells without a result: how they ended, why, and what they said last."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbench.files import read_json
from normbench.report.frame import word
from normbench.report.page.markup import clean, escaped, link

if TYPE_CHECKING:
    import pandas as pd

LAST = 6000  # characters of a traceback or log
ROOM = 1_000_000  # of all of them together; the rest stays in the cells' folders
NAMED = 12  # cells that a reason names
OPEN = 12  # reasons of one status that are not folded away


def section(folder: Path, frame: pd.DataFrame) -> str:
    """HTML: per status its reasons, each with its cells and the last words of the first of them that left any."""
    failed = frame[frame["status"] != "ok"]
    if failed.empty:
        return '<p class="quiet">None: every cell has a result.</p>'
    said = _Said(folder)
    return "".join(_status(str(status), cells, said) for status, cells in failed.groupby("status", sort=True))


def _status(status: str, cells: pd.DataFrame, said: _Said) -> str:
    causes: dict[str, list[dict[str, Any]]] = {}
    for row in cells.to_dict("records"):
        causes.setdefault(" ".join(word(row["reason"]).split()), []).append({str(k): v for k, v in row.items()})
    items = "".join(_cause(reason, rows, said) for reason, rows in causes.items())
    body = f'<ul class="causes">{items}</ul>'
    if len(causes) > OPEN:
        body = f"<details><summary>{len(causes)} different reasons</summary>{body}</details>"
    count = f"{len(cells)} cell{'s'[: len(cells) != 1]}"
    return f'<h3><span class="status">{escaped(status)}</span> <span class="quiet">{count}</span></h3>{body}'


def _cause(reason: str, rows: list[dict[str, Any]], said: _Said) -> str:
    links = [f'<a href="{link(where__cell_id=row["cell_id"])}">{escaped(_who(row))}</a>' for row in rows]
    more = f" and {len(links) - NAMED} more" if len(links) > NAMED else ""
    return (
        f'<li><p class="reason">{escaped(reason) or "no reason was left"}</p>'
        f'<p class="quiet">{", ".join(links[:NAMED])}{more}</p>{said.words(rows)}</li>'
    )


def _who(row: dict[str, Any]) -> str:
    if not row["line"]:
        return str(row["cell_id"])
    return f"{row['block']} {row['line']}, batch {word(row['batch'])}, seed {word(row['seed'])}".strip()


class _Said:
    """Tracebacks and logs, each text once, until there is no more room."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.room = folder, ROOM

    def words(self, rows: list[dict[str, Any]]) -> str:
        """What the cells of one reason said; of several texts the most frequent."""
        found = Counter(words for row in rows[:50] for words in self._of(row))
        if not found:
            return ""
        (name, text), _ = found.most_common(1)[0]
        if self.room <= 0:
            return f'<p class="quiet">The {name} is in the cell\'s folder: this page has as many as it can hold.</p>'
        self.room -= len(text)
        others = f"; {len(found) - 1} others are in the cells' folders" if len(found) > 1 else ""
        return f'<details><summary>{name}{others}</summary><pre tabindex="0">{escaped(text)}</pre></details>'

    def _of(self, row: dict[str, Any]) -> Iterator[tuple[str, str]]:
        cell = self.folder / str(row["cell_id"])
        trace = read_json(cell / "result.json").get("traceback")
        if isinstance(trace, str) and trace.strip():
            yield "traceback", _end(clean(trace))
        elif log := _tail(cell / "log.txt"):
            yield "end of its log", _end(clean(log))


def _end(text: str) -> str:
    text = text.strip("\n")
    return text if len(text) <= LAST else "…\n" + text[-LAST:].partition("\n")[2]


def _tail(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(-min(2 * LAST, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return file.read().decode(errors="replace").strip()
    return ""
