"""Streamed pictures, on a small folder in ImageNet's layout: the same tensors for any number of loaders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_files import encoded, noise, one_line, write_tree
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from normbench.data import describe, open_pictures
from normbench.data.description import Pictures
from normbench.data.packs import Names
from normbench.data.stream import MEAN, STD
from normbench.errors import DataError
from normbench.options import DataOptions

WNIDS = ("n01440764", "n02102040", "n02979186")
SIZE = 16


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    write_tree(root, train=5, test=3, shape=(40, 30, 3), splits=("train", "val"), suffix="JPEG", classes=WNIDS)
    (root / "train" / WNIDS[0] / "0.JPEG").write_bytes(encoded(noise(9, (24, 50)), "JPEG"))  # ImageNet has grey ones
    return root


def opened(root, *, side=SIZE, loaders=0, **options):
    """The pictures for a net that wants ``side``."""
    return open_pictures(DataOptions("imagenet", root=str(root), loaders=loaders, **options), size=side, device="cpu")


def passed(batches):
    return tuple(torch.cat(part) for part in zip(*batches, strict=True))


@pytest.fixture(scope="module")
def by_two(imagenet):
    """Two loader processes, started once."""
    return opened(imagenet, loaders=2)


def test_it_is_described(imagenet):
    about = describe(DataOptions("imagenet", root=str(imagenet)))
    assert (about.classes, about.train, about.test, about.split) == (WNIDS, 15, 9, "test")
    assert (about.streamed, about.height, about.width, about.channels) == (True, None, None, 3)
    assert len(about.fingerprint) == 16


def test_it_is_what_the_protocol_says(imagenet):
    assert isinstance(opened(imagenet), Pictures)


def test_loaders_give_the_tensors_that_this_process_gives(imagenet, by_two):
    alone = opened(imagenet)
    for number in (0, 1):
        for ours, theirs in zip(
            passed(alone.train(seed=3, epoch=number, batch=4)),
            passed(by_two.train(seed=3, epoch=number, batch=4)),
            strict=True,
        ):
            assert torch.equal(ours, theirs)
    for ours, theirs in zip(passed(alone.test(4)), passed(by_two.test(4)), strict=True):
        assert torch.equal(ours, theirs)


def test_a_pass_that_was_left_early_does_not_leak_into_the_next(imagenet, by_two):
    next(by_two.train(seed=0, epoch=0, batch=2))
    found = passed(by_two.train(seed=0, epoch=1, batch=2))
    assert torch.equal(found[0], passed(opened(imagenet).train(seed=0, epoch=1, batch=2))[0])


def test_evaluation_in_the_middle_of_an_epoch_is_no_matter(imagenet, by_two):
    training = by_two.train(seed=0, epoch=0, batch=3)
    first = next(training)
    assert len(passed(by_two.test(4))[1]) == 9
    whole = [first, *training]
    assert torch.equal(passed(whole)[0], passed(opened(imagenet).train(seed=0, epoch=0, batch=3))[0])


@pytest.mark.parametrize("batch", [1, 4, 15])
def test_the_draws_do_not_depend_on_the_batch(imagenet, batch):
    pictures = opened(imagenet)
    x, y = passed(pictures.train(seed=0, epoch=0, batch=batch))
    singles = passed(pictures.train(seed=0, epoch=0, batch=1))
    assert len(y) == pictures.train_steps(batch) * batch
    assert torch.equal(x, singles[0][: len(y)])
    assert sorted(singles[1].tolist()) == [0] * 5 + [1] * 5 + [2] * 5


def test_draws_leave_the_networks_own_generator_alone(imagenet):
    state = torch.random.get_rng_state()
    pictures = opened(imagenet)
    first = passed(pictures.train(seed=0, epoch=0, batch=5))[0]
    passed(pictures.test(5))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(passed(pictures.train(seed=0, epoch=0, batch=5))[0], first)
    assert not torch.equal(passed(pictures.train(seed=0, epoch=1, batch=5))[0], first)
    assert not torch.equal(passed(pictures.train(seed=1, epoch=0, batch=5))[0], first)


def test_evaluation_is_a_centre_crop_of_every_picture_in_order(imagenet):
    x, y = passed(opened(imagenet).test(4))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert y.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    resize = v2.Compose([v2.Resize(18, antialias=True), v2.CenterCrop(SIZE)])
    files = [imagenet / "val" / label / f"{i}.JPEG" for label in WNIDS for i in range(3)]
    expected = [
        TF.normalize(TF.to_dtype(TF.pil_to_tensor(resize(Image.open(f))), torch.float32, scale=True), MEAN, STD)
        for f in files
    ]
    torch.testing.assert_close(x, torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "side", "got"), [(None, None, 224), (None, 12, 12), (20, None, 20), (20, 12, 12)])
def test_the_size_is_the_nets_unless_the_data_has_one(imagenet, size, side, got):
    x, _ = next(opened(imagenet, side=side, size=size).test(2))
    assert x.shape == (2, 3, got, got)


def test_limit_and_valid(imagenet):
    pictures = opened(imagenet, valid=0.2, limit=6)
    about = pictures.description
    assert (about.train, about.test, about.split) == (6, 3, "valid")
    _, y = passed(pictures.test(2))
    assert y.tolist() == [0, 1, 2]
    assert sorted(passed(pictures.train(seed=0, epoch=0, batch=6))[1].tolist()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("loaders", [0, 1])
def test_a_damaged_picture_is_one_line(tmp_path, loaders):
    root = write_tree(tmp_path / "set", splits=("train", "val"), suffix="JPEG")
    (root / "val/bee/1.JPEG").write_bytes(b"broken")
    message = ""
    try:  # and not pytest.raises: it would keep the loaders alive, for the garbage collector to wait seconds for
        list(opened(root, loaders=loaders).test(4))
    except DataError as error:
        message = one_line(error)
    assert "val/bee/1.JPEG: cannot be decoded" in message


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "no such folder"),
        ({"splits": ("train", "test")}, "no val/ folder beside train/"),
        ({"splits": ("training", "val")}, r"no train/ folder \(found: training, val\)"),
    ],
)
def test_a_wrong_layout_says_which_folders_were_expected(tmp_path, layout, message):
    root = tmp_path / "set"
    if layout:
        write_tree(root, **layout)
    with pytest.raises(DataError, match=rf"{message}.*train/<wnid>/\*.JPEG and val/<wnid>/\*.JPEG") as error:
        opened(root)
    one_line(error.value)


def test_in_memory_too_if_a_size_is_given(imagenet):
    pictures = opened(imagenet, side=None, stream=False, size=SIZE)
    assert pictures.description.streamed is False
    assert next(pictures.test(9))[0].shape == (9, 3, SIZE, SIZE)
    with pytest.raises(DataError, match="pictures differ in size"):
        opened(imagenet, stream=False)


def test_many_names_in_one_block():
    names = Names(["train/a/ä.png", "", "x"])
    assert [names[i] for i in range(len(names))] == ["train/a/ä.png", "", "x"]
    assert isinstance(names.ends, np.ndarray)
