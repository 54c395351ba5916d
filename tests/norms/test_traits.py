"""The traits in the registry's rows are true of the units."""

from __future__ import annotations

import copy

import pytest
import torch
from norm_cases import CASES, C, Case, make, pictures
from torch import nn

from normbench import norms

every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
def test_mixes_samples_means_that_an_image_in_training_sees_the_others(case: Case) -> None:
    unit = make(case, activation=nn.ReLU())
    x = pictures(4, C, 5, 3)
    together = copy.deepcopy(unit)(x)
    alone = torch.cat([copy.deepcopy(unit)(image[None]) for image in x])
    assert torch.allclose(together, alone, atol=1e-12) is not norms.get(case.name).mixes_samples


@every_case
def test_train_eval_differ(case: Case) -> None:
    """Of a fresh unit: one with the batch's own statistics in evaluation is the same in both modes."""
    x = pictures(4, C, 5, 3)
    unit = make(case)
    same = torch.allclose(copy.deepcopy(unit)(x), unit.eval()(x), atol=1e-12)
    assert same is (not norms.get(case.name).train_eval_differ or case.options.get("eval_stats") == "batch")


@every_case
def test_trains_from_its_least_batch(case: Case) -> None:
    x = pictures(norms.get(case.name).least_batch, C, 5, 3).requires_grad_()
    make(case)(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@every_case
def test_buffers_only_where_train_and_eval_differ(case: Case) -> None:
    unit = make(case)
    unit(pictures(4, C, 5, 3))
    assert bool(list(unit.buffers())) is norms.get(case.name).train_eval_differ


@every_case
def test_own_activation_means_more_than_a_relu_behind_it(case: Case) -> None:
    row, x = norms.get(case.name), pictures(4, C, 5, 3)
    fused, apart = make(case, activation=nn.ReLU())(x), make(case)(x).relu()
    assert row.takes_activation
    assert torch.equal(fused, apart) is not row.own_activation, "or its own in its place"
    reaches = row.own_activation or any((row.convolution, row.layer, row.wire))
    assert row.drop_in is not reaches


@every_case
def test_sum_activation_means_that_a_relu_is_not_kept(case: Case) -> None:
    row = norms.get(case.name)
    kept = [module for module in make(case, activation=nn.ReLU()).modules() if isinstance(module, nn.ReLU)]
    assert row.sum_activation is None or not kept
    assert row.own_activation or (row.sum_activation is None and kept)


@every_case
def test_takes_batch_means_mixing_and_knowing_how_many_values_it_pools(case: Case) -> None:
    row = norms.get(case.name)
    assert row.takes_batch is row.mixes_samples
    assert hasattr(make(case), "values_per_statistic") is row.mixes_samples
    assert row.takes_size is (case.name == "bgn")


def test_own_eps_means_that_the_default_is_not_torchs() -> None:
    for row in map(norms.get, norms.names()):
        assert (row.options["eps"] != 1e-5) is row.own_eps


def test_values_per_statistic_counts_the_smallest_group() -> None:
    assert norms.build("bn", 6).values_per_statistic(5, 3, 2) == 2 * 15
    assert norms.build("bn", 6).values_per_statistic(1, 1, 1) == 1
    counts = {3: 60, 6: 30, 10: 18, 90: 2, 17: 10, 900: 2}  # of 2 images of 6·5·3 = 90 features
    for G, count in counts.items():
        assert norms.build("bgn", 6, num_groups=G, group_fit="uneven").values_per_statistic(5, 3, 2) == count
    for name in ("brn", "iebn"):
        assert norms.build(name, 6).values_per_statistic(5, 3, 2) == 2 * 15
    for ghost_size, images in ((1, 1), (2, 2), (16, 8)):
        ghosts = {"ghost_size": ghost_size, "batch": 8}
        assert norms.build("gbn", 6, **ghosts).values_per_statistic(5, 3, 8) == images * 15
        for G, channels in ((1, 6), (4, 1), (3, 2)):
            unit = norms.build("batch_group", 6, num_groups=G, group_fit="uneven", **ghosts)
            assert unit.values_per_statistic(5, 3, 8) == images * channels * 15
