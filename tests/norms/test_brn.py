"""brn: its schedule, the correction that makes training forward as evaluation, and what it keeps."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from norm_cases import C, gradients, make, pictures
from norm_cases import Case as Of
from torch import nn

from normbench import norms
from normbench.surgery import apply

CARD = {0: (1, 0), 5_000: (1, 0), 15_000: (1 + 2 * 10 / 35, 2.5), 25_000: (1 + 2 * 20 / 35, 5), 40_000: (3, 5)}
CARD[1_000_000] = (3, 5)
INF = {"r_max": math.inf, "d_max": math.inf}


@pytest.mark.parametrize("step", CARD)
@pytest.mark.parametrize("options", [{}, {"absolute_steps": True}], ids=str)
def test_the_schedule_of_the_card(step: int, options: dict[str, bool]) -> None:
    unit = norms.build("brn", C, dtype=torch.float64, **options)
    unit.num_batches_tracked.fill_(step)
    assert unit.bounds().tolist() == pytest.approx(CARD[step])
    for run_steps in (160_000, 160, 77) if not options else ():
        unit.run_steps = run_steps
        unit.num_batches_tracked.fill_(round(step * run_steps / 160_000))
        rounded = round(step * run_steps / 160_000) * 160_000 / run_steps
        unlike = abs(rounded - step) / 20_000
        assert unit.bounds().tolist() == pytest.approx(CARD[step], abs=5 * unlike + 1e-12)


def test_absolute_steps_leave_the_length_of_the_run_aside() -> None:
    for options, expected in (({}, [3, 5]), ({"absolute_steps": True}, [1, 0])):
        unit = norms.build("brn", C, **options)
        unit.run_steps = 10
        unit.num_batches_tracked.fill_(5)
        assert unit.bounds().tolist() == expected


def test_given_bounds_hold_from_the_first_step_and_one_alone_leaves_the_other_its_ramp() -> None:
    assert norms.build("brn", C, r_max=2, d_max=math.inf).bounds().tolist() == [2, math.inf]
    unit = norms.build("brn", C, r_max=2)
    unit.num_batches_tracked.fill_(25_000)
    assert unit.bounds().tolist() == [2, 5]
    unit = norms.build("brn", C, d_max=2)
    unit.num_batches_tracked.fill_(40_000)
    assert unit.bounds().tolist() == [3, 2]


@pytest.mark.parametrize("options", [{}, {"r_max": 2.0}, INF], ids=str)
def test_a_compiled_graph_has_the_same_bounds(options: dict[str, float]) -> None:
    unit = norms.build("brn", C, dtype=torch.float64, **options)
    unit.run_steps = 40
    torch.compiler.reset()
    compiled = torch.compile(unit.bounds, fullgraph=True, backend="eager")
    for step in (0, 1, 5, 9, 40):
        unit.num_batches_tracked.fill_(step)
        assert torch.equal(compiled(), unit.bounds())


def test_without_bounds_training_gives_what_evaluation_gives_before_the_step() -> None:
    unit = make(Of("brn", INF), activation=nn.ReLU())
    for seed in range(3):
        x = pictures(4, C, 5, 3, seed=seed)
        expected = copy.deepcopy(unit).eval()(x)
        assert torch.allclose(unit(x), expected, rtol=0, atol=1e-12)


def test_without_bounds_the_gradient_is_batch_norms_times_r() -> None:
    x = pictures(4, C, 5, 3).requires_grad_()
    ours, bn = make(Of("brn", INF)), make(Of("bn"))
    ours(pictures(4, C, 5, 3, seed=1))
    r = torch.sqrt(x.var((0, 2, 3), correction=0) + 1e-5) / ours.running_std
    expected = gradients(bn(x), x)[0] * r.detach()[:, None, None]
    assert torch.allclose(gradients(ours(x), x)[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("momentum", [0.1, 0.01, None])
def test_the_buffers_are_the_average_of_mean_and_standard_deviation(momentum: float | None) -> None:
    unit = norms.build("brn", C, momentum=momentum, eps=1e-3, dtype=torch.float64)
    mean, std = torch.zeros(C, dtype=torch.float64), torch.ones(C, dtype=torch.float64)
    for step in range(4):
        x = pictures(4, C, 5, 3, seed=step).requires_grad_()
        unit(x)
        share = 1 / (step + 1) if momentum is None else momentum
        mean += share * (x.detach().mean((0, 2, 3)) - mean)
        std += share * (torch.sqrt(x.detach().var((0, 2, 3), correction=0) + 1e-3) - std)
        assert torch.allclose(unit.running_mean, mean, rtol=0, atol=1e-12)
        assert torch.allclose(unit.running_std, std, rtol=0, atol=1e-12)
    assert unit.num_batches_tracked == 4
    assert not any(buffer.requires_grad for buffer in unit.buffers())


def test_with_the_true_moments_there_is_little_to_correct() -> None:
    unit = norms.build("brn", 3, **INF)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, 32, 32, generator=generator)
    assert torch.allclose(unit(x), norms.build("bn", 3)(x), atol=0.02)


def test_the_standard_deviation_stays_above_the_root_of_eps() -> None:
    unit = norms.build("brn", C, momentum=1.0, **INF)
    x = torch.full((2, C, 3, 3), 7.0)
    for _ in range(3):
        assert unit(x).isfinite().all()
    assert torch.allclose(unit.running_std, torch.full((C,), 1e-5**0.5))


def test_a_single_value_gives_d_and_no_gradient() -> None:
    unit = norms.build("brn", C, r_max=3, d_max=5, dtype=torch.float64)
    x = pictures(1, C, 1, 1).requires_grad_()
    y = unit(x)
    assert torch.allclose(y, x.clamp(-5, 5), atol=1e-12)
    assert gradients(y, x)[0].abs().max() < 1e-9


def test_a_batchnorms_statistics_do_not_carry_over_and_the_count_starts_anew() -> None:
    plain = nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C))
    plain(torch.randn(4, 3, 5, 5))
    unit = apply(plain, "brn").get_submodule("1")
    assert torch.equal(unit.running_mean, torch.zeros(C))
    assert torch.equal(unit.running_std, torch.ones(C))
    assert unit.num_batches_tracked == 0


def test_a_batchnorm_without_statistics_leaves_it_its_own() -> None:
    plain = nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C, track_running_stats=False))
    model = apply(plain, "brn")
    model(torch.randn(4, 3, 5, 5))
    assert model.get_submodule("1").num_batches_tracked == 1
