"""bgn: the number of groups, the buffers that follow it, loading, map sizes, statistics in evaluation."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from norm_cases import C, pictures
from torch import nn

from normbench import norms
from normbench.errors import ConfigError, InputError

D = C * 4 * 3
X = pictures(4, C, 4, 3).float()
TABLE = {2: 1, 4: 2, 8: 12}


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        ({}, 32),
        ({"num_groups": None}, 32),
        ({"num_groups": 3}, 3),
        ({"num_groups": 12}, 12),
        ({"num_groups": 8}, 8),
        ({"num_groups": 32, "group_fit": "gcd"}, math.gcd(32, D)),
        ({"num_groups": 100, "group_fit": "uneven"}, D),
        ({"num_groups": 5, "group_fit": "uneven"}, 5),
        ({"group_fit": "gcd"}, math.gcd(32, D)),
    ],
)
@pytest.mark.parametrize("sized", [True, False], ids=["size given", "size seen"])
def test_effective_number_of_groups_and_buffers(options: dict[str, Any], groups: int, sized: bool) -> None:
    unit = norms.build("bgn", C, **options, **({"size": (4, 3)} if sized else {}))
    assert unit.num_groups in ((groups,) if sized else (groups, None))
    unit(X)
    assert unit.num_groups == groups
    assert unit.running_mean.shape == unit.running_var.shape == (groups,)
    assert unit.num_batches_tracked == 1


@pytest.mark.parametrize("fit", ["strict", "gcd", "uneven"])
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_a_divisor_of_the_channels_is_known_at_once_and_takes_any_map(fit: str, groups: int) -> None:
    unit = norms.build("bgn", C, num_groups=groups, group_fit=fit)
    assert unit.num_groups == len(unit.running_mean) == groups
    for size in ((4, 3), (5, 5), (1, 1)):
        assert unit(pictures(4, C, *size).float()).shape == (4, C, *size)


@pytest.mark.parametrize("options", [{"num_groups": 12}, {"num_groups": 7, "group_fit": "uneven"}, {}], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_another_map_size_is_refused(options: dict[str, Any], training: bool) -> None:
    for unit in (norms.build("bgn", C, **options), norms.build("bgn", C, size=(4, 3), **options)):
        unit(X)
        with pytest.raises(InputError, match=r"got maps of 4x4, expected 4x3 as before.*a divisor of 6, such as 6"):
            unit.train(training)(pictures(4, C, 4, 4).float())


def test_strict_names_a_divisor() -> None:
    message = r"bgn: C\*H\*W=6\*4\*3=72 does not split into num_groups=16; take a divisor of 72, such as 18, or "
    with pytest.raises(InputError, match=message):
        norms.build("bgn", C, num_groups=16, size=(4, 3))
    with pytest.raises(InputError, match=message):
        norms.build("bgn", C, num_groups=16)(X)


@pytest.mark.parametrize("table", [TABLE, {str(key): value for key, value in TABLE.items()}], ids=["int", "str"])
@pytest.mark.parametrize(("batch", "groups"), [(1, 1), (2, 1), (3, 1), (4, 2), (7, 2), (8, 12), (256, 12)])
def test_a_table_is_looked_up_with_the_batch(table: dict[Any, int], batch: int, groups: int) -> None:
    assert norms.build("bgn", C, batch=batch, num_groups=table, size=(4, 3)).num_groups == groups


def test_a_table_is_fitted_uneven_unless_said() -> None:
    assert norms.build("bgn", C, batch=2, num_groups={2: 16}, size=(4, 3)).num_groups == 16
    assert norms.build("bgn", C, batch=2, num_groups={2: 16}, group_fit="gcd", size=(4, 3)).num_groups == 8
    with pytest.raises(InputError, match="does not split"):
        norms.build("bgn", C, batch=2, num_groups={2: 16}, group_fit="strict", size=(4, 3))


def test_a_table_without_a_batch_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no batch to look up; give batch"):
        norms.build("bgn", C, num_groups=TABLE)


@pytest.mark.parametrize("groups", [5, 12, 17, 100])
@pytest.mark.parametrize("fit", ["uneven", "gcd"])
def test_loading_works_before_the_first_forward(groups: int, fit: str) -> None:
    trained = norms.build("bgn", C, num_groups=groups, group_fit=fit)
    trained(X)
    fresh = norms.build("bgn", C, num_groups=groups, group_fit=fit)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.running_mean, trained.running_mean)
    assert torch.equal(fresh.eval()(X), trained.eval()(X))


def test_loading_statistics_of_another_number_of_groups_is_an_error() -> None:
    trained = norms.build("bgn", C, num_groups=12)
    for other in (norms.build("bgn", C, num_groups=4), norms.build("bgn", C, num_groups=24, size=(4, 3))):
        with pytest.raises(RuntimeError, match="size mismatch for running_mean"):
            other.load_state_dict(trained.state_dict())


def test_statistics_of_other_maps_are_an_error_at_the_first_forward() -> None:
    trained = norms.build("bgn", C, num_groups=64, group_fit="gcd")
    trained(pictures(2, C, 8, 8).float())
    fresh = norms.build("bgn", C, num_groups=64, group_fit="gcd")
    fresh.load_state_dict(trained.state_dict())
    with pytest.raises(InputError, match="maps that give 8 groups, but the statistics loaded are of 64"):
        fresh.eval()(X)


def test_a_batchnorm_checkpoint_before_the_first_forward() -> None:
    """By gcd it is open whether G will be C, so what does not fit is said when that is known; uneven knows at once."""
    batchnorm = nn.BatchNorm2d(C)
    batchnorm(X)
    unit = norms.build("bgn", C, num_groups=12, group_fit="gcd").eval()
    unit.load_state_dict(batchnorm.state_dict())
    odd = pictures(2, C, 5, 3).float()
    assert torch.allclose(unit(odd), batchnorm.eval()(odd), atol=1e-6)
    unit = norms.build("bgn", C, num_groups=12, group_fit="gcd")
    unit.load_state_dict(batchnorm.state_dict())
    with pytest.warns(UserWarning, match="left out a BatchNorm2d's running statistics of 6 channels"):
        unit(X)
    assert len(unit.running_mean) == 12
    unit = norms.build("bgn", C)
    with pytest.warns(UserWarning, match="left out"):
        unit.load_state_dict(batchnorm.state_dict())
    assert unit.running_mean is None
    assert unit(X).isfinite().all()


def test_on_one_pixel_a_state_of_capped_groups_loads() -> None:
    x = pictures(4, C, 1, 1).float()
    trained, fresh = norms.build("bgn", C), norms.build("bgn", C)
    trained(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.load_state_dict(trained.state_dict())
        assert torch.equal(fresh.eval()(x), trained.eval()(x))


@pytest.mark.parametrize("groups", [3, 12, 17])
def test_evaluation_by_the_batch(groups: int) -> None:
    unit = norms.build("bgn", C, num_groups=groups, group_fit="uneven", eval_stats="batch", batch=2).eval()
    x = pictures(5, C, 4, 3).float()
    expected = torch.cat([unit(part) for part in x.split(2)])
    assert torch.allclose(unit(x), expected, atol=1e-6)
    assert unit.num_batches_tracked == 0
    assert unit.train()(x[:4]).shape == (4, C, 4, 3)


def test_buffers_made_late_follow_the_unit() -> None:
    unit = norms.build("bgn", C).double()
    unit(X.double())
    assert unit.running_mean.dtype == torch.float64
    unit = norms.build("bgn", C, affine=False).double()
    unit(X.double())
    assert unit.running_mean.dtype == torch.float64
    with torch.device("meta"):
        assert norms.build("bgn", C)(torch.empty(2, C, 4, 3)).shape == (2, C, 4, 3)


def test_huge_groups_keep_the_variance_of_small_differences() -> None:
    """One group over everything, mean far above the spread: E[x²] − E[x]² would be noise."""
    x = pictures(8, C, 16, 16)
    x = (x - x.mean()) / x.std(correction=0) + 4000
    y = norms.build("bgn", C, num_groups=1, eps=0.0)(x.float())
    assert y.std(correction=0).item() == pytest.approx(1, abs=1e-3)
