"""Parameter groups declared by the units, and the learning rate of every step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normbench
from normbench import norms
from normbench.errors import ConfigError
from normbench.optimize import learning_rate, optimizer, parameter_groups, warmup_steps
from normbench.options import Recipe


def net(name: str) -> nn.Module:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    return normbench.apply(plain, name)


@pytest.mark.parametrize("name", norms.names())
def test_every_parameter_is_in_exactly_one_group(name: str) -> None:
    model = net(name)
    grouped = [id(p) for group in parameter_groups(model, Recipe("r", weight_decay=0.1)) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_affine_parameters_decay_by_their_own_value_and_thresholds_never() -> None:
    groups = parameter_groups(net("frn"), Recipe("r", weight_decay=0.1, affine_weight_decay=0.02))
    assert {group["name"]: group["weight_decay"] for group in groups} == {"network": 0.1, "affine": 0.02, "extra": 0.0}
    sizes = {group["name"]: sum(p.numel() for p in group["params"]) for group in groups}
    assert sizes["affine"] == 8
    assert sizes["extra"] == 4


def test_without_a_value_of_its_own_the_affine_group_decays_like_the_rest() -> None:
    groups = parameter_groups(net("bn"), Recipe("r", weight_decay=0.1))
    assert {group["weight_decay"] for group in groups} == {0.1}


def test_decay_pulls_towards_zero_by_one_step_of_sgd() -> None:
    """Card affine_weight_decay, test 1: lr 0.1, decay 0.01, weight 2 → 1.998."""
    model = net("bn")
    model.get_submodule("1").weight.data.fill_(2.0)
    update = optimizer(model, Recipe("r", momentum=0.0, nesterov=False, affine_weight_decay=0.01), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    update.step()
    torch.testing.assert_close(model.get_submodule("1").weight.data, torch.full((4,), 1.998))


def stepped(model: nn.Module, update: torch.optim.Optimizer, steps: int = 1) -> None:
    for step in range(steps):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.0 if steps == 1 else (step + 1) / (number + 1))
        update.step()


@pytest.mark.parametrize(("anchor", "expected"), [("zero", 1.998), ("one", 1.999), ("init", 1.9995)])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_anchor_is_where_decay_pulls_the_weight(kind: str, anchor: str, expected: float) -> None:
    """Card affine_weight_decay, test 1: lr 0.1, decay 0.01, weight 2; the bias goes from 1 to 0.999."""
    model = net("bn")
    unit = model.get_submodule("1")
    unit.weight.data.fill_(1.5)
    recipe = Recipe("r", optimizer=kind, momentum=0.0, affine_weight_decay=0.01, affine_anchor=anchor)
    update = optimizer(model, recipe, lr=0.1)
    unit.weight.data.fill_(2.0)
    unit.bias.data.fill_(1.0)
    stepped(model, update)
    torch.testing.assert_close(unit.weight.data, torch.full((4,), expected))
    torch.testing.assert_close(unit.bias.data, torch.full((4,), 0.999))


def test_the_pull_to_one_is_weight_decay_of_the_weight_less_one() -> None:
    """Test 2: γ = 1 + δ with δ decayed towards 0 takes the same way, over steps with momentum."""
    recipe = Recipe("r", momentum=0.9, affine_weight_decay=0.05, affine_anchor="one")
    model, delta = net("bn").double(), nn.Parameter(torch.full((4,), 0.5, dtype=torch.float64))
    unit = model.get_submodule("1")
    unit.weight.data.fill_(1.5)
    update = optimizer(model, recipe, lr=0.1)
    plain = torch.optim.SGD([delta], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.05)
    for step in range(7):
        for parameter in (*model.parameters(), delta):
            parameter.grad = torch.full_like(parameter, 0.3 - 0.1 * step)
        update.step()
        plain.step()
        torch.testing.assert_close(unit.weight.data, 1 + delta.data, rtol=0, atol=1e-14)


def test_an_anchor_without_decay_is_refused() -> None:
    """It would change nothing (card, test 4), and somebody meant it to."""
    with pytest.raises(ConfigError, match=r"affine_weight_decay=1e-4"):
        Recipe("r", weight_decay=0.1, affine_weight_decay=0.0, affine_anchor="one")


@pytest.mark.parametrize("name", norms.names())
def test_with_an_anchor_too_every_parameter_is_in_one_group(name: str) -> None:
    model = net(name)
    groups = parameter_groups(model, Recipe("r", weight_decay=0.1, affine_anchor="one"))
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize(("kind", "expected"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_recipe_names_the_optimizer(kind: str, expected: type) -> None:
    assert isinstance(optimizer(net("gn"), Recipe("r", optimizer=kind), lr=0.1), expected)


def rates(recipe: Recipe, total: int, warmup: int = 0) -> list[float]:
    return [learning_rate(step, peak=1.0, total=total, warmup=warmup, recipe=recipe) for step in range(total)]


def test_cosine_starts_at_the_peak_and_ends_near_zero() -> None:
    found = rates(Recipe("r", schedule="cosine"), 100)
    assert found[0] == 1.0
    assert found[50] == pytest.approx(0.5)
    assert 0 < found[-1] < 0.001
    assert found == sorted(found, reverse=True)


def test_steps_fall_at_their_shares_of_the_run() -> None:
    found = rates(Recipe("r", schedule="step", milestones=(0.3, 0.6, 0.9), decay=0.1), 10)
    assert found == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001])


def test_constant_stays() -> None:
    assert set(rates(Recipe("r", schedule="constant"), 5)) == {1.0}


@pytest.mark.parametrize("ramp", ["linear", "cosine"])
def test_the_warm_up_rises_to_the_peak(ramp: str) -> None:
    found = rates(Recipe("r", schedule="constant", warmup=ramp), 20, warmup=10)
    assert found[:10] == sorted(found[:10])
    assert 0 < found[0] < 0.2
    assert found[9:] == [1.0] * 11


def test_a_shortened_run_still_trains_at_its_peak_rate() -> None:
    assert warmup_steps(Recipe("r", warmup_epochs=5), steps_per_epoch=10, total=1000) == 50
    assert warmup_steps(Recipe("r", warmup_epochs=5), steps_per_epoch=10, total=20) == 10
