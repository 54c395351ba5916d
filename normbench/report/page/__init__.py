"""One HTML page of a sweep: its table, every cell, curves, failures and provenance, in a file that needs nothing else.

The page asks nothing of a network and runs no script but its own: its policy names the hashes of both script and style.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbench.report.page import cells, curves, failures, provenance, summary
from normbench.report.page.markup import data, escaped, filled

if TYPE_CHECKING:
    import pandas as pd

    from normbench.report.frame import Spot
    from normbench.report.table import Table

__all__ = ["make"]

HERE = Path(__file__).parent
SCRIPTS = ("data.js", "cells.js", "curves.js", "page.js")
# Which pictures come first, and what they show; others follow by name, under their name.
CAPTIONS = {
    "plot": "Top-1 against batch",
    "heat": "Top-1, norm × batch",
    "curves": "Learning curves",
    "cost": "Top-1 against what a step costs",
}


def make(
    folder: Path,
    frame: pd.DataFrame,
    spots: Iterable[Spot],
    table: Table,
    pictures: Mapping[str, bytes],
    epochs: Mapping[str, Sequence[Any]],
) -> str:
    """The page of a sweep's folder, as text; the same for the same store.

    frame, spots, table: as ``frame.make``, ``frame.spots`` and ``table.make`` give them.  pictures: name of a file →
    its SVG; each is shown, whatever it is called.  epochs: columns of all epochs (``epochs.read``).
    """
    ids = frame["cell_id"].tolist()
    origin = provenance.read(folder, ids)
    learned = curves.of(ids, epochs)
    columns = cells.columns(frame, origin.names if len(origin.groups) > 1 else [""] * len(ids), origin.attempts)
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = (
        "(() => {\n'use strict';\n" + "".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS) + "})();\n"
    )
    parts = {
        "title": escaped(table.title),
        "counts": _counts(frame),
        "summary": summary.section(table, spots, cells.line_key(columns)),
        "pictures": _pictures(pictures),
        "failures": failures.section(folder, frame),
        "provenance": origin.section(),
        "data": data(
            "cell-data", {"columns": columns, "styles": summary.styles(spots), "curveless": _missing(learned)}
        ),
        "curves": data("curve-data", learned),
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
    }
    return filled((HERE / "page.html").read_text(encoding="utf-8"), parts)


def _missing(found: list[Any]) -> list[int]:
    """Places of cells without a curve: known before the curves, by far the most of the page, are taken apart."""
    return [place for place, curve in enumerate(found) if curve is None]


def _counts(frame: pd.DataFrame) -> str:
    """``24 cells: 22 ok, 2 diverged``."""
    ends = Counter(map(str, frame["status"]))
    kinds = ", ".join(f"{count} {escaped(end)}" for end, count in sorted(ends.items(), key=lambda e: (e[0] != "ok", e)))
    return f"{len(frame)} cell{'s'[: len(frame) != 1]}: {kinds}"


def _pictures(pictures: Mapping[str, bytes]) -> str:
    """Each as an image of its own: what stands in it can neither run nor change how the page looks."""
    stems = {name.removesuffix(".svg"): content for name, content in pictures.items()}
    known = [stem for stem in CAPTIONS if stem in stems]
    figures = (_figure(stem, stems[stem]) for stem in [*known, *sorted(stems.keys() - known)])
    return "".join(figures) or '<p class="quiet">None.</p>'


def _figure(stem: str, content: bytes) -> str:
    caption = escaped(CAPTIONS.get(stem, stem.replace("_", " ").replace("-", " ").capitalize()))
    source = base64.b64encode(content).decode()
    return (
        f'<figure><img alt="{caption}; the numbers are in the tables of this page" '
        f'src="data:image/svg+xml;base64,{source}"><figcaption>{caption}</figcaption></figure>'
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
