"""One cell's folder as it is found: finished, unfinished, damaged, of another schema. Whatever lies there, it is read.

What cannot be used is left out and said; nothing here raises for what a file holds.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from normbench import claim
from normbench.attempt import SCHEMA
from normbench.files import decoded, legible, one_value, plain, read_json, writable
from normbench.records.problems import Problems

STATUSES = ("ok", "diverged", "oom", "killed", "timeout", "error", "skipped", "interrupted")
# What a cell reached that has no result yet.
REACHED = ("epoch", "step", "train_seconds", "images_per_s")
# What a cell needs to have a place in the table.
PLACE = ("norm", "batch", "seed")
# Of a result, what is not measured.
NO_MEASUREMENT = ("config", "changed", "schema", "cell_id", "status")
# Larger numbers, and those nearer to 0, are damage: no count and no float32 holds them.
MOST, LARGEST, LEAST = 2**63 - 1, 3.5e38, 1e-45
# A cell that is left out of the table has this status where it cannot be read, that one where it is there twice.
UNREADABLE, DUPLICATE = "unreadable", "duplicate"


@dataclass(frozen=True)
class Found:
    """A cell: the names of its folder and in its result; its status, reason, measurements, ``config``, ``changed``."""

    name: str
    recorded: str
    content: dict[str, Any]
    ended: float


def read(folder: Path, kinds: Mapping[str, str], problems: Problems) -> Found:
    """The result of a cell, or what is known of one that has none: its configuration and its last epoch.

    kinds: what each measurement is: ``word``, ``count``, ``share`` (%) or ``number``; others are taken as they are.
    """
    damaged = os.path.lexists(folder / "result.json")
    result = read_json(folder / "result.json")
    if not _is_whole(result):
        return _unfinished(folder, damaged, kinds, problems)
    if result.get("schema", SCHEMA) != SCHEMA:
        schema = legible(f"schema {result['schema']!r}")
        problems.add(f"cells of another schema than {SCHEMA}, left out", folder.name, schema)
        return _left_out(folder.name, f"its result.json has {schema}, this normbench reads schema {SCHEMA}")
    config, wrong = _checked(result["config"])
    if result["status"] not in STATUSES:
        wrong = f"status is {result['status']!r}, expected one of {', '.join(STATUSES)}"
    known = {"status": result["status"], "config": config, "changed": _changed(result)}
    content = {**_measured(result, folder.name, kinds, problems), **known}
    if wrong:
        problems.add("cells whose configuration cannot be used, left out", folder.name, wrong)
        content |= {"status": UNREADABLE, "reason": f"its result.json: {legible(wrong)}"}
    elif content["status"] == "ok" and content.get("top1") is None:
        problems.add("cells that ended ok but have no top-1", folder.name)
    ended: Any = result.get("ended")
    recorded = str(result.get("cell_id", folder.name))
    return Found(folder.name, recorded, content, float(ended) if _is_number(ended) else 0.0)


def locked(name: str, why: str, problems: Problems) -> Found:
    """A folder that cannot be entered; it may be a cell."""
    problems.add("folders that cannot be read", name, why)
    return _left_out(name, f"its folder cannot be read: {why}")


def status(folder: Path) -> str:
    """``new``, ``running``, or how the cell ended; ``killed`` when its process went away without a word."""
    if os.path.lexists(folder / "result.json"):
        result = read_json(folder / "result.json")
        return str(result["status"]) if _is_whole(result) else "killed"
    claimed = claim.newest(folder)[1]
    if claimed is None:
        return "killed" if os.path.exists(folder / "config.yaml") else "new"
    return _of_claim(claimed)


def _of_claim(claimed: Path | None) -> str:
    return "running" if claimed is not None and claim.alive(claimed) else "killed"


def rows(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of rows.jsonl, and how many of its lines cannot be read: cut short by a power cut, or garbage."""
    try:
        lines = [line for line in (folder / "rows.jsonl").read_bytes().splitlines() if line.strip()]
    except OSError:
        return [], int(os.path.lexists(folder / "rows.jsonl"))
    found = _objects(lines)
    return found, len(lines) - len(found)


