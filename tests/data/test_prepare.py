"""A prepared copy: its pictures are what the recipe says, a kill loses nothing, and nothing else is overwritten."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from data_files import encoded, noise, one_line, saved, write_tree
from PIL import Image

from normbench.data import prepare as making
from normbench.data import prepared
from normbench.data.__main__ import main
from normbench.data.prepare import prepare
from normbench.data.prepared import Recipe
from normbench.errors import ConfigError, DataError

RECIPE = Recipe(16, 90, ("train", "val"))
SMALL = encoded(noise(9, (16, 40)), "JPEG")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """JPEGs of 40 × 30, and one of every kind that ImageNet has beside them."""
    root = tmp_path_factory.mktemp("source")
    write_tree(root, train=3, test=2, shape=(40, 30, 3), splits=("train", "val"), suffix="JPEG")
    (root / "train/ant/small.JPEG").write_bytes(SMALL)
    (root / "train/bee/grey.JPEG").write_bytes(encoded(noise(8, (24, 50)), "JPEG"))
    (root / "train/bee/cmyk.JPEG").write_bytes(saved(Image.fromarray(noise(7, (30, 30, 3))).convert("CMYK"), "jpeg"))
    (root / "train/cat/png.JPEG").write_bytes(encoded(noise(6, (20, 30, 4)), "png"))
    return root


@pytest.fixture(scope="module")
def copy(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("copies") / "copy"
    prepare(source, out, RECIPE, threads=2)
    return out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def members(folder):
    """Name → bytes, as tar itself reads them."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def test_every_picture_is_what_the_recipe_says(source, copy):
    found = members(copy)
    originals = {str(path.relative_to(source)): path for path in source.rglob("*.JPEG")}
    assert found.keys() == originals.keys()
    for name, data in found.items():
        image = Image.open(io.BytesIO(originals[name].read_bytes()))
        if min(image.size) <= 16:
            assert data == originals[name].read_bytes()
            continue
        W, H = image.size
        size = (16, round(H * 16 / W)) if W < H else (round(W * 16 / H), 16)
        image = image if image.mode in ("L", "RGB") else image.convert("RGB")
        expected = saved(image.resize(size, Image.Resampling.LANCZOS), "jpeg", quality=90, subsampling=2)
        np.testing.assert_array_equal(Image.open(io.BytesIO(data)), Image.open(io.BytesIO(expected)), err_msg=name)
    assert found["train/ant/small.JPEG"] == SMALL


def test_the_index_leads_to_the_same_bytes(copy):
    _, index = prepared.check(copy)
    found, shelf = members(copy), index.packed(index.names)
    assert {name: shelf.read(i) for i, name in enumerate(index.names)} == found


