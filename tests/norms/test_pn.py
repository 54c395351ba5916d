"""pn where its two official variants part."""

from __future__ import annotations

import pytest
import torch
from norm_cases import pictures

from normbench import norms


@pytest.mark.parametrize(("features", "ratio"), [(16, 0.968), (64, 0.992), (256, 0.998)])
def test_biased_and_unbiased_differ_as_the_card_says(features: int, ratio: float) -> None:
    x = pictures(2, features, 3, 3)
    biased = norms.build("pn", features, eps=0.0, dtype=torch.float64)(x)
    unbiased = norms.build("pn", features, eps=0.0, unbiased=True, dtype=torch.float64)(x)
    assert (unbiased / biased).mean().item() == pytest.approx(ratio, abs=1e-3)


def test_one_channel_gives_zero_and_nan_when_unbiased() -> None:
    x = pictures(2, 1, 3, 3).float()
    assert torch.equal(norms.build("pn", 1)(x), torch.zeros_like(x))
    assert norms.build("pn", 1, unbiased=True)(x).isnan().all()


def test_equal_channels_give_zero() -> None:
    x = pictures(2, 1, 3, 3).float().expand(2, 4, 3, 3)
    assert norms.build("pn", 4)(x).abs().max() < 1e-3
