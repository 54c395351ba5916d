"""A bit per picture: written and read, and whatever else may lie there."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from normbench.records import correct


@pytest.mark.parametrize("count", [1, 8, 9, 1000])
def test_what_is_written_is_read(tmp_path: Path, count: int) -> None:
    right = np.random.default_rng(count).random(count) < 0.7
    correct.write(tmp_path, right)
    found = correct.read(tmp_path)
    assert found is not None
    assert (found.dtype, found.tolist()) == (bool, right.tolist())
    held = np.load(tmp_path / correct.NAME)  # a .npy file like any other
    assert int(held[:8].view(np.uint64)[0]) == count
    assert np.unpackbits(held[8:])[:count].astype(bool).tolist() == right.tolist()


def test_no_damage_is_read_as_something_else(tmp_path: Path) -> None:
    """Every byte of the header as another, cut short, too long, another kind of file: None, and not a warning."""
    right = np.arange(20) % 3 == 0
    good = correct.packed(right)
    header = len(good) - 8 - 3
    bad = [
        good[:k] + bytes([value]) + good[k + 1 :]
        for k in range(header)
        for value in (0, 40, 65, 200)
        if good[k] != value
    ]
    bad += [good[:-1], good + b"x", b"", b"no array", b"PK\x03\x04" + good, good[:header], good[: header + 3]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for content in bad:
            (tmp_path / correct.NAME).write_bytes(content)
            assert correct.read(tmp_path) is None
    (tmp_path / correct.NAME).unlink()
    assert correct.read(tmp_path) is None
