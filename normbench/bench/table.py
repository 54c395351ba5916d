"""The summary: per contestant the geometric mean of its ratios and the largest, on the terminal and as Markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from normbench.bench.results import Row
from normbench.bench.sheet import NOTHING, piped, show, show_notes, two
from normbench.bench.statistics import BASELINE, COPY, Summary, summarize

UNSTEADY = 1.3  # third quartile over first
UNITS_TITLE = "Forward and backward of each unit with its activation: time over nn.BatchNorm2d + ReLU"
KEPT_NOTE = "kept: what the forward holds on to for the backward; state: parameters and buffers"
STEPS_TITLE = "A training step with each normalizer: time over the untouched network with nn.BatchNorm2d"


@dataclass(frozen=True)
class Line:
    """One contestant; ``cells``: per column (layout and dtype) its summary, None where nothing was measured."""

    name: str
    cells: list[Summary | None]

    @property
    def worst(self) -> Row | None:
        """The row with the largest ratio of all."""
        found = [cell.largest_at for cell in self.cells if cell]
        return max(found, key=lambda row: row.ratio) if found else None


@dataclass(frozen=True)
class Table:
    """A run's summary. about: the machine. rows: those of single steps, told one by one; empty for units."""

    title: str
    about: str
    columns: list[str]
    lines: list[Line]
    notes: list[str]
    steps: list[Row]

    def markdown(self) -> str:
        """The short table, one per layout and dtype in full, notes."""
        return "\n".join([f"**{self.title}**", "", self.about, "", *self._markdown_parts()]) + "\n"

    def _markdown_parts(self) -> Iterator[str]:
        if self.steps:
            yield from piped(*self._step_table())
        else:
            yield "Geometric mean over all shapes and batches (and the largest) of the medians over rounds. Of all the"
            yield "network's sites together: time, and memory that the forward keeps for the backward."
            yield ""
            yield from piped(*self._short())
            for column in range(len(self.columns)):
                yield from (f"### {self.columns[column]}", "")
                yield from piped(*self._full(column))
        yield from (f"- {note}" for note in self.notes)

    def show(self, console: Console) -> None:
        """On the terminal, the short one."""
        console.print(Text(self.title, style="bold"), soft_wrap=True)
        show(console, *(self._step_table() if self.steps else self._short()))
        if not self.steps:
            console.print("geometric mean over shapes and batches (and the largest)", style="dim", soft_wrap=True)
        show_notes(console, self.notes)

    def _short(self) -> tuple[list[str], list[list[str]]]:
        header = ["", *self.columns, "largest at"]
        return header, [
            [line.name, *map(_brief, line.cells), _place(line.worst) if line.name != BASELINE else NOTHING]
            for line in self.lines
        ]

    def _full(self, column: int) -> tuple[list[str], list[list[str]]]:
        header = [
            "",
            "geometric mean",
            "least",
            "largest",
            "largest at",
            "all sites together",
            "kept for the backward",
            "× a copy",
            "shapes × batches",
        ]
        lines = []
        for line in self.lines:
            cell = line.cells[column]
            numbers = [NOTHING] * 8
            if cell:
                times = [
                    two(cell.geo_mean),
                    two(cell.least),
                    two(cell.largest),
                    cell.largest_at.place,
                    two(cell.together),
                    two(cell.kept) if math.isfinite(cell.kept) else NOTHING,
                ]
                numbers = [*times, f"{cell.copy:.1f}", str(cell.count)]
            lines.append([line.name, *numbers])
        return header, lines

    def _step_table(self) -> tuple[list[str], list[list[str]]]:
        header = [
            "", "network", "batch", "layout", "dtype", "ms", "ratio", "quartiles", "rounds", "kept MiB", "state MiB",
        ]  # fmt: skip
        return header, [
            [
                row.name, row.network, str(row.N), row.memory_format, row.dtype, f"{row.median_ms:.1f}", two(row.ratio),
                f"{two(row.ratio_q25)}–{two(row.ratio_q75)}", str(row.rounds), f"{row.kept_mib:.1f}",
                f"{row.state_mib:.2f}",
            ]
            for row in self.steps
        ]  # fmt: skip


def make(rows: Sequence[Row], notes: Sequence[str], about: str, *, steps: bool = False) -> Table:
    """The summary of a run; ``steps``: its rows are of whole training steps, and told one by one."""
    columns = list(dict.fromkeys(row.column for row in rows))
    base = {row.case: row for row in rows if row.name == BASELINE}
    names = list(dict.fromkeys(row.name for row in rows))
    lines = [
        Line(
            name,
            [summarize([row for row in rows if (row.name, row.column) == (name, column)], base) for column in columns],
        )
        for name in sorted(names, key=lambda name: (name != BASELINE, name == COPY))
    ]
    told = [row for row in rows if row.measured] if steps else []
    return Table(
        STEPS_TITLE if steps else UNITS_TITLE,
        about,
        columns,
        lines,
        [*notes, *([KEPT_NOTE] if steps else []), *_unsteady(rows), *_reasons(rows)],
        told,
    )


def _unsteady(rows: Sequence[Row]) -> list[str]:
    """A machine at other work shows in the baseline's own spread: then few rounds are not to be trusted."""
    spread = {row.case[1:]: row.q75_ms > UNSTEADY * row.q25_ms for row in rows if row.name == BASELINE and row.measured}
    if not any(spread.values()):
        return []
    return [
        f"unsteady: in {sum(spread.values())} of {len(spread)} cases the quartiles of {BASELINE} itself are more than "
        f"{UNSTEADY}-fold apart; give more rounds, or a quieter machine"
    ]


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Who could not be measured, how often and why; cases that were left out for all are noted elsewhere."""
    alone = [row for row in rows if row.reason and not row.reason.startswith("needs more memory")]
    # A shape that two networks have was measured once.
    counts = Counter((name, status) for name, status, _ in {(row.name, row.status, row.case[1:]) for row in alone})
    first = {(row.name, row.status): row for row in reversed(alone)}
    return [_reason(row, counts[key]) for key, row in reversed(first.items())]


def _reason(row: Row, count: int) -> str:
    status = "measured" if row.status == "ok" else row.status
    return f"{row.name}: {count} {'case' if count == 1 else 'cases'} {status}, at {row.place}: {row.reason}"


def _brief(cell: Summary | None) -> str:
    return f"{two(cell.geo_mean)} ({two(cell.largest)})" if cell else NOTHING


def _place(row: Row | None) -> str:
    return f"{row.place} {row.column}" if row else NOTHING
