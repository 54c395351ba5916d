"""A cell: types, values, what its id covers and what not."""

from __future__ import annotations

from typing import Any

import pytest

from normbench import cell
from normbench.errors import ConfigError, NormbenchError

BASE: dict[str, Any] = {
    "arch": {"name": "resnet8"},
    "data": {"name": "digits"},
    "norm": {"name": "gn", "num_groups": None},
    "recipe": {"name": "quick", "epochs": 4, "base_lr": 0.1, "base_batch": 32, "lr_rule": "linear"},
}
EVIDENCE: dict[str, str | None] = {"data": "abc", "arch": None, "norm": None}


def make(**changed: Any) -> cell.Cell:
    groups = {key: {**BASE[key], **changed.pop(key, {})} for key in BASE}
    return cell.make({**groups, **changed})


def identity(**changed: Any) -> str:
    return make(**changed).identity(EVIDENCE)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"batch": 0}, "batch: got 0, expected 1 or more"),
        ({"batch": -2}, "batch: got -2"),
        ({"batch": "eight"}, "batch: got 'eight' (text), expected a whole number"),
        ({"batch": 2.5}, "expected a whole number"),
        ({"batch": True}, "expected a whole number"),
        ({"batch": [2, 8]}, "to sweep, write batch=2,8"),
        ({"epochs": 0}, "epochs: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"epochs": 2, "steps": 5}, "give one"),
        ({"workers": 2, "chunk": 3}, "chunk: got 3, expected at most workers=2"),
        ({"lr": "fast"}, "lr: got 'fast' (text), expected a number"),
        ({"memory_format": "channel_last"}, "did you mean 'channels_last'?"),
        ({"amp": "fp16"}, "amp: got 'fp16', expected true or false, or none, bfloat16 or auto"),
        ({"bacth": 8}, "Did you mean 'batch'?"),
        ({"recipe": {"weight_deacy": 0.1}}, "Did you mean 'recipe.weight_decay'?"),
        ({"recipe": {"schedule": "cosin"}}, "did you mean 'cosine'?"),
        ({"recipe": {"lr_rule": "quadratic"}}, "expected one of linear, sqrt, none"),
        ({"recipe": {"label_smoothing": 1.5}}, "recipe.label_smoothing: got 1.5"),
        ({"recipe": {"epochs": None}}, "gives no length"),
        ({"recipe": {"steps": 5}}, "gives epochs and steps"),
        ({"data": {"limt": 5}}, "Did you mean 'data.limit'?"),
        ({"data": {"valid": 1.0}}, "data.valid: got 1.0"),
        ({"data": {"pad": "two"}}, "data.pad: got 'two'"),
        ({"arch": {"stem": "cifra"}}, "did you mean 'cifar'?"),
        ({"compile": "yes"}, "compile: got 'yes' (text), expected true or false"),
    ],
)
def test_a_bad_value_is_told_with_what_was_expected(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**changed)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, NormbenchError)


def test_the_command_line_goes_before_the_recipe() -> None:
    assert (make().length("epochs"), make().length("steps")) == (4, None)
    assert (make(epochs=9).length("epochs"), make(epochs=9).length("steps")) == (9, None)
    assert (make(steps=7).length("epochs"), make(steps=7).length("steps")) == (None, 7)
    assert make(lr=0.3).peak_lr == 0.3


@pytest.mark.parametrize(("rule", "lr"), [("linear", 0.2), ("sqrt", 0.1 * 2**0.5), ("none", 0.1)])
def test_the_rate_follows_batch_times_workers(rule: str, lr: float) -> None:
    assert make(batch=8, workers=8, recipe={"lr_rule": rule}).peak_lr == pytest.approx(lr)
    assert make(batch=8, workers=8, recipe={"lr_rule": rule}).flat()["lr"] == pytest.approx(lr)


@pytest.mark.parametrize(
    "changed",
    [
        {"batch": 8}, {"workers": 2}, {"workers": 2, "chunk": 1}, {"seed": 1}, {"epochs": 5}, {"steps": 5}, {"lr": 0.5},
        {"amp": True}, {"memory_format": "channels_last"}, {"compile": True}, {"deterministic": True},
        {"norm": {"num_groups": 4}}, {"norm": {"name": "bn"}}, {"arch": {"stem": "cifar"}},
        {"arch": {"zero_init": True}}, {"data": {"limit": 100}}, {"data": {"flip": True}},
        {"recipe": {"weight_decay": 0.1}}, {"recipe": {"base_lr": 1.0}},
    ],
)  # fmt: skip
def test_the_id_covers_what_can_change_the_numbers(changed: dict[str, Any]) -> None:
    assert identity(**changed) != identity()


@pytest.mark.parametrize(
    "changed",
    [
        {"device": "cpu"}, {"data": {"root": "/elsewhere"}}, {"data": {"download": False}}, {"data": {"loaders": 2}},
        {"epochs": 4}, {"lr": 0.1}, {"norm": {"eps": None}}, {"recipe": {"source": "another paper"}},
    ],
)  # fmt: skip
def test_the_id_does_not_cover_where_it_ran_or_how_it_was_said(changed: dict[str, Any]) -> None:
    assert identity(**changed) == identity()


@pytest.mark.parametrize("part", ["data", "arch", "norm"])
def test_the_id_covers_the_pictures_and_a_users_own_file(part: str) -> None:
    assert make().identity({**EVIDENCE, part: "other"}) != identity()


def test_a_users_file_is_known_by_its_hash_and_not_by_its_place() -> None:
    here, there = (make(norm={"name": f"{folder}/mine.py:Mine"}) for folder in ("a", "b"))
    evidence = {**EVIDENCE, "norm": "sha"}
    assert here.identity(evidence) == there.identity(evidence)
    assert here.identity({**evidence, "norm": "changed"}) != here.identity(evidence)


def test_the_id_can_be_a_folder_whatever_the_name() -> None:
    made = identity(norm={"name": "../my norms/a b:c.py:Ugly"})
    assert "/" not in made
    assert " " not in made
    assert not made.startswith(".")


def test_the_id_is_stable_between_processes_and_releases() -> None:
    """A change of this word throws away everybody's finished cells: raise cell.VERSION when you mean it to."""
    assert identity() == "gn-b32-s0-fa54d2e106"


def test_a_users_own_callables_take_their_own_options() -> None:
    made = make(arch={"name": "net.py:make", "width": 3})
    assert made.arch.options == {"width": 3}
    assert made.flat()["arch.width"] == 3
    with pytest.raises(ConfigError, match="width"):
        make(arch={"width": 3})
