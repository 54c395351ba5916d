"""One picture file → uint8 tensor, by the fastest decoder that is here: for every file the pixels that Pillow gives.

torchvision's decoder and Pillow's are the same library (libjpeg-turbo) at the same settings; where torchvision has
none, or refuses, Pillow decides: it decodes, or says what is wrong. So which of the two it was
never shows in a number.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from normbench.data.picture import UNREADABLE, read

try:  # deprecated since torchvision 0.29, to be removed
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:
    decode_jpeg: Callable[..., Any] | None = None  # type: ignore[no-redef]


def rgb(data: bytes, name: str) -> Tensor:
    """uint8 (3, H, W) of the picture in ``data``. Raises DataError naming it if it cannot be decoded."""
    if decode_jpeg is not None and jpeg_size(data) is not None:
        try:
            return by_torchvision([data], "cpu")[0]
        except RuntimeError:
            pass  # Pillow decides
    return torch.from_numpy(np.array(read(data, name).convert("RGB"))).permute(2, 0, 1)


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a grey or colour JPEG; None for any other file, CMYK and damaged headers included."""
    try:
        with Image.open(io.BytesIO(data)) as image:  # the header alone
            plain = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")
            return (image.height, image.width) if plain else None
    except UNREADABLE:
        return None


def by_torchvision(files: list[bytes], device: torch.device | str) -> list[Tensor]:
    """uint8 (3, H, W) of every JPEG, on ``device``. Raises RuntimeError, for all of them, if one cannot be decoded."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The image decoding and encoding", DeprecationWarning)
        raw = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
        if torch.device(device).type == "cpu":
            return [decode_jpeg(one, mode=ImageReadMode.RGB) for one in raw]
        return decode_jpeg(raw, mode=ImageReadMode.RGB, device=device)
