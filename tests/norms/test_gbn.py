"""gbn and batch_group: ghost batches keep apart, must divide the worker's batch, and leave evaluation alone."""

from __future__ import annotations

import pytest
import torch
from norm_cases import C, gradients, make, pictures
from norm_cases import Case as Of
from torch import nn

from normbench import norms
from normbench.errors import InputError

both = pytest.mark.parametrize("name", ["gbn", "batch_group"])


@both
def test_a_ghost_batch_sees_no_other(name: str) -> None:
    unit = make(Of(name, {"ghost_size": 2}))
    x = pictures(6, C, 4, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(unit(x)[3].square().sum(), x)
    assert [bool(image.any()) for image in gradient] == [False, False, True, True, False, False]
    swapped = x[[0, 2, 1, 3, 4, 5]]
    assert not torch.allclose(unit(swapped)[[0, 2, 1, 3]], unit(x)[:4])


@both
def test_no_value_is_further_out_than_so_many_allow(name: str) -> None:
    unit = norms.build(name, C, ghost_size=2)
    x = torch.zeros(4, C, 4, 3)
    x[0, :, 0, 0] = 1e4
    values = unit.values_per_statistic(4, 3, 4)
    assert unit(x).abs().max() <= (values - 1) ** 0.5 + 1e-4


@both
def test_images_that_do_not_split_are_refused_and_the_mend_is_named(name: str) -> None:
    message = rf"{name}: got batch=10 images, .*ghost_size=4; take a divisor of 10, such as 5, .*of 4, such as 8"
    unit = norms.build(name, C, ghost_size=4)
    with pytest.raises(InputError, match=message):
        unit(pictures(10, C, 4, 3).float())
    assert unit.num_batches_tracked == 0
    with pytest.raises(InputError, match=message):
        norms.build(name, C, ghost_size=4, batch=10)
    with pytest.raises(InputError, match=r"batch=6 images.*ghost_size=4"):
        norms.build(name, C, ghost_size=4)(pictures(12, C, 4, 3).float()[:6])


@both
@pytest.mark.parametrize("N", [1, 3, 5, 7])
def test_evaluation_takes_any_number_of_images(name: str, N: int) -> None:
    unit = make(Of(name, {"ghost_size": 4}))
    unit(pictures(8, C, 4, 3))
    x = pictures(N, C, 4, 3, seed=1)
    unit.eval()
    assert torch.allclose(unit(x), torch.cat([unit(image[None]) for image in x]), rtol=0, atol=1e-13)


@both
def test_the_statistics_do_not_depend_on_the_ghost_size(name: str) -> None:
    kept = []
    for ghost_size in (1, 2, 4, 8, 16):
        unit = norms.build(name, C, ghost_size=ghost_size, dtype=torch.float64)
        for seed in (0, 1):
            unit(pictures(8, C, 4, 3, seed=seed))
        kept.append(torch.stack((unit.running_mean, unit.running_var)))
    assert all(torch.allclose(statistics, kept[0], rtol=0, atol=1e-13) for statistics in kept)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_the_statistics_do_not_depend_on_the_groups(groups: int) -> None:
    x = pictures(4, C, 4, 3)
    ours, theirs = norms.build("batch_group", C, num_groups=groups, dtype=torch.float64), make(Of("gbn"))
    ours(x), theirs(x)
    assert torch.allclose(ours.running_mean, theirs.running_mean, rtol=0, atol=1e-13)
    assert torch.allclose(ours.running_var, theirs.running_var, rtol=0, atol=1e-13)


@both
def test_one_image_a_group_and_a_pixel_give_the_bias(name: str) -> None:
    options = {"ghost_size": 1, **({"num_groups": C} if name == "batch_group" else {})}
    unit = make(Of(name, options))
    y = unit(pictures(4, C, 1, 1))
    assert torch.allclose(y, unit.bias[:, None, None].expand_as(y), atol=1e-12)


def test_evaluation_pools_the_channels_statistics_as_training_pools_the_channels() -> None:
    """With the last batch's statistics alone, evaluation of that batch is training with one ghost batch."""
    x = pictures(4, C, 4, 3)
    for options in ({"num_groups": 2}, {"num_groups": 4, "group_fit": "uneven"}):
        unit = make(Of("batch_group", {"ghost_size": 4, **options}))
        unit.momentum = 1.0
        trained = unit(x)
        evaluated = unit.eval()(x)
        if "group_fit" not in options:
            assert torch.allclose(trained, evaluated, rtol=0, atol=1e-12)
        for left, right in zip(evaluated, torch.cat([unit(image[None]) for image in x]), strict=True):
            assert torch.allclose(left, right, rtol=0, atol=1e-12)


@both
def test_gradients_of_a_batch_are_those_of_its_ghosts(name: str) -> None:
    unit = make(Of(name, {"ghost_size": 2}))
    x = pictures(4, C, 4, 3).requires_grad_()
    apart = torch.cat([unit(x[:2]), unit(x[2:])])
    for g, h in zip(gradients(unit(x), x, *unit.parameters()), gradients(apart, x, *unit.parameters()), strict=True):
        assert torch.allclose(g, h, rtol=1e-10, atol=1e-10)


@both
def test_a_batchnorm_takes_and_gives_its_state(name: str) -> None:
    ours, theirs = norms.build(name, C), nn.BatchNorm2d(C)
    ours(pictures(4, C, 5, 2).float())
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(theirs.running_var, ours.running_var)
