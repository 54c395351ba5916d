"""Folders and archives of pictures: decoded once, exactly, or one line that says why not."""

from __future__ import annotations

import os

import numpy as np
import pytest
from data_files import CLASSES, encoded, noise, one_line, pack, write_tree
from PIL import Image

from normbench.data import cache, folder, open_pictures, split
from normbench.data.arrays import Arrays
from normbench.data.listing import Listing
from normbench.errors import ConfigError, DataError
from normbench.options import DataOptions

KINDS = ("tar", "tar.xz", "tar.gz", "tgz", "zip")


def find(root, **options):
    return folder.find(DataOptions("folder", root=str(root), **options))


def expected(root, part):
    return np.stack([np.asarray(Image.open(p)) for label in CLASSES for p in sorted((root / part / label).iterdir())])


def test_a_folder_is_decoded_exactly(tmp_path):
    root = write_tree(tmp_path / "set")
    found = find(root)
    assert found.classes == CLASSES
    np.testing.assert_array_equal(found.train_x.transpose(0, 2, 3, 1), expected(root, "train"))
    np.testing.assert_array_equal(found.test_x.transpose(0, 2, 3, 1), expected(root, "test"))
    assert found.train_y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.test_y.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("top", ["", "set/"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_holds_what_the_folder_holds(tmp_path, kind, top):
    root = write_tree(tmp_path / "set")
    packed, plain = find(pack(root, kind, top)), find(root)
    for name in cache.PARTS:
        np.testing.assert_array_equal(getattr(packed, name), getattr(plain, name))
    assert packed.fingerprint == plain.fingerprint
    assert packed.mean == plain.mean


def test_the_fingerprint_knows_neither_place_nor_cache(tmp_path, monkeypatch):
    here, there = write_tree(tmp_path / "here"), write_tree(tmp_path / "there")
    first = find(here).fingerprint
    monkeypatch.setenv("NORMBENCH_CACHE", str(tmp_path / "other"))
    assert find(there).fingerprint == first
    (there / "train/ant/0.png").write_bytes(encoded(noise(77, (6, 6, 3))))
    assert find(there).fingerprint != first


def test_one_folder_in_between_and_val_are_taken(tmp_path):
    write_tree(tmp_path / "up" / "set", splits=("train", "val"))
    (tmp_path / "up" / "notes").mkdir()
    assert len(find(tmp_path / "up").test_y) == 6


def test_grey_pictures_stay_one_channel_and_mixed_ones_become_three(tmp_path):
    root = write_tree(tmp_path / "set", shape=(6, 6))
    assert find(root).train_x.shape == (12, 1, 6, 6)
    (root / "test/ant/0.png").write_bytes(encoded(noise(5, (6, 6, 3))))
    found = find(root)
    assert found.train_x.shape == (12, 3, 6, 6)
    np.testing.assert_array_equal(found.train_x[:, 0], expected(root, "train"))
    np.testing.assert_array_equal(found.train_x[:, 0], found.train_x[:, 2])


def test_pictures_that_are_not_square_keep_their_shape(tmp_path):
    assert find(write_tree(tmp_path / "set", shape=(4, 7, 3))).train_x.shape == (12, 3, 4, 7)


def test_many_pictures_keep_their_order(tmp_path):
    root = write_tree(tmp_path / "set", train=200, test=1, shape=(2, 2), suffix="pgm")
    np.testing.assert_array_equal(find(root).train_x[:, 0], expected(root, "train"))


def test_pictures_of_different_sizes_need_a_size(tmp_path):
    root = write_tree(tmp_path / "set")
    (root / "train/bee/2.png").write_bytes(encoded(noise(5, (8, 9, 3))))
    message = r"train/ant/0.png is 6×6, train/bee/2.png is 9×8.*data.size=64.*data.stream=true"
    for place in (root, pack(root, "zip")):
        with pytest.raises(DataError, match=message) as error:
            find(place)
        one_line(error.value)
        assert find(place, size=5).train_x.shape == (12, 3, 5, 5)


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path):
    root = write_tree(tmp_path / "set")
    (root / "train/bee/2.png").write_bytes(b"\x89PNG broken")
    for place in (root, pack(root, "tar.xz")):
        with pytest.raises(DataError, match=r"train/bee/2.png: cannot be decoded") as error:
            find(place)
        one_line(error.value)


def test_the_second_time_nothing_is_decoded(tmp_path, monkeypatch):
    root = write_tree(tmp_path / "set")
    archive = pack(root, "tar.xz")
    first = {place: find(place).fingerprint for place in (root, archive)}

    def never(*args):
        raise AssertionError("decoded again")

    monkeypatch.setattr(folder, "decoded", never)
    assert {place: find(place).fingerprint for place in (root, archive)} == first
    for changed in (root / "train/ant/1.png", archive):
        os.utime(changed, ns=(1, 1))
    for place in (root, archive):
        with pytest.raises(AssertionError, match="decoded again"):
            find(place)


def test_too_much_for_memory_is_streamed(tmp_path, monkeypatch):
    root = write_tree(tmp_path / "set")
    monkeypatch.setattr(folder, "IN_MEMORY", 18 * 6 * 6 * 3)
    assert isinstance(find(root), Arrays)
    monkeypatch.setattr(folder, "IN_MEMORY", 18 * 6 * 6 * 3 - 1)
    assert isinstance(find(root), Listing)
    assert isinstance(find(root, size=5), Arrays)
    assert isinstance(find(root, stream=False), Arrays)
    with pytest.raises(DataError, match=r"decodes to more than .* unpack it"):
        find(pack(root, "tar"))


def test_an_archive_is_not_streamed(tmp_path):
    with pytest.raises(ConfigError, match=r"data.stream: got true for the archive .*unpack it"):
        find(pack(write_tree(tmp_path / "set"), "zip"), stream=True)


def test_a_streamed_set_is_known_by_its_names_and_sizes(tmp_path):
    root, copy = write_tree(tmp_path / "a"), write_tree(tmp_path / "b")
    mark = find(root, stream=True).fingerprint
    assert find(copy, stream=True).fingerprint == mark
    (copy / "train/ant/0.png").write_bytes(b"other")
    assert find(copy, stream=True).fingerprint != mark


def test_counts_are_exact_after_limit_and_valid(tmp_path):
    root = write_tree(tmp_path / "set", train=10, test=4)
    pictures = open_pictures(DataOptions("folder", root=str(root), valid=0.2, limit=5), size=None, device="cpu")
    about = pictures.description
    assert (about.train, about.test, about.split) == (5, 5, "valid")
    assert sum(len(y) for _, y in pictures.test(2)) == 5
    held = split.share(np.repeat([0, 1, 2], 10), 0.2, split.VALID)
    train = {picture.tobytes() for picture in find(root).train_x[~held]}
    seen = pictures.train_x.numpy()
    assert all(picture.tobytes() in train for picture in seen)


def without(root, path):
    os.rename(root / path, root / f".{path.replace('/', '-')}")
    return root


def emptied(root):
    for file in (root / "train/bee").iterdir():
        file.unlink()
    return root


BAD = {
    "missing": (lambda root: root / "nowhere", "no such folder or archive .*give data.root="),
    "not an archive": (lambda root: root / "train/ant/0.png", "neither a folder nor an archive .*.tar.xz"),
    "no train": (lambda root: without(root, "train"), r"no train/ folder \(found: test\)"),
    "no test": (lambda root: without(root, "test"), "no test/ or val/ folder"),
    "no pictures": (lambda root: write_tree(root / "empty", train=0, test=0), "holds no picture"),
    "empty class": (emptied, "class 'bee' has no pictures in train/"),
    "class in one only": (lambda root: without(root, "test/bee"), "bee in train/ but not in test/"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_one_line(tmp_path, case):
    spoil, message = BAD[case]
    root = spoil(write_tree(tmp_path / "set"))
    with pytest.raises(DataError, match=message) as error:
        find(root)
    one_line(error.value)


def test_an_archive_without_pictures_is_one_line(tmp_path):
    (tmp_path / "set").mkdir()
    for kind in ("tar.gz", "zip"):
        with pytest.raises(DataError, match="holds no picture"):
            find(pack(tmp_path / "set", kind))


def test_no_root_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"data/folder: no such folder or archive .looked in {tmp_path}"):
        folder.find(DataOptions("folder"))


def test_what_a_cell_needs_is_asked_of_the_cache_alone_when_describing(tmp_path):
    root = write_tree(tmp_path / "set")
    found = find(root)
    again = folder.find(DataOptions("folder", root=str(root)), verify=False)
    assert again.fingerprint == found.fingerprint
    assert again.train_y.tolist() == found.train_y.tolist()
