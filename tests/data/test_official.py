"""The published sets, from files made here in their formats, and what is said when they are not there."""

from __future__ import annotations

import hashlib
import http.client
import pickle
import urllib.error
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import torchvision.datasets as tv
from data_files import encoded, noise, one_line

from normbench.data import cache, describe, official, open_pictures
from normbench.errors import ConfigError, DataError
from normbench.options import DataOptions

NAMES = tuple(official.KNOWN)


def md5(path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(root, monkeypatch, hundred=False):
    """Five times 4 + 3 pictures (CIFAR-100: 4 + 3) as torchvision expects them, checksums included."""
    kind = tv.CIFAR100 if hundred else tv.CIFAR10
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    label_key, names = ("fine_labels", 100) if hundred else ("labels", 10)
    for which, count in (("train_list", 4), ("test_list", 3)):
        entries = []
        for i, (file, _) in enumerate(getattr(kind, which)):
            entry = {"data": noise(i + count, (count, 3072)), label_key: [(i + j) % names for j in range(count)]}
            (folder / file).write_bytes(pickle.dumps(entry))
            entries.append([file, md5(folder / file)])
        monkeypatch.setattr(kind, which, entries)
    meta = folder / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({kind.meta["key"]: [f"class {i}" for i in range(names)]}))
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})
    return root


def write_svhn(root, monkeypatch):
    """6 + 4 pictures; the digit 0 has label 10 in the files."""
    root.mkdir()
    listed = {}
    for which, count in (("train", 6), ("test", 4)):
        file = root / f"{which}_32x32.mat"
        scipy.io.savemat(file, {"X": noise(count, (32, 32, 3, count)), "y": np.arange(10, 10 - count, -1)[:, None]})
        listed[which] = ["", file.name, md5(file)]
    monkeypatch.setattr(tv.SVHN, "split_list", listed)
    return root


def write_flowers(root, monkeypatch):
    """102 pictures in each list, of different sizes."""
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for i in range(1, 307):
        (folder / f"jpg/image_{i:05d}.jpg").write_bytes(encoded(noise(i, (10 + i % 3, 12, 3)), "jpg"))
    lists = np.arange(1, 307).reshape(3, 102)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.tile(np.arange(1, 103), 3)})
    scipy.io.savemat(folder / "setid.mat", dict(zip(("trnid", "valid", "tstid"), lists, strict=True)))
    known = tv.Flowers102._file_dict
    labels, lists_file = folder / "imagelabels.mat", folder / "setid.mat"
    monkeypatch.setattr(
        tv.Flowers102,
        "_file_dict",
        {**known, "label": (labels.name, md5(labels)), "setid": (lists_file.name, md5(lists_file))},
    )
    return root


def write_caltech(root, classes=("001.ak47", "198.spider", "257.clutter"), count=63):
    for c, label in enumerate(classes):
        folder = root / "caltech256/256_ObjectCategories" / label
        folder.mkdir(parents=True)
        for i in range(1, count + 1):
            (folder / f"{c + 1:03d}_{i:04d}.jpg").write_bytes(encoded(noise(i, (9, 8 + i % 2, 3)), "jpg"))
        (folder / "RENAME2").write_text("a stray, as in the real one")
    return root


def test_cifar10(tmp_path, monkeypatch):
    root = write_cifar(tmp_path / "c", monkeypatch)
    pictures = open_pictures(DataOptions("cifar10", root=str(root), pad=4, flip=True), size=None, device="cpu")
    about = pictures.description
    assert (about.train, about.test, about.height, about.width, about.channels) == (20, 3, 32, 32, 3)
    assert about.classes == tuple(f"class {i}" for i in range(10))
    np.testing.assert_array_equal(pictures.test_x.numpy(), noise(3, (3, 3072)).reshape(3, 3, 32, 32))
    assert pictures.test_y.tolist() == [0, 1, 2]


