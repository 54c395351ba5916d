"""Pictures of a prepared copy, packed: plain tars, and an index of what lies where in them.

A tar, so that ordinary tools list and unpack it; few large files, since a million small ones are slow to find on a
disk or a network that does not hold them in memory already. A picture is one read at an offset, checked against its
CRC-32.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from normbench.data.files import content
from normbench.errors import DataError

# Columns of the index, int64, one row a picture: which pack, the first byte of the picture in it, its bytes, their
# CRC-32, and the bytes of the picture that it was made from.
PACK, START, SIZE, CHECK, SOURCE = range(5)
INDEX, NAMES = "index.npy", "names.txt"


def pack_name(number: int) -> str:
    return f"pictures-{number:05d}.tar"


class Names:
    """Many strings in one block of bytes: a million of them reach a loader process in a fraction of a second."""

    def __init__(self, names: list[str]) -> None:
        encoded = [name.encode(errors="surrogateescape") for name in names]
        self.block = b"".join(encoded)
        self.ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> str:
        return self.block[self.ends[i] : self.ends[i + 1]].decode(errors="surrogateescape")


class Shelf(Protocol):
    """Where picture files are taken from, by their number. Reaches loader processes by pickling."""

    def __len__(self) -> int: ...

    def where(self, i: int) -> str:
        """Picture ``i`` for messages."""
        ...

    def read(self, i: int) -> bytes:
        """The bytes of picture ``i``. Raises DataError if they cannot be had, or have changed."""
        ...


@dataclass
class Loose:
    """Files of their own below ``root``.

    sizes: in bytes when they were listed; a file of another size is another picture, or half of one.
    """

    root: Path
    names: Names
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def where(self, i: int) -> str:
        return str(self.root / self.names[i])

    def read(self, i: int) -> bytes:
        data = content(self.root / self.names[i], self.names[i])
        if len(data) != self.sizes[i]:
            raise DataError(
                f"{self.where(i)}: holds {len(data)} bytes, expected the {self.sizes[i]} it had when the pictures were "
                "listed; it has changed meanwhile; put it back, or start again"
            )
        return data


class Packed:
    """Pictures in the packs of ``folder``. rows: of the index, int64 (N, 5)."""

    def __init__(self, folder: Path, names: Names, rows: np.ndarray) -> None:
        self.folder, self.names, self.rows = folder, names, rows
        self.open: dict[int, int] = {}  # pack → file descriptor of this process

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "open": {}}

    def __del__(self) -> None:
        for descriptor in self.open.values():
            os.close(descriptor)

    def where(self, i: int) -> str:
        return f"{self.folder / pack_name(self.rows[i, PACK])}: {self.names[i]}"

    def read(self, i: int) -> bytes:
        pack, start, size, check, _ = self.rows[i].tolist()
        try:
            if pack not in self.open:
                self.open[pack] = os.open(self.folder / pack_name(pack), os.O_RDONLY)
            data = os.pread(self.open[pack], size, start)
        except OSError as error:
            raise DataError(
                f"{self.where(i)}: cannot be read ({error.strerror}); expected the prepared picture; {MEND}"
            ) from error
        if len(data) != size or zlib.crc32(data) != check:
            raise DataError(
                f"{self.where(i)}: is not the picture that was prepared ({len(data)} of {size} bytes, or another "
                f"checksum); {MEND}"
            )
        return data


MEND = "the copy is damaged: delete it and prepare it again"


@dataclass(frozen=True)
class Index:
    """What the copy in ``folder`` holds. names: of its pictures, in the order of the index.  rows: int64 (N, 5)."""

    folder: Path
    names: tuple[str, ...]
    rows: np.ndarray

    @cached_property
    def place(self) -> Mapping[str, int]:
        """name → its row."""
        return {name: i for i, name in enumerate(self.names)}

    @property
    def digest(self) -> str:
        """SHA-256 of names, places, sizes and checksums, and so of every byte of every picture."""
        return hashlib.sha256("\0".join(self.names).encode(errors="surrogateescape") + self.rows.tobytes()).hexdigest()

    def packed(self, names: Sequence[str]) -> Packed:
        """The pictures ``names`` of this copy."""
        return Packed(self.folder, Names(list(names)), self.rows[[self.place[name] for name in names]])


def load(folder: Path) -> Index:
    """The index in ``folder``. Raises OSError or ValueError where there is none, or a damaged one."""
    rows = np.load(folder / INDEX, allow_pickle=False)
    names = (folder / NAMES).read_bytes().decode(errors="surrogateescape").split("\0")
    if rows.dtype != np.int64 or rows.shape != (len(names), SOURCE + 1):
        raise ValueError("index and names do not go together")
    return Index(folder, tuple(names), rows)
