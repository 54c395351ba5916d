"""Every kind of picture becomes grey or RGB bytes; what is none is named."""

from __future__ import annotations

import numpy as np
import pytest
from data_files import encoded, noise, one_line, saved
from PIL import Image

from normbench.data import picture
from normbench.errors import DataError

GREY, RGB, ALPHA = noise(0, (4, 5)), noise(1, (4, 5, 3)), noise(2, (4, 5, 1))
PALETTE = Image.fromarray(RGB).quantize(8)
KINDS = {
    "grey": (encoded(GREY), GREY),
    "pgm": (encoded(GREY, "pgm"), GREY),
    "colour": (encoded(RGB), RGB),
    "bmp": (encoded(RGB, "bmp"), RGB),
    "one bit": (saved(Image.fromarray(GREY > 99)), np.where(GREY > 99, 255, 0)),
    "alpha is dropped": (encoded(np.dstack([RGB, ALPHA])), RGB),
    "grey alpha is dropped": (saved(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA[..., 0])])), GREY),
    "16 bit": (saved(Image.fromarray(GREY.astype(np.uint16) * 257)), GREY),
    "palette": (saved(PALETTE), np.asarray(PALETTE.convert("RGB"))),
    "transparent palette": (saved(PALETTE, transparency=bytes(range(8))), np.asarray(PALETTE.convert("RGB"))),
    "cmyk": (
        saved(Image.fromarray(RGB).convert("CMYK"), "tiff"),
        np.asarray(Image.fromarray(RGB).convert("CMYK").convert("RGB")),
    ),
    "first frame": (
        saved(Image.fromarray(RGB), "tiff", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
        RGB,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_of_every_kind(kind):
    data, expected = KINDS[kind]
    found = picture.pixels(data, "x", None)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_exif_rotation_is_ignored():
    image, exif = Image.fromarray(RGB), Image.Exif()
    exif[0x0112] = 6
    assert picture.pixels(saved(image, exif=exif), "x", None).shape == (4, 5, 3)


@pytest.mark.parametrize(("shape", "size"), [((40, 60, 3), 16), ((60, 40), 16), ((6, 8, 3), 16), ((16, 16), 16)])
def test_a_size_scales_the_shorter_side_and_crops_the_centre(shape, size):
    values = np.zeros(shape, np.uint8)
    values[shape[0] // 2 - 1 : shape[0] // 2 + 1] = 200
    found = picture.pixels(encoded(values), "x", size)
    assert found.shape[:2] == (size, size)
    rows = found.reshape(size, size, -1).mean(axis=(1, 2))
    np.testing.assert_allclose(rows, rows[::-1], atol=2.5)


@pytest.mark.parametrize(
    "data",
    [b"", b"no picture", encoded(GREY)[:40], encoded(noise(3, (40, 40, 3)), "jpg")[:300]],
    ids=["empty", "text", "short png", "short jpeg"],
)
def test_what_cannot_be_decoded_is_named(data):
    with pytest.raises(DataError, match=r"a/1.png: cannot be decoded \(.+\); expected .*; mend the file") as error:
        picture.pixels(data, "train/a/1.png", None)
    one_line(error.value)


def test_floating_point_pixels_are_refused():
    with pytest.raises(DataError, match="floating-point"):
        picture.pixels(saved(Image.fromarray(GREY.astype(np.float32)), "tiff"), "x.tif", None)


def test_a_picture_too_large_to_be_one_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    with pytest.raises(DataError, match=r"x.png: cannot be decoded"):
        picture.pixels(encoded(GREY), "x.png", None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/1.png", True),
        ("a/1.JPEG", True),
        ("a/.1.png", False),
        (".git/1.png", False),
        ("a/1.txt", False),
        ("__MACOSX/a/1.png", False),
        ("a/.DS_Store", False),
        ("a/Thumbs.db", False),
    ],
)
def test_pictures_are_known_by_their_suffix(name, expected):
    assert picture.is_picture(name) is expected
