"""Fixed, stratified choices of pictures: the held-out share, the limit, and our splits of sets that have none.

Every choice depends on the labels alone (never on seed, machine or library version beyond NumPy's PCG64), so that
two cells that name the same share see the same pictures.
"""

from __future__ import annotations

import numpy as np

from normbench.errors import DataError

# One stream of draws per purpose, so that e.g. the limited pictures are not the held-out ones over again.
OURS, VALID, LIMIT = 1, 2, 3


def ranks(labels: np.ndarray, purpose: int) -> np.ndarray:
    """Each picture's place, from 0, in a fixed shuffle of its class. labels, result: (N,)."""
    place = np.empty(len(labels), dtype=np.int64)
    by_class = np.argsort(labels, kind="stable")
    start = 0
    for label, count in enumerate(np.bincount(labels)):
        generator = np.random.default_rng(np.random.SeedSequence([purpose, label]))
        place[by_class[start : start + count]] = generator.permutation(count)
        start += count
    return place


def share(labels: np.ndarray, part: float, purpose: int) -> np.ndarray:
    """Which pictures belong to the share ``part`` of every class, rounded, at least one and never all. Bool (N,)."""
    counts = np.bincount(labels)
    taken = np.minimum(np.maximum(np.rint(counts * part), 1), counts - 1)
    return ranks(labels, purpose) < taken[labels]


def each(labels: np.ndarray, number: int, purpose: int) -> np.ndarray:
    """Which pictures are the ``number`` chosen from every class. Bool (N,)."""
    return ranks(labels, purpose) < number


def limited(labels: np.ndarray, limit: int | None) -> np.ndarray:
    """Positions of at most ``limit`` pictures, classes as even as they go, in order. A smaller limit is a subset."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    in_turn = np.lexsort((labels, ranks(labels, LIMIT)))
    return np.sort(in_turn[:limit])


def choose(
    train_y: np.ndarray, test_y: np.ndarray, *, valid: float, limit: int | None, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Positions trained on (in the training set) and evaluated on (in it too if ``valid``, else in the test set)."""
    everything = np.arange(len(train_y))
    if not valid:
        return limited(train_y, limit), limited(test_y, limit)
    held = share(train_y, valid, VALID)
    if not held.any() or held.all():
        raise DataError(
            f"data.valid: got {valid} of {name}'s {len(train_y)} training pictures, which leaves one side empty; "
            "expected two pictures or more in some class; take more pictures or data.valid=0"
        )
    train, evaluated = everything[~held], everything[held]
    return train[limited(train_y[train], limit)], evaluated[limited(train_y[evaluated], limit)]
