"""Learning rates by trials: what is chosen, what a tuned cell is, and that no trial reads the test set."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, cast

import pytest
import torch

from normbench import cell, grid
from normbench.cell import Cell
from normbench.data import describe, sources
from normbench.errors import ConfigError
from normbench.launch import child
from normbench.launch.order import Order
from normbench.meter import Watch
from normbench.options import TuneOptions
from normbench.train import open_for, prepare, train
from normbench.tune import Choice, End, choose, trials_of

EVIDENCE: dict[str, str | None] = {"data": "abc", "arch": None, "norm": None}
TUNED = "tune.lr=[0.01,0.03,0.1]"


def ends(**tops: list[float | str]) -> dict[float, list[End]]:
    """``ends(r1=[90, "diverged"])``: trials of rate 1: top-1 of one that ended ok, status of one that did not."""
    return {
        float(rate[1:].replace("_", ".")): [
            End(top, reason="why") if isinstance(top, str) else End("ok", float(top)) for top in found
        ]
        for rate, found in tops.items()
    }


@pytest.mark.parametrize(
    ("trials", "lr", "top1", "edge"),
    [
        (ends(r1=[90], r2=[95], r3=[94]), 2, 95, ""),
        (ends(r1=[90], r2=[95], r3=[96]), 3, 96, "highest"),
        (ends(r1=[97], r2=[95], r3=[96]), 1, 97, "lowest"),
        (ends(r1=[90], r2=[95], r3=[95]), 2, 95, ""),  # of equal ones the lowest
        (ends(r1=[90, 90], r2=[99, 80], r3=[90, 91]), 3, 90.5, "highest"),  # the mean over seeds
        (ends(r1=[0.1, 0.2], r2=[0.15, 0.15]), 1, 0.15, "lowest"),  # equal but for the rounding of a sum
        (ends(r1=[90], r2=[95], r3=["diverged"]), 2, 95, ""),  # what lies beyond was tried, and failed
        (ends(r1=[80, 80], r2=[99, "oom"], r3=["timeout", "error"]), 1, 80, "lowest"),  # one that failed costs the rate
    ],
)
def test_the_rate_with_the_best_mean_wins(trials: Any, lr: float, top1: float, edge: str) -> None:
    found = choose(trials)
    assert (found.lr, found.edge, found.waiting, found.status) == (lr, edge, 0, "")
    assert found.top1 == pytest.approx(top1)


def test_nothing_is_chosen_before_every_trial_has_ended() -> None:
    for status in ("new", "running", "killed", "interrupted"):
        assert choose(ends(r1=[90], r2=[status, status])) == Choice(waiting=2)


def test_where_every_rate_failed_the_cell_ends_as_its_trials_did() -> None:
    found = choose(ends(r0_1=["diverged"], r1=["diverged"]))
    assert (found.lr, found.status) == (None, "diverged")
    assert found.reason == "tune.lr: none of 0.1, 1 passed its trials (2 diverged); one of them: why"
    assert choose(ends(r1=["oom"], r2=["diverged", 90.0])).status == "error"


def tuned(*overrides: str) -> Cell:
    (item,) = grid.read([TUNED, *overrides]).cells
    return item.cell


def plain(*overrides: str) -> Cell:
    (item,) = grid.read(overrides).cells
    return item.cell


def test_a_trial_is_the_ordinary_cell_that_anybody_could_run() -> None:
    trials = trials_of(tuned("norm=bn", "epochs=4", "seed=7", "tune.seeds=2"))
    assert [(trial.lr, trial.seed) for trial in trials] == [
        (rate, seed) for rate in (0.01, 0.03, 0.1) for seed in (1000, 1001)
    ]
    same = plain("norm=bn", "epochs=4", "seed=1001", "lr=0.1", "data.valid=0.1", "eval.isolate=false")
    assert trials[-1].identity(EVIDENCE) == same.identity(EVIDENCE)


@pytest.mark.parametrize(
    ("overrides", "length"),
    [
        (("recipe=quick",), (6, None)),
        (("recipe=quick", "tune.budget=0.5"), (3, None)),
        (("epochs=30", "tune.budget=0.1"), (3, None)),
        (("epochs=5", "tune.budget=0.5"), (3, None)),
        (("epochs=1", "tune.budget=0.01"), (1, None)),
        (("steps=100", "tune.budget=0.25"), (None, 25)),
        (("recipe=frn_paper", "tune.budget=0.01"), (None, 3000)),
    ],
)
def test_trials_may_be_shorter(overrides: tuple[str, ...], length: tuple[int | None, int | None]) -> None:
    trial = trials_of(tuned(*overrides))[0]
    assert (trial.length("epochs"), trial.length("steps")) == length


def test_cells_that_differ_in_their_seed_have_their_trials_in_common() -> None:
    one, other = (trials_of(tuned(f"seed={seed}")) for seed in (0, 1))
    assert one == other
    assert trials_of(tuned("batch=8")) != one


def test_a_tuned_cell_has_one_id_whatever_its_trials_come_to() -> None:
    before = tuned("norm=gn")
    after = dataclasses.replace(before, lr=0.03)
    given = plain("norm=gn", "lr=0.03")
    assert before.undecided
    assert not after.undecided
    assert before.identity(EVIDENCE) == after.identity(EVIDENCE) != given.identity(EVIDENCE)
    assert (before.flat()["lr"], after.flat()["lr"], given.flat()["tune"]) == (None, 0.03, None)
    assert after.flat()["tune"] == "0.01, 0.03, 0.1 on a held-out 10 % of the training set (1 seed, full length)"
    read = cell.make(json.loads(json.dumps(after.nested())))
    assert (read.nested(), read.identity(EVIDENCE)) == (after.nested(), after.identity(EVIDENCE))
    ids = {
        tuned(*more).identity(EVIDENCE)
        for more in ((), ("tune.valid=0.2",), ("tune.seeds=2",), ("tune.budget=0.5",), ("seed=1",))
    }
    assert len(ids) == 5


def test_the_id_of_a_tuned_cell_is_stable_between_releases() -> None:
    base = {
        "arch": {"name": "resnet8"}, "data": {"name": "digits"}, "norm": {"name": "gn"},
        "recipe": {"name": "quick", "epochs": 4, "base_lr": 0.1, "base_batch": 32, "lr_rule": "linear"},
    }  # fmt: skip
    made = cell.make({**base, "tune": {"lr": [0.1, 0.01, 0.03, 0.1]}})
    assert made.tune == TuneOptions(lr=(0.01, 0.03, 0.1))
    assert made.identity(EVIDENCE) == "gn-b32-s0-a2a9c7f115"


def test_a_cell_is_never_trained_before_its_rate_is_chosen() -> None:
    with pytest.raises(ConfigError, match=r"the trials of tune\.lr come before"):
        _ = tuned().peak_lr


def test_tuned_and_given_rates_make_one_grid() -> None:
    items = grid.read(["norm=bn,gn", "tune.lr=null,[0.01,0.1]", "tune.valid=0.2"]).cells
    assert [item.cell.tune is None for item in items] == [True, False, True, False]
    assert {"tune", "norm"} >= set(items[0].changed) >= {"tune"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["tune.lr=0.01,0.1"], "tune.lr: got 0.01, expected all rates to try in one list, such as 'tune.lr=["),
        (["tune.lr=0.1"], "expected all rates to try in one list"),
        (["tune.lr=[0.1]"], "got one rate, 0.1, expected two or more to choose from"),
        (["tune.lr=[0.1,0.1]"], "a single one is lr=0.1"),
        (["tune.lr=[]"], "got none, expected two or more"),
        (["tune.lr=[0.1,fast]"], "tune.lr[1]: got 'fast' (text), expected a number"),
        (["tune.lr=[0.1,0]"], "expected rates above 0"),
        (["tune=[0.1,0.2]"], "tune: got [0.1, 0.2], expected an option of it"),
        (["tune.valid=0.2"], "tune.valid is given, but no rates to choose from"),
        (["tune.lr=null", "tune.valid=0.2"], "tune.valid is given, but no rates to choose from"),
        ([TUNED, "tune.valid=0"], "tune.valid: got 0.0"),
        ([TUNED, "tune.seeds=0"], "tune.seeds: got 0"),
        ([TUNED, "tune.budget=1.5"], "tune.budget: got 1.5"),
        ([TUNED, "tune.seed=2"], "Did you mean 'tune.seeds'?"),
        ([TUNED, "lr=0.1"], "lr=0.1 and tune.lr are both given"),
        ([TUNED, "data.valid=0.2"], "data.valid=0.2 and tune.lr are both given"),
        ([TUNED, "data.tune=0.2", "eval.example_weight=auto"], "give eval.example_weight a number"),
        ([TUNED, "seed=0,1000"], "seed=1000 is that of a trial"),
    ],
)
def test_a_mistake_is_answered_with_what_would_mend_it(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grid.read(overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


class Sealed:
    """Pictures or labels that nobody may look at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the test set was read: {name}")

    def __len__(self) -> int:
        raise AssertionError("the test set was read: its length")

    __getitem__ = __array__ = __iter__ = __getattr__


