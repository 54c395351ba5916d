"""rbn: its two calibrations, and BatchNorm2d between them."""

from __future__ import annotations

import pytest
import torch
from norm_cases import C, gradients, make, pictures
from norm_cases import Case as Of
from torch import nn

from normbench import norms


def test_parameters_start_as_in_the_official_code() -> None:
    unit = norms.build("rbn", C)
    started = {key: set(p.tolist()) for key, p in unit.named_parameters()}
    assert started == {"weight": {1}, "bias": {0}, "center_weight": {0}, "gate_weight": {0}, "gate_bias": {1}}
    extra = norms.extra_parameters(unit)
    assert {id(p) for p in extra} == {id(unit.center_weight), id(unit.gate_weight), id(unit.gate_bias)}


@pytest.mark.parametrize("training", [True, False])
def test_without_its_calibrations_it_is_batchnorm_times_the_open_gate(training: bool) -> None:
    ours, theirs = make(Of("rbn")), nn.BatchNorm2d(C, dtype=torch.float64)
    with torch.no_grad():
        ours.center_weight.zero_(), ours.gate_weight.zero_()
        theirs.weight.copy_(ours.weight * torch.sigmoid(ours.gate_bias))
        theirs.bias.copy_(ours.bias)
    for seed in range(3):
        ours(pictures(4, C, 5, 3, seed=seed)), theirs(pictures(4, C, 5, 3, seed=seed))
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.allclose(getattr(ours, key), getattr(theirs, key), rtol=0, atol=1e-13), key
    x = pictures(4, C, 5, 3, seed=9)
    assert torch.allclose(ours.train(training)(x), theirs.train(training)(x), rtol=0, atol=1e-12)


def test_starts_as_batchnorm_times_0_731() -> None:
    x = pictures(4, C, 5, 3)
    ours, theirs = norms.build("rbn", C, dtype=torch.float64), nn.BatchNorm2d(C, dtype=torch.float64)
    assert torch.allclose(ours(x), 0.7310585786300049 * theirs(x), rtol=0, atol=1e-12)


def test_the_first_calibration_moves_each_map_by_its_mean() -> None:
    """With m = −1 every map is centred, and the unit BatchNorm of centred maps."""
    unit, x = norms.build("rbn", C, dtype=torch.float64), pictures(4, C, 5, 3)
    with torch.no_grad():
        unit.center_weight.fill_(-1)
    centred = x - x.mean((2, 3), keepdim=True)
    expected = 0.7310585786300049 * nn.BatchNorm2d(C, dtype=torch.float64)(centred)
    assert torch.allclose(unit(x), expected, rtol=0, atol=1e-12)


def test_statistics_are_those_of_the_moved_maps() -> None:
    unit, x = make(Of("rbn"), batch=2), pictures(6, C, 4, 3)
    unit.momentum = 1.0
    unit(x)
    moved = x + unit.center_weight[:, None, None] * x.mean((2, 3), keepdim=True)
    mean = torch.stack([worker.mean((0, 2, 3)) for worker in moved.split(2)]).mean(0)
    var = torch.stack([worker.var((0, 2, 3)) for worker in moved.split(2)]).mean(0)
    assert torch.allclose(unit.running_mean, mean, rtol=0, atol=1e-12)
    assert torch.allclose(unit.running_var, var, rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_the_gate_is_of_the_normalized_map(training: bool) -> None:
    """Where it is closed nothing is left but β, and open it is BatchNorm of the moved maps."""
    unit, x = make(Of("rbn")).train(training), pictures(4, C, 5, 3)
    with torch.no_grad():
        unit.gate_weight.zero_()
        unit.gate_bias.fill_(-800)
    assert torch.equal(unit(x), unit.bias[:, None, None].expand_as(x))
    with torch.no_grad():
        unit.gate_bias.fill_(800)
    z = (unit(x) - unit.bias[:, None, None]) / unit.weight[:, None, None]
    with torch.no_grad():
        unit.gate_weight.fill_(0.7)
        unit.gate_bias.fill_(-0.2)
    gate = torch.sigmoid(0.7 * z.mean((2, 3), keepdim=True) - 0.2)
    state = unit.state_dict()  # in evaluation the statistics stand still; in training they are the batch's
    expected = unit.weight[:, None, None] * gate * z + unit.bias[:, None, None]
    unit.load_state_dict(state)
    assert torch.allclose(unit(x), expected, rtol=1e-10, atol=1e-12)


def test_the_input_is_left_as_it_was_and_evaluation_is_of_the_image_alone() -> None:
    unit, x = make(Of("rbn")), pictures(4, C, 5, 3)
    before = x.clone()
    unit(x)
    together = unit.eval()(x)
    assert torch.equal(x, before)
    assert torch.allclose(together, torch.cat([unit(image) for image in x.split(1)]), rtol=0, atol=1e-13)


def test_gradients_reach_every_calibration() -> None:
    unit, x = make(Of("rbn")), pictures(4, C, 5, 3)
    for gradient in gradients(unit(x), *norms.extra_parameters(unit)):
        assert gradient.abs().min() > 0
