"""scripts/cifar10_jpeg.py: the public original, as a small copy of it, becomes an archive that data=folder reads."""

from __future__ import annotations

import pickle
import runpy
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normbench.data import describe, open_pictures
from normbench.options import DataOptions

SCRIPT = Path(__file__).parents[1] / "scripts" / "cifar10_jpeg.py"
CLASSES = ["airplane", "cat"]


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """Six batches of four smooth pictures, as the original's are pickled: bytes for keys and names."""
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [name.encode() for name in CLASSES]}))
    draw = np.random.default_rng(0)
    for number, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        slopes = draw.uniform(0, 4, (4, 3, 1, 1)) * np.arange(32)[:, None] + draw.uniform(
            0, 4, (4, 3, 1, 1)
        ) * np.arange(32)
        batch = {
            b"filenames": [f"thing_s_{number * 4 + k:06}.png".encode() for k in (3, 1, 2, 0)],
            b"labels": [0, 1, 0, 1],
            b"data": slopes.astype(np.uint8).reshape(4, 3072),
        }
        (folder / name).write_bytes(pickle.dumps(batch))
    return tmp_path


def made(folder: Path, name: str) -> Path:
    runpy.run_path(str(SCRIPT))["main"](str(folder / "cifar10"), str(folder / name))
    return folder / name


def test_it_is_read_as_class_folders_and_its_pictures_are_near_the_original(original: Path) -> None:
    archive = made(original, "c.tar.xz")
    with tarfile.open(archive) as opened:
        names = opened.getnames()
        picture = Image.open(opened.extractfile("cifar10/test/airplane/thing_s_000023.jpg"))  # type: ignore[arg-type]
        shown = np.asarray(picture).astype(float)
    assert names == sorted(names, key=lambda name: ("test/" in name, name))
    test = pickle.loads((original / "cifar10/cifar-10-batches-py/test_batch").read_bytes())
    wanted = test[b"data"][0].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.sqrt(np.mean((shown - wanted) ** 2)) < 4
    options = DataOptions("folder", root=str(archive))
    found = describe(options)
    assert (found.classes, found.train, found.test, found.height) == (tuple(CLASSES), 20, 4, 32)
    assert open_pictures(options, size=None, device="cpu").description.fingerprint == found.fingerprint


def test_twice_it_is_the_same_to_the_last_byte(original: Path) -> None:
    assert made(original, "a.tar.xz").read_bytes() == made(original, "b.tar.xz").read_bytes()


def test_without_the_original_it_says_what_it_wants(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected the public original"):
        made(tmp_path, "c.tar.xz")
