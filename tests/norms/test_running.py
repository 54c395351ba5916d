"""Virtual workers: one forward over batch × workers images is that many forwards; the buffers keep the mean."""

from __future__ import annotations

import copy

import pytest
import torch
from norm_cases import AS_BATCHNORM, CASES, OF_ALL_VALUES, C, Case, build, gradients, make, pictures, splits

from normbench import norms
from normbench.errors import InputError

MIXING = [case for case in CASES if norms.get(case.name).mixes_samples]
mixing = pytest.mark.parametrize("case", MIXING, ids=str)
APART = [case for case in MIXING if not norms.get(case.name).joins_workers]
AS_WORKERS = [(case, batch) for case in APART for batch in (1, 2, 3, 6) if splits(case, 6, batch)]


@pytest.mark.parametrize(("case", "batch"), AS_WORKERS, ids=str)
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
    parameters = [list(worker.parameters()) for worker in workers]
    of_x, *found = gradients(apart, x, *(p for own in parameters for p in own))  # one backward, which may move state
    shares = [found[i :: len(parameters[0])] for i in range(len(parameters[0]))]
    theirs = [of_x, *(torch.stack(share).sum(0) for share in shares)]
    for g, h in zip(gradients(together, x, *unit.parameters()), theirs, strict=True):
        assert torch.allclose(g, h, rtol=1e-10, atol=1e-9)
    statistics = [key for key, value in unit.named_buffers() if value.is_floating_point()]
    assert len(statistics) >= (1 if case.name == "evonorm_b0" else 2)
    for key in statistics:
        kept = torch.stack([getattr(worker, key) for worker in workers]).mean(0)
        assert torch.allclose(getattr(unit, key), kept, rtol=0, atol=1e-12)
    assert unit.num_batches_tracked == workers[0].num_batches_tracked == 2


@pytest.mark.parametrize("case", [case for case in APART if case.name in AS_BATCHNORM], ids=str)
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


@pytest.mark.parametrize("case", [case for case in MIXING if case.name in OF_ALL_VALUES], ids=str)
@pytest.mark.parametrize("momentum", [0.1, 0.01, 0.0, 1.0, None])
def test_running_moments_of_all_values(case: Case, momentum: float | None) -> None:
    """Of one worker: exactly those of running E[x] and E[x²], from 0 and 1, whatever shares statistics."""
    unit = make(case)
    unit.momentum = momentum
    first, second = torch.zeros(C, dtype=torch.float64), torch.ones(C, dtype=torch.float64)
    for step in range(3):
        x = pictures(4, C, 4, 3, seed=step) + step
        unit(x)
        share = 1 / (step + 1) if momentum is None else momentum
        first = (1 - share) * first + share * x.mean((0, 2, 3))
        second = (1 - share) * second + share * x.square().mean((0, 2, 3))
        assert torch.allclose(unit.running_mean, first, rtol=0, atol=1e-12)
        assert torch.allclose(unit.running_var, second - first.square(), rtol=0, atol=1e-12)
    assert unit.num_batches_tracked == 3


def test_running_moments_of_all_values_do_not_cancel() -> None:
    """A mean of 50 and a spread of 0.01 in float32: the difference of the moments gives 0 or worse."""
    unit = norms.build("gbn", 1, momentum=0.5)
    x = 50 + 0.01 * torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for _ in range(60):
        unit(x)
    torch.testing.assert_close(unit.running_var[0], x.double().var(correction=0).float(), rtol=0.02, atol=0)


def test_running_moments_of_all_values_find_what_varies_between_batches() -> None:
    """Within images 1, between them 1: 2 in all, where BatchNorm2d's from batches of 2 images ends at 1.5."""
    generator = torch.Generator().manual_seed(0)
    total, batchnorm = (norms.build(name, 1, momentum=None, batch=2) for name in ("gbn", "bn"))
    for _ in range(400):
        x = torch.randn(2, 1, 16, 16, generator=generator) + torch.randn(2, 1, 1, 1, generator=generator)
        total(x), batchnorm(x)
    assert total.running_var.item() == pytest.approx(2.0, abs=0.15)
    assert batchnorm.running_var.item() == pytest.approx(1.5, abs=0.15)


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
    for _ in range(10):  # beyond a burn-in
        unit(pictures(4, C, 4, 3, dtype=torch.bfloat16))
    assert all(buffer.isfinite().all() for buffer in unit.buffers())
    start = build(case, dtype=torch.bfloat16).state_dict()
    moved = [key for key, buffer in unit.named_buffers() if not torch.equal(buffer, start.get(key, torch.zeros(())))]
    assert moved == [key for key, _ in unit.named_buffers() if "grad" not in key]  # those wait for a backward
