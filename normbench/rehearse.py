"""Before a run: one step, the last evaluation batch, a save and a load, on a copy. What cannot work fails now."""

from __future__ import annotations

import copy
import io
import math
import warnings

import torch
from torch import nn

from normbench.cell import Cell
from normbench.data import Pictures
from normbench.optimize import optimizer
from normbench.ranks import ALONE, Ranks
from normbench.step import Step, memory_format


def rehearse(cell: Cell, net: nn.Module, pictures: Pictures, device: torch.device, ranks: Ranks = ALONE) -> None:
    """Try on a copy of ``net`` what the run will do, over this rank's share of a step; raises what it would raise.

    Warns if the network does something else after its state went to disk and back: then it keeps a part of its state
    outside of parameters and buffers, and a run that is stopped and goes on ends otherwise than one that is not.
    """
    trial = copy.deepcopy(net)
    update = optimizer(trial, cell.recipe, cell.peak_lr)
    trial.train()
    for x, y in pictures.train(seed=cell.seed, epoch=1, batch=cell.images, rank=ranks.rank, ranks=ranks.count):
        step = Step(cell, trial, trial, update, device, classes=pictures.description.domain_classes)
        step(x, y, cell.peak_lr)
        break
    content = io.BytesIO()
    torch.save({"net": trial.state_dict(), "update": update.state_dict()}, content)
    content.seek(0)
    state = torch.load(content, map_location="cpu", weights_only=True)
    again = copy.deepcopy(net)
    again.load_state_dict(state["net"])
    optimizer(again, cell.recipe, cell.peak_lr).load_state_dict(state["update"])
    # The last batch alone: the one of a rank of its own.
    batches = math.ceil(pictures.description.test / cell.data.eval_batch)
    with torch.no_grad():
        for x, _ in pictures.test(cell.data.eval_batch, rank=batches - 1, ranks=batches):
            x = x.contiguous(memory_format=memory_format(cell))
            before, after = (network.eval()(x) for network in (trial, again))
            if not torch.allclose(before, after, rtol=1e-3, atol=1e-4, equal_nan=True):
                warnings.warn(
                    "the network gives other outputs once its state was saved and loaded: what is not in its "
                    "parameters and buffers is lost when the cell is stopped and goes on",
                    RuntimeWarning,
                    stacklevel=2,
                )
