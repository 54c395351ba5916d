"""The rehearsal: what cannot work fails before training, and nothing of it stays."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from normbench import cell as cells
from normbench import checkpoint, norms, train
from normbench.cell import Cell
from normbench.data import describe
from normbench.rehearse import rehearse

CPU = torch.device("cpu")


def digits(norm: str, **keys: object) -> Cell:
    data = {"name": "digits", "limit": 60, "eval_batch": 7}
    recipe = {"name": "t", "epochs": 1, "base_lr": 0.05, "base_batch": 8, "schedule": "constant"}
    return cells.make({"arch": {"name": "resnet8"}, "data": data, "recipe": recipe, "norm": {"name": norm}, **keys})


@pytest.mark.parametrize("norm", norms.names())
def test_it_leaves_the_network_as_it_was_and_warns_of_none_of_ours(norm: str) -> None:
    cell = digits(norm, batch=4, deterministic=True)
    description = describe(cell.data)
    net = train.prepare(cell, description, CPU)
    before = checkpoint.digest(net.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rehearse(cell, net, train.open_for(cell, description, CPU), CPU)
    assert checkpoint.digest(net.state_dict()) == before


class Forgetful(nn.BatchNorm2d):
    """Keeps its statistics where no state_dict sees them."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, track_running_stats=False)
        self.seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += self.training
        return super().forward(x) * (1 + self.seen)


class LastBatch(nn.Module):
    """Cannot do the last evaluation batch: of 60 pictures in batches of 7, that of 4."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and len(x) == 4:
            raise RuntimeError("four are too few")
        return x * self.weight[:, None, None]


def test_state_that_would_be_lost_is_told_and_the_last_batch_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(Path(__file__).read_text())
    monkeypatch.chdir(tmp_path)
    for name, warned in (("Forgetful", True), ("LastBatch", False)):
        cell = digits(f"mine.py:{name}", batch=4)
        description = describe(cell.data)
        net = train.prepare(cell, description, CPU)
        pictures = train.open_for(cell, description, CPU)
        if warned:
            with pytest.warns(RuntimeWarning, match="is lost when the cell is stopped"):
                rehearse(cell, net, pictures, CPU)
        else:
            with pytest.raises(RuntimeError, match="four are too few"):
                rehearse(cell, net, pictures, CPU)
