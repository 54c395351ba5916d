"""Which pictures a trained network gets right: a bit each, in the order of the split, beside the cell's result."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from normbench.attempt import CORRECT as NAME
from normbench.files import write_atomically


def packed(right: np.ndarray) -> bytes:
    """``right``, bool (pictures,), as a .npy file of bytes: the number of pictures in eight of them, then the bits."""
    count = np.frombuffer(np.uint64(len(right)).tobytes(), dtype=np.uint8)
    file = io.BytesIO()
    np.save(file, np.concatenate([count, np.packbits(np.asarray(right, dtype=bool))]))
    return file.getvalue()


def write(folder: Path, right: np.ndarray) -> None:
    """Keep ``right``, bool (pictures,), in a cell's folder."""
    write_atomically(folder / NAME, packed(right))


def read(folder: Path) -> np.ndarray | None:
    """bool (pictures,): whether the network of a cell gets each right; None where that is not known, or damaged."""
    try:
        # All at once: np.load's many small reads of a file take several times as long, and a report reads thousands.
        held = np.load(io.BytesIO((folder / NAME).read_bytes()), allow_pickle=False)
        count = int(np.frombuffer(held[:8].tobytes(), dtype=np.uint64)[0])
        bits = np.unpackbits(held[8:])
    except (OSError, EOFError, ValueError, IndexError, TypeError):
        return None
    return bits[:count].astype(bool) if -(-count // 8) * 8 == len(bits) else None
