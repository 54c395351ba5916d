"""The embedded default: scikit-learn's copy of the UCI handwritten digits, 1,797 pictures of 8×8 pixels, 10 classes.

Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998. There is no
official split of these 1,797 (they are the test half of the original), so ours is fixed: a fifth of every class is
tested on, 359 pictures in all.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
from pathlib import Path

import numpy as np

from normbench.data import arrays, split
from normbench.data.arrays import Arrays

TEST_SHARE = 0.2


def find(size: int | None = None) -> Arrays:
    """The digits, split; grey values 0..16 scaled to 0..255."""
    values, labels = table()
    x = np.rint(values.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    test = split.share(labels, TEST_SHARE, split.OURS)
    return arrays.make(tuple("0123456789"), (x[~test], labels[~test]), (x[test], labels[test]), size=size)


@functools.cache
def table() -> tuple[np.ndarray, np.ndarray]:
    """Values (1797, 64), 0..16, and labels (1797,).

    Read from scikit-learn's own file: importing scikit-learn for it takes more than a second at every start. Where a
    version keeps it elsewhere, its loader is asked.
    """
    spec = importlib.util.find_spec("sklearn")
    file = Path(spec.origin or "").parent / "datasets/data/digits.csv.gz" if spec else None
    if file is None or not file.is_file():
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return bunch.data, bunch.target.astype(np.int64)
    with gzip.open(file, "rt") as text:
        rows = np.loadtxt(text, delimiter=",")
    return rows[:, :-1], rows[:, -1].astype(np.int64)
