"""What the normalizer alone does to a trained network's accuracy: other ways to evaluate the same weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normbench import data, isolate, norms
from normbench.cell import Cell, NormOptions
from normbench.data import Pictures
from normbench.options import ArchOptions, DataOptions, EvalOptions, Recipe
from normbench.records import correct
from normbench.train import open_for, prepare

Sweep = Callable[..., int]
Results = Callable[..., list[dict[str, str]]]
COLUMNS = {"batch_top1", "batch_top5", "precise_top1", "precise_top5", "train_top1", "train_top5", "gap", "eval_flips"}


def cell(norm: str = "bn", batch: int = 8, **given: Any) -> Cell:
    recipe = Recipe("quick", epochs=1)
    options = DataOptions("digits", limit=given.pop("limit", 100), eval_batch=given.pop("eval_batch", 32))
    return Cell(ArchOptions("resnet8"), options, NormOptions(norm), recipe, batch=batch, **given)


def opened(cell: Cell) -> tuple[nn.Module, Pictures]:
    description, cpu = data.describe(cell.data), torch.device("cpu")
    return prepare(cell, description, cpu), open_for(cell, description, cpu)


def isolated(cell: Cell, net: nn.Module, pictures: Pictures) -> tuple[dict[str, Any], np.ndarray]:
    found, right = isolate.isolate(cell, net, pictures, contextlib.nullcontext)
    assert right is not None
    return found, right


def test_every_column_and_a_bit_per_picture_that_agrees_with_the_headline(
    sweep: Sweep, results: Results, tmp_path: Path
) -> None:
    assert sweep("norm=bn,gn", "batch=8", "epochs=2", "data.limit=120", "name=i") == 0
    for row in results("i"):
        right = correct.read(tmp_path / "runs" / "i" / row["cell_id"])
        assert right is not None
        assert len(right) == int(row["eval_count"]) == 120
        assert 100 * right.mean() == pytest.approx(float(row["top1"]))
        assert float(row["gap"]) == pytest.approx(float(row["train_top1"]) - float(row["top1"]))
        assert int(row["eval_flips"]) <= 1
        if row["norm"] == "gn":
            assert row["batch_top1"] == row["precise_top1"] == row["top1"]


def test_a_cell_that_does_not_want_it_has_none_and_is_another(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    grid = ["norm=bn", "batch=8", "steps=2", "data.limit=60", "name=i"]
    assert sweep(*grid) == 0
    assert sweep(*grid, "eval.isolate=false") == 0
    rows = results("i")
    assert [row["batch_top1"] for row in rows].count("NaN") == 1
    folders = [tmp_path / "runs" / "i" / row["cell_id"] for row in rows]
    assert sum((folder / "correct.npy").exists() for folder in folders) == 1


def test_the_network_is_left_as_it_was() -> None:
    given = cell("bn")
    net, pictures = opened(given)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    isolated(given, net, pictures)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes


@pytest.mark.parametrize("batch", [2, 8, 64, 100])
def test_batch_statistics_are_those_of_groups_of_the_batch_in_a_fixed_order(batch: int) -> None:
    """By hand: the network in training mode over every group, the last one filled up from the beginning."""
    given = cell("bn", batch)
    net, pictures = opened(given)
    found, _ = isolated(given, net, pictures)
    order = np.random.default_rng(0).permutation(100)
    groups = [np.take(order, range(i, i + batch), mode="wrap") for i in range(0, 100, batch)]
    net.train()
    guesses, labels = [], []
    with torch.no_grad():
        for group in groups:
            ((x, y),) = pictures.look(group, batch)  # type: ignore[attr-defined]
            guesses.append(net(x).argmax(1))
            labels.append(y)
    right = (torch.cat(guesses) == torch.cat(labels))[:100]
    assert found["batch_top1"] == pytest.approx(100 * right.double().mean().item(), abs=1.01)  # one tie at most


def test_precise_statistics_repair_running_ones_that_are_wrong() -> None:
    """What a network of good weights and bad running statistics gets right is theirs, not the weights', fault."""
    given = cell("bn", 25, limit=400)
    net, pictures = opened(given)
    update = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net.train()
    for epoch in range(6):
        for x, y in pictures.train(seed=0, epoch=epoch, batch=25):
            update.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            update.step()
    well, _ = isolated(given, net, pictures)
    for unit in filter(norms.is_unit, net.modules()):
        unit.running_mean.add_(3)  # type: ignore[operator,union-attr]
        unit.running_var.mul_(9)  # type: ignore[operator,union-attr]
    badly, right = isolated(given, net, pictures)
    assert 100 * right.mean() < 40
    assert badly["train_top1"] < 40
    assert badly["precise_top1"] == well["precise_top1"] > 80
    assert badly["batch_top1"] == well["batch_top1"] > 80


