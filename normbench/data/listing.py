"""Class-per-folder pictures on disk, listed: their names, sizes and times, none decoded yet."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normbench.data.files import Source
from normbench.data.packs import Index, Loose, Names, Shelf
from normbench.data.tree import Tree, arrange, base


@dataclass(frozen=True)
class Listing:
    """Pictures on disk, none decoded yet.

    root: what the names in ``tree`` start from.
    signature: of names, sizes and times; a cache made from another one does not count.
    fingerprint: of names and sizes, for sets that are never decoded as a whole.
    sizes: name → bytes.
    packs: of a prepared copy, which hold some of the pictures or all; the others lie below ``root``.
    """

    root: Path
    tree: Tree
    sizes: Mapping[str, int]
    signature: str
    fingerprint: str
    packs: Index | None = None

    def shelf(self, names: Sequence[str]) -> Shelf:
        """Where the pictures ``names``, all of one split, are read from."""
        if self.packs is not None and names and names[0] in self.packs.place:
            return self.packs.packed(names)
        sizes = np.fromiter((self.sizes[name] for name in names), dtype=np.int64, count=len(names))
        return Loose(self.root, Names([*names]), sizes)

    def sources(self) -> Iterator[Source]:
        """Every picture once, to be decoded: those with files of their own are read by whoever decodes them."""
        for names in (self.tree.train, self.tree.test):
            shelf = self.shelf(names)
            for i, name in enumerate(names):
                yield name, self.root / name if isinstance(shelf, Loose) else shelf.read(i)


# name → (bytes, time of the last change in ns)
Stats = Mapping[str, tuple[int, int]]


def scan(root: Path, splits: Sequence[str], expected: str) -> Listing:
    """List the pictures under ``root``, or under the one folder in it that has a train/."""
    upper = sorted(name for name in os.listdir(root) if not name.startswith("."))
    below = [f"{name}/train" for name in upper if (root / name / "train").is_dir()]
    root = root / base([*upper, *below], str(root), expected)
    stats: dict[str, tuple[int, int]] = {}
    folders: list[str] = []
    # The first split that is there is the one used: a second is not worth a walk.
    evaluated = next((split for split in splits if (root / split).is_dir()), "")
    for split in filter(None, ("train", evaluated)):
        folders.append(split)
        walk(root / split, f"{split}/", stats, folders)
    return listed(root, arrange(stats, folders, str(root), splits, expected), stats)


def walk(folder: Path, prefix: str, stats: dict[str, tuple[int, int]], folders: list[str]) -> None:
    """Fill ``stats`` and ``folders`` with what lies below ``folder``, hidden things excepted; links are followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(name)
                walk(Path(entry.path), f"{name}/", stats, folders)
            elif entry.is_file():
                status = entry.stat()
                stats[name] = status.st_size, status.st_mtime_ns


def listed(root: Path, tree: Tree, stats: Stats) -> Listing:
    """A listing whose signature and fingerprint cover the pictures of ``tree``."""
    names = sorted({*tree.train, *tree.test})
    sizes = {name: stats[name][0] for name in names}
    marks = "".join(f"{name} {size}\n" for name, size in sizes.items())
    signs = "".join(f"{name} {size}\n{stats[name][1]}" for name, size in sizes.items())
    # The labels too: the same files can be split anew.
    signature, fingerprint = sha256(signs + "\n".join(tree.train)), sha256("\n".join(tree.classes) + marks)
    return Listing(root, tree, sizes, signature, fingerprint[:16])


def sha256(text: str) -> str:
    """Hex digits of the SHA-256 of ``text``, in which file names may be any bytes."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
