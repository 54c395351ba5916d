"""What would run, as ``plan=true`` prints it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from normbench.records import Store

if TYPE_CHECKING:
    from normbench.preflight import Planned
    from normbench.tune import Tuning

AXES = ("arch", "data", "norm", "batch", "workers", "seed")
BY_TRIALS = "by tune.lr"


def show(planned: Sequence[Planned], store: Store, settings: Mapping[str, Any], tuning: Tuning | None = None) -> None:
    """Print every cell and what would become of it; before them, the trials that choose the rates of those to run."""
    from normbench.preflight import will_run

    console = Console(highlight=False)
    todo = {item.cell_id for item in will_run(planned, settings["rerun"])}
    some = list(planned)
    if tuning is not None:
        for line in tuning.told(planned):
            console.print(line, soft_wrap=True)
        trials, runs = tuning.trials(planned), {item.cell_id for item in tuning.to_run(planned)}
        if trials:
            _table(console, trials, runs, "trial", AXES)
        some += trials
        planned = tuning.decided(planned, to_come=runs)
        todo |= runs | {item.cell_id for item in will_run(planned, settings["rerun"])}
    _table(console, planned, todo, "cell", AXES if tuning is None else (*AXES, "lr"))
    for line in _autos([item for item in some if item.cell_id in todo], store, settings):
        console.print(line, soft_wrap=True)


def _table(console: Console, planned: Sequence[Planned], todo: set[str], what: str, axes: Sequence[str]) -> None:
    """A line for each, and how many there are of each state. axes: columns, whatever varies."""
    flats = [item.cell.flat() | ({"lr": BY_TRIALS} if item.cell.undecided else {}) for item in planned]
    chosen = dict.fromkeys(key for item in planned for key in item.changed if key not in axes)
    columns = [*axes, *(key for key in chosen if len({str(flat.get(key)) for flat in flats}) > 1)]
    table = Table(what, *columns, "state", box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    states = [_state(item, item.cell_id in todo) for item in planned]
    for item, flat, state in zip(planned, flats, states, strict=True):
        table.add_row(item.cell_id, *(str(flat.get(key, "")) for key in columns), state)
    if console.is_terminal:
        console.print(table)
    else:  # a log or a pipe has no width: nothing there may be cut
        wide = Console(width=400, highlight=False)
        with wide.capture() as captured:
            wide.print(table)
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))
    counts = Counter(state.split(":")[0] for state in states)
    count = f"{len(planned)} {what}{'s'[: len(planned) != 1]}"
    console.print(f"{count}: " + "; ".join(f"{number} {state}" for state, number in counts.items()))


def _autos(planned: Sequence[Planned], store: Store, settings: Mapping[str, Any]) -> list[str]:
    """What is known of the values that are auto, a line for each."""
    from normbench.launch.choosing import Choosing
    from normbench.launch.places import Places

    places = Places(settings["slots"], settings["ranks"])
    return Choosing(store.folder, places, settings["threads"]).told(planned)


def _state(item: Planned, runs: bool) -> str:
    if item.skip is not None:
        return f"would be {item.skip_as}: {item.skip}"
    if item.status == "new":
        return "new"
    done = "done" if item.status == "ok" else item.status
    return f"{done}, to be run again" if runs else done
