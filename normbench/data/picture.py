"""One picture file → uint8 pixels: every kind of picture that Pillow reads, as grey or RGB, at the size asked for."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from normbench.data.arrays import scaled
from normbench.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")

# What Pillow, its decoders and a hostile file can raise; anything else is a bug of ours and should be seen as one.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, Image.DecompressionBombError)


def is_picture(name: str) -> bool:
    """Has ``name`` a picture's suffix, and is no part of its path hidden (or a Mac's resource fork)?"""
    if not name.lower().endswith(SUFFIXES):
        return False
    return not (name.startswith(".") or "/." in name or "__MACOSX" in name.split("/"))


def read(data: bytes, name: str) -> Image.Image:
    """The picture in ``data``, in mode L (grey) or RGB. Raises DataError naming the file if it cannot be decoded.

    First frame of an animation; alpha is dropped and EXIF rotation ignored (as torchvision's ImageFolder does);
    16 bits are brought to 8; CMYK and palettes become RGB.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return plain(image)
    except UNREADABLE as error:
        raise DataError(
            f"{name}: cannot be decoded ({one_line(error)}); expected a picture that Pillow reads; "
            "mend the file or take it out"
        ) from error


def plain(image: Image.Image) -> Image.Image:
    """``image`` in mode L if it is grey, else RGB."""
    if image.mode in ("L", "RGB"):
        image.load()
        return image
    if image.mode.startswith("I"):
        return Image.fromarray(np.rint(np.clip(np.asarray(image, np.float64), 0, 65535) / 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, without a scale")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # what Pillow asks for; it warns otherwise
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def at_size(image: Image.Image, size: int | None) -> Image.Image:
    """``image`` with its shorter side scaled to ``size`` (bilinear, antialiased), centre-cropped; None: as it is."""
    if size is None or image.size == (size, size):
        return image
    height, width = scaled(image.height, image.width, size)
    top, left = (height - size) // 2, (width - size) // 2
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image.crop((left, top, left + size, top + size))


def pixels(data: bytes, name: str, size: int | None) -> np.ndarray:
    """uint8 (H, W) of a grey picture, (H, W, 3) of any other."""
    return np.asarray(at_size(read(data, name), size))


def one_line(error: BaseException) -> str:
    """The message of ``error`` on one line, cut where it rambles; its type where it has none."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 160 else f"{words[:159]}…"
