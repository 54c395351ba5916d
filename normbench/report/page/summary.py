"""The table norm × batch in the page: the terminal's texts, each entry a link to its cells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from normbench.report.page.markup import attribute, clean, escaped, link, table

if TYPE_CHECKING:
    from normbench.report.frame import Spot
    from normbench.report.table import Table

Spots = dict[tuple[str, str, int], "Spot"]


def section(made: Table, spots: Iterable[Spot], key: str) -> str:
    """HTML: a table per block, and the notes. key: the column that names lines in the table of cells."""
    there = {(spot.block, spot.line, spot.batch): spot for spot in spots}
    blocks = "".join(_block(name, lines, made.batches, there, key) for name, lines in made.blocks)
    notes = "".join(f"<li>{escaped(note)}</li>" for note in made.notes)
    return f'{blocks}<ul class="notes">{notes}</ul>'


def styles(spots: Iterable[Spot]) -> dict[str, Any]:
    """The plots' colours, and of each line its colour and its dashes as SVG wants them."""
    from normbench.report.look import COLOURS, styled

    found = styled(list(dict.fromkeys(spot.line for spot in spots)))
    lines = {clean(line): (style.colour, _dashes(style.dashes)) for line, style in found.items()}
    return {"palette": list(COLOURS.values()), "lines": lines}


def _dashes(pattern: Any) -> str:
    """Matplotlib's (offset, lengths in widths of the line) for a line of 2 px."""
    return "" if isinstance(pattern, str) else " ".join(f"{2 * length:g}" for length in pattern[1])


def _block(name: str, lines: Iterable[tuple[str, Any]], batches: list[int], spots: Spots, key: str) -> str:
    rows = (
        [escaped(label), *(_entry(spots.get((name, label, b)), e, key) for b, e in zip(batches, entries, strict=True))]
        for label, entries in lines
    )
    heading = f"<h3>{escaped(name)}</h3>" if name else ""
    caption = escaped(f"Top-1 of every normalizer and batch{': ' + name if name else ''}")
    return heading + table(["norm \\ batch", *map(str, batches)], rows, caption)


def _entry(spot: Spot | None, entry: Any, key: str) -> str:
    """A text and whether it is the best, and its cells behind it."""
    text, best = escaped(entry[0]), entry[1]
    if spot is None:
        return f'<span class="quiet">{text}</span>'
    where = {"where__" + key: spot.line, "where__batch": spot.batch} | (
        {"where__block": spot.block} if spot.block else {}
    )
    kind = "" if spot.values else ' class="failed"'
    text = f"<strong>{text}</strong>" if best else text
    return f'<a{kind} href="{link(**where)}"{attribute("title", _seeds(spot))}>{text}</a>'


def _seeds(spot: Spot) -> str:
    """``seed 0: 98.33, seed 1: 97.49; 95 % interval 97.1 to 98.9``."""
    seeds = ", ".join(f"seed {seed}: {value:.2f}" for seed, value in zip(spot.seeds, spot.values, strict=False))
    interval = "; 95 % interval {:.1f} to {:.1f}".format(*spot.interval) if spot.interval else ""
    return seeds + interval
