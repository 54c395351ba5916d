"""A share of the training pictures held out beside the test set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from normbench.data import describe, open_pictures
from normbench.errors import ConfigError
from normbench.options import DataOptions


def seen(batches: object) -> set[bytes]:
    return {image.numpy().tobytes() for x, _ in batches for image in x}  # type: ignore[attr-defined]


def test_what_is_held_out_is_neither_trained_nor_evaluated_on() -> None:
    found = open_pictures(DataOptions("digits", tune=0.25), size=None, device="cpu")
    whole = open_pictures(DataOptions("digits"), size=None, device="cpu")
    d = found.description
    assert d.train + d.tune == whole.description.train
    assert (d.test, d.split) == (whole.description.test, "test")
    assert torch.equal(torch.cat([y for _, y in found.test(64)]), torch.cat([y for _, y in whole.test(64)]))
    trained = seen(found.train(seed=0, epoch=1, batch=1))
    held = [(x, y) for x, y in found.tune(50)]  # type: ignore[attr-defined]
    assert sum(len(y) for _, y in held) == d.tune
    assert not trained & seen(held)
    assert describe(DataOptions("digits", tune=0.25)) == d


def test_the_held_out_are_those_of_a_validation_split() -> None:
    found = open_pictures(DataOptions("digits", tune=0.2), size=None, device="cpu")
    valid = open_pictures(DataOptions("digits", valid=0.2), size=None, device="cpu")
    assert seen(found.tune(50)) == seen(valid.test(50))  # type: ignore[attr-defined]


def test_one_of_both_splits_and_a_share() -> None:
    with pytest.raises(ConfigError, match="expected one"):
        DataOptions("digits", tune=0.1, valid=0.1)
    with pytest.raises(ConfigError, match="below 1"):
        DataOptions("digits", tune=1.0)


def test_pictures_of_ones_own_are_not_split(tmp_path: Path) -> None:
    source = "from normbench.data import open_pictures\nfrom normbench.options import DataOptions\n"
    source += "def load():\n    return open_pictures(DataOptions('digits'), size=None, device='cpu')\n"
    (tmp_path / "own.py").write_text(source)
    with pytest.raises(ConfigError, match=r"data.tune: got 0.2, but .*own.py:load hands out its own pictures"):
        describe(DataOptions(f"{tmp_path / 'own.py'}:load", tune=0.2))
