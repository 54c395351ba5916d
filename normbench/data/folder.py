"""Class-per-folder pictures, in a folder or an archive: found, listed, and decoded once into the cache."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from normbench.data import archive, cache, prepared
from normbench.data.arrays import Arrays
from normbench.data.files import decoded, stacked
from normbench.data.listing import Listing, scan
from normbench.data.picture import pixels
from normbench.data.progress import Tick, shown
from normbench.data.tree import EXPECTED, SPLITS, arrange
from normbench.errors import ConfigError, DataError
from normbench.options import DataOptions

# Decoded bytes up to which a set is held in memory; a larger one is streamed.
IN_MEMORY = 4 * 2**30


def find(
    options: DataOptions,
    *,
    splits: Sequence[str] = SPLITS,
    expected: str = EXPECTED,
    verify: bool = True,
    progress: Tick | None = None,
) -> Arrays | Listing:
    """The pictures at ``options.root``: decoded where they fit in memory, listed where they are to be streamed.

    Those of a prepared copy where ``options.prepared`` names one, or ``options.root`` is one.
    """
    copy = Path(options.prepared).expanduser() if options.prepared else None
    root = root_of(options) if copy else rooted(options, expected)
    if copy and options.root is not None and not root.is_dir():
        raise ConfigError(
            f"data.root={root} with data.prepared: no such folder; expected the one that the copy was made from, to "
            "compare them; leave data.root out to take the copy for itself"
        )
    if copy or root.is_dir():
        try:
            if copy or prepared.is_copy(root):
                listing = prepared.find(copy or root, root if copy else None, splits, expected)
            else:
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


def decoded_bytes(listing: Listing, size: int | None) -> int:
    """What ``listing`` would take in memory, judged by its first picture where no size is given."""
    tree = listing.tree
    first = tree.train[0]
    one = 3 * size**2 if size else pixels(listing.shelf([first]).read(0), first, None).size
    return one * (len(tree.train) + len(tree.test))


def from_files(listing: Listing, options: DataOptions, progress: Tick | None) -> Arrays:
    """Decode every picture of ``listing``."""
    found, total = {}, len(listing.tree.train) + len(listing.tree.test)
    with shown(f"decoding {total} pictures of {options.name} (kept for next time)", progress) as tick:
        for done, (name, picture) in enumerate(decoded(listing.sources(), options.size), 1):
            found[name] = picture
            tick(done / total)
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
