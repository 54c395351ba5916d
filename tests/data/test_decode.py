"""Whichever decoder is at work, a picture has the pixels that Pillow gives it, and a damaged one its message."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_files import encoded, noise, one_line, saved
from PIL import Image

from normbench.data import decode, picture
from normbench.errors import DataError

RGB = noise(0, (37, 53, 3))
PLAIN = Image.fromarray(RGB)
EXIF = Image.Exif()
EXIF[0x0112] = 6  # rotated, which is ignored
JPEGS = {
    "colour": saved(PLAIN, "jpeg", quality=90),
    "chroma as fine": saved(PLAIN, "jpeg", quality=95, subsampling=0),
    "chroma half as fine in one direction": saved(PLAIN, "jpeg", subsampling=1),
    "progressive": saved(PLAIN, "jpeg", progressive=True),
    "coarse": saved(PLAIN, "jpeg", quality=20),
    "rgb inside": saved(PLAIN, "jpeg", keep_rgb=True),
    "grey": encoded(RGB[..., 0], "jpg"),
    "rotated": saved(PLAIN, "jpeg", exif=EXIF),
    "several frames": saved(PLAIN, "mpo", save_all=True, append_images=[PLAIN.rotate(180)]),
}
OTHERS = {
    "cmyk": saved(PLAIN.convert("CMYK"), "jpeg"),
    "png": encoded(RGB),
    "16 bit": saved(Image.fromarray(RGB[..., 0].astype(np.uint16) * 257)),
}


@pytest.mark.parametrize("kind", [*JPEGS, *OTHERS])
def test_every_kind_has_the_pixels_that_pillow_gives(kind):
    data = {**JPEGS, **OTHERS}[kind]
    expected = np.asarray(picture.read(data, "x").convert("RGB"))
    found = decode.rgb(data, "x")
    assert (found.dtype, found.shape) == (torch.uint8, (3, *expected.shape[:2]))
    np.testing.assert_array_equal(found.permute(1, 2, 0), expected)


def test_jpegs_are_decoded_by_torchvision_where_it_can(monkeypatch):
    if decode.decode_jpeg is None:
        pytest.skip("this torchvision has no decoder")
    called = []
    monkeypatch.setattr(decode, "read", lambda *args: called.append(args) or picture.read(*args))
    for data in JPEGS.values():
        decode.rgb(data, "x")
    assert not called
    for data in OTHERS.values():
        decode.rgb(data, "x")
    assert len(called) == len(OTHERS)


@pytest.mark.parametrize("kind", JPEGS)
def test_without_torchvisions_decoder_nothing_changes(kind, monkeypatch):
    expected = decode.rgb(JPEGS[kind], "x")
    monkeypatch.setattr(decode, "decode_jpeg", None)
    assert torch.equal(decode.rgb(JPEGS[kind], "x"), expected)


def test_a_damaged_one_is_what_pillow_says_of_it():
    """Cut anywhere, or with bytes changed anywhere: the same pixels, or the same message."""
    whole, generator = JPEGS["colour"], np.random.default_rng(0)
    damaged = [whole[:cut] for cut in generator.integers(0, len(whole), 40)]
    for _ in range(80):
        data = bytearray(whole)
        for place in generator.integers(0, len(data), 3):
            data[place] = generator.integers(256)
        damaged.append(bytes(data))

    def told(rgb, data) -> str | list:
        try:
            return rgb(data, "x.jpg").tolist()
        except DataError as error:
            return one_line(error).split(" at 0x")[0]  # Pillow's own words may hold an address

    def pillows(data, name) -> np.ndarray:
        return np.asarray(picture.read(data, name).convert("RGB")).transpose(2, 0, 1)

    found = [told(decode.rgb, data) for data in damaged]
    assert found == [told(pillows, data) for data in damaged]
    assert {type(one) for one in found} == {str, list}


def test_the_size_is_told_from_the_header():
    assert decode.jpeg_size(JPEGS["grey"]) == (37, 53)
    assert decode.jpeg_size(JPEGS["colour"][:-500]) == (37, 53)
    for data in (*OTHERS.values(), b"", b"none"):
        assert decode.jpeg_size(data) is None