class Watching:
    """Shows nothing."""

    def step(self, *_: Any) -> None: ...
    def row(self, row: dict[str, Any]) -> None: ...
    def right(self, right: object) -> None: ...


def test_no_trial_reads_the_test_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole trial, described, opened, trained and evaluated, on a data set whose test half cannot be touched."""
    found = sources.find

    def sealed(*args: Any, **kwargs: Any) -> Any:
        return dataclasses.replace(found(*args, **kwargs), test_x=Sealed(), test_y=Sealed())

    monkeypatch.setattr(sources, "find", sealed)
    asked, watch = tuned("norm=bn", "batch=8", "steps=2"), cast("Watch", Watching())
    device = torch.device("cpu")
    for trial in trials_of(asked)[:1]:
        description = describe(trial.data)
        assert (description.split, description.train + description.test) == ("valid", 1438)
        assert description.test == pytest.approx(143.8, abs=5)
        pictures = open_for(trial, description, device)
        result = train(trial, prepare(trial, description, device), pictures, device, watch)
        assert (result["split"], result["eval_count"]) == ("valid", description.test)
    with pytest.raises(AssertionError, match="the test set was read"):
        describe(asked.data)


def test_a_checkpoint_of_another_rate_is_not_gone_on_from() -> None:
    """The id of a tuned cell does not hold its rate, so that what its checkpoint is of must."""

    def marked(asked: Cell) -> dict[str, str]:
        return child.chosen(Order("runs/t", "x", asked.nested(), {}, 0, 1, chosen={"amp": "none"}))

    asked = tuned("norm=bn")
    one, other = (marked(dataclasses.replace(asked, lr=rate)) for rate in (0.01, 0.1))
    assert one != other
    assert marked(plain("lr=0.1")) == {"amp": "none"}
