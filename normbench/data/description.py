"""What the rest of normbench knows of a data set: its description, and the two iterators that hand out pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Description:
    """A data set after ``limit`` and ``valid``.

    train, test: pictures trained on and pictures evaluated on.
    tune: pictures held out to choose by, neither trained nor evaluated on.
    split: which pictures these last are: ``test``, or ``valid`` where a share of the training set is held out.
    height, width: of a stored picture in pixels; None when streamed at the net's size, or not known yet.
    channels: as stored, 1 or 3; always handed out as 3.
    streamed: read from disk at every epoch.
    fingerprint: of the content, 16 hex digits, the same wherever and however the pictures are stored; of streamed ones
        also of how they are decoded; empty when it cannot be known before they are there (only with ``fetch=False``).
    domains: what the training pictures are of, if they say; then labels to train on are class + classes · domain.
    """

    name: str
    classes: tuple[str, ...]
    train: int
    test: int
    split: str
    height: int | None
    width: int | None
    channels: int
    streamed: bool
    fingerprint: str
    tune: int = 0
    domains: tuple[str, ...] = ()

    @property
    def domain_classes(self) -> int | None:
        """The number of classes where labels to train on hold domains too, else None."""
        return len(self.classes) if self.domains else None


class Feed(Protocol):
    """A step's pictures and labels a call, made of operations on tensors that stay where they are: can be recorded.

    at: the step of the epoch that comes next, int64 (1,).
    """

    at: Tensor

    def begin(self, *, seed: int, epoch: int, start: int) -> None:
        """Stand before step ``start`` of an epoch."""
        ...

    def __call__(self) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class Pictures(Protocol):
    """An open data set on a device. x: float32 (B, 3, H, W), normalised; y: int64 (B,), from 0.

    Where the description has domains, y of ``train`` holds them too; y of ``test`` never does.
    """

    description: Description
    num_classes: int

    def train(
        self, *, seed: int, epoch: int, batch: int, start: int = 0, rank: int = 0, ranks: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order, augmented, whole batches only. Order and draws depend on (seed, epoch) alone.

        batch: pictures of a step, on all ranks together.
        start: the first step handed out; it and those after it are, bit for bit, the steps of an epoch begun at 0.
        rank, ranks: of every step the consecutive share ``rank`` of ``ranks`` equal ones.
        What is not handed out is not read either. Raises ConfigError if ``ranks`` does not divide ``batch``.
        """
        ...

    def train_steps(self, batch: int) -> int:
        """Batches in one epoch."""
        ...

    def test(self, batch: int, *, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Every evaluation picture once, in order, as it is; the last batch may be short.

        rank, ranks: of these same batches, number rank, rank + ranks, rank + 2 · ranks …; there may be none.
        """
        ...


class Look(Protocol):
    """Hands out the evaluation pictures at positions ``at``, (N,), in that order, as evaluation sees them: x, y.

    training: positions among the training pictures, likewise unaugmented and without domains.
    """

    def __call__(self, at: np.ndarray, batch: int, *, training: bool = False) -> Iterator[tuple[Tensor, Tensor]]: ...


def look(pictures: Pictures) -> Look | None:
    """How chosen pictures can be looked at; None for pictures of a user's own that cannot."""
    return getattr(pictures, "look", None)


def feed(pictures: Pictures, images: int) -> Feed | None:
    """The steps of ``pictures``, of so many each, for a recorded step; None where each waits for a disk or the like."""
    made: Callable[[int], Feed | None] | None = getattr(pictures, "feed", None)
    return None if made is None else made(images)
