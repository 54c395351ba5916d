"""A prepared copy is read like its originals, is another set by its id, and a wrong one is an error before training."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from data_files import noise, one_line, saved, write_tree
from PIL import Image

from normbench.data import describe, open_pictures
from normbench.data.packs import INDEX, NAMES
from normbench.data.prepare import prepare
from normbench.data.prepared import Recipe, check
from normbench.errors import ConfigError, DataError
from normbench.options import DataOptions

PACK = "pictures-00000.tar"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tree(
        tmp_path_factory.mktemp("source") / "set", shape=(40, 30, 3), splits=("train", "val"), suffix="JPEG"
    )


@pytest.fixture(scope="module")
def copies(source, tmp_path_factory):
    """A copy of both splits, and one of train/ alone."""
    folder = tmp_path_factory.mktemp("copies")
    prepare(source, folder / "both", Recipe(20, 90, ("train", "val")), threads=1)
    prepare(source, folder / "train", Recipe(20, 90, ("train",)), threads=1)
    return folder


@pytest.fixture
def copy(copies, tmp_path):
    """One to be damaged."""
    return shutil.copytree(copies / "both", tmp_path / "copy")


def options(**given):
    return DataOptions("imagenet", loaders=0, **{key: str(value) for key, value in given.items()})


def passed(batches):
    return tuple(torch.cat(part) for part in zip(*batches, strict=True))


def seen(**given):
    """All of it: (x, y) of an epoch in order of the draws, and of the evaluation."""
    pictures = open_pictures(options(**given), size=16, device="cpu")
    return passed(pictures.train(seed=0, epoch=0, batch=12)), passed(pictures.test(4))


def test_labels_and_classes_are_those_of_the_source(source, copies):
    ours, theirs = (describe(options(root=root)) for root in (copies / "both", source))
    assert (ours.classes, ours.train, ours.test, ours.streamed) == (theirs.classes, 12, 6, True)
    (_, y), (_, test_y) = seen(root=copies / "both")
    (_, source_y), (_, source_test_y) = seen(root=source)
    assert torch.equal(y, source_y)
    assert torch.equal(test_y, source_test_y)


def test_pixels_are_those_of_a_tree_of_the_copied_files(copies, tmp_path):
    _, index = check(copies / "both")
    shelf = index.packed(index.names)
    for i, name in enumerate(index.names):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(shelf.read(i))
    for ours, theirs in zip(seen(root=copies / "both"), seen(root=tmp_path / "tree"), strict=True):
        assert torch.equal(ours[0], theirs[0])


def test_the_copy_is_found_by_either_key_and_is_one_set(source, copies):
    found = [
        describe(options(**given)).fingerprint
        for given in (
            {"root": copies / "both"},
            {"prepared": copies / "both"},
            {"prepared": copies / "both", "root": source},
        )
    ]
    assert len(set(found)) == 1
    assert found[0] != describe(options(root=source)).fingerprint


def test_a_cell_on_the_copy_is_another_cell(source, copies):
    from normbench.cell import make

    def identity(**data):
        cell = make({
            "arch": {"name": "resnet8"}, "norm": {"name": "bn"}, "recipe": {"name": "r", "steps": 1},
            "data": {"name": "imagenet", **data},
        })  # fmt: skip
        return cell.identity({"data": describe(cell.data).fingerprint})

    original, copied = identity(root=str(source)), identity(root=str(copies / "both"))
    assert original != copied
    assert identity(root=str(source), prepared=str(copies / "both")) == copied
    assert identity(root=str(source), prepared=str(copies / "train")) not in (original, copied)


def test_a_copy_of_train_leaves_the_originals_to_evaluate_on(source, copies):
    train, test = seen(prepared=copies / "train", root=source)
    original_train, original_test = seen(root=source)
    assert torch.equal(test[0], original_test[0])
    assert torch.equal(train[0], seen(root=copies / "both")[0][0])
    assert not torch.equal(train[0], original_train[0])
    with pytest.raises(DataError, match=r"holds train/ alone.*give data.prepared=.* data.root=") as error:
        describe(options(root=copies / "train"))
    one_line(error.value)


def test_in_memory_too(copies):
    small = DataOptions("folder", root=str(copies / "both"), size=8)
    pictures = open_pictures(small, size=None, device="cpu")
    assert (pictures.description.streamed, pictures.description.train) == (False, 12)
    assert next(pictures.test(6))[0].shape == (6, 3, 8, 8)


def test_what_reaches_a_loader_process_reads_the_same(copies):
    _, index = check(copies / "both")
    shelf = index.packed(index.names)
    first = shelf.read(0)
    assert pickle.loads(pickle.dumps(shelf)).read(0) == first


def manifest(folder, **changes):
    """Change keys of the manifest; of the recipe where it has them."""
    values = json.loads((folder / "prepared.json").read_text())
    for key, value in changes.items():
        (values["recipe"] if key in values["recipe"] else values)[key] = value
    (folder / "prepared.json").write_text(json.dumps(values))


def index(folder, change):
    rows = np.load(folder / INDEX)
    change(rows)
    np.save(folder / INDEX, rows)


DAMAGE = {
    "no manifest": (lambda c: (c / "prepared.json").unlink(), "holds no prepared.json, or a damaged one"),
    "half a manifest": (lambda c: (c / "prepared.json").write_text('{"recipe": '), "holds no prepared.json, or a dam"),
    "no recipe": (lambda c: manifest(c, recipe=None), "prepared.json: is damaged"),
    "unfinished": (
        lambda c: (c / "prepared.json").rename(c / "unfinished.json"),
        "the copy is not finished.*the command that began it goes on: python -m normbench.data prepare root=… out=",
    ),
    "another version": (
        lambda c: manifest(c, version=0),
        r"was prepared by version 0 of the recipe, expected version 1.*size=20 quality=90 split=train,val",
    ),
    "no pack": (lambda c: (c / PACK).unlink(), f"{PACK}: cannot be read .No such file.*; expected [0-9]+ bytes"),
    "half a pack": (lambda c: (c / PACK).write_bytes((c / PACK).read_bytes()[:999]), f"{PACK}: has 999 bytes, expec"),
    "no index": (lambda c: (c / INDEX).unlink(), "index.npy: cannot be read"),
    "half an index": (lambda c: (c / INDEX).write_bytes((c / INDEX).read_bytes()[:200]), "index.npy: cannot be read"),
    "no names": (lambda c: (c / NAMES).unlink(), "index.npy: cannot be read"),
    "other names": (lambda c: (c / NAMES).write_bytes(b"train/a/b.JPEG"), "index and names do not go together"),
    "another index": (lambda c: index(c, lambda rows: rows[:, 1].__iadd__(512)), "its index is not that of prepared"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_copy_that_is_not_whole_is_an_error_before_training(copy, what):
    damage, message = DAMAGE[what]
    damage(copy)
    for given in ({"root": copy}, {"prepared": copy}):
        with pytest.raises(DataError, match=message) as error:
            describe(options(**given))
        assert str(copy) in one_line(error.value)


def replaced(path, picture):
    path.write_bytes(saved(Image.fromarray(noise(1, picture)), "jpeg"))


CHANGES = {
    "gone": (lambda s: (s / "train/ant/0.JPEG").unlink(), "train/ant/0.JPEG is gone;"),
    "new": (lambda s: replaced(s / "val/bee/9.JPEG", (4, 4)), "val/bee/9.JPEG is new;"),
    "two": (
        lambda s: [replaced(s / f"train/cat/{i}.JPEG", (4, 4)) for i in (1, 2)],
        r"train/cat/1.JPEG has [0-9]+ bytes .had [0-9]+., and 1 more;",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_copy_that_does_not_match_its_source_is_an_error_before_training(source, copies, tmp_path, what):
    change, message = CHANGES[what]
    changed = shutil.copytree(source, tmp_path / "changed")
    change(changed)
    with pytest.raises(
        DataError, match=rf"does not match its source .*changed: {message}.*expected the pictures it"
    ) as e:
        describe(options(prepared=copies / "both", root=changed))
    one_line(e.value)
    assert describe(options(root=copies / "both")).train == 12  # who does not ask for its source is not told


def test_a_picture_damaged_inside_its_pack_is_named(copy):
    content = bytearray((copy / PACK).read_bytes())
    _, there = check(copy)
    content[there.rows[0, 1] + 300] ^= 1
    (copy / PACK).write_bytes(content)
    with pytest.raises(DataError, match=f"{PACK}: train/ant/0.JPEG: is not the picture that was prepared") as error:
        seen(root=copy)
    one_line(error.value)


def test_what_cannot_be_prepared_says_so(copies, tmp_path):
    with pytest.raises(ConfigError, match=r"data.prepared: got '.*', but digits cannot be prepared.*data=imagenet"):
        describe(DataOptions("digits", prepared=str(copies / "both")))
    with pytest.raises(DataError, match=r"no such folder .*make it with python -m normbench.data prepare"):
        describe(options(prepared=tmp_path / "none"))
    (tmp_path / "set.tar").write_bytes(b"")
    with pytest.raises(ConfigError, match="no such folder; expected the one that the copy was made from"):
        describe(options(prepared=copies / "both", root=tmp_path / "set.tar"))
    with pytest.raises(ConfigError, match=r"leave data\.root out to take the copy for itself"):
        describe(options(prepared=copies / "both", root=tmp_path / "no longer there"))
    shutil.copytree(copies / "both", tmp_path / "domains" / "one")
    with pytest.raises(DataError, match="is a prepared copy; expected the domain's own pictures"):
        describe(DataOptions("domains", root=str(tmp_path / "domains")))


def test_a_sweep_on_a_copy_end_to_end(sweep, results, source, copies, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NORMBENCH_KERNELS", "off")  # this folder's tests have a cache of their own, without kernels
    words = ("norm=bn", "arch=resnet8", "arch.size=16", "data=imagenet", "data.loaders=0", "batch=4", "steps=2")
    named = (f"data.prepared={copies / 'both'}", "device=cpu", "name=copy")
    assert sweep(*words, *named, f"data.root={source}") == 0
    (row,) = results("copy")
    assert (row["status"], row["data"]) == ("ok", "imagenet")
    assert sweep(*words, *named, "plan=true") == 0  # the same cell, without its source
    assert "1 done" in capsys.readouterr().out
    changed = shutil.copytree(source, tmp_path / "changed")
    (changed / "train/ant/0.JPEG").unlink()
    assert sweep(*words, *named, f"data.root={changed}") == 2
    assert "does not match its source" in capsys.readouterr().err