def test_cifar100_takes_the_fine_labels(tmp_path, monkeypatch):
    about = describe(DataOptions("cifar100", root=str(write_cifar(tmp_path / "c", monkeypatch, hundred=True))))
    assert (len(about.classes), about.train, about.test) == (100, 4, 3)


def test_both_cifars_may_share_a_root(tmp_path, monkeypatch, cache_folder):
    write_cifar(tmp_path / "c", monkeypatch)
    write_cifar(tmp_path / "c", monkeypatch, hundred=True)
    for _ in range(2):
        assert len(describe(DataOptions("cifar10", root=str(tmp_path / "c"))).classes) == 10
        assert len(describe(DataOptions("cifar100", root=str(tmp_path / "c"))).classes) == 100
    assert len(list(cache_folder.iterdir())) == 2


def test_svhn_has_the_digit_as_label(tmp_path, monkeypatch):
    root = write_svhn(tmp_path / "s", monkeypatch)
    pictures = open_pictures(DataOptions("svhn", root=str(root)), size=None, device="cpu")
    assert pictures.train_y.tolist() == [0, 9, 8, 7, 6, 5]
    np.testing.assert_array_equal(pictures.train_x.numpy(), noise(6, (32, 32, 3, 6)).transpose(3, 2, 0, 1))


def test_flowers_trains_on_the_train_and_val_lists(tmp_path, monkeypatch):
    root = write_flowers(tmp_path / "f", monkeypatch)
    about = describe(DataOptions("flowers102", root=str(root), size=8))
    assert (about.train, about.test, len(about.classes), about.height) == (204, 102, 102, 8)
    streamed = describe(DataOptions("flowers102", root=str(root), stream=True))
    assert (streamed.streamed, streamed.height, streamed.train) == (True, None, 204)
    (root / "flowers-102/jpg/image_00005.jpg").unlink()
    with pytest.raises(DataError, match=r"image_00005.jpg: is not there; expected 306 pictures") as error:
        describe(DataOptions("flowers102", root=str(root), size=8))
    one_line(error.value)


def test_caltech_trains_on_60_of_each_class(tmp_path):
    root = write_caltech(tmp_path / "c")
    pictures = open_pictures(DataOptions("caltech256", root=str(root), size=8), size=None, device="cpu")
    assert (pictures.description.train, pictures.description.test) == (180, 9)
    assert np.bincount(pictures.train_y).tolist() == [60, 60, 60]
    assert pictures.description.classes == ("001.ak47", "198.spider", "257.clutter")


def test_caltech_with_too_few_pictures_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"too few pictures \(class 001.ak47 has 60\); expected more than 60") as error:
        describe(DataOptions("caltech256", root=str(write_caltech(tmp_path / "c", count=60)), size=8))
    one_line(error.value)


def test_the_second_time_torchvision_is_not_asked(tmp_path, monkeypatch):
    options = DataOptions("cifar10", root=str(write_cifar(tmp_path / "c", monkeypatch)))
    first = describe(options)
    monkeypatch.setattr(official, "dataset", lambda kind: pytest.fail("asked torchvision"))
    assert describe(options) == first


def test_a_size_changes_the_pictures_and_not_the_fingerprint(tmp_path, monkeypatch):
    root = str(write_cifar(tmp_path / "c", monkeypatch))
    whole, half = (describe(DataOptions("cifar10", root=root, size=size)) for size in (None, 16))
    assert (whole.height, half.height) == (32, 16)
    assert whole.fingerprint == half.fingerprint


def test_the_fingerprint_is_known_before_the_files_are_there(tmp_path, monkeypatch):
    root = write_cifar(tmp_path / "c", monkeypatch)
    planned = describe(DataOptions("cifar10", root=str(tmp_path / "nowhere")), fetch=False)
    assert planned.fingerprint == describe(DataOptions("cifar10", root=str(root))).fingerprint


