"""What the normalizer alone does to a trained network's accuracy: the same weights, evaluated in other ways.

    correct        which test pictures are right, by the running statistics, as the headline has it
    batch_…        by the statistics of each ``batch`` test pictures, in a fixed random order: the units as in training
    precise_…      by running statistics recomputed over training pictures, augmented as in training
                   (norms/population.py)
    train_…, gap   training pictures, not augmented, and how many points better they are than the test's
    eval_flips     test pictures that are right at one ``data.eval_batch`` and wrong at another: 0, up to rounding,
                   where an image is evaluated by itself
A method that computes the same in training and evaluation has the headline's numbers for all kinds of statistics.
All is done on copies of the network, after the last epoch.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normbench import data, norms
from normbench.cell import Cell
from normbench.data import Look, Pictures
from normbench.evaluate import within_five
from normbench.norms import population
from normbench.step import memory_format

# The other evaluation batch is so much smaller; larger where the cell's is 1.
SMALLER = 3
# The epoch whose order and augmentation statistics are recomputed over; runs end long before.
LATER = 2**31 - 1
NEITHER = {"top1": None, "top5": None}

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

Precision = Callable[[], contextlib.AbstractContextManager[object]]


def isolate(
    cell: Cell, net: nn.Module, pictures: Pictures, precision: Precision, proceed: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any], np.ndarray | None]:
    """The columns named above, top-1 and top-5 in percent, and which test pictures are right, bool (pictures,).

    precision: the context that forwards run in.  proceed: called between the passes; may raise.
    Nothing for pictures of a user's own that cannot be looked at one by one. ``net`` is left as it was.
    """
    look = data.look(pictures)
    if look is None:
        return {}, None
    passes = Passes(cell, copy.deepcopy(net), look, precision)
    test, eval_batch = np.arange(pictures.description.test), cell.data.eval_batch
    trained = shuffled(pictures.description.train)[: max(cell.eval.pictures, passes.group)]
    right = passes.right(test, eval_batch)
    headline = scores(right)
    proceed()
    other = max(1, min(eval_batch, len(test)) // SMALLER)
    if other == eval_batch:
        other = min(SMALLER * eval_batch, len(test))
    flips = int((passes.right(test, other)[:, 0] != right[:, 0]).sum())
    proceed()
    train = scores(passes.right(trained, eval_batch, training=True))
    found: dict[str, Any] = {f"train_{key}": value for key, value in train.items()}
    found |= {"gap": train["top1"] - headline["top1"], "eval_flips": flips}
    row = norms.get(cell.norm.name, cell.norm.options)
    batch = precise = NEITHER if row.train_eval_differ else headline
    if row.train_eval_differ and not row.takes_domains:  # whose units want to be told the pictures' domains
        proceed()
        precise = passes.precise(pictures, test)
        proceed()
        batch = scores(Passes(cell, copy.deepcopy(net), look, precision).by_batch(test))
    for name, kind in (("batch", batch), ("precise", precise)):
        found |= {f"{name}_{key}": value for key, value in kind.items()}
    return found, right[:, 0]


class Passes:
    """Forwards of a network, its own to change, over chosen pictures."""

    def __init__(self, cell: Cell, net: nn.Module, look: Look, precision: Precision) -> None:
        self.cell, self.net, self.look, self.precision = cell, net.eval(), look, precision
        row = norms.get(cell.norm.name, cell.norm.options)
        self.group = cell.images if row.joins_workers else cell.batch
        # Images of a training forward: as many groups as an evaluation forward has, where units keep them apart.
        apart = row.takes_batch or not row.mixes_samples
        self.at_once = self.group * (max(1, cell.data.eval_batch // self.group) if apart else 1)

    def right(self, at: np.ndarray, batch: int, *, training: bool = False) -> np.ndarray:
        """Of the pictures ``at``, whether each is right at once and within five: bool (N, 2)."""
        return np.concatenate([hits.cpu().numpy() for hits in self._hits(self.look(at, batch, training=training))])

    def by_batch(self, at: np.ndarray) -> np.ndarray:
        """``right`` with the units as in training; the last group is filled up from the beginning, and counted once."""
        order = at[shuffled(len(at))]
        filled = order[np.arange(math.ceil(len(at) / self.group) * self.group) % len(at)]
        with training(self.net):
            return self.right(filled, self.at_once)[: len(at)]

    def precise(self, pictures: Pictures, test: np.ndarray) -> dict[str, float] | dict[str, None]:
        """Scores with population statistics over an epoch that was not trained on, or the first so many steps of it."""
        cell, groups = self.cell, pictures.description.train // self.group
        batch = min(self.at_once, groups * self.group)
        epoch = pictures.train(seed=cell.seed, epoch=LATER, batch=batch)
        with population.gathering() as met, training(self.net):
            for x, _ in itertools.islice(epoch, max(1, cell.eval.pictures // batch)):
                self._forward(x)
        return scores(self.right(test, self.cell.data.eval_batch)) if met.settle() else NEITHER

    @torch.no_grad()
    def _hits(self, pictures: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        for x, y in pictures:
            five = within_five(self._forward(x), y)
            yield torch.stack([five[:, 0], five.any(1)], 1)

    @torch.no_grad()
    def _forward(self, x: Tensor) -> Tensor:
        with self.precision():
            out = self.net(x.contiguous(memory_format=memory_format(self.cell)))
        logits: Tensor = out if isinstance(out, Tensor) else out[0]
        return logits


@contextlib.contextmanager
def training(net: nn.Module) -> Iterator[None]:
    """The units as in training, all else (dropout, also in a unit; auxiliary heads) as in evaluation."""
    units = [module for module in net.modules() if norms.is_unit(module)]
    for unit in units:
        unit.train()
        for module in unit.modules():
            if isinstance(module, DROPOUT):
                module.eval()
    try:
        yield
    finally:
        for unit in units:
            unit.eval()


def scores(right: np.ndarray) -> dict[str, float]:
    """top1 and top5 in percent; right: bool (N, 2)."""
    top1, top5 = (100 * right.sum(0) / len(right)).tolist()
    return {"top1": top1, "top5": top5}


def shuffled(count: int) -> np.ndarray:
    """The numbers below ``count`` in a fixed random order: pictures often lie class by class, batches must not."""
    return np.random.default_rng(0).permutation(count)
