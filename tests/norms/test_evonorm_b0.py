"""evonorm_b0: batch and image variance, what it stands in the place of, and what it is elsewhere."""

from __future__ import annotations

import pytest
import torch
from norm_cases import C, make, pictures
from norm_cases import Case as Of
from torch import Tensor, nn

import normbench
from normbench import norms, surgery
from normbench.norms.evonorm_b0 import RECTIFIERS

f64 = {"dtype": torch.float64}
BOTH = ["evonorm_b0", "evonorm_s0"]


def sigma(x: Tensor, dims: tuple[int, ...], eps: float = 1e-5) -> Tensor:
    return torch.sqrt(x.var(dims, correction=0, keepdim=True) + eps)


def with_v(value: float, **options: object) -> nn.Module:
    unit = norms.build("evonorm_b0", C, activation=nn.ReLU(), **f64, **options)
    with torch.no_grad():
        unit.v.fill_(value)
    return unit


def test_parameters_and_the_one_buffer_start_as_in_the_official_code() -> None:
    unit = norms.build("evonorm_b0", C, activation=nn.ReLU())
    started = {key: value.tolist() for key, value in unit.state_dict().items()}
    ones = [1.0] * C
    assert started == {"weight": ones, "bias": [0.0] * C, "v": ones, "running_var": ones, "num_batches_tracked": 0}
    assert [id(p) for p in norms.extra_parameters(unit)] == [id(unit.v)]


def test_with_v_of_zero_the_larger_deviation_divides() -> None:
    x = pictures(4, C, 5, 3)
    expected = x / torch.maximum(sigma(x, (0, 2, 3)), sigma(x, (2, 3)))
    assert torch.allclose(with_v(0)(x), expected, rtol=0, atol=1e-12)


def test_the_slope_decides_where_it_is_steep() -> None:
    x = pictures(4, C, 5, 3).abs() + 1
    expected = x / (1e6 * x + sigma(x, (2, 3)))
    assert torch.allclose(with_v(1e6)(x), expected, rtol=1e-12, atol=0)


def test_no_mean_is_subtracted() -> None:
    x = pictures(4, C, 5, 3) + 5
    assert (with_v(0)(x) > 0).float().mean() > 0.95


def test_evaluation_of_an_image_is_its_own_with_the_batchs_variance_kept() -> None:
    unit = make(Of("evonorm_b0"))
    for seed in range(3):
        unit(pictures(4, C, 5, 3, seed=seed))
    x = pictures(4, C, 5, 3, seed=9)
    together = unit.eval()(x)
    assert torch.equal(together, torch.cat([unit(image) for image in x.split(1)]))
    kept = torch.sqrt(unit.running_var + 1e-5)[:, None, None]
    z = x / torch.maximum(kept, unit.v[:, None, None] * x + sigma(x, (2, 3)))
    assert torch.allclose(together, unit.weight[:, None, None] * z + unit.bias[:, None, None], rtol=0, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_the_buffer_takes_the_workers_biased_variance_on_average(momentum: float | None) -> None:
    unit = norms.build("evonorm_b0", C, activation=nn.ReLU(), batch=2, momentum=momentum, **f64)
    expected = torch.ones(C, **f64)
    for step in range(3):
        x = pictures(6, C, 4, 3, seed=step)
        unit(x)
        found = torch.stack([worker.var((0, 2, 3), correction=0) for worker in x.split(2)]).mean(0)
        expected = expected.lerp(found, 1 / (step + 1) if momentum is None else momentum)
    assert torch.allclose(unit.running_var, expected, rtol=0, atol=1e-13)
    assert "running_mean" not in unit.state_dict()


def test_in_evaluation_without_kept_statistics_the_batchs_own_are_taken() -> None:
    model = nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C, track_running_stats=False), nn.ReLU())
    applied = normbench.apply(model, "evonorm_b0").double()
    x = pictures(4, 3, 5, 3)
    assert torch.equal(applied.eval()(x), applied.train()(x))


def test_a_batchnorms_variance_and_its_count_carry_over() -> None:
    model = nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C, eps=1e-3, momentum=None), nn.ReLU())
    model(pictures(4, 3, 5, 3).float())
    unit = normbench.apply(model, "evonorm_b0").get_submodule("1")
    assert torch.equal(unit.running_var, model[1].running_var)
    assert (unit.eps, unit.num_batches_tracked) == (1e-3, 1)
    with pytest.warns(UserWarning, match=r"left out.*running_mean; kept as they were: .*v"):
        unit.load_state_dict(model[1].state_dict())


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("activation", [None, nn.Tanh(), nn.Sigmoid(), nn.PReLU(dtype=torch.float64)])
@pytest.mark.parametrize("affine", [True, False])
def test_without_a_rectifier_behind_it_is_scale_and_shift(
    name: str, activation: nn.Module | None, affine: bool
) -> None:
    unit, none = (norms.build(n, C, affine=affine, activation=activation, **f64) for n in (name, "none"))
    assert list(unit.state_dict()) == list(none.state_dict())
    x = pictures(4, C, 5, 3)
    if affine:
        nn.init.uniform_(unit.weight), nn.init.uniform_(unit.bias)
        none.load_state_dict(unit.state_dict())
    assert torch.equal(unit(x), none(x))
    assert torch.equal(unit.eval()(x), none(x))
    if affine:
        with pytest.warns(UserWarning, match="left out.*running_mean, running_var, num_batches_tracked"):
            unit.load_state_dict(nn.BatchNorm2d(C).state_dict() | dict(unit.state_dict()))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("kind", RECTIFIERS)
def test_stands_in_the_place_of_every_rectifier(name: str, kind: type[nn.Module]) -> None:
    x = pictures(4, C, 5, 3)
    of_relu, of_kind = (norms.build(name, C, activation=made, **f64) for made in (nn.ReLU(), kind()))
    assert of_kind.activation is None
    assert torch.equal(of_kind(x), of_relu(x))


class Blocks(nn.Module):
    """A site before a ReLU, one before a gate's sigmoid, and one before a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(C, C, 1) for _ in range(3))
        self.one, self.gate, self.last = (nn.BatchNorm2d(C) for _ in range(3))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.one(self.convs[0](x)))
        y = y * torch.sigmoid(self.gate(self.convs[1](y)))
        return self.relu(self.last(self.convs[2](y)) + x)


@pytest.mark.parametrize("name", BOTH)
def test_in_a_network_the_relu_goes_and_the_relu_of_a_sum_stays(name: str) -> None:
    applied = surgery.apply(Blocks(), name).double()
    assert applied.one.v is not None
    assert applied.gate.v is applied.last.v is None
    assert applied._train_forward.source.count("self.relu(") == 1
    assert applied(pictures(4, C, 5, 3)).min() >= 0
    x = pictures(4, C, 5, 3).requires_grad_()
    applied(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", BOTH)
def test_every_site_of_a_network_with_relu6_is_normalized(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C), nn.ReLU6())
    applied = surgery.apply(model, name)
    assert applied.get_submodule("1").v is not None
    assert "(2)" not in applied._train_forward.source


def test_on_one_pixel_the_image_has_no_deviation() -> None:
    x = pictures(4, C, 1, 1)
    expected = x / torch.maximum(sigma(x, (0, 2, 3)), x + 1e-5**0.5)
    assert torch.allclose(with_v(1)(x), expected, rtol=0, atol=1e-12)