@pytest.mark.parametrize("eval_batch", [32, 1], ids=["and a smaller", "one and a larger"])
def test_an_evaluation_that_depends_on_its_batch_shows(eval_batch: int) -> None:
    given = cell("bn", 8, eval_batch=eval_batch)
    net, pictures = opened(given)
    for unit in filter(norms.is_unit, net.modules()):
        unit.running_mean = unit.running_var = unit.num_batches_tracked = None  # type: ignore[assignment]
    torch.manual_seed(0)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    found, _ = isolated(given, net, pictures)
    assert found["eval_flips"] > 0


def test_so_many_training_pictures_take_part() -> None:
    seen: list[int] = []
    given = cell("bn", 8, eval=EvalOptions(pictures=24))
    net, pictures = opened(given)
    look = pictures.look  # type: ignore[attr-defined]

    def counted(at: np.ndarray, batch: int, *, training: bool = False) -> Any:
        seen.extend([len(at)] * training)
        return look(at, batch, training=training)

    pictures.look = counted  # type: ignore[attr-defined]
    isolated(given, net, pictures)
    assert seen == [24]


def test_training_pictures_are_looked_at_without_augmentation() -> None:
    options = DataOptions("digits", limit=40, pad=2, flip=True)
    pictures = data.open_pictures(options, size=None, device="cpu", described=data.describe(options))
    plain = DataOptions("digits", limit=40)
    unpadded = data.open_pictures(plain, size=None, device="cpu", described=data.describe(plain))
    at = np.array([5, 3, 39, 0])
    for shown, wanted in zip(
        pictures.look(at, 3, training=True),
        unpadded.look(at, 3, training=True),
        strict=True,  # type: ignore[attr-defined]
    ):
        assert torch.equal(shown[0], wanted[0])
        assert torch.equal(shown[1], wanted[1])


def test_looked_at_in_order_they_are_what_is_evaluated() -> None:
    given = cell()
    _, pictures = opened(given)
    looked = pictures.look(np.arange(100), 32)  # type: ignore[attr-defined]
    for (x, y), (wanted_x, wanted_y) in zip(looked, pictures.test(32), strict=True):
        assert torch.equal(x, wanted_x)
        assert torch.equal(y, wanted_y)


