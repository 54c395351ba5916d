"""evonorm_s0: a group's deviation, the gate, and its own rule for groups that do not divide."""

from __future__ import annotations

import pytest
import torch
from norm_cases import C, gradients, pictures
from torch import Tensor, nn

from normbench import norms
from normbench.errors import InputError

f64 = {"dtype": torch.float64}


def with_v(value: float, **options: object) -> nn.Module:
    unit = norms.build("evonorm_s0", C, activation=nn.ReLU(), **f64, **options)
    with torch.no_grad():
        unit.v.fill_(value)
    return unit


def deviation(x: Tensor, G: int) -> Tensor:
    of_group = x.reshape(len(x), G, -1).var(2, correction=0)
    return torch.sqrt(of_group + 1e-5).repeat_interleave(C // G, 1)[..., None, None]


def test_parameters_start_as_in_the_official_code() -> None:
    unit = norms.build("evonorm_s0", C, activation=nn.ReLU())
    started = {key: value.tolist() for key, value in unit.state_dict().items()}
    assert started == {"weight": [1.0] * C, "bias": [0.0] * C, "v": [1.0] * C}
    assert [id(p) for p in norms.extra_parameters(unit)] == [id(unit.v)]


@pytest.mark.parametrize("G", [1, 2, 3, 6])
def test_with_v_of_zero_it_is_half_of_x_over_the_deviation(G: int) -> None:
    x = pictures(4, C, 5, 3)
    assert torch.allclose(with_v(0, num_groups=G)(x), x / (2 * deviation(x, G)), rtol=0, atol=1e-12)


def test_with_a_large_v_it_is_a_relu_over_the_deviation() -> None:
    x = pictures(4, C, 5, 3)
    assert torch.allclose(with_v(1e6, num_groups=3)(x), x.relu() / deviation(x, 3), rtol=0, atol=1e-6)


def test_as_many_groups_as_channels_is_the_instances_deviation() -> None:
    x = pictures(4, C, 5, 3)
    instance = torch.sqrt(x.var((2, 3), correction=0, keepdim=True) + 1e-5)
    assert torch.allclose(with_v(1, num_groups=C)(x), nn.SiLU()(x) / instance, rtol=0, atol=1e-12)


def test_on_one_pixel_one_group_is_of_the_channels() -> None:
    x = pictures(4, C, 1, 1).requires_grad_()
    ours, expected = with_v(1, num_groups=1)(x), nn.SiLU()(x) / torch.sqrt(x.var(1, correction=0, keepdim=True) + 1e-5)
    assert torch.allclose(ours, expected, rtol=0, atol=1e-12)
    assert torch.allclose(gradients(ours, x)[0], gradients(expected, x)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("features", "options", "groups"),
    [
        (64, {}, 32),
        (48, {}, 24),  # by gcd 16
        (80, {}, 20),  # by gcd 16
        (37, {}, 1),
        (24, {}, 24),
        (6, {}, 6),
        (48, {"group_fit": "gcd"}, 16),
        (48, {"num_groups": 16}, 16),
        (48, {"num_groups": 32, "group_fit": "gcd"}, 16),
        (48, {"num_groups": 32, "group_fit": "uneven"}, 32),
    ],
)
def test_effective_number_of_groups(features: int, options: dict[str, object], groups: int) -> None:
    assert norms.build("evonorm_s0", features, activation=nn.ReLU(), **options).num_groups == groups


def test_a_number_given_is_strict() -> None:
    with pytest.raises(
        InputError, match=r"evonorm_s0: num_features=48 does not split into num_groups=32; .*such as 24"
    ):
        norms.build("evonorm_s0", 48, num_groups=32)


def test_a_site_that_is_not_normalized_has_no_groups_but_refuses_a_number_that_does_not_divide() -> None:
    assert norms.build("evonorm_s0", C, num_groups=3).num_groups is None
    with pytest.raises(InputError, match="does not split into num_groups=4"):
        norms.build("evonorm_s0", C, num_groups=4)


def test_half_precision_gates_in_float32() -> None:
    x = (pictures(2, C, 8, 8) * 50 + 1000).half()
    unit = norms.build("evonorm_s0", C, num_groups=2, activation=nn.ReLU())
    exact = unit.double()(x.double())
    got = unit.float()(x)
    assert got.dtype == torch.float16
    assert (got.double() - exact).abs().max() <= 2 * torch.finfo(torch.float16).eps * exact.abs().max()
