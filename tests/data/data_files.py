"""Small real files for the data tests: pictures, trees of them, archives of those."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")
FORMATS = {"jpg": "jpeg", "JPEG": "jpeg", "pgm": "ppm"}


def noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(image: Image.Image, kind: str = "png", **kwargs) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **kwargs)
    return out.getvalue()


def encoded(values: np.ndarray, suffix: str = "png") -> bytes:
    """A picture file of these pixels."""
    return saved(Image.fromarray(values), FORMATS.get(suffix, suffix))


def write_tree(
    root: Path,
    *,
    train: int = 4,
    test: int = 2,
    shape: tuple[int, ...] = (6, 6, 3),
    splits: tuple[str, str] = ("train", "test"),
    suffix: str = "png",
    classes: tuple[str, ...] = CLASSES,
) -> Path:
    """Write train/<class>/<i>.png and test/<class>/<i>.png below ``root``."""
    for s, (split, count) in enumerate(zip(splits, (train, test), strict=True)):
        for c, label in enumerate(classes):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                picture = encoded(noise(1000 * s + 100 * c + i, shape), suffix)
                (folder / f"{i}.{suffix}").write_bytes(picture)
    return root


def pack(root: Path, kind: str, top: str = "") -> Path:
    """Pack ``root`` as an archive beside it, below the folder ``top`` if one is given."""
    path = root.parent / f"{root.name}.{kind}"
    files = [(file, f"{top}{file.relative_to(root)}") for file in sorted(root.rglob("*")) if file.is_file()]
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file, name in files:
                archive.write(file, name)
        return path
    with tarfile.open(path, {"tar": "w", "tar.xz": "w:xz", "tar.gz": "w:gz", "tgz": "w:gz"}[kind]) as tar:
        for file, name in files:
            tar.add(file, name)
    return path


def one_line(error: BaseException) -> str:
    """The message, which has to be a single line."""
    message = str(error)
    assert "\n" not in message, message
    return message
