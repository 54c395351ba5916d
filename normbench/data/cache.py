"""The cache of decoded sets: one file per source and size, written in one piece, checked before it is believed.

A file is a plain .npy of bytes: 16 bytes (length of the header, its CRC-32), a JSON header, then the four arrays, each
at a multiple of 64 bytes. It is mapped, not read, so that a description costs nothing; its CRC-32 is taken only when
the pixels are wanted. Where the source has changed since (sizes, times, names) the file does not count, and is
replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from normbench.data.arrays import Arrays
from normbench.files import cache_folder, read_json, write_json

# Raise this when decoding changes: what older versions kept does not count then.
VERSION = 1
ALIGN = 64
PARTS = ("train_x", "train_y", "test_x", "test_y")
_complained: set[str] = set()


def path_of(source: Path, size: int | None) -> Path:
    """The cache file of ``source`` (a folder or an archive) decoded at ``size``."""
    mark = hashlib.sha256(f"{source.resolve()}\n{size}".encode(errors="surrogateescape")).hexdigest()[:16]
    return cache_folder() / f"{source.stem.split('.')[0][:40]}-{mark}.npy"


def kept(
    source: Path, signature: str, size: int | None, decode: Callable[[], Arrays], *, verify: bool = True
) -> Arrays:
    """``decode()``, or what an earlier call of it left.

    signature: of the source as it is now; a file made from another one does not count.
    verify: check every byte (``False`` is enough to describe a set).
    """
    file = path_of(source, size)
    arrays = load(file, signature, verify=verify)
    if arrays is None:
        arrays = decode()
        save(file, signature, arrays)
    return arrays


def noted(source: Path, signature: str, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """``read()``, or what an earlier call of it left: something small that JSON can hold, such as a list of names."""
    file = path_of(source, None).with_suffix(".json")
    note = read_json(file)
    if note.get("signature") != signature:
        note = {**read(), "signature": signature}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, note)
        except OSError as error:
            complain(f"{file}: cannot be kept here ({error.strerror}); set NORMBENCH_CACHE=FOLDER")
    return note


def load(file: Path, signature: str, *, verify: bool = True) -> Arrays | None:
    """The arrays in ``file``, mapped; None if it is missing, damaged, or of another source or version."""
    try:
        # Copy on write: torch takes the arrays without a warning, and the file stays as it is.
        raw = np.load(file, mmap_mode="c", allow_pickle=False)
        length, check = np.array(raw[:16]).view(np.uint64).tolist()
        text = bytes(raw[16 : 16 + length])
        if zlib.crc32(text) != check:
            return None
        header = json.loads(text)
        if (header["version"], header["signature"]) != (VERSION, signature):
            return None
        if verify and zlib.crc32(raw[header["start"] :].data) != header["crc32"]:
            return None
        return from_header(header, raw)
    except Exception:  # whatever damage makes NumPy or the header raise: the file does not count
        return None


def from_header(header: dict[str, Any], raw: np.ndarray) -> Arrays:
    """The arrays that ``header`` describes, as views of ``raw``."""
    parts = {}
    for name in PARTS:
        start, shape, dtype = header[name]
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        parts[name] = raw[start : start + count].view(dtype).reshape(shape)
    return Arrays(
        classes=tuple(header["classes"]),
        mean=tuple(header["mean"]),
        std=tuple(header["std"]),
        fingerprint=header["fingerprint"],
        **parts,
    )


def save(file: Path, signature: str, arrays: Arrays) -> None:
    """Write ``arrays`` to ``file`` in one piece. A folder that cannot be written is said once and is no error."""
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=file.stem, suffix=".tmp", delete=False) as out:
            temporary = Path(out.name)
            write(out, signature, arrays)
        os.replace(temporary, file)
    except OSError as error:
        complain(f"{file.parent}: decoded pictures cannot be kept here ({error.strerror}); set NORMBENCH_CACHE=FOLDER")
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def write(out: Any, signature: str, arrays: Arrays) -> None:
    """The whole .npy file into the open binary file ``out``."""
    bodies = [np.ascontiguousarray(getattr(arrays, name)) for name in PARTS]
    padded = [body.reshape(-1).view(np.uint8) for body in bodies]
    header: dict[str, Any] = {
        "version": VERSION,
        "signature": signature,
        "classes": arrays.classes,
        "mean": arrays.mean,
        "std": arrays.std,
        "fingerprint": arrays.fingerprint,
    }
    # Room for the header before its numbers are known: they have a few digits each.
    start = aligned(16 + len(json.dumps(header)) + 1024)
    header["start"], position, check = start, start, 0
    for name, body, data in zip(PARTS, bodies, padded, strict=True):
        header[name] = (position, body.shape, body.dtype.str)
        gap = b"\0" * (aligned(len(data)) - len(data))
        check = zlib.crc32(gap, zlib.crc32(data.data, check))
        position += len(data) + len(gap)
    header["crc32"] = check
    text = json.dumps(header).encode().ljust(start - 16)
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": (position,)})
    out.write(np.array([len(text), zlib.crc32(text)], dtype=np.uint64).tobytes() + text)
    for data in padded:
        out.write(data.data)
        out.write(b"\0" * (aligned(len(data)) - len(data)))


def aligned(position: int) -> int:
    """The next multiple of ALIGN."""
    return -(-position // ALIGN) * ALIGN


def complain(message: str) -> None:
    """Say ``message`` on standard error, once per process."""
    if message not in _complained:
        _complained.add(message)
        print(message, file=sys.stderr, flush=True)
