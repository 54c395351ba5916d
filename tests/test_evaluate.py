"""Evaluation: every picture once, numbers that can be checked by hand."""

from __future__ import annotations

import math

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