def test_damaged_files_are_one_line(tmp_path, monkeypatch):
    root = write_cifar(tmp_path / "c", monkeypatch)
    with (root / "cifar-10-batches-py/data_batch_3").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"cifar10: the files in .* are damaged or incomplete .*download=true") as error:
        describe(DataOptions("cifar10", root=str(root)))
    one_line(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_say_where_they_were_looked_for(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    message = rf"{name}: data/{name}/.* is not there .*data.root=.*data.download=true"
    with pytest.raises(DataError, match=message) as error:
        describe(DataOptions(name, download=False))
    assert str(tmp_path) in one_line(error.value)
    assert list(tmp_path.iterdir()) == []


FAILURES = [
    urllib.error.URLError("[Errno -2] Name or service not known"),
    http.client.IncompleteRead(b""),
    TimeoutError("timed out"),
    RuntimeError("File not found or corrupted.\nTry again."),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("name", NAMES)
def test_a_network_that_fails_is_one_line(tmp_path, monkeypatch, name, failure):
    def fail(self, *args, **kwargs):
        raise failure

    monkeypatch.setattr(getattr(tv, official.KNOWN[name].kind), "download", fail)
    with pytest.raises(DataError, match=r"could not be fetched .*fetch them on another machine") as error:
        describe(DataOptions(name, root=str(tmp_path)))
    one_line(error.value)


def test_what_can_be_fetched_is(tmp_path, monkeypatch):
    fetched = []

    def download(self):
        if not fetched:
            write_cifar(tmp_path / "c", monkeypatch)
        fetched.append(self.root)

    monkeypatch.setattr(tv.CIFAR10, "download", download)
    assert describe(DataOptions("cifar10", root=str(tmp_path / "c"))).train == 20
    assert fetched


PUBLISHED = {
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
    "svhn": (73_257, 26_032, 10),
    "flowers102": (2_040, 6_149, 102),
    "caltech256": (15_420, 15_187, 257),
    "imagenet": (1_281_167, 50_000, 1_000),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_plan_needs_no_files_and_fetches_none(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    about = describe(DataOptions(name), fetch=False)
    assert (about.train, about.test, len(about.classes)) == PUBLISHED[name]
    assert about.streamed is (name == "imagenet")
    few = describe(DataOptions(name, limit=50, valid=0.1), fetch=False)
    assert (few.train, few.test, few.split) == (50, 50, "valid")
    assert list(tmp_path.iterdir()) == []


def test_sets_in_one_piece_are_not_streamed():
    with pytest.raises(ConfigError, match=r"data.stream: got true for svhn"):
        describe(DataOptions("svhn", stream=True), fetch=False)


def test_the_lists_of_flowers_are_read_once_for_as_long_as_they_stay(tmp_path, monkeypatch):
    root = write_flowers(tmp_path / "f", monkeypatch)
    options = DataOptions("flowers102", root=str(root), size=8)
    about = describe(options)
    opened = official.opened
    monkeypatch.setattr(official, "opened", lambda *args: pytest.fail("read again"))
    assert open_pictures(options, size=None, device="cpu", described=about).description == about
    monkeypatch.setattr(official, "opened", opened)
    lists = root / "flowers-102/setid.mat"
    lists.write_bytes(lists.read_bytes() + b"x")
    with pytest.raises(DataError, match="damaged or incomplete"):
        open_pictures(options, size=None, device="cpu", described=about)
    lists.unlink()
    with pytest.raises(DataError, match=r"flowers-102/setid.mat is not there"):
        open_pictures(replace(options, download=False), size=None, device="cpu", described=about)


def test_what_is_noted_of_a_source_is_made_again_when_that_changes_or_the_note_is_damaged(tmp_path, cache_folder):
    made = []

    def read():
        made.append(len(made))
        return {"names": ["a", "ä"]}

    for signature in ("1", "1", "2", "2"):
        assert cache.noted(tmp_path / "x", signature, read)["names"] == ["a", "ä"]
    assert made == [0, 1]
    (file,) = cache_folder.iterdir()
    file.write_text(file.read_text()[:-9])
    assert cache.noted(tmp_path / "x", "2", read)["names"] == ["a", "ä"]
    assert made == [0, 1, 2]
