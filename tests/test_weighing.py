"""The share of an image's own moments, chosen on held-out pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

import normbench
from normbench import weighing


def net(name: str, **options: int) -> nn.Module:
    return normbench.apply(nn.Sequential(nn.BatchNorm2d(4)), name, **options)


def test_the_shares_follow_the_images_that_share_statistics() -> None:
    assert weighing.shares(2)[-4:] == [0.125, 0.25, 0.5, 1.0]
    assert weighing.shares(64)[0] == 0
    assert {1 / 64, 1 / 128} < set(weighing.shares(64))
    assert weighing.sharing(net("bn"), 32) == 32
    assert weighing.sharing(net("gbn", ghost_size=4), 32) == 4
    assert weighing.sharing(net("gbn", ghost_size=16), 8) == 8


def test_the_best_share_stands_afterwards() -> None:
    model = net("bn")
    unit = model.get_submodule("0")

    def measure() -> dict[str, float]:
        return {"top1": 80.0 if unit.example_weight in (0.05, 0.1) else 70.0, "loss": unit.example_weight}

    assert weighing.choose(model, 8, measure) == 0.05
    assert unit.example_weight == 0.05


def test_without_running_moments_there_is_nothing_to_measure() -> None:
    assert weighing.choose(net("gn", num_groups=2), 8, lambda: pytest.fail("measured")) == 0


def test_a_cell_chooses_after_its_last_epoch_and_says_what(
    sweep: Callable[..., int], results: Callable[..., list[dict[str, str]]], tmp_path: Path
) -> None:
    grid = ["norm=bn,gn", "batch=8", "epochs=2", "data.limit=200", "name=w"]
    assert sweep(*grid, "eval.example_weight=auto", "data.tune=0.2") == 0
    rows = {row["norm"]: row for row in results("w")}
    assert float(rows["bn"]["example_weight"]) in weighing.shares(8)
    assert float(rows["gn"]["example_weight"]) == 0
    assert rows["bn"]["split"] == "test"
    assert rows["bn"]["eval.example_weight"] == "auto"
    folder = tmp_path / "runs" / "w" / rows["bn"]["cell_id"]
    first, last = map(json.loads, (folder / "rows.jsonl").read_text().splitlines())
    assert first["example_weight"] == 0
    assert last["example_weight"] == float(rows["bn"]["example_weight"])


def test_a_given_share_trains_the_same_and_evaluates_otherwise(
    sweep: Callable[..., int], results: Callable[..., list[dict[str, str]]]
) -> None:
    assert sweep("norm=bn", "batch=2", "steps=20", "eval.example_weight=0,0.5", "name=w") == 0
    without, weighed = results("w")
    assert without["train_loss"] == weighed["train_loss"]
    assert without["loss"] != weighed["loss"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("eval.example_weight=auto", "data.tune=0.1"),
        ("eval.example_weight=2", "0 to 1"),
        ("eval.example_weight=best", "or auto"),
        ("eval.exampel_weight=0.1", "eval.example_weight"),
    ],
)
def test_what_cannot_be_is_refused(
    given: str, said: str, sweep: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("norm=bn", "batch=2", given) == 2
    assert said in capsys.readouterr().err
