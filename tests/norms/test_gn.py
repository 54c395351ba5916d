"""gn's number of groups: the default fitted, a given one strict unless a fit is given with it."""

from __future__ import annotations

import pytest
from norm_cases import pictures

from normbench import norms
from normbench.errors import InputError


@pytest.mark.parametrize(
    ("features", "options", "groups"),
    [
        (64, {}, 32),
        (48, {}, 16),
        (80, {}, 16),
        (3, {}, 1),
        (48, {"num_groups": None}, 16),
        (48, {"num_groups": 16}, 16),
        (48, {"num_groups": 32, "group_fit": "gcd"}, 16),
        (48, {"num_groups": 32, "group_fit": "uneven"}, 32),
        (3, {"num_groups": 32, "group_fit": "uneven"}, 3),
        (48, {"group_fit": "uneven"}, 32),
        (96, {"group_fit": "strict"}, 32),
    ],
)
def test_effective_number_of_groups(features: int, options: dict[str, object], groups: int) -> None:
    assert norms.build("gn", features, **options).num_groups == groups


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (96, {"num_groups": 36}, "gn: num_features=96 does not split into num_groups=36; take .* such as 32, or group"),
        (48, {"group_fit": "strict"}, "num_features=48 does not split into num_groups=32; .* such as 24, "),
        (16, {"num_groups": 32}, "num_features=16 does not split into num_groups=32; .* such as 16, "),
        (16, {"num_groups": 5, "group_fit": "strict"}, "such as 4, or group_fit=gcd|uneven"),
    ],
)
def test_strict_names_a_divisor(features: int, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        norms.build("gn", features, **options)


def test_uneven_groups_differ_by_one_channel_at_most() -> None:
    """A constant in one group of channels moves no other group."""
    unit = norms.build("gn", 7, num_groups=3, group_fit="uneven")
    x = pictures(2, 7, 4, 4).float()
    y = unit(x)
    for members in ([0, 1, 2], [3, 4], [5, 6]):
        moved = x.clone()
        moved[:, members[0]] += 5
        changed = (unit(moved) - y).abs().amax((0, 2, 3)) > 1e-3
        assert changed.nonzero().flatten().tolist() == members