def _objects(lines: list[bytes]) -> list[dict[str, Any]]:
    """All at once, which takes half as long as one by one, where all are whole."""
    if all(line.startswith(b"{") and line.endswith(b"}") for line in lines):
        found = decoded(b"[" + b",".join(lines) + b"]")
        if isinstance(found, list) and len(found) == len(lines):
            return found
    return [row for row in map(decoded, lines) if isinstance(row, dict)]


def _is_whole(result: Mapping[str, Any]) -> bool:
    return isinstance(result.get("status"), str) and isinstance(result.get("config"), dict)


def _unfinished(folder: Path, damaged: bool, kinds: Mapping[str, str], problems: Problems) -> Found:
    """Of a cell without a result: what its process knew when it began, and how far it came."""
    claimed = claim.newest(folder)[1]
    started = read_json(claimed) if claimed else {}
    how = "killed" if damaged else _of_claim(claimed)
    reason = "" if how == "running" else "its process ended without a result"
    if damaged:
        reason = "its result.json cannot be read"
        problems.add("cells without a result, as their result.json cannot be read", folder.name)
    if not isinstance(started.get("config"), dict):
        started = {"config": _flat(folder / "config.yaml")}
    config, wrong = _checked(started["config"])
    if wrong:
        problems.add("cells whose configuration cannot be used, left out", folder.name, wrong)
    last = (rows(folder)[0] or [{}])[-1]
    reached = _measured({key: last[key] for key in REACHED if key in last}, folder.name, kinds, problems)
    known = {"config": config, "changed": _changed(started)}
    return Found(folder.name, folder.name, {**reached, "status": how, "reason": reason, **known}, 0.0)


def _left_out(name: str, reason: str) -> Found:
    return Found(name, name, {"status": UNREADABLE, "reason": reason, "config": {}, "changed": []}, 0.0)


def _flat(path: Path) -> dict[str, Any]:
    """A damaged cell's configuration from what was written for people; YAML is slow, so only as a last resort."""
    try:
        nested = writable(plain(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        return {}
    flat: dict[str, Any] = {}
    for key, value in nested.items() if isinstance(nested, dict) else ():
        if isinstance(value, dict):
            flat[key] = value.get("title") or value.get("name")
            flat |= {f"{key}.{name}": one_value(item) for name, item in value.items() if name != "name"}
        else:
            flat[key] = value
    return {key: value for key, value in flat.items() if value is not None}


def _changed(content: Mapping[str, Any]) -> list[str]:
    changed = content.get("changed")
    return [key for key in changed if isinstance(key, str)] if isinstance(changed, list) else []


def _checked(config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """A flat configuration without what is of the wrong type, and the first of that in words; "" if all is well."""
    bad = {key: value for key, value in config.items() if key in _KINDS and not _KINDS[key][0](value)}
    kept = {key: value for key, value in config.items() if key not in bad}
    if bad:
        key, value = next(iter(bad.items()))
        return kept, f"{key} is {value!r}, expected {_KINDS[key][1]}"
    missing = [key for key in PLACE if key not in kept]
    return kept, f"no {' and no '.join(missing)}" if missing else ""


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == 0 or LEAST <= abs(value) <= LARGEST


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


_NAME, _COUNT = (_is_name, "a name"), (_is_count, "a whole number above 0")
_KINDS = {
    "arch": _NAME, "data": _NAME, "norm": _NAME, "batch": _COUNT, "workers": _COUNT,
    "seed": (lambda value: _is_count(value) or (value == 0 and _is_number(value)), "a whole number"),
    "epochs": (lambda value: value is None or _is_count(value), "a whole number above 0"),
    "lr": (lambda value: value is None or _is_number(value), "a number"),
}  # fmt: skip


def _measured(content: Mapping[str, Any], name: str, kinds: Mapping[str, str], problems: Problems) -> dict[str, Any]:
    """Without what is no measurement: text for a number, infinities, more than 100 %."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if key in NO_MEASUREMENT:
            continue
        if value is None or (isinstance(value, float) and math.isnan(value)):
            found[key] = None
        elif kinds.get(key) == "word":
            found[key] = value if isinstance(value, str) else json.dumps(value)
        elif key not in kinds or _is_measurement(kinds[key], value):
            found[key] = value
        else:
            problems.add("measurements left out that cannot be right", name, f"{key} is {value!r}")
    return found


def _is_measurement(kind: str, value: Any) -> bool:
    if kind == "count":
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST
    return _is_number(value) and (kind != "share" or 0 <= value <= 100)
