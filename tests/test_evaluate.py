"""Evaluation: every picture once, numbers that can be checked by hand."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from normbench.errors import DataError
from normbench.evaluate import evaluate


class Table(nn.Module):
    """Hands out fixed logits: x holds the row's number."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits[x[:, 0, 0, 0].long()]


def pictures(labels: list[int], batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = torch.arange(len(labels)).float().view(-1, 1, 1, 1), torch.tensor(labels)
    return list(zip(x.split(batch), y.split(batch), strict=True))


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_top1_top5_and_loss_by_hand(batch: int) -> None:
    logits = torch.eye(7) * 3.0  # row i is sure of class i, and all others tie
    labels = [0, 1, 2, 3, 4, 5, 0]  # the last one is wrong
    found = evaluate(Table(logits), pictures(labels, batch), 7)
    assert found["top1"] == pytest.approx(100 * 6 / 7)
    sure = math.log(math.exp(3) + 6) - 3
    wrong = math.log(math.exp(3) + 6)
    assert found["loss"] == pytest.approx((6 * sure + wrong) / 7, rel=1e-6)
    assert found["eval_count"] == 7


def test_top5_counts_the_five_best() -> None:
    logits = torch.arange(10.0).repeat(10, 1)
    assert evaluate(Table(logits), pictures(list(range(10)), 4), 10)["top5"] == pytest.approx(50.0)


def test_fewer_than_five_classes_are_all_within_the_top() -> None:
    assert evaluate(Table(torch.eye(2)), pictures([1, 0], 2), 2)["top5"] == 100.0


@pytest.mark.parametrize("expected", [4, 6])
def test_a_picture_left_out_or_seen_twice_is_an_error(expected: int) -> None:
    with pytest.raises(DataError, match=f"saw 5 pictures, expected each of {expected} once"):
        evaluate(Table(torch.eye(5)), pictures([0, 1, 2, 3, 4], 2), expected)


def test_the_model_is_evaluated_in_evaluation_mode_without_gradients() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 3)).train()
    evaluate(model, pictures([0, 1], 2), 2)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_reduction_over_one_rank_changes_nothing() -> None:
    torch.manual_seed(0)
    table, given = Table(torch.randn(9, 9)), pictures([0, 1, 2, 3, 4, 5, 6, 7, 0], 2)
    assert evaluate(table, given, 9, reduce=lambda sums: sums) == evaluate(table, given, 9)


@pytest.mark.parametrize("reduce", [None, lambda sums: sums])
@pytest.mark.parametrize("count", [0, 3])
def test_no_picture_at_all_is_an_error(reduce, count: int) -> None:
    with pytest.raises(DataError, match=f"saw 0 pictures, expected each of {count} once"):
        evaluate(nn.Linear(1, 2), [], count, reduce=reduce)


def test_a_loss_that_is_not_finite_does_not_hide_the_count() -> None:
    found = evaluate(Table(torch.full((4, 2), math.nan)), pictures([0, 1, 0, 1], 2), 4, reduce=lambda sums: sums)
    assert math.isnan(found["loss"])
    assert found["eval_count"] == 4


RANK = """
import json, sys, torch
from torch import distributed as dist, nn
from normbench.errors import DataError
from normbench.evaluate import evaluate

rank, ranks, count, meeting = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)

def total(sums):
    dist.all_reduce(sums)
    return sums

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(4, 7))
x, y = torch.randn(9, 1, 2, 2), torch.arange(9) % 7
batches = list(zip(x.split(3), y.split(3)))
try:
    found = evaluate(model, batches[rank::ranks], count, reduce=total)
    found["alone"] = evaluate(model, batches, 9)
except DataError as error:
    found = str(error)
print(json.dumps(found))
dist.destroy_process_group()
"""


def by_ranks(folder: Path, ranks: int, count: int) -> list:
    """What every one of ``ranks`` processes finds."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK, str(rank), str(ranks), str(count), str(folder / "meeting")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    return [json.loads(process.communicate(timeout=120)[0]) for process in processes]


def test_ranks_that_are_processes_find_what_one_finds_even_if_one_has_no_batch(tmp_path: Path) -> None:
    found = by_ranks(tmp_path, ranks=4, count=9)
    alone = found[0].pop("alone")
    assert alone["eval_count"] == 9
    for other in found[1:]:
        assert other.pop("alone") == alone
        assert other == found[0]
    assert found[0] == pytest.approx(alone, rel=1e-12)
    assert found[0]["top1"] == alone["top1"]


def test_the_count_is_that_of_all_ranks_together(tmp_path: Path) -> None:
    for message in by_ranks(tmp_path, ranks=2, count=8):
        assert "saw 9 pictures, expected each of 8 once" in message
