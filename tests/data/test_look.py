"""Chosen pictures looked at one by one: as evaluation sees them, from memory or a stream, with a share held out or not.

What training pictures are as evaluation sees them, a second set tells: its test half is the first one's training half.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import write_tree
from torch import Tensor

from normbench.data import Look, Pictures, look, open_pictures
from normbench.options import DataOptions

SIZE = 12
# Augmented in memory by these, in a stream always.
AUGMENTED = {"pad": 2, "flip": True}

Batches = Iterable[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets, ``whole`` and ``shown``, of 24 training pictures; in ``shown`` they are the test pictures too."""
    root = tmp_path_factory.mktemp("look")
    write_tree(root / "whole", train=8, test=3, shape=(16, 20, 3))
    shutil.copytree(root / "whole" / "train", root / "shown" / "train")
    shutil.copytree(root / "whole" / "train", root / "shown" / "test")
    return root


def opened(root: Path, kind: str = "folder", **more: object) -> tuple[Pictures, Look]:
    augmented = {} if more["stream"] else AUGMENTED
    options = DataOptions(kind, root=str(root), size=SIZE, loaders=0, **augmented, **more)  # type: ignore[arg-type]
    pictures = open_pictures(options, size=None, device="cpu")
    found = look(pictures)
    assert found is not None
    return pictures, found


def passed(batches: Batches) -> tuple[Tensor, Tensor]:
    x, y = zip(*batches, strict=True)
    return torch.cat(x), torch.cat(y)


def prints(batches: Batches) -> list[tuple[bytes, int]]:
    """Something to tell every picture by, and its label."""
    return [(image.numpy().tobytes(), int(label)) for x, y in batches for image, label in zip(x, y, strict=True)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("held_out", [{}, {"valid": 0.25}, {"tune": 0.25}])
def test_they_are_the_evaluation_pictures_in_the_order_asked_for(
    root: Path, stream: bool, held_out: dict[str, float]
) -> None:
    pictures, shown = opened(root / "whole", stream=stream, **held_out)
    x, y = passed(pictures.test(4))
    assert len(y) == pictures.description.test
    for at in (np.arange(len(y)), np.array([4, 0, 0, len(y) - 1, 2])):
        found = passed(shown(at, 2))
        assert torch.equal(found[0], x[at])
        assert torch.equal(found[1], y[at])
    assert [len(labels) for _, labels in shown(np.arange(5), 2)] == [2, 2, 1]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("held_out", [{}, {"valid": 0.25}, {"tune": 0.25}])
def test_training_pictures_are_as_evaluation_sees_them(root: Path, stream: bool, held_out: dict[str, float]) -> None:
    """Not augmented, as they are trained on; and of all of them those that are not held out."""
    pictures, shown = opened(root / "whole", stream=stream, **held_out)
    every = prints(opened(root / "shown", stream=stream)[0].test(8))
    found = prints(shown(np.arange(pictures.description.train), 5, training=True))
    tested = prints(pictures.test(8))
    held = prints(pictures.tune(8)) if "tune" in held_out else tested if held_out else []  # type: ignore[attr-defined]
    assert (len(set(every)), len(held)) == (24, 6 if held_out else 0)
    assert found == [picture for picture in every if picture not in held]
    assert not set(tested) & set(found)
    trained = prints(pictures.train(seed=0, epoch=1, batch=6))
    assert sorted(label for _, label in trained) == sorted(label for _, label in found)
    assert not set(trained) <= set(found)


@pytest.mark.parametrize("stream", [False, True])
def test_training_pictures_at_chosen_places(root: Path, stream: bool) -> None:
    pictures, shown = opened(root / "whole", stream=stream, tune=0.25)
    every = prints(shown(np.arange(pictures.description.train), 8, training=True))
    at = np.array([17, 3, 3, 0])
    assert prints(shown(at, 3, training=True)) == [every[i] for i in at]


def test_looking_changes_nothing_of_what_is_trained_on(root: Path) -> None:
    """Not even in the middle of an epoch, nor the draws of the network."""
    pictures, shown = opened(root / "whole", stream=True)
    undisturbed, state = prints(pictures.train(seed=0, epoch=1, batch=6)), torch.random.get_rng_state()
    epoch = iter(pictures.train(seed=0, epoch=1, batch=6))
    first = next(epoch)
    for training in (True, False):
        list(shown(np.arange(9), 4, training=training))
    assert prints([first, *epoch]) == undisturbed
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("stream", [False, True])
def test_they_come_without_their_domains(root: Path, stream: bool) -> None:
    pictures, shown = opened(root, "domains", stream=stream)
    assert passed(pictures.train(seed=0, epoch=1, batch=48))[1].max() == 5
    for training, count in ((True, pictures.description.train), (False, pictures.description.test)):
        labels = passed(shown(np.arange(count), 8, training=training))[1]
        assert set(labels.tolist()) == {0, 1, 2}
