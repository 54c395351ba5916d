"""The learning rate by trials: each rate of ``tune.lr`` is tried on pictures held out of the training set.

A trial is an ordinary cell in a store of its own, ``runs/<name>/.tune/``: the rate is its ``lr``, a share of the
training pictures (``data.valid``) is held out and evaluated on in place of the test set, its seed is its own, its
length a share of the cell's. So it is resumed, rerun and reported as any cell is, and no trial sees the test set. Cells
that differ in nothing but their seed have their trials in common. The rate that wins is the ``lr`` of these cells,
which train on all training pictures and are tested once. A trial that is killed is run again; killed once more it has
failed, or its cells would wait for ever.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from normbench.attempt import UNFINISHED
from normbench.cell import TRIAL_SEED, Cell
from normbench.errors import ConfigError, DataError
from normbench.files import read_json
from normbench.grid import Grid, GridCell
from normbench.options import TuneOptions
from normbench.records import Store

if TYPE_CHECKING:
    from normbench.preflight import Planned, Preflight

# Killed in so many attempts, a trial has failed. An attempt that left no result does not count: it went with its sweep,
# maybe with the machine.
DEATHS = 2
# What a trial's record says beside: in how many earlier attempts it was killed.
BEFORE = "killed_before"


def trials_of(cell: Cell) -> list[Cell]:
    """The trials that choose the rate of a cell: every rate with every seed, the rates in rising order.

    Only their top-1 is asked for, so that none is evaluated in other ways (``eval.isolate``).
    """
    tune = _tune(cell)
    data = dataclasses.replace(cell.data, valid=tune.valid)
    epochs, steps = _length(cell, tune.budget)
    plainly = dataclasses.replace(cell.eval, isolate=False)
    common = dataclasses.replace(cell, tune=None, data=data, eval=plainly, epochs=epochs, steps=steps)
    return [
        dataclasses.replace(common, lr=rate, seed=TRIAL_SEED + number)
        for rate in tune.lr
        for number in range(tune.seeds)
    ]


def _length(cell: Cell, budget: float) -> tuple[int | None, int | None]:
    """Epochs and steps of a trial: whichever the cell counts, in whole ones, rounded up."""
    epochs, steps = (cell.length(unit) for unit in ("epochs", "steps"))
    share = [math.ceil(round(budget * whole, 9)) if whole else None for whole in (epochs, steps)]
    return share[0], share[1]


def _tune(cell: Cell) -> TuneOptions:
    assert cell.tune is not None
    return cell.tune


@dataclass(frozen=True)
class End:
    """How a trial ended: status, top-1 in percent on the held-out pictures, and the reason if it failed."""

    status: str
    top1: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Choice:
    """What trials come to.

    lr: the rate, None if there is none (yet). top1: its mean on the held-out pictures, in percent. edge: ``lowest`` or
    ``highest`` where it is that of the rates tried, so that a better one may lie beyond. waiting: trials that have not
    ended. status, reason: how a cell ends for which no rate can be chosen.
    """

    lr: float | None = None
    top1: float | None = None
    edge: str = ""
    waiting: int = 0
    status: str = ""
    reason: str = ""


def choose(ends: Mapping[float, Sequence[End]]) -> Choice:
    """The rate with the highest mean top-1 over its trials; of equal ones the lowest rate.

    A rate of which a trial failed (diverged, ran out of memory or time, …) is out. Where all are, the cell ends as the
    trials did, or as ``error`` if they failed in several ways. Nothing is chosen before every trial has ended.
    """
    every = [end for trials in ends.values() for end in trials]
    waiting = sum(end.status in UNFINISHED for end in every)
    if waiting:
        return Choice(waiting=waiting)
    means = {
        rate: statistics.fmean(end.top1 or 0.0 for end in trials)
        for rate, trials in ends.items()
        if all(end.status == "ok" for end in trials)
    }
    if not means:
        return _nothing(ends, [end for end in every if end.status != "ok"])
    best = max(means, key=lambda rate: (round(means[rate], 9), -rate))  # sums of equal parts may round apart
    edge = {max(ends): "highest", min(ends): "lowest"}.get(best, "")
    return Choice(best, means[best], edge)


def _nothing(rates: Iterable[float], failed: Sequence[End]) -> Choice:
    kinds = Counter(end.status for end in failed)
    counts = ", ".join(f"{count} {status}" for status, count in sorted(kinds.items()))
    tried = ", ".join(f"{rate:g}" for rate in rates)
    why = next((f"; one of them: {end.reason}" for end in failed if end.reason), "")
    status = failed[0].status if len(kinds) == 1 else "error"
    return Choice(status=status, reason=f"tune.lr: none of {tried} passed its trials ({counts}){why}"[:500])


class Tuning:
    """The trials of a sweep, and what they come to. planned: its cells, checked; store: theirs.

    Raises ConfigError where there can be no trials.
    """

    def __init__(self, planned: Sequence[Planned], preflight: Preflight, grid: Grid, store: Store) -> None:
        self.store, self.rerun = store.trials, grid.settings["rerun"]
        self.cells = store
        self.waiting: set[str] = set()  # cells whose trials have not ended, as ``decided`` found them
        self.outdated = 0  # cells that are done with another rate than their trials come to
        groups: dict[str, list[Planned]] = {}
        for item in planned:
            if item.cell.tune is not None and item.skip is None and (key := _group(item.cell)) not in groups:
                groups[key] = self._plan(item, preflight, grid)
        self.groups = _labelled(groups)

    def _plan(self, item: Planned, preflight: Preflight, grid: Grid) -> list[Planned]:
        changed = (*(key for key in item.changed if key not in ("tune", "seed")), "data.valid", "lr")
        trials = [GridCell(trial, changed) for trial in trials_of(item.cell)]
        try:
            return [self._as_it_ended(trial) for trial in preflight.plan(Grid(trials, grid.settings), self.store)]
        except (ConfigError, DataError) as error:
            raise ConfigError(f"trials of tune.lr, with tune.valid={_tune(item.cell).valid:g}: {error}") from None

    def _as_it_ended(self, trial: Planned) -> Planned:
        """With the attempts counted that it was killed in; failed after the last of them."""
        deaths = _deaths(self._result(trial))
        return dataclasses.replace(trial, status=self._end(trial).status, told={BEFORE: deaths}) if deaths else trial

    def trials(self, planned: Sequence[Planned]) -> list[Planned]:
        """The trials of the cells that will run, each once."""
        active = self._active(planned)
        return list({item.cell_id: item for key in active for item in self.groups[key]}.values())

    def to_run(self, planned: Sequence[Planned]) -> list[Planned]:
        """Of these the ones to be run: that have not ended; with ``rerun=all`` every one, with ``rerun=failed`` those
        that failed where no rate could be chosen. Elsewhere a failed trial has done its work.
        """
        from normbench.preflight import will_run

        found: dict[str, Planned] = {}
        for key in self._active(planned):
            again = self.rerun
            if again == "failed" and not self._choice(key).status:
                again = "none"
            found |= {item.cell_id: item for item in will_run(self.groups[key], again)}
        return list(found.values())

    def decided(self, planned: Sequence[Planned], to_come: Collection[str] = ()) -> list[Planned]:
        """The cells with the rates that the trials in the store come to.

        Where no rate can be chosen a cell that would run is skipped for that reason; where trials have not ended it is
        one of ``waiting``. A cell that is done at another rate (its trials were lost, and made again) is new.
        to_come: trials, by their ids, that do not count as ended.
        """
        from normbench.preflight import will_run

        runs = {item.cell_id for item in will_run(planned, self.rerun)}
        choices = {key: self._choice(key, to_come) for key in self._active(planned)}
        self.waiting, self.outdated = set(), 0
        return [
            item
            if item.cell.tune is None
            else self._decided(item, choices.get(_group(item.cell)), item.cell_id in runs)
            for item in planned
        ]

    def _decided(self, item: Planned, choice: Choice | None, runs: bool) -> Planned:
        before = read_json(self.cells.cell(item.cell_id) / "result.json").get("config", {}).get("lr")
        if choice is None or not (runs or choice.lr):  # done, and so it stays
            return _at(item, before)
        if choice.waiting:
            self.waiting.add(item.cell_id)
            return item
        trials = self.groups[_group(item.cell)]
        told = {
            "tune_trials": len(trials),
            "tune_top1": choice.top1,
            "tune_edge": choice.edge,
            "trials": {trial.cell_id: trial.cell.lr for trial in trials},
        }
        if choice.lr is None:
            return dataclasses.replace(item, skip=choice.reason, skip_as=choice.status, told=told)
        if not runs and item.status != "running" and before != choice.lr:
            self.outdated += 1
            item = dataclasses.replace(item, status="new")
        return dataclasses.replace(_at(item, choice.lr), told=told)

    def _active(self, planned: Sequence[Planned]) -> list[str]:
        """The groups of which a cell will run."""
        from normbench.preflight import will_run

        return list(dict.fromkeys(_group(i.cell) for i in will_run(planned, self.rerun) if i.cell.tune is not None))

    def _choice(self, key: str, to_come: Collection[str] = ()) -> Choice:
        """What the trials of a group come to, as the store has them now."""
        ends: dict[float, list[End]] = {}
        for trial in self.groups[key]:
            end = End("new") if trial.cell_id in to_come else self._end(trial)
            ends.setdefault(trial.cell.peak_lr, []).append(end)
        return choose(ends)

    def _end(self, trial: Planned) -> End:
        status, result = self.store.status(trial.cell_id), self._result(trial)
        reason = str(result.get("reason") or "")
        if status == "killed" and _deaths(result) >= DEATHS:
            return End("error", reason=f"killed in {DEATHS} attempts: {reason}")
        return End(status, result.get("top1"), reason)

    def _result(self, trial: Planned) -> dict[str, Any]:
        return read_json(self.store.cell(trial.cell_id) / "result.json")

    def given_up(self, planned: Sequence[Planned]) -> Iterator[str]:
        """For people: how many trials have failed by being killed, and what killed one."""
        ends = [self._end(trial) for trial in self.trials(planned) if self.store.status(trial.cell_id) == "killed"]
        lost = [end.reason for end in ends if end.status not in UNFINISHED]
        if lost:
            yield f"{len(lost)} trial{'s'[: len(lost) != 1]} taken as failed: {lost[0]}"

    def told(self, planned: Sequence[Planned]) -> Iterator[str]:
        """For people, before it starts: the budget, by what rule a rate is chosen, and which trials are given up."""
        from normbench.preflight import will_run

        trials, cells = self.trials(planned), list(will_run(planned, self.rerun))
        yield f"{_budget(trials, self.to_run(planned), 'trial')} + {_budget(planned, cells, 'cell')}"
        for words in dict.fromkeys(_tune(item.cell).told() for item in planned if item.cell.tune is not None):
            yield f"tune.lr: {words}; the rate with the best top-1 there is trained on all pictures and tested once"
        yield from self.given_up(planned)


def _deaths(result: Mapping[str, Any]) -> int:
    """In how many attempts a trial was killed; attempts that were interrupted between them are none of these."""
    before = result.get(BEFORE)
    return (before if isinstance(before, int) else 0) + (result.get("status") == "killed")


def _group(cell: Cell) -> str:
    """What cells have in common whose rate the same trials choose."""
    return repr(dataclasses.replace(cell, seed=0, lr=None))


def _at(item: Planned, lr: float | None) -> Planned:
    return dataclasses.replace(item, cell=dataclasses.replace(item.cell, lr=lr))


def _labelled(groups: Mapping[str, list[Planned]]) -> dict[str, list[Planned]]:
    """The trials with labels that tell those of all groups apart."""
    from normbench.preflight import labelled

    every = {item.cell_id: item for trials in groups.values() for item in trials}
    named = {item.cell_id: item for item in labelled(list(every.values()))} if every else {}
    return {key: [named[item.cell_id] for item in trials] for key, trials in groups.items()}


def _budget(every: Sequence[object], to_run: Sequence[object], what: str) -> str:
    done = len(every) - len(to_run)
    return f"{len(every)} {what}{'s'[: len(every) != 1]}" + (f" ({done} not to be run)" if done else "")
