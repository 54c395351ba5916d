"""The cells as columns of data for the page's table: what they are called, what they hold, which are shown at first."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

from normbench import records
from normbench.report.page.markup import clean

if TYPE_CHECKING:
    import pandas as pd

PERCENT = ("top1", "top5", *(c for c in records.METRICS if c.endswith(("_top1", "_top5"))), "gap")
# Shown at first, where they hold anything that differs between cells; the rest is a click away.
WHO = ("block", "line", "norm", "batch", "seed", "status")
MEASURED = ("top1", "batch_top1", "precise_top1", "gap", "loss", "train_loss", "train_seconds", "images_per_s",
            "peak_memory_mib")  # fmt: skip
CHOICES = 60  # a column of at most so many different values can be filtered by choosing one
MANY = 1000  # the same for what the entries of the summary lead to


def columns(frame: pd.DataFrame, origins: list[str], attempts: list[int | None]) -> list[dict[str, Any]]:
    """A dict per column: ``key``, ``shown``, ``filter``, and its values, one per cell.

    The values are ``values`` (numbers; None: missing), or words as ``words`` (each once) and ``codes`` (places in it).
    origins, attempts: of each cell the group of its provenance and how often it was tried. Columns without any value
    are left out.
    """
    from normbench.report.frame import configuration

    settings = set(configuration(frame))
    held = {name: frame[name].tolist() for name in frame.columns}
    held |= {"origin": origins, "attempt": attempts}
    if all(line == (norm or "") for line, norm in zip(held["line"], held["norm"], strict=True)):
        del held["line"]
    keys = [*WHO, *(name for name in held if name in settings), *MEASURED, "reason", *held]
    made = []
    for key in dict.fromkeys(keys):
        if key in held and any(_there(value) for value in held[key]):
            made.append(_column(key, held[key], key in settings, "line" in held))
    return made


def line_key(made: list[dict[str, Any]]) -> str:
    """The column that names the lines of the summary."""
    return "line" if any(column["key"] == "line" for column in made) else "norm"


def _column(key: str, values: list[Any], setting: bool, lines: bool) -> dict[str, Any]:
    different = {repr(value): value for value in values}
    kinds = len({clean(value) for value in different.values() if _there(value)})
    always = key in ("line", "norm", "batch", "status", "reason")
    wanted = key in (*WHO, *MEASURED, "reason") or setting
    most = MANY if key in ("block", "line", "norm", "batch") else CHOICES
    column: dict[str, Any] = {
        "key": key,
        "shown": wanted and (kinds > 1 or always) and not (key == "norm" and lines),
        "filter": (key in WHO or key == "origin" or setting) and 1 < kinds <= most,
    }
    if all(_number(value) for value in different.values() if _there(value)):
        column |= {} if setting or key in WHO else _decimals(key, [value for value in values if _there(value)])
        # What configures a cell is exact, to be found by its value.
        shown = (lambda value: value) if setting or key in WHO else _rounded
        return column | {"values": [shown(value) if _there(value) else None for value in values]}
    told = {name: _text(value) for name, value in different.items()}
    texts = [told[repr(value)] for value in values]
    words = {text: k for k, text in enumerate(dict.fromkeys(texts))}
    return column | {"words": list(words), "codes": [words[text] for text in texts]}


def _decimals(key: str, values: list[float]) -> dict[str, int]:
    """As many for a whole measured column that its usual value has three digits; none for counts."""
    if all(isinstance(value, int) for value in values):
        return {}
    middle = statistics.median(abs(value) for value in values)
    return {"decimals": 2 if key in PERCENT else min(max(2 - math.floor(math.log10(middle or 1)), 0), 6)}


def _there(value: Any) -> bool:
    return value is not None and value != "" and not (isinstance(value, float) and not math.isfinite(value))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rounded(value: float) -> float:
    """Six digits are more than a reader takes in; results.csv has all."""
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return clean(value) if _there(value) else ""
