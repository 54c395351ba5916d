"""The embedded digits: complete, split once and for ever, and cheap to start."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from sklearn.datasets import load_digits

from normbench.data import describe, digits
from normbench.options import DataOptions


def test_every_digit_is_in_one_split():
    found, bunch = digits.find(), load_digits()
    x = np.concatenate([found.train_x, found.test_x]).reshape(-1, 64)
    ours = sorted((picture.tolist(), label) for picture, label in zip(x, [*found.train_y, *found.test_y], strict=True))
    scaled = np.rint(bunch.data * 255 / 16).astype(np.uint8)
    assert ours == sorted((picture.tolist(), label) for picture, label in zip(scaled, bunch.target, strict=True))


def test_the_split_is_a_fifth_of_each_class():
    found = digits.find()
    assert (len(found.train_y), len(found.test_y)) == (1438, 359)
    counts = np.bincount([*found.train_y, *found.test_y])
    np.testing.assert_array_equal(np.bincount(found.test_y), np.rint(counts / 5))


def test_the_fingerprint_is_the_same_for_ever():
    # From the day the split was made: published results stand on it.
    assert describe(DataOptions("digits")).fingerprint == "5b2e99397b12c83a"


def test_scikit_learn_is_asked_where_its_file_is_not_found(monkeypatch):
    values, labels = digits.table()
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    again = digits.table.__wrapped__()
    np.testing.assert_array_equal(values, again[0])
    np.testing.assert_array_equal(labels, again[1])


def test_opening_the_digits_imports_neither_torchvision_nor_scikit_learn():
    code = (
        "import sys; from normbench.data import open_pictures; from normbench.options import DataOptions; "
        "open_pictures(DataOptions('digits', pad=1), size=None, device='cpu'); "
        "print(*{'torchvision', 'sklearn', 'scipy', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
