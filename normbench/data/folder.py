"""Class-per-folder pictures, in a folder or an archive: found, listed, and decoded once into the cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normbench.data import archive, cache
from normbench.data.arrays import Arrays
from normbench.data.files import Source, content, decoded, stacked
from normbench.data.picture import pixels
from normbench.data.progress import Tick, shown
from normbench.data.tree import EXPECTED, SPLITS, Tree, arrange, base
from normbench.errors import ConfigError, DataError
from normbench.options import DataOptions

# Decoded bytes up to which a set is held in memory; a larger one is streamed.
IN_MEMORY = 4 * 2**30


@dataclass(frozen=True)
class Listing:
    """Pictures on disk, none decoded yet.

    root: what the names in ``tree`` start from.
    signature: of names, sizes and times; a cache made from another one does not count.
    fingerprint: of names and sizes, for sets that are never decoded as a whole.
    sizes: name → bytes.
    """

    root: Path
    tree: Tree
    sizes: Mapping[str, int]
    signature: str
    fingerprint: str


# name → (bytes, time of the last change in ns)
Stats = Mapping[str, tuple[int, int]]


def find(
    options: DataOptions,
    *,
    splits: Sequence[str] = SPLITS,
    expected: str = EXPECTED,
    verify: bool = True,
    progress: Tick | None = None,
) -> Arrays | Listing:
    """The pictures at ``options.root``: decoded where they fit in memory, listed where they are to be streamed."""
    root = rooted(options, expected)
    if root.is_dir():
        try:
            listing = scan(root, splits, expected)
        except OSError as error:
            raise DataError(
                f"{error.filename}: cannot be listed ({error.strerror}); {expected}; change its permissions"
            ) from error
        return open_listing(listing, options, verify=verify, progress=progress)
    if options.stream:
        raise ConfigError(
            f"data.stream: got true for the archive {root}; expected a folder, since pictures in an archive cannot be "
            "reached one by one; unpack it, or leave data.stream out"
        )
    status = root.stat()
    signature = f"{status.st_size} {status.st_mtime_ns} {splits}"

    def decode() -> Arrays:
        return from_archive(root, options, splits, expected, progress)

    return cache.kept(root, signature, options.size, decode, verify=verify)


def root_of(options: DataOptions) -> Path:
    """Where the pictures are looked for."""
    return Path(options.root or f"data/{options.name}").expanduser()


def rooted(options: DataOptions, expected: str = EXPECTED) -> Path:
    """``options.root`` as a path that is a folder or an archive. Raises DataError if it is neither."""
    root = root_of(options)
    if not root.exists():
        raise DataError(f"{root}: no such folder or archive (looked in {Path.cwd()}); {expected}; give data.root=…")
    if not root.is_dir() and not archive.is_archive(root):
        raise DataError(
            f"{root}: is neither a folder nor an archive by its name; expected a folder, or a file ending in "
            f"{', '.join(archive.SUFFIXES)}; give data.root=…"
        )
    if not os.access(root, os.R_OK):
        raise DataError(f"{root}: may not be read; expected a folder or archive you can read; change its permissions")
    return root


def open_listing(
    listing: Listing, options: DataOptions, *, verify: bool = True, progress: Tick | None = None
) -> Arrays | Listing:
    """``listing`` decoded, or as it is where it is to be streamed."""
    stream = options.stream
    if stream is None:
        stream = decoded_bytes(listing, options.size) > IN_MEMORY
    if stream:
        return listing

    def decode() -> Arrays:
        return from_files(listing, options, progress)

    return cache.kept(listing.root, listing.signature, options.size, decode, verify=verify)


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


def decoded_bytes(listing: Listing, size: int | None) -> int:
    """What ``listing`` would take in memory, judged by its first picture where no size is given."""
    tree = listing.tree
    first = tree.train[0]
    one = 3 * size**2 if size else pixels(content(listing.root / first, first), first, None).size
    return one * (len(tree.train) + len(tree.test))


def from_files(listing: Listing, options: DataOptions, progress: Tick | None) -> Arrays:
    """Decode every picture of ``listing``."""
    names = sorted({*listing.tree.train, *listing.tree.test})
    found = {}
    with shown(f"decoding {len(names)} pictures of {options.name} (kept for next time)", progress) as tick:
        sources: Iterator[Source] = ((name, listing.root / name) for name in names)
        for done, (name, picture) in enumerate(decoded(sources, options.size), 1):
            found[name] = picture
            tick(done / len(names))
    return stacked(found, listing.tree, str(listing.root))


def from_archive(
    path: Path, options: DataOptions, splits: Sequence[str], expected: str, progress: Tick | None
) -> Arrays:
    """Decode every picture of the archive in one pass over it (a compressed one is slow to read twice)."""
    found: dict[str, np.ndarray] = {}
    folders: list[str] = []
    passed_over: list[str] = []
    wanted = {"train", *splits}

    def inside(tick: Tick) -> Iterator[tuple[str, bytes]]:
        for name, data in archive.members(path, tick, folders):
            if wanted.isdisjoint(name.split("/")[:2]):
                passed_over.append(name)
            else:
                yield name, data

    total = 0
    with shown(f"decoding {path.name} (kept for next time)", progress) as tick:
        for name, picture in decoded(inside(tick), options.size):
            found[name] = picture
            total += picture.size
            if total > IN_MEMORY and options.stream is None:
                raise DataError(
                    f"{path}: decodes to more than {IN_MEMORY / 2**30:.0f} GiB; expected a set that fits in memory; "
                    "unpack it and give the folder, take a smaller data.size, or data.stream=false to hold it anyway"
                )
    return stacked(found, arrange([*found, *passed_over], folders, str(path), splits, expected), str(path))
