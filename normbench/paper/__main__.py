"""The command ``python -m normbench.paper``: list, run or show published tables. Exit codes are a sweep's."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from normbench import grid, sweep
from normbench.commands import BAD_COMMAND, DONE, FAILED, STOPPED, begin, ended
from normbench.errors import ConfigError, UnknownName
from normbench.grid.paper import GROUP
from normbench.spinning import spin_less

HELP = """\
python -m normbench.paper list [TABLE...] [measure=false] [device=cpu] [scale=0.02] [data.root=FOLDER]
    the published tables: what they claim, what data they need, how long they would take on this machine
python -m normbench.paper run TABLE [scale=0.02] [KEY=VALUE...]
    run all cells of a table in the paper's protocol, those that are done are kept; then ours beside theirs
python -m normbench.paper show TABLE [scale=0.02] [runs=FOLDER] [name=NAME]
    theirs beside what is there; runs nothing

Tables: {tables}

norm=bn,gn and batch=2,8 choose among a table's cells, or add some that were not published; every other KEY=VALUE goes
to the sweep: data.root=/data/imagenet, slots=2, seed=0,1,2, plan=true (see python -m normbench.sweep --help).
scale=0.02 trains for 2 % of the published length: to see that a table runs, or for a first look.
Runs are kept in runs/paper-<table>, those at another scale in runs/paper-<table>-scale<scale>; paper.csv, paper.md and
paper.png are there, too.
Exit code: 0 all cells ok or skipped; 1 some failed; 2 bad command, or data that is missing, nothing run; 130 stopped.
"""
COMMANDS = ("list", "run", "show")


def main(argv: Sequence[str] | None = None) -> int:
    """Do what ``argv`` says; the exit code says how it ended."""
    words = sys.argv[1:] if argv is None else list(argv)
    return ended(lambda: _command(words), stopped="stopped; the same command goes on from here")


def _command(words: Sequence[str]) -> int:
    if not words or {"-h", "--help"} & set(words):
        print(HELP.format(tables=", ".join(grid.Configs().options(GROUP))), end="")
        return DONE if words else BAD_COMMAND
    command, *rest = words
    if command not in COMMANDS:
        raise UnknownName("command", command, COMMANDS, "See python -m normbench.paper --help.")
    if command == "list":
        return _list(rest)
    if not rest or "=" in rest[0]:
        raise ConfigError(f"{command}: got no table, expected one of {', '.join(grid.Configs().options(GROUP))}")
    return {"run": _run, "show": _show}[command](rest[0], rest[1:])


def _list(words: Sequence[str]) -> int:
    from normbench.paper import listing

    tables = [word for word in words if "=" not in word]
    others = [word for word in words if "=" in word and not word.startswith("measure=")]
    measure = [word.partition("=")[2].lower() for word in words if word.startswith("measure=")]
    if any(value not in ("true", "false") for value in measure):
        raise ConfigError(f"measure: got {measure[-1]!r}, expected true or false")
    listing.run(tables, others, measure[-1:] != ["false"])
    return DONE


def _run(table: str, words: Sequence[str]) -> int:
    from normbench.paper import needs

    own = [f"{GROUP}={table}", *words]
    flags = [word for word in words if word.startswith("-")]
    asked = None if flags else grid.read_paper(own)
    if asked is not None and not asked.settings["plan"]:
        needs.check(table, (item.cell for _, cells in asked.lines for item in cells))
    with _as_sweep(own):
        code = sweep.main(own)
    if asked is not None and not asked.settings["plan"] and code in (DONE, FAILED, STOPPED):
        _compare(asked)
    return code


def _show(table: str, words: Sequence[str]) -> int:
    _compare(grid.read_paper([f"{GROUP}={table}", *words]))
    return DONE


def _compare(asked: grid.PaperGrid) -> None:
    """Print ours beside theirs, and write it where there is a sweep."""
    from rich.console import Console

    from normbench import records
    from normbench.paper import compare, table

    folder = Path(asked.settings["runs"]) / asked.settings["name"]
    places = [(line, item.cell.batch) for line, cells in asked.lines for item in cells]
    rows, problems = compare.compared(asked.paper, folder, asked.scale, grid.Configs(), places)
    comparison = table.Comparison(asked.paper, asked.scale, folder, compare.with_intervals(rows, folder), problems)
    console = Console(highlight=False)
    console.print(comparison)
    if records.is_sweep(folder) and records.cells_of(folder):
        written = ", ".join(path.name for path in table.write(comparison))
        console.print(f"wrote {folder}/: {written}", markup=False, soft_wrap=True)


@contextlib.contextmanager
def _as_sweep(words: Sequence[str]) -> Iterator[None]:
    """Cells write down the command that made them; theirs is the sweep's, which does the same."""
    before, sys.argv = sys.argv, ["normbench.sweep", *words]
    try:
        yield
    finally:
        sys.argv = before


if __name__ == "__main__":
    spin_less()  # as a sweep does
    begin()
    sys.exit(main())
