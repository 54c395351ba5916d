"""Pictures that go away or change between being described, opened and read: a DataError of one line that names them."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_files import encoded, noise, one_line, pack, write_tree
from test_official import write_caltech, write_cifar

from normbench.data import describe, open_pictures, sources
from normbench.errors import DataError
from normbench.options import DataOptions

SHAPE = (24, 20, 3)


@contextlib.contextmanager
def nobody():
    """Without root's right to read everything; pytest's temporary folders are closed to others."""
    if os.geteuid() != 0:
        pytest.skip("only root can take another user's place")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def message_of(function) -> str:
    try:  # and not pytest.raises: it would keep the loaders alive, for the garbage collector to wait seconds for
        function()
    except DataError as error:
        return one_line(error)
    raise AssertionError("no DataError")


def options_of(root: Path, kind: str) -> DataOptions:
    """A set of 3 classes with 7 + 3 pictures each."""
    streamed = kind == "streamed"
    write_tree(root, train=7, test=3, shape=SHAPE, splits=("train", "val"), suffix="JPEG" if streamed else "png")
    path = pack(root, "tar") if kind == "archive" else root
    return DataOptions("imagenet" if streamed else "folder", root=str(path), loaders=0 if streamed else None)


def opened(options: DataOptions, described=None):
    return open_pictures(options, size=16, device="cpu", described=described)


def damage(root: Path, options: DataOptions, how: str) -> None:
    """Do it to the files, and to the archive if there is one."""
    file = sorted((root / "train/bee").iterdir())[3]
    if how == "another picture":
        file.write_bytes(encoded(noise(99, (24, 20, 3)), file.suffix[1:]) + b"\0")
    elif how == "a picture more":
        shutil.copy(file, file.with_stem("new"))
    elif how == "a class less":
        shutil.rmtree(root / "train/bee")
        shutil.rmtree(root / "val/bee")
    elif how == "an evaluation picture less":
        next((root / "val/bee").iterdir()).unlink()
    elif how == "emptied":
        file.write_bytes(b"")
    elif how == "a class empty":
        for picture in (root / "train/bee").iterdir():
            picture.unlink()
    if str(options.root).endswith(".tar"):
        pack(root, "tar")
    if how == "gone":
        shutil.rmtree(root) if Path(str(options.root)).is_dir() else Path(str(options.root)).unlink()


CHANGES = {
    "another picture": r"changed since they were described: found fingerprint of the content \w{16} \(was \w{16}\)",
    "a picture more": r"found pictures to train on 22 \(was 21\), fingerprint",
    "a class less": r"to train on 14 \(was 21\), pictures to evaluate on 6 \(was 9\), classes 2 \(was 3\)",
    "an evaluation picture less": r"found pictures to evaluate on 8 \(was 9\)",
    "emptied": r"bee/3\.\w+: cannot be decoded|found fingerprint of the content",
    "a class empty": r"class 'bee' has no pictures in train/|bee in val/ but not in train/",
    "gone": r"no such folder or archive",
}


@pytest.mark.parametrize("kind", ["in memory", "archive", "streamed"])
@pytest.mark.parametrize("how", CHANGES)
def test_what_was_described_is_what_is_opened(tmp_path, kind, how):
    options = options_of(tmp_path / "set", kind)
    about = describe(options)
    assert opened(options, about).description == about
    damage(tmp_path / "set", options, how)
    with pytest.raises(DataError, match=CHANGES[how]) as error:
        opened(options, about)
    assert "; " in one_line(error.value)


def test_a_touched_picture_is_the_same_picture(tmp_path):
    options = options_of(tmp_path / "set", "in memory")
    about = describe(options)
    for file in (tmp_path / "set").rglob("*.png"):
        os.utime(file, (0, 0))
    assert opened(options, about).description == about


def test_other_options_than_were_described_are_other_pictures(tmp_path):
    options = options_of(tmp_path / "set", "in memory")
    with pytest.raises(DataError, match=r"found pictures to train on 5 \(was 21\).*evaluate on 5 \(was 9\)"):
        opened(replace(options, limit=5), describe(options))
    with pytest.raises(DataError, match=r"found .*evaluation split valid \(was test\)"):
        opened(replace(options, valid=0.3), describe(options))
    with pytest.raises(DataError, match=r"found height 9 \(was 24\), width 9 \(was 20\), fingerprint"):
        opened(replace(options, size=9), describe(options))


def test_a_plan_made_without_the_pictures_holds_for_them(tmp_path, monkeypatch):
    about = describe(DataOptions("digits"))
    planned = replace(about, classes=tuple(map(str, range(10))), height=None, width=None, fingerprint="")
    sources.same(about, planned)
    sources.same(about, None)


def test_an_official_file_that_goes_away_or_changes(tmp_path, monkeypatch):
    root = write_cifar(tmp_path / "c", monkeypatch)
    options = DataOptions("cifar10", root=str(root), download=False)
    about = describe(options)
    file = root / "cifar-10-batches-py/data_batch_3"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(DataError, match=r"files in .* are damaged or incomplete") as error:
        opened(options, about)
    one_line(error.value)
    file.unlink()
    with pytest.raises(DataError, match=r"cifar-10-batches-py/data_batch_3 is not there") as error:
        opened(options, about)
    one_line(error.value)
    file.write_bytes(content)
    assert opened(options, about).description == about


def test_a_listed_official_picture_that_goes_away(tmp_path):
    root = write_caltech(tmp_path / "c")
    options = DataOptions("caltech256", root=str(root), size=8, download=False)
    about = describe(options)
    (root / "caltech256/256_ObjectCategories/001.ak47/001_0001.jpg").unlink()
    with pytest.raises(DataError, match=r"caltech256: the pictures have changed .*evaluate on 8 \(was 9\)"):
        opened(options, about)


def test_a_users_arrays_that_change(tmp_path):
    (tmp_path / "own.py").write_text(
        "import numpy as np\n\ndef mine(file):\n    x, y = np.load(file), np.arange(6) % 2\n    return x, y, x, y\n"
    )
    file = tmp_path / "x.npy"
    np.save(file, noise(0, (6, 3, 4, 4)))
    options = DataOptions(f"{tmp_path / 'own.py'}:mine", options={"file": str(file)})
    about = describe(options)
    assert opened(options, about).description == about
    np.save(file, noise(1, (6, 3, 4, 4)))
    with pytest.raises(
        DataError, match=r"own.py:mine: the pictures have changed since they were described: found finge"
    ):
        opened(options, about)
    file.unlink()
    with pytest.raises(DataError, match=r"own.py:mine: raised FileNotFoundError .*x.npy"):
        opened(options, about)


@pytest.mark.parametrize("kind", ["in memory", "archive", "streamed"])
def test_a_place_that_may_not_be_looked_at(tmp_path, kind):
    options = options_of(tmp_path / "set", kind)
    with (
        nobody(),
        pytest.raises(DataError, match=r"set.*: cannot be read \(Permission denied\); expected the pictures"),
    ):
        opened(options)


@pytest.mark.parametrize("kind", ["in memory", "streamed"])
def test_a_folder_in_it_that_may_not_be_looked_at(tmp_path, kind):
    options = options_of(tmp_path / "set", kind)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    (tmp_path / "set/train/bee").chmod(0)
    with nobody(), pytest.raises(DataError, match=r"train/bee: cannot be listed \(Permission denied\).*permissions"):
        opened(options)


def test_pictures_in_memory_need_their_files_no_more(tmp_path, cache_folder):
    options = options_of(tmp_path / "set", "in memory")
    pictures = opened(options)
    training = pictures.train(seed=0, epoch=0, batch=4)
    next(training)
    shutil.rmtree(tmp_path / "set")
    for file in cache_folder.iterdir():
        file.write_bytes(b"")
    assert len(list(training)) == 4
    assert len(list(pictures.test(4))) == 3


def in_the_middle(file: Path, how: str) -> None:
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
        return
    if how == "another picture":  # at once: a loader may be reading meanwhile
        (file.parent / "new").write_bytes(encoded(noise(7, (30, 31, 3)), "JPEG"))
        (file.parent / "new").replace(file)
        return
    file.unlink()
    if how == "a folder":
        file.mkdir()
    elif how == "a link to itself":
        file.symlink_to(file)


MIDDLE = {
    "gone": r"cannot be read (No such file or directory); expected the picture",
    "a folder": "cannot be read (Is a directory)",
    "a link to itself": "cannot be read (Too many levels of symbolic links)",
    "truncated": "it had when the pictures were listed; it has changed meanwhile; put it back",
    "another picture": "it had when the pictures were listed; it has changed meanwhile; put it back",
}


@pytest.mark.parametrize("loaders", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("how", MIDDLE)
def test_a_file_that_goes_away_or_changes_in_the_middle_of_an_epoch(tmp_path, loaders, split, how):
    root = tmp_path / "set"
    write_tree(root, train=9, test=9, shape=SHAPE, splits=("train", "val"), suffix="JPEG")
    pictures = opened(DataOptions("imagenet", root=str(root), loaders=loaders))
    batches = pictures.train(seed=0, epoch=0, batch=1) if split == "train" else pictures.test(1)
    next(batches)
    for file in (root / split).rglob("*.JPEG"):
        in_the_middle(file, how)
    message = message_of(lambda: list(batches))
    assert MIDDLE[how] in message
    assert message.startswith(f"{root}/{split}/")
    assert ".JPEG: " in message
    assert "Traceback" not in message


def test_a_file_that_may_not_be_read_any_more(tmp_path):
    options = options_of(tmp_path / "set", "streamed")
    batches = opened(options).train(seed=0, epoch=0, batch=4)
    next(batches)
    with nobody():
        message = message_of(lambda: list(batches))
    assert f"{tmp_path}/set/train/" in message
    assert "cannot be read (Permission denied); expected the picture train/" in message


@pytest.mark.parametrize("loaders", [0, 2])
def test_when_it_is_put_back_the_same_pictures_go_on(tmp_path, loaders):
    root = tmp_path / "set"
    write_tree(root, train=9, test=9, shape=SHAPE, splits=("train", "val"), suffix="JPEG")
    pictures = opened(DataOptions("imagenet", root=str(root), loaders=loaders))
    before = list(pictures.train(seed=0, epoch=0, batch=3))
    (root / "train").rename(root / "away")
    assert "cannot be read" in message_of(lambda: list(pictures.train(seed=0, epoch=0, batch=3)))
    (root / "away").rename(root / "train")
    after = list(pictures.train(seed=0, epoch=0, batch=3, start=1))
    assert len(after) == len(before) - 1
    assert all(x.equal(other) for (x, _), (other, _) in zip(after, before[1:], strict=True))
