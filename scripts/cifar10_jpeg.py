"""CIFAR-10 re-encoded as JPEG, in one archive of class folders: python scripts/cifar10_jpeg.py [cifar10] [archive]

    cifar10    a folder that holds cifar-10-batches-py/, the public original for Python (data/cifar10)
    archive    what is written (data/cifar10-jpeg.tar.xz, about 36 MiB), for  data=folder data.root=ARCHIVE

The reference study was trained on these pictures, since the machine it ran on had no network. They are not CIFAR-10:
every picture is a JPEG with one quantisation step, 8, for all coefficients and no colour subsampling, at 38.6 dB of the
original in the mean. Names, classes and split are the original's. With the same libjpeg the archive is the same to the
last byte: files in order, no owners, time 0.

The original: https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky, Learning Multiple Layers of Features from Tiny
Images, 2009); or  python -m normbench.sweep data=cifar10 steps=1  fetches it.
"""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

STEP = 8
SPLITS = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}


def encoded(pixels: np.ndarray) -> bytes:
    """A JPEG of uint8 (32, 32, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", qtables=[[STEP] * 64] * 2, subsampling=0)
    return file.getvalue()


def pictures(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name below the archive's top, and pixels (32, 32, 3), as they are to be written."""
    classes = read(folder / "batches.meta")["label_names"]
    for split, batches in SPLITS.items():
        found: dict[str, np.ndarray] = {}
        for batch in (read(folder / name) for name in batches):
            rows = zip(batch["filenames"], batch["labels"], batch["data"], strict=True)
            for name, label, row in rows:
                stem = Path(name).with_suffix(".jpg").name
                found[f"{split}/{classes[label]}/{stem}"] = row.reshape(3, 32, 32).transpose(1, 2, 0)
        yield from sorted(found.items())


def read(path: Path) -> dict[str, list]:
    """A pickled batch, with names for keys."""

    def text(value: object) -> object:
        return value.decode() if isinstance(value, bytes) else value

    content = pickle.loads(path.read_bytes(), encoding="bytes")
    return {text(key): list(map(text, value)) if isinstance(value, list) else value for key, value in content.items()}


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """A file without owner and time."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def main(source: str = "data/cifar10", target: str = "data/cifar10-jpeg.tar.xz") -> None:
    folder = Path(source) / "cifar-10-batches-py"
    if not (folder / "batches.meta").is_file():
        raise SystemExit(
            f"{folder}: no batches.meta; expected the public original: python -m normbench.sweep data=cifar10 steps=1 "
            "fetches it, or unpack it there by hand (the head of this script says where it is)"
        )
    with tarfile.open(target, "w:xz", format=tarfile.USTAR_FORMAT, preset=9) as archive:
        for name, pixels in pictures(folder):
            add(archive, f"cifar10/{name}", encoded(np.ascontiguousarray(pixels)))
    print(f"wrote {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