def test_a_killed_one_goes_on_to_the_same_bytes(source, tmp_path, monkeypatch):
    monkeypatch.setattr(making, "PER_PACK", 4)
    prepare(source, tmp_path / "whole", RECIPE, threads=1)
    code = f"""
import os, signal
from pathlib import Path
from normbench.data import prepare as making
from normbench.data.prepared import Recipe
making.PER_PACK, plain, done = 4, making.copied, []
def copied(*args):
    done.append(1)
    if len(done) > 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*args)
making.copied = copied
making.prepare(Path({str(source)!r}), Path({str(tmp_path / "killed")!r}), Recipe(16, 90, ("train", "val")), threads=1)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    left = {path.name for path in (tmp_path / "killed").iterdir() if not path.name.startswith(".")}
    assert left == {"unfinished.json", *(f"pictures-0000{i}.tar{end}" for i in (0, 1) for end in ("", ".json"))}
    with pytest.raises(DataError, match=r"not finished.*prepare root=… out=.* size=16 quality=90 split=train,val"):
        prepared.check(tmp_path / "killed")

    plain, done = making.copied, []
    monkeypatch.setattr(making, "copied", lambda *args: done.append(1) or plain(*args))
    ticks = []
    prepare(source, tmp_path / "killed", RECIPE, threads=1, progress=ticks.append)
    assert len(done) == len(list(source.rglob("*.JPEG"))) - 8  # what was whole is not done again
    assert (ticks, ticks[-1]) == (sorted(ticks), 1.0)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_second_time_there_is_nothing_to_do(source, copy, monkeypatch):
    before = contents(copy)
    monkeypatch.setattr(making, "copied", None)
    assert prepare(source, copy, RECIPE, threads=1)["resized"] == 18
    assert contents(copy) == before


def test_another_recipe_or_source_is_not_mixed_in(source, copy, tmp_path):
    for recipe in (Recipe(20, 90, ("train", "val")), Recipe(16, 80, ("train", "val")), Recipe(16, 90, ("train",))):
        with pytest.raises(ConfigError, match=r"holds a copy already \(size=16 quality=90 split=train,val\)") as error:
            prepare(source, copy, recipe, threads=1)
        one_line(error.value)
    other = write_tree(tmp_path / "other", shape=(40, 30, 3), splits=("train", "val"), suffix="JPEG")
    with pytest.raises(ConfigError, match=r"holds a copy already .other pictures"):
        prepare(other, copy, RECIPE, threads=1)
    out = tmp_path / "begun"
    out.mkdir()
    (out / "unfinished.json").write_text('{"recipe": 1}')
    with pytest.raises(ConfigError, match=r"holds the beginning of another copy .recipe 1, now"):
        prepare(source, out, RECIPE, threads=1)
    with pytest.raises(ConfigError, match="holds other things; expected a new or an empty folder"):
        prepare(source, other, RECIPE, threads=1)
    with pytest.raises(DataError, match="is a prepared copy itself"):
        prepare(copy, tmp_path / "twice", RECIPE, threads=1)


def test_a_damaged_picture_is_found_before_anything_is_trained_on_it(tmp_path, capsys, monkeypatch):
    plain, done = making.copied, []

    def copied(*args):
        made = plain(*args)
        done.append(made)
        return made

    monkeypatch.setattr(making, "PER_PACK", 12)
    monkeypatch.setattr(making, "copied", copied)
    root = write_tree(tmp_path / "set", shape=(40, 30, 3), splits=("train", "val"), suffix="JPEG")
    whole = (root / "val/bee/1.JPEG").read_bytes()
    (root / "val/bee/1.JPEG").write_bytes(whole[: len(whole) // 2])
    words = ("prepare", f"root={root}", f"out={tmp_path / 'out'}", "size=16", "workers=1")
    assert main(words) == 1
    assert "val/bee/1.JPEG: cannot be decoded" in capsys.readouterr().err
    (root / "val/bee/1.JPEG").write_bytes(whole)
    assert main(words) == 0  # mended, it goes on, and does not do again what has not changed
    assert len(done) == 12 + 3 + 6  # the first pack, the second up to the damaged one, the second


def test_the_command_takes_what_is_there(tmp_path, capsys):
    root = write_tree(tmp_path / "set", shape=(40, 30, 3))
    assert main(["prepare", f"root={root}", f"out={tmp_path / 'out'}", "size=16", "workers=2"]) == 0
    told = capsys.readouterr().out
    assert "18 pictures (train, test), 18 of them resized" in told
    assert f"data.prepared={tmp_path / 'out'} data.root={root}" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prepair"], "unknown command 'prepair'. Did you mean 'prepare'?"),
        (["prepare", "root=x"], "out: not given; expected out=DIR"),
        (["prepare", "rot=x"], "unknown key 'rot'. Did you mean 'root'?"),
        (["prepare", "root"], "root: got nothing"),
        (["prepare", "root=x", "root=y"], "root: given twice"),
        (["prepare", "size=0"], "size: got '0', expected a whole number, 1 or more"),
        (["prepare", "quality=96"], "quality: got '96', expected a whole number, 1 to 95"),
        (["prepare", "split=val"], "split: got 'val', expected train, alone or with val or test"),
        (["prepare", "split=train,vall"], "did you mean 'val'?"),
    ],
)
def test_a_bad_command_is_one_line(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_no_source_is_a_failure(tmp_path, capsys):
    assert main(["prepare", f"root={tmp_path / 'none'}", f"out={tmp_path / 'out'}"]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "size=320" in capsys.readouterr().out
