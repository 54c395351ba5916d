"""Virtual workers: one forward over batch × workers images is that many forwards; the buffers keep the mean."""

from __future__ import annotations

import copy

import pytest
import torch
from norm_cases import CASES, C, Case, gradients, make, pictures

from normbench import norms
from normbench.errors import InputError

MIXING = [case for case in CASES if norms.get(case.name).mixes_samples]
mixing = pytest.mark.parametrize("case", MIXING, ids=str)


@mixing
@pytest.mark.parametrize("batch", [1, 2, 3, 6])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_virtual_workers_are_separate_forwards(case: Case, batch: int, momentum: float | None) -> None:
    unit = make(case, batch=batch)
    unit.momentum = momentum
    unit(pictures(6, C, 4, 3, seed=1))
    x = pictures(6, C, 4, 3).requires_grad_()
    workers = [copy.deepcopy(unit) for _ in range(6 // batch)]
    together = unit(x)
    apart = torch.cat([worker(images) for worker, images in zip(workers, x.split(batch), strict=True)])
    assert torch.allclose(together, apart, rtol=0, atol=1e-12)
    of_each_worker = [gradients(apart, *worker.parameters()) for worker in workers]
    theirs = [*gradients(apart, x), *(torch.stack(shares).sum(0) for shares in zip(*of_each_worker, strict=True))]
    for g, h in zip(gradients(together, x, *unit.parameters()), theirs, strict=True):
        assert torch.allclose(g, h, rtol=1e-10, atol=1e-9)
    for key in ("running_mean", "running_var"):
        kept = torch.stack([getattr(worker, key) for worker in workers]).mean(0)
        assert torch.allclose(getattr(unit, key), kept, rtol=0, atol=1e-12)
    assert unit.num_batches_tracked == workers[0].num_batches_tracked == 2


@mixing
def test_the_buffers_take_the_mean_over_workers_of_mean_and_unbiased_variance(case: Case) -> None:
    unit = make(case, batch=2)
    unit.momentum = 1.0
    x = pictures(6, C, 4, 3)
    unit(x)
    G, D = len(unit.running_mean), C * 4 * 3
    group = torch.tensor([(d * G) // D for d in range(D)])
    for g in range(G):
        workers = [images.flatten(1)[:, group == g] for images in x.split(2)]
        mean = torch.stack([values.mean() for values in workers]).mean()
        var = torch.stack([values.var(correction=1) for values in workers]).mean()
        assert torch.allclose(unit.running_mean[g], mean, rtol=0, atol=1e-12)
        assert torch.allclose(unit.running_var[g], var, rtol=0, atol=1e-12)


@mixing
def test_batch_may_be_changed_on_a_built_unit(case: Case) -> None:
    unit, other = make(case, batch=2), make(case)
    x = pictures(6, C, 4, 3)
    unit.batch = None
    assert torch.equal(unit(x), other(x))


@mixing
def test_a_batch_that_does_not_divide_is_refused_in_training_only(case: Case) -> None:
    unit = make(case, batch=4)
    with pytest.raises(InputError, match=r"got 10 images.*batch=4.*such as 8.*drop_last"):
        unit(pictures(10, C, 4, 3))
    with pytest.raises(InputError, match=r"got 3 images.*batch=4.*such as 4"):
        unit(pictures(3, C, 4, 3))
    unit(pictures(4, C, 4, 3))
    assert unit.num_batches_tracked == 1, "a refused batch leaves no trace"
    for N in (1, 3, 4, 10):
        assert unit.eval()(pictures(N, C, 4, 3)).shape[0] == N


@mixing
def test_buffers_stand_still_in_evaluation(case: Case) -> None:
    unit = make(case)
    unit(pictures(4, C, 4, 3))
    before = copy.deepcopy(unit.eval().state_dict())
    unit(pictures(4, C, 4, 3, seed=1))
    assert all(torch.equal(value, before[key]) for key, value in unit.state_dict().items())


@mixing
def test_half_precision_buffers_move_and_stay_finite(case: Case) -> None:
    unit = make(case, dtype=torch.bfloat16)
    for _ in range(3):
        unit(pictures(4, C, 4, 3, dtype=torch.bfloat16))
    assert unit.running_var.isfinite().all()
    assert not torch.equal(unit.running_mean, torch.zeros_like(unit.running_mean))
