"""Decoded sets: statistics, fingerprint, size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from normbench.data import arrays
from normbench.errors import ConfigError
from normbench.options import DataOptions


def noise(shape):
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def made(x, **kwargs):
    y = np.arange(len(x)) % 2
    return arrays.make(("a", "b"), (x, y), (x[:4], y[:4]), **kwargs)


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_the_training_pictures(monkeypatch, channels):
    monkeypatch.setattr(arrays, "CHUNK", 7)
    x = noise((20, channels, 5, 4))
    mean, std = arrays.statistics(x)
    np.testing.assert_allclose(mean, x.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(std, x.std(axis=(0, 2, 3)))


def test_a_constant_channel_is_not_divided_by_zero():
    assert arrays.statistics(np.full((3, 1, 2, 2), 9, np.uint8)) == ((9.0,), (1.0,))


def test_the_fingerprint_covers_pixels_labels_and_classes():
    x = noise((8, 1, 3, 3))
    same = made(x).fingerprint
    assert made(x.copy()).fingerprint == same
    assert len(same) == 16
    other = x.copy()
    other[0, 0, 0, 0] ^= 1
    y = np.arange(8) % 2
    marks = {
        same,
        made(other).fingerprint,
        arrays.make(("a", "c"), (x, y), (x[:4], y[:4])).fingerprint,
        arrays.make(("a", "b"), (x, 1 - y), (x[:4], y[:4])).fingerprint,
        arrays.make(("a", "b"), (x.reshape(8, 1, 9, 1), y), (x[:4].reshape(4, 1, 9, 1), y[:4])).fingerprint,
    }
    assert len(marks) == 5


def test_fit_scales_the_shorter_side_and_crops_the_centre():
    x = torch.rand(2, 3, 8, 12)
    wide = F.interpolate(x, (4, 6), mode="bilinear", antialias=True)
    torch.testing.assert_close(arrays.fit(x, 4), wide[..., 1:5])
    large = F.interpolate(x, (16, 24), mode="bilinear")
    torch.testing.assert_close(arrays.fit(x, 16), large[..., 4:20])
    assert arrays.fit(x[..., :8], 8).shape == (2, 3, 8, 8)


def test_a_size_changes_the_stored_pictures():
    small = made(noise((8, 3, 8, 8)), size=4)
    assert small.train_x.shape == (8, 3, 4, 4)
    assert small.test_x.dtype == np.uint8
    assert abs(small.train_x.mean() - noise((8, 3, 8, 8)).mean()) < 1


def test_a_set_in_one_piece_is_not_streamed():
    with pytest.raises(ConfigError, match=r"data.stream: got true for digits.*leave it out"):
        arrays.refuse_stream(DataOptions("digits", stream=True))
