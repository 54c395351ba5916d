"""A streamed picture is cut as torchvision cuts it, by every decoder, and the decoder is part of what a set is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_files import encoded, noise, one_line, saved, write_tree
from PIL import Image
from torchvision.transforms import v2

from normbench.data import describe, open_pictures
from normbench.data.cut import Augmented, Centred
from normbench.data.view import ByPillow, Later, OnTensors, decoded_on, views
from normbench.errors import ConfigError, DataError
from normbench.options import DataOptions

SIZES = [(37, 50), (50, 37), (23, 90), (16, 16), (9, 14), (18, 18)]
AUGMENT = v2.Compose([v2.RandomResizedCrop(16, antialias=True), v2.RandomHorizontalFlip()])
CENTRE = v2.Compose([v2.Resize(18, antialias=True), v2.CenterCrop(16)])


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    root = write_tree(
        tmp_path_factory.mktemp("view") / "set", shape=(60, 45, 3), splits=("train", "val"), suffix="JPEG"
    )
    (root / "val/ant/0.JPEG").write_bytes(saved(Image.fromarray(noise(1, (40, 40, 3))).convert("CMYK"), "jpeg"))
    return root


def opened(root, decoder, device="cpu"):
    return open_pictures(DataOptions("imagenet", root=str(root), loaders=0, decoder=decoder), size=16, device=device)


def seen(pictures):
    """Pixels, 0 to 255, of an epoch and of the evaluation."""
    batches = [x for x, _ in (*pictures.train(seed=0, epoch=0, batch=6), *pictures.test(4))]
    return (torch.cat(batches) * pictures.std + pictures.mean).cpu()


@pytest.mark.parametrize("size", SIZES)
def test_the_cuts_are_torchvisions(size):
    x = torch.from_numpy(noise(0, (*size, 3))).permute(2, 0, 1)
    for seed in range(8):
        torch.manual_seed(seed)
        expected = AUGMENT(x)
        torch.manual_seed(seed)
        assert torch.equal(Augmented(16)(*size)(x), expected)
        torch.manual_seed(seed)
        assert torch.equal(Augmented(16)(*size)(x.contiguous()), expected)
    assert torch.equal(Centred(16)(*size)(x), CENTRE(x))


def test_pillow_gives_the_same_cuts_within_a_level(imagenet):
    ours, pillows = seen(opened(imagenet, "torchvision")), seen(opened(imagenet, "pillow"))
    apart = (ours - pillows).abs().round()
    assert apart.max() == 1
    assert (apart > 0).float().mean() < 0.2


def test_what_waits_for_a_gpu_becomes_the_same_here(imagenet):
    """The whole of the GPU's way but for the GPU: bytes and cuts from the loaders, decoded and cut at the end."""
    data = {name: (imagenet / name).read_bytes() for name in ("train/ant/0.JPEG", "val/ant/0.JPEG", "val/bee/1.JPEG")}
    for ours, theirs in zip(views("cuda", 16), views("torchvision", 16), strict=True):
        assert (type(ours), type(theirs)) == (Later, OnTensors)
        waiting, expected = [], []
        for seed, (name, content) in enumerate(data.items()):
            for made, one in ((waiting, ours), (expected, theirs)):
                torch.manual_seed(seed)
                made.append(one(content, name))
        assert [type(one.picture) for one in waiting] == [bytes, torch.Tensor, bytes]  # CMYK is decoded at once
        assert torch.equal(decoded_on(torch.device("cpu"), waiting), torch.stack(expected))


def test_a_damaged_picture_that_waits_is_named(imagenet):
    whole = (imagenet / "train/ant/0.JPEG").read_bytes()
    later, _ = views("cuda", 16)
    waiting = [later(whole, "whole.jpg"), later(whole[: len(whole) // 2], "half.jpg")]
    with pytest.raises(DataError, match=r"half.jpg: cannot be decoded") as error:
        decoded_on(torch.device("cpu"), waiting)
    one_line(error.value)


def test_the_decoder_tells_sets_apart_where_they_are_streamed(imagenet):
    found = {
        decoder: describe(DataOptions("imagenet", root=str(imagenet), decoder=decoder)).fingerprint
        for decoder in ("torchvision", "pillow", "cuda")
    }
    assert len(set(found.values())) == 3
    for decoder in found:
        assert describe(DataOptions("digits", decoder=decoder)) == describe(DataOptions("digits"))


def test_pillows_way_has_the_fingerprint_it_always_had(tmp_path):
    root = tmp_path / "set"
    for name in ("train/a/1.png", "val/a/2.png"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(encoded(np.zeros((4, 4), np.uint8)))
    about = describe(DataOptions("imagenet", root=str(root), decoder="pillow"))
    assert about.fingerprint == "61d70575129625b8"


def test_pillows_way_is_chosen_by_name():
    assert {type(one) for one in views("pillow", 16)} == {ByPillow}


def test_a_gpu_that_is_not_there_is_refused_before_training(imagenet):
    with pytest.raises(ConfigError, match=r"data.decoder=cuda with device=cpu.*take data.decoder=torchvision") as error:
        opened(imagenet, "cuda")
    one_line(error.value)
    with pytest.raises(ConfigError, match=r"data.decoder: got 'torchvison', expected one of .*did you mean 'torchv"):
        DataOptions("imagenet", decoder="torchvison")


def test_a_sweep_refuses_it_before_anything_runs(sweep, imagenet, capsys):
    words = ("norm=bn", "batch=2", "data=imagenet", f"data.root={imagenet}", "data.decoder=cuda", "device=cpu")
    assert sweep(*words) == 2
    assert "data.decoder=cuda with device=cpu" in capsys.readouterr().err


@pytest.mark.gpu
def test_on_a_gpu_the_pictures_are_nearly_the_same(imagenet):
    ours, here = seen(opened(imagenet, "cuda", "cuda")), seen(opened(imagenet, "torchvision"))
    assert (ours - here).abs().mean() < 2
    again = seen(opened(imagenet, "cuda", "cuda"))
    assert torch.equal(ours, again)


@pytest.mark.gpu
def test_on_a_gpu_a_damaged_picture_is_named(imagenet, tmp_path):
    root = write_tree(tmp_path / "set", shape=(60, 45, 3), splits=("train", "val"), suffix="JPEG")
    path = root / "val/bee/1.JPEG"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"val/bee/1.JPEG: cannot be decoded"):
        list(opened(root, "cuda", "cuda").test(4))
