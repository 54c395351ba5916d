"""A data set of which a share of the training pictures is held out to choose by, beside the test set.

Put together from two that there are anyway: all of it, whose test set is evaluated on, and the one that holds a share
out (``data.valid``), whose training pictures are trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch import Tensor

from normbench.data.description import Description, Feed, Pictures, feed, look
from normbench.options import DataOptions


def parts(options: DataOptions) -> tuple[DataOptions, DataOptions]:
    """The options of the whole set, and of the one that holds the share out."""
    return replace(options, tune=0.0), replace(options, tune=0.0, valid=options.tune)


def description(plain: Description, held: Description) -> Description:
    """Of both as one; ``tune``: how many pictures are held out."""
    return replace(plain, train=held.train, tune=held.test)


class Tuned:
    """See ``Pictures``; ``tune`` hands out what is held out, as ``test`` does the test set."""

    def __init__(self, plain: Pictures, held: Pictures) -> None:
        self.plain, self.held, self.num_classes = plain, held, plain.num_classes
        self.description = description(plain.description, held.description)

    def train_steps(self, batch: int) -> int:
        """Whole batches in one epoch."""
        return self.held.train_steps(batch)

    def feed(self, images: int) -> Feed | None:
        """As the pictures that are trained on."""
        return feed(self.held, images)

    def train(
        self, *, seed: int, epoch: int, batch: int, start: int = 0, rank: int = 0, ranks: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Pictures.train``."""
        return self.held.train(seed=seed, epoch=epoch, batch=batch, start=start, rank=rank, ranks=ranks)

    def test(self, batch: int, *, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Pictures.test``."""
        return self.plain.test(batch, rank=rank, ranks=ranks)

    def look(self, at: np.ndarray, batch: int, *, training: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Look``; pictures of a user's own that cannot be looked at are never held out from."""
        found = look(self.held if training else self.plain)
        assert found is not None
        return found(at, batch, training=training)

    def tune(self, batch: int, *, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Every held-out picture once, in order, as it is."""
        return self.held.test(batch, rank=rank, ranks=ranks)
