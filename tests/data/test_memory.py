"""Pictures in memory: crops, flips, order, normalisation; the same draws whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from normbench.data import arrays
from normbench.data.description import Description, Pictures
from normbench.data.memory import InMemory
from normbench.errors import ConfigError

N, M = 23, 7


def make(*, channels=3, pad=2, flip=True, size=None, shape=(6, 5), split="test", train_at=None, test_at=None):
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (N + M, channels, *shape), dtype=np.uint8)
    y = np.arange(N + M) % 3
    found = arrays.make(("a", "b", "c"), (x[:N], y[:N]), (x[N:], y[N:]))
    train_at = np.arange(N) if train_at is None else np.array(train_at)
    test_at = np.arange(M) if test_at is None else np.array(test_at)
    about = Description(
        "x", found.classes, len(train_at), len(test_at), split, *shape, channels, False, found.fingerprint
    )
    return found, InMemory(found, about, train_at, test_at, pad=pad, flip=flip, size=size, device="cpu")


def normalised(found, x):
    x = torch.from_numpy(x).double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (found.mean, found.std))
    return ((x - mean) / std).expand(-1, 3, -1, -1).float()


def epoch(pictures, batch, seed=0, number=0):
    return list(pictures.train(seed=seed, epoch=number, batch=batch))


def test_it_is_what_the_protocol_says():
    assert isinstance(make()[1], Pictures)


@pytest.mark.parametrize("channels", [1, 3])
def test_evaluation_pictures_come_once_in_order_as_they_are(channels):
    found, pictures = make(channels=channels)
    x, y = (torch.cat(part) for part in zip(*pictures.test(3), strict=True))
    assert [len(labels) for _, labels in pictures.test(3)] == [3, 3, 1]
    assert (x.dtype, y.dtype, x.shape) == (torch.float32, torch.int64, (M, 3, 6, 5))
    torch.testing.assert_close(x, normalised(found, found.test_x), atol=1e-5, rtol=1e-5)
    assert y.tolist() == found.test_y.tolist()


def test_the_training_set_has_mean_0_and_variance_1():
    _, pictures = make(pad=0, flip=False)
    x = torch.cat([x for x, _ in epoch(pictures, N)])
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.var((0, 2, 3), unbiased=False), torch.ones(3), atol=1e-4, rtol=0)


def test_every_training_picture_comes_once_with_its_label():
    found, pictures = make(pad=0, flip=False)
    ((x, y),) = epoch(pictures, N)
    where = {picture.numpy().tobytes(): i for i, picture in enumerate(pictures.normalised(pictures.train_x))}
    order = [where[picture.numpy().tobytes()] for picture in x]
    assert sorted(order) == list(range(N))
    assert order != list(range(N))
    assert y.tolist() == found.train_y[order].tolist()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("pad", "flip"), [(0, False), (2, False), (0, True), (2, True)])
def test_crops_and_flips_are_those_of_the_padded_picture(channels, pad, flip):
    found, pictures = make(channels=channels, pad=pad, flip=flip)
    order, corner, side = (part.numpy() for part in pictures.draws(5, 3))
    Hp, Wp = 6 + 2 * pad, 5 + 2 * pad
    inside = corner - np.arange(N) * channels * Hp * Wp
    padded = np.pad(found.train_x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    crops = []
    for i in order:
        top, left = divmod(inside[i], Wp)
        assert 0 <= top <= 2 * pad
        assert 0 <= left <= 2 * pad
        crop = padded[i, :, top : top + 6, left : left + 5]
        crops.append(crop[:, :, ::-1] if side[i] else crop)
    x = torch.cat([x for x, _ in epoch(pictures, N, seed=5, number=3)])
    torch.testing.assert_close(x, normalised(found, np.stack(crops)), atol=1e-5, rtol=1e-5)


def test_offsets_and_sides_are_all_drawn():
    _, pictures = make()
    corners = torch.cat([pictures.draws(0, number)[1] for number in range(40)])
    sides = torch.cat([pictures.draws(0, number)[2] for number in range(40)])
    inside = corners % (3 * 10 * 9)
    assert set(zip((inside // 9).tolist(), (inside % 9).tolist(), strict=True)) == {
        (top, left) for top in range(5) for left in range(5)
    }
    assert 0.4 < sides.float().mean() < 0.6


@pytest.mark.parametrize("batch", [1, 2, 5, 11, N])
def test_the_draws_do_not_depend_on_the_batch(batch):
    _, pictures = make()
    singles = torch.cat([x for x, _ in epoch(pictures, 1)])
    batches = epoch(pictures, batch)
    assert [len(y) for _, y in batches] == [batch] * (N // batch)
    assert len(batches) == pictures.train_steps(batch)
    x = torch.cat([x for x, _ in batches])
    assert torch.equal(x, singles[: len(x)])


def test_a_pictures_draws_do_not_depend_on_its_place_in_the_order():
    _, pictures = make()
    _, corner, side = pictures.draws(0, 0)
    generator = np.random.default_rng(np.random.SeedSequence([0, 0]))
    generator.permutation(N)
    top, left = generator.integers(0, 5, (2, N))
    assert (corner % (3 * 10 * 9)).tolist() == (top * 9 + left).tolist()
    assert side.tolist() == generator.integers(0, 2, N).tolist()


def test_seed_and_epoch_change_the_draws_and_nothing_else_does():
    _, pictures = make()
    first = torch.cat([x for x, _ in epoch(pictures, 5)])
    torch.manual_seed(99)
    np.random.seed(99)
    state = torch.random.get_rng_state()
    assert torch.equal(torch.cat([x for x, _ in epoch(pictures, 5)]), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(torch.cat([x for x, _ in epoch(pictures, 5, seed=1)]), first)
    assert not torch.equal(torch.cat([x for x, _ in epoch(pictures, 5, number=1)]), first)


@pytest.mark.parametrize("size", [4, 12])
def test_a_net_gets_the_size_it_wants(size):
    found, pictures = make(channels=1, shape=(6, 6), size=size)
    (x, _), *_ = pictures.test(M)
    assert x.shape == (M, 3, size, size)
    small = F.interpolate(
        torch.from_numpy(found.test_x).float(), (size, size), mode="bilinear", antialias=size < 6
    ).numpy()
    torch.testing.assert_close(x, normalised(found, small), atol=1e-4, rtol=1e-4)
    assert epoch(pictures, 4)[0][0].shape == (4, 3, size, size)


def test_only_the_chosen_pictures_are_held():
    found, pictures = make(pad=0, train_at=[3, 5, 8], test_at=[1, 4])
    np.testing.assert_array_equal(pictures.train_x.numpy(), found.train_x[[3, 5, 8]])
    np.testing.assert_array_equal(pictures.test_x.numpy(), found.test_x[[1, 4]])


def test_a_held_out_share_comes_from_the_training_pictures():
    found, pictures = make(pad=0, split="valid", train_at=[0, 1], test_at=[9, 10])
    np.testing.assert_array_equal(pictures.test_x.numpy(), found.train_x[[9, 10]])
    assert pictures.test_y.tolist() == found.train_y[[9, 10]].tolist()


@pytest.mark.parametrize("batch", [0, N + 1])
def test_a_batch_that_cannot_be_is_an_error(batch):
    with pytest.raises(ConfigError, match=f"batch: got {batch} images a step, expected 1 to {N}"):
        epoch(make()[1], batch)


def test_the_pictures_given_are_left_as_they_were():
    found, pictures = make(pad=0)
    before = found.train_x.copy()
    epoch(pictures, 4)
    list(pictures.test(4))
    np.testing.assert_array_equal(found.train_x, before)


@pytest.mark.gpu
def test_a_gpu_gets_the_same_pictures():
    found, here = make()
    there = InMemory(
        found, here.description, np.arange(N), np.arange(M), pad=2, flip=True, size=None, device=torch.device("cuda")
    )
    for (x, y), (other_x, other_y) in zip(epoch(here, 4), epoch(there, 4), strict=True):
        assert other_x.is_cuda
        assert other_y.is_cuda
        torch.testing.assert_close(other_x.cpu(), x)
        assert torch.equal(other_y.cpu(), y)