def test_what_cannot_be_done_costs_no_result(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    """A norm that falls over with gradients off in training mode, which is what recomputing statistics does."""
    (tmp_path / "own.py").write_text(
        "from torch import nn\nimport torch\n"
        "class Own(nn.Module):\n"
        "    mixes_samples = True\n"
        "    train_eval_differ = True\n"
        "    def __init__(self, num_features):\n"
        "        super().__init__()\n"
        "        self.weight = nn.Parameter(torch.ones(num_features))\n"
        "    def forward(self, x):\n"
        "        assert torch.is_grad_enabled() or not self.training, 'wants gradients'\n"
        "        return x * self.weight[:, None, None]\n"
    )
    assert sweep(f"norm={tmp_path}/own.py:Own", "batch=8", "steps=2", "data.limit=60", "name=i") == 0
    (row,) = results("i")
    assert row["status"] == "ok"
    assert float(row["top1"]) >= 0
    assert row["batch_top1"] == "NaN"
    assert "wants gradients" in (tmp_path / "runs" / "i" / row["cell_id"] / "log.txt").read_text()


FORKED = """
import os, signal, time, torch
from torch import nn
class Own(nn.Module):
    mixes_samples = True
    train_eval_differ = True
    def __init__(self, num_features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
    def forward(self, x):
        if self.training and not torch.is_grad_enabled():
            {}
        return x * self.weight[:, None, None]
"""


@pytest.mark.parametrize(
    ("what", "more", "why"),
    [("time.sleep(600)", "cell_timeout=12", "timeout"), ("raise SystemExit(3)", "seed=0", "error")],
    ids=["timeout", "exit"],
)
def test_a_finished_training_outlives_what_comes_after(
    sweep: Sweep,
    results: Results,
    tmp_path: Path,
    what: str,
    more: str,
    why: str,
) -> None:
    (tmp_path / "own.py").write_text(FORKED.format(what))
    assert sweep(f"norm={tmp_path}/own.py:Own", "batch=8", "steps=2", "data.limit=60", "name=i", more) == 0
    (row,) = results("i")
    assert (row["status"], row["batch_top1"]) == ("ok", "NaN")
    assert float(row["top1"]) >= 0
    assert row["reason"].startswith(f"only the ordinary evaluation was done: {why}")
    assert not (tmp_path / "runs" / "i" / row["cell_id"] / "trained.json").exists()


def test_what_ends_the_process_every_time_is_tried_twice(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(FORKED.format("os.kill(os.getpid(), signal.SIGSEGV)"))
    ends = []
    for _ in range(3):
        sweep(f"norm={tmp_path}/own.py:Own", "batch=8", "steps=2", "data.limit=60", "name=i")
        ends.append([row["status"] for row in results("i")])
    assert ends == [["killed"], ["killed"], ["ok"]]
    (row,) = results("i")
    assert row["batch_top1"] == "NaN"


@pytest.mark.parametrize("norm", ["bn", "syncbn"])
def test_ranks_find_what_one_process_finds(sweep: Sweep, results: Results, norm: str) -> None:
    """Rank 0 alone does it, and a unit that shares statistics over the ranks does not wait for the others."""
    found = []
    for ranks in (1, 2):
        words = (f"norm={norm}", "batch=8", "workers=2", f"ranks={ranks}", "steps=3", "data.limit=60", f"name=r{ranks}")
        assert sweep(*words) == 0
        (row,) = results(f"r{ranks}")
        found.append([float(row[name]) for name in ("batch_top1", "precise_top1", "train_top1")])
    assert found[0] == pytest.approx(found[1], abs=2.5)  # a picture or so: sums are rounded otherwise


def test_dropout_inside_a_unit_is_off() -> None:
    """Two seeds, the same columns: ic drops in training."""
    given = replace(cell("ic", 8), norm=NormOptions("ic", {"drop": 0.5}))
    net, pictures = opened(given)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(isolated(given, net, pictures)[0])
    assert found[0] == found[1]
    assert {unit.drop for unit in filter(norms.is_unit, net.modules())} == {0.5}


def test_the_result_holds_what_the_columns_say(sweep: Sweep, tmp_path: Path) -> None:
    assert sweep("norm=brn", "batch=8", "steps=2", "data.limit=60", "name=i") == 0
    (path,) = tmp_path.glob("runs/i/*/result.json")
    assert set(json.loads(path.read_text())) >= COLUMNS


def test_one_group_at_least_takes_part() -> None:
    given = cell("bn", 32, eval=EvalOptions(pictures=10))
    assert isolated(given, *opened(given))[0]["precise_top1"] >= 0


def test_statistics_are_recomputed_over_whole_steps_as_in_training() -> None:
    given = cell("bn", 8, eval=EvalOptions(pictures=70), eval_batch=32)
    net, pictures = opened(given)
    steps: list[int] = []
    train = pictures.train

    def counted(**asked: Any) -> Any:
        for x, y in train(**asked):
            steps.append(len(x))
            yield x, y

    pictures.train = counted  # type: ignore[method-assign]
    isolated(given, net, pictures)
    assert steps == [32, 32]
