"""What a run takes of an epoch: the steps from one on, and of every step one rank's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from normbench.data.description import Description
from normbench.errors import ConfigError

T = TypeVar("T")


def of_epoch(description: Description, *, batch: int, start: int, rank: int, ranks: int) -> np.ndarray:
    """Places in the epoch's order, int64 (steps from ``start`` on, batch / ranks), whole batches only.

    Raises ConfigError for a batch larger than the training set, a start beyond the epoch, or ranks that do not split
    the batch evenly.
    """
    if not 1 <= batch <= description.train:
        raise ConfigError(
            f"batch: got {batch} images a step, expected 1 to {description.train}, "
            f"the training pictures of {description.name}; take a smaller batch"
        )
    steps = description.train // batch
    if not 0 <= start <= steps:
        raise ConfigError(
            f"start: got step {start}, expected 0 to {steps}, the steps of an epoch of {description.name} at {batch} "
            "images a step; resume with the batch that the run began with"
        )
    part = of_step(batch, rank, ranks)
    return np.arange(steps * batch).reshape(steps, batch)[start:, part]


def of_step(batch: int, rank: int, ranks: int) -> slice:
    """A rank's consecutive share of a step's pictures. Raises ConfigError if they do not split evenly."""
    check_rank(rank, ranks)
    if batch % ranks:
        most = max(divisor for divisor in range(1, ranks) if batch % divisor == 0)
        raise ConfigError(
            f"ranks: got {ranks} for {batch} images a step, expected a divisor of {batch}, as many images on every "
            f"rank; take {most} rank{'s' if most > 1 else ''}, or {-(-batch // ranks) * ranks} images a step"
        )
    each = batch // ranks
    return slice(rank * each, (rank + 1) * each)


def of_batches(batches: Sequence[T], rank: int, ranks: int) -> Sequence[T]:
    """A rank's batches of an evaluation, in turn: every batch is one rank's, whole; a rank may get none."""
    check_rank(rank, ranks)
    return batches[rank::ranks]


def check_rank(rank: int, ranks: int) -> None:
    """Raise ConfigError for a rank that is none of ``ranks``."""
    if not 0 <= rank < ranks:
        raise ConfigError(f"rank: got {rank} of {ranks} ranks, expected 0 to {ranks - 1}; ranks are counted from 0")
