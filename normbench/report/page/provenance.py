"""What the cells ran on: what is the same for all of them once, the rest per group of cells that are alike."""

from __future__ import annotations

import json
import shlex
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normbench.files import read_json
from normbench.report.page.markup import escaped, link, table

OWN = ("attempt", "from_step")  # of a cell, whatever it ran on
PRIVATE = ("host", "hostname", "node", "user", "username", "cwd")  # never written by normbench; nor shown
UNKNOWN = "–"


@dataclass(frozen=True)
class Provenance:
    """``names``: of each cell its group (A, B, …; "" for a cell that left no provenance); ``attempts``: likewise.

    groups: name → what differs between groups, as text.  shared: what does not.
    """

    names: list[str]
    attempts: list[int | None]
    shared: dict[str, str]
    groups: dict[str, dict[str, str]]

    def section(self) -> str:
        """HTML: the shared facts, and a table of the groups where there are several."""
        if not self.groups:
            return '<p class="quiet">No cell has left any yet.</p>'
        facts = "".join(f"<div><dt>{escaped(k)}</dt><dd>{escaped(v)}</dd></div>" for k, v in self.shared.items())
        missing = self.names.count("")
        lost = f'<p class="quiet">{missing} without: never begun, or damaged.</p>' if missing else ""
        return f'<dl class="facts">{facts}</dl>{self._differences()}{lost}'

    def _differences(self) -> str:
        if len(self.groups) < 2:
            return ""
        keys = list(next(iter(self.groups.values())))
        rows = (
            [f'<a href="{link(where__origin=name)}">{name}</a>', str(self.names.count(name)),
             *(escaped(facts[key]) for key in keys)]
            for name, facts in self.groups.items()
        )  # fmt: skip
        heads = ["origin", "cells", *map(escaped, keys)]
        return table(heads, rows, "What differs between cells, per group of cells that are alike")


def read(folder: Path, cells: Iterable[Any]) -> Provenance:
    """The provenance of all cells, named in this order."""
    found = [read_json(folder / str(cell) / "provenance.json") for cell in cells]
    keys = list(dict.fromkeys(key for facts in found for key in facts if key not in (*OWN, *PRIVATE)))
    texts = [{key: _text(key, facts.get(key)) for key in keys} if facts else {} for facts in found]
    differ = [key for key in keys if len({facts[key] for facts in texts if facts}) > 1]
    kinds: dict[tuple[str, ...], str] = {}
    names = []
    for facts in texts:
        kind = tuple(facts[key] for key in differ) if facts else None
        names.append("" if kind is None else kinds.setdefault(kind, _name(len(kinds))))
    shared = {key: text for key in keys if key not in differ and (text := next(f for f in texts if f)[key]) != UNKNOWN}
    groups = {name: dict(zip(differ, kind, strict=True)) for kind, name in kinds.items()}
    attempts = [facts.get("attempt") if isinstance(facts.get("attempt"), int) else None for facts in found]
    return Provenance(names, attempts, shared, groups)


def _name(k: int) -> str:
    """A, B … Z, AA, AB …"""
    more, last = divmod(k, 26)
    return (_name(more - 1) if more else "") + string.ascii_uppercase[last]


def _text(key: str, value: Any) -> str:
    if value is None:
        return UNKNOWN
    if key == "command" and isinstance(value, list):
        return shlex.join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text('', item)}" for name, item in value.items() if name not in PRIVATE)
    if isinstance(value, list):
        return f"[{', '.join(_text('', item) for item in value)}]"
    return value if isinstance(value, str) else json.dumps(value)
