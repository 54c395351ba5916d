"""Which pictures a trained network gets right: a bit each, in the order of the split, beside the cell's result."""

from __future__ import annotations

import functools
import io
import sys
from pathlib import Path

import numpy as np

from normbench.attempt import CORRECT as NAME
from normbench.files import write_atomically

COUNT = 8  # bytes of the number of pictures


def packed(right: np.ndarray) -> bytes:
    """``right``, bool (pictures,), as a .npy file of bytes: the number of pictures in eight of them, then the bits."""
    bits = np.packbits(np.asarray(right, dtype=bool))
    return _header(COUNT + len(bits)) + np.uint64(len(right)).tobytes() + bits.tobytes()


@functools.cache
def _header(length: int) -> bytes:
    """Of a .npy file of so many bytes."""
    file = io.BytesIO()
    np.save(file, np.empty(length, dtype=np.uint8))
    return file.getvalue()[:-length]


def write(folder: Path, right: np.ndarray) -> None:
    """Keep ``right``, bool (pictures,), in a cell's folder."""
    write_atomically(folder / NAME, packed(right))


def read(folder: Path) -> np.ndarray | None:
    """bool (pictures,): whether the network of a cell gets each right; None where that is not known, or damaged."""
    try:
        held = (folder / NAME).read_bytes()
    except OSError:
        return None
    # Not by np.load, which guesses at what is damaged, and whose many small reads take several times as long.
    start = len(_header(COUNT))
    count = int.from_bytes(held[start : start + COUNT], sys.byteorder)
    body = COUNT + -(-count // 8)
    if len(held) != start + body or held[:start] != _header(body):
        return None
    return np.unpackbits(np.frombuffer(held, dtype=np.uint8, offset=start + COUNT))[:count].astype(bool)
