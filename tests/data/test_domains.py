"""Pictures of several domains: labels hold both, one can be held out, folders, archives and streams say the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import CLASSES, encoded, noise, one_line, pack, write_tree

from normbench.data import describe, open_pictures
from normbench.data.domains import find
from normbench.data.listing import Listing
from normbench.errors import ConfigError, DataError, UnknownName
from normbench.options import DataOptions

DOMAINS = ("art", "photo", "sketch")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i, name in enumerate(DOMAINS):
        write_tree(tmp_path / "set" / name, train=4 + i, test=2)
    return tmp_path / "set"


def options(root: Path, **more: object) -> DataOptions:
    return DataOptions("domains", root=str(root), **more)  # type: ignore[arg-type]


def test_labels_are_class_and_domain(root: Path) -> None:
    found = find(options(root))
    assert (found.classes, found.domains) == (CLASSES, DOMAINS)
    expected = [c + 3 * d for d in range(3) for c in range(3) for _ in range(4 + d)]
    assert found.train_y.tolist() == expected
    part = write_tree(root.parent / "photo", train=5)
    alone = describe(DataOptions("folder", root=str(part)))
    assert alone.domains == ()
    start = 12
    again = open_pictures(DataOptions("folder", root=str(part)), size=None, device="cpu")
    torch.testing.assert_close(torch.from_numpy(found.train_x[start : start + 15]), again.train_x, rtol=0, atol=0)


def test_a_description_says_so_and_training_hands_both_out(root: Path) -> None:
    pictures = open_pictures(options(root), size=None, device="cpu")
    assert pictures.description == describe(options(root))
    assert pictures.description.domains == DOMAINS
    assert pictures.description.domain_classes == pictures.num_classes == 3
    y = torch.cat([y for _, y in pictures.train(seed=0, epoch=1, batch=9)])
    assert y.max() == 8
    assert torch.cat([y for _, y in pictures.test(7)]).tolist() == [0, 0, 1, 1, 2, 2] * 3


def test_a_held_out_domain_is_evaluated_on_and_not_trained_on(root: Path) -> None:
    pictures = open_pictures(options(root, held_out="photo"), size=None, device="cpu")
    description = pictures.description
    assert (description.domains, description.train, description.test) == (("art", "sketch"), 12 + 18, 15 + 6)
    assert torch.cat([y for _, y in pictures.test(50)]).bincount().tolist() == [7, 7, 7]
    assert torch.cat([y for _, y in pictures.train(seed=0, epoch=1, batch=30)]).bincount().tolist() == [4] * 3 + [6] * 3
    prints = {describe(options(root, held_out=name)).fingerprint for name in (None, *DOMAINS)}
    assert len(prints) == 4


def test_limit_and_valid_are_even_over_domains(root: Path) -> None:
    found = open_pictures(options(root, limit=9, valid=0.25), size=None, device="cpu")
    assert found.train_y.bincount().tolist() == [1] * 9
    assert found.test_y.tolist() == [0, 1, 2] * 3
    assert found.description.split == "valid"


def test_archives_are_domains_too(root: Path, tmp_path: Path) -> None:
    expected = find(options(root))
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (root / "art").rename(mixed / "art")
    for name, kind in (("photo", "tar.xz"), ("sketch", "zip")):
        pack(root / name, kind, "top/").rename(mixed / f"{name}.{kind}")
    found = find(options(mixed))
    for key in ("train_x", "train_y", "test_x", "test_y"):
        np.testing.assert_array_equal(getattr(found, key), getattr(expected, key))
    assert (found.mean, found.domains) == (expected.mean, DOMAINS)


def test_streamed_pictures_have_the_same_labels(root: Path) -> None:
    listing = find(options(root, stream=True))
    assert isinstance(listing, Listing)
    assert listing.tree.train_y.tolist() == find(options(root)).train_y.tolist()
    pictures = open_pictures(options(root, stream=True, size=6, loaders=0), size=None, device="cpu")
    assert pictures.description.streamed
    assert torch.cat([y for _, y in pictures.test(7)]).tolist() == [0, 0, 1, 1, 2, 2] * 3
    assert torch.cat([y for _, y in pictures.train(seed=0, epoch=1, batch=9)]).max() == 8


def test_grey_domains_become_three_channels_beside_coloured_ones(root: Path) -> None:
    for file in (root / "art").rglob("*.png"):
        file.write_bytes(encoded(noise(1, (6, 6))))
    found = find(options(root))
    assert found.train_x.shape[1:] == (3, 6, 6)
    np.testing.assert_array_equal(found.train_x[:12, 0], found.train_x[:12, 2])


def test_sizes_that_differ_want_one(root: Path) -> None:
    for file in (root / "art").rglob("*.png"):
        file.write_bytes(encoded(noise(1, (4, 5, 3))))
    with pytest.raises(DataError, match=r"domains differ in size \(art 5×4, photo 6×6.*data.size=28") as error:
        find(options(root))
    one_line(error.value)
    assert find(options(root, size=4)).train_x.shape[1:] == (3, 4, 4)


def test_what_is_wrong_is_said(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"unknown domain for data.held_out 'foto'. Did you mean 'photo'"):
        find(options(root, held_out="foto"))
    with pytest.raises(DataError, match=r"no such folder.*expected <domain>/train/<class>"):
        find(options(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"holds no domains.*data=folder reads pictures of a single one"):
        find(options(root / "art"))
    with pytest.raises(ConfigError, match=r"data.held_out: got 'art', but digits has no domains"):
        describe(DataOptions("digits", held_out="art"))
    write_tree(root / "comic", classes=(*CLASSES, "dog"))
    with pytest.raises(DataError, match=r"class 'dog' is in one of the domains art and comic only"):
        find(options(root))


def test_a_single_domain_cannot_be_held_out(tmp_path: Path) -> None:
    write_tree(tmp_path / "set" / "art")
    with pytest.raises(DataError, match=r"art is its only domain"):
        find(options(tmp_path / "set", held_out="art"))
