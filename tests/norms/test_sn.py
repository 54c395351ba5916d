"""sn: its mixture, what each of the three is, and its running statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from norm_cases import C, gradients, make, pictures
from norm_cases import Case as Of
from torch import nn

import normbench
from normbench import norms

KINDS = ["in", "ln", "bn"]


def only(kind: str, **options: object) -> nn.Module:
    """sn with all its trust in one kind of statistics."""
    unit = norms.build("sn", C, dtype=torch.float64, **options)
    with torch.no_grad():
        for logits in (unit.mean_weight, unit.var_weight):
            logits.fill_(-1000)
            logits[KINDS.index(kind)] = 1000
    return unit


def test_parameters_and_buffers_start_as_in_the_official_code() -> None:
    unit = norms.build("sn", C)
    started = {key: p.tolist() for key, p in unit.named_parameters()}
    ones, three = [1.0] * C, [1.0] * 3
    assert started == {"weight": ones, "bias": [0.0] * C, "mean_weight": three, "var_weight": three}
    assert unit.running_mean.tolist() == unit.running_var.tolist() == [0.0] * C
    assert {id(p) for p in norms.extra_parameters(unit)} == {id(unit.mean_weight), id(unit.var_weight)}, "not decayed"


@pytest.mark.parametrize("shape", [(4, C, 5, 3), (4, C, 1, 1), (1, C, 4, 3)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_with_all_weight_on_one_it_is_that_one(kind: str, shape: tuple[int, ...]) -> None:
    x = pictures(*shape).requires_grad_()
    ours, theirs = only(kind)(x), norms.build(kind, C, dtype=torch.float64)(x)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-11)
    (g,), (h,) = gradients(ours, x), gradients(theirs, x)
    assert torch.allclose(g, h, rtol=1e-9, atol=1e-9 * max(1, h.abs().max().item()))


def test_with_all_weight_on_bn_it_evaluates_by_its_biased_statistics() -> None:
    unit, theirs = only("bn"), nn.BatchNorm2d(C, dtype=torch.float64)
    with torch.no_grad():
        theirs.running_var.zero_()  # as official
    for seed in range(3):
        x = pictures(4, C, 5, 3, seed=seed)
        unit(x), theirs(x)
    assert torch.allclose(unit.running_mean, theirs.running_mean, rtol=0, atol=1e-14)
    assert torch.allclose(unit.running_var, theirs.running_var * 59 / 60, rtol=0, atol=1e-14)
    theirs.running_var.mul_(59 / 60)
    assert torch.allclose(unit.eval()(x), theirs.eval()(x), rtol=0, atol=1e-11)


def test_the_weights_of_means_and_of_variances_are_apart() -> None:
    unit, x = only("in"), pictures(4, C, 5, 3)
    with torch.no_grad():
        unit.var_weight.copy_(unit.var_weight.roll(1))
    mean, var = x.mean((2, 3), keepdim=True), x.var((1, 2, 3), correction=0, keepdim=True)
    assert torch.allclose(unit(x), (x - mean) / torch.sqrt(var + 1e-5), rtol=0, atol=1e-12)


def test_the_weights_sum_to_one() -> None:
    """What all kinds agree on stays: images alike, with channels alike."""
    unit = norms.build("sn", C, dtype=torch.float64)
    with torch.no_grad():
        for logits in (unit.mean_weight, unit.var_weight):
            logits.copy_(torch.tensor([0.3, -2.0, 5.0]))
    x = pictures(1, 1, 5, 3).expand(4, C, 5, 3)
    y = unit(x)
    assert torch.allclose(y, norms.build("in", C, dtype=torch.float64)(x), rtol=0, atol=1e-12)
    with torch.no_grad():
        unit.mean_weight += 7
    assert torch.allclose(unit(x), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_without_bn_no_image_sees_another(training: bool) -> None:
    unit = make(Of("sn", {"using_bn": False}), activation=nn.ReLU()).train(training)
    assert (unit.mean_weight.shape, unit.var_weight.shape, list(unit.buffers())) == ((2,), (2,), [])
    x = pictures(4, C, 5, 3).requires_grad_()
    together, alone = unit(x), torch.cat([unit(image) for image in x.split(1)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(unit, (x,), fast_mode=True)
    expected = norms.sn.reference(
        x, unit.weight, unit.bias, mean_weight=unit.mean_weight, var_weight=unit.var_weight
    ).relu()
    assert torch.allclose(together, expected, rtol=0, atol=1e-10)
    twin = norms.build("sn", C, using_bn=False, dtype=torch.float64)
    twin.load_state_dict(unit.state_dict())
    with pytest.warns(UserWarning, match=r"left out.*running_var.*kept as they were: mean_weight, var_weight"):
        twin.load_state_dict(nn.BatchNorm2d(C).state_dict())
    with pytest.raises(RuntimeError, match="var_weight"):
        twin.load_state_dict({key: value for key, value in unit.state_dict().items() if key != "var_weight"})


def test_a_single_image_evaluates_as_in_a_batch() -> None:
    unit, x = make(Of("sn")), pictures(4, C, 5, 3)
    unit(x)
    together = unit.eval()(x)
    assert torch.allclose(together, torch.cat([unit(image) for image in x.split(1)]), rtol=0, atol=1e-13)


def test_running_statistics_are_the_workers_biased_ones_on_average() -> None:
    unit = norms.build("sn", C, batch=2, momentum=0.3, dtype=torch.float64)
    x = pictures(6, C, 4, 3)
    unit(x)
    mean = torch.stack([worker.mean((0, 2, 3)) for worker in x.split(2)]).mean(0)
    var = torch.stack([worker.var((0, 2, 3), correction=0) for worker in x.split(2)]).mean(0)
    assert torch.allclose(unit.running_mean, 0.3 * mean, rtol=0, atol=1e-13)
    assert torch.allclose(unit.running_var, 0.3 * var, rtol=0, atol=1e-13)


def test_without_running_statistics_it_evaluates_by_the_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C, track_running_stats=False))
    applied, x = normbench.apply(model, "sn", batch=2), pictures(4, 3, 5, 3).float()
    expected = copy.deepcopy(applied.get_submodule("1"))
    expected.batch = None
    assert torch.equal(applied.eval()(x), expected(model[0](x)))


def test_in_a_network_its_statistics_start_as_the_batchnorms() -> None:
    model = nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C))
    unit = normbench.apply(model, "sn").get_submodule("1")
    assert unit.running_var.tolist() == [1.0] * C


def test_values_per_statistic_are_those_of_the_largest_pool() -> None:
    unit = norms.build("sn", 6)
    assert [unit.values_per_statistic(1, 1, batch) for batch in (1, 8)] == [6, 8]
    assert norms.build("sn", 6, using_bn=False).values_per_statistic(5, 3, 99) == 90
