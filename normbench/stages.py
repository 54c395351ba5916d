"""A sweep at work: the trials that choose its rates, then its cells, then table and plot."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normbench import track
from normbench.attempt import FAILURES
from normbench.commands import DONE, FAILED
from normbench.errors import StoreError, one_line
from normbench.launch import slurm
from normbench.records import Store, cell_status, cells_of

if TYPE_CHECKING:
    from normbench.preflight import Planned
    from normbench.tune import Tuning

FINE = ("ok", "skipped")


def make_room(planned: Sequence[Planned], tuning: Tuning | None, settings: Mapping[str, Any]) -> str | None:
    """Raise ConfigError for more slots than memory holds; what else is to be said of it."""
    from normbench.launch import room
    from normbench.launch.local import in_turn
    from normbench.preflight import will_run

    slots = settings["slots"]
    phases = [list(will_run(planned, settings["rerun"])), [] if tuning is None else tuning.to_run(planned)]
    warnings = [room.check(in_turn(items, slots), slots, settings["ranks"]) for items in phases]
    return next(filter(None, warnings), None)


def run(
    planned: Sequence[Planned],
    tuning: Tuning | None,
    store: Store,
    settings: Mapping[str, Any],
    warning: str | None = None,
) -> int:
    """The trials, if there are any, then the cells; table and plot, however it ends; the exit code."""
    from normbench.preflight import will_run

    tracker = track.make(settings["track"], folder=store.folder)
    notes, writable, left = [warning] if warning else [], True, 0
    try:
        if tuning is not None:
            left = _try_rates(planned, tuning, settings, notes)
            notes += tuning.given_up(planned)
            planned = tuning.decided(planned)
            if tuning.outdated:
                notes.append(
                    f"{tuning.outdated} cells are done at another rate than tune.lr now chooses; they run again"
                )
        waiting = set() if tuning is None else tuning.waiting
        ready = [item for item in planned if item.cell_id not in waiting]
        if ready or not waiting:
            todo = list(will_run(ready, settings["rerun"]))
            left += _phase(ready, todo, store, settings, tracker, notes)
    except StoreError as error:
        writable = False
        raise OSError(one_line(error)) from None
    except KeyboardInterrupt:
        if new := sum(cell_status(store.cell(item.cell_id)) == "new" for item in planned):
            print(f"{new} of the {len(planned)} cells of this sweep have not begun", file=sys.stderr)
        raise
    finally:
        try:
            if writable:
                _report(store)
        finally:  # the results first: it may wait
            tracker.close()
    if waiting:
        words = "of the cells wait for trials of tune.lr that have not ended; the same command goes on with them"
        print(f"{len(waiting)} {words}", file=sys.stderr)
    if left:  # detached
        return DONE
    statuses = Counter(cell_status(store.cell(item.cell_id)) for item in planned)
    if statuses["running"]:
        print(f"{statuses['running']} of the cells are at work in another process, and not done", file=sys.stderr)
    fine = FINE[:1] if settings["strict"] else FINE
    return DONE if all(status in fine for status in statuses) else FAILED


def _try_rates(planned: Sequence[Planned], tuning: Tuning, settings: Mapping[str, Any], notes: list[str]) -> int:
    """The trials of the cells that will run, which are not mirrored; how many are left in a cluster's queue."""
    trials, todo = tuning.trials(planned), tuning.to_run(planned)
    if not todo and not any(item.status == "running" for item in trials):
        return 0
    tuning.store.create()
    notes += tuning.told(planned)
    try:
        return _phase(trials, todo, tuning.store, settings, track.make(None), notes)
    finally:
        notes.clear()
        tuning.store.write_results()


def _phase(
    planned: Sequence[Planned],
    todo: Sequence[Planned],
    store: Store,
    settings: Mapping[str, Any],
    tracker: track.Tracker,
    notes: Sequence[str],
) -> int:
    """Run ``todo`` of the ``planned`` cells, all of one store, and show it; how many are left in a cluster's queue."""
    from normbench.display import Display
    from normbench.launch.local import Local, record_skip

    runs = {item.cell_id for item in todo}
    with Display(len(planned), settings["slots"]) as display:
        states = {item.cell_id: "new" if item.cell_id in runs else item.status for item in planned}
        display.plan([(item.cell_id, item.label, states[item.cell_id]) for item in planned])
        tracker.note = display.note
        for note in notes:
            display.note(note)
        standing = [item for item in planned if item.cell_id not in runs]
        stand = Counter(item.status for item in standing if item.skip is None and item.status in FAILURES)
        if stand and store.folder == store.sweep:  # of trials, to fail is an answer
            counts = ", ".join(f"{count} {status}" for status, count in stand.items())
            display.note(f"failed before, and not run again without rerun=failed: {counts}")
        for item in planned:
            if item.skip is not None:
                record_skip(item, store)
                skipped = {"status": item.skip_as, "reason": item.skip}
                display.finish(item.cell_id, item.label, skipped)
                if item.status != item.skip_as:  # else it was told before
                    tracker.finish(item.cell_id, skipped)
        if settings["launch"] == "slurm":
            cluster = slurm.Slurm(store, display, tracker, settings)
            cluster.run(todo, standing)
            return cluster.left
        slots, ranks, timeout, threads = (settings[key] for key in ("slots", "ranks", "cell_timeout", "threads"))
        Local(store, display, tracker, slots, ranks, timeout, threads).run(todo, standing)
    return 0


def _report(store: Store) -> None:
    """Table and plot; what goes wrong with them is said and changes nothing about the cells."""
    from normbench import report

    try:
        if cells_of(store.folder):
            print(report.write(store.folder))
        else:
            store.write_results()
    except Exception as error:
        print(f"normbench: what the cells left is whole, but no table or plot: {one_line(error)}", file=sys.stderr)
