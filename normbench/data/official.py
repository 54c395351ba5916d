"""The published sets that torchvision knows: found under ``data.root``, fetched if asked, split as published.

CIFAR and SVHN are checksummed whenever they are decoded, so their checksums stand for their content, and what they
hold is known before they are there. Flowers-102 trains on its train and val lists (2,040) and tests on its test list.
Caltech-256 has no official split; ours is fixed: 60 pictures of each of the 257 classes (clutter included, as in
torchvision) train, the rest test.
"""

from __future__ import annotations

import hashlib
import json
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normbench.data import arrays, cache, split
from normbench.data.arrays import Arrays, refuse_stream
from normbench.data.folder import open_listing, root_of
from normbench.data.listing import Listing, listed, walk
from normbench.data.picture import one_line
from normbench.data.progress import Tick
from normbench.data.tree import Tree
from normbench.errors import DataError
from normbench.options import DataOptions

# Seconds without an answer after which a download counts as failed.
PATIENCE = 60
CALTECH_TRAIN = 60


@dataclass(frozen=True)
class Known:
    """What is published of a set. train: pictures of each class. files: below the root, all of them needed."""

    kind: str
    files: tuple[str, ...]
    train: tuple[int, ...]
    test: int
    side: int | None
    pinned: bool


def cifar(kind: str, folder: str, files: tuple[str, ...], classes: int) -> Known:
    """Either CIFAR set: 50,000 + 10,000 of 32×32."""
    names = tuple(f"{folder}/{name}" for name in files)
    return Known(kind, names, (50_000 // classes,) * classes, 10_000, 32, pinned=True)


KNOWN = {
    "cifar10": cifar(
        "CIFAR10",
        "cifar-10-batches-py",
        (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
        10,
    ),
    "cifar100": cifar("CIFAR100", "cifar-100-python", ("train", "test", "meta"), 100),
    "svhn": Known(
        "SVHN",
        ("train_32x32.mat", "test_32x32.mat"),
        (4_948, 13_861, 10_585, 8_497, 7_458, 6_882, 5_727, 5_595, 5_045, 4_659),
        26_032,
        32,
        pinned=True,
    ),
    "flowers102": Known(
        "Flowers102",
        ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
        (20,) * 102,
        6_149,
        None,
        pinned=False,
    ),
    "caltech256": Known(
        "Caltech256", ("caltech256/256_ObjectCategories",), (CALTECH_TRAIN,) * 257, 15_187, None, pinned=False
    ),
}


def find(
    options: DataOptions, *, fetch: bool = True, verify: bool = True, progress: Tick | None = None
) -> Arrays | Listing | None:
    """The set ``options.name``; None if it is not there and may not be fetched now (``fetch=False``)."""
    known, root = KNOWN[options.name], root_of(options)
    if known.pinned:
        refuse_stream(options)
    missing = [name for name in known.files if not (root / name).exists()]
    if missing:
        if not fetch:
            return None
        obtain(options, known, root, missing[0])
    if not known.pinned:
        listing = flowers(options, root) if options.name == "flowers102" else caltech(root)
        return open_listing(listing, options, verify=verify, progress=progress)
    signature = signature_of(root / name for name in known.files)
    source = root / known.files[0]
    return cache.kept(source, signature, options.size, lambda: decoded(options, known, root), verify=verify)


def obtain(options: DataOptions, known: Known, root: Path, missing: str) -> None:
    """Fetch the set, or raise DataError: it may not be fetched, or the network did not give it."""
    where = f"{options.name}: {root / missing} is not there (looked from {Path.cwd()})"
    if not options.download:
        raise DataError(
            f"{where}; expected the files as torchvision.datasets.{known.kind} keeps them; "
            "data.root=FOLDER names where they are, data.download=true fetches them"
        )
    try:
        with patience():
            for kwargs in splits(known, root):
                dataset(known.kind)(**kwargs, download=True)
    except Exception as error:  # whatever the network, the disk or a damaged archive makes torchvision raise
        raise DataError(
            f"{where} and could not be fetched ({one_line(error)}); expected a network, or the files already there; "
            "fetch them on another machine and give data.root=FOLDER"
        ) from error


@contextmanager
def patience() -> Iterator[None]:
    """A network that never answers is an error after PATIENCE seconds, not a run that hangs."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def dataset(kind: str) -> Callable[..., Any]:
    """A class of torchvision.datasets, imported only here: a set that is in the cache starts without torchvision."""
    import torchvision.datasets

    return getattr(torchvision.datasets, kind)


def splits(known: Known, root: Path) -> list[dict[str, Any]]:
    """What torchvision's class takes to open each split of the set."""
    if known.kind.startswith("CIFAR"):
        return [{"root": root, "train": True}, {"root": root, "train": False}]
    if known.kind == "Caltech256":
        return [{"root": root}]
    names = ("train", "val", "test") if known.kind == "Flowers102" else ("train", "test")
    return [{"root": root, "split": name} for name in names]


def opened(options: DataOptions, known: Known, root: Path) -> list[Any]:
    """torchvision's data sets, one a split, from files that are there. Raises DataError if they are damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the pickles of CIFAR are older than NumPy's taste
            return [dataset(known.kind)(**kwargs) for kwargs in splits(known, root)]
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise DataError(
            f"{options.name}: the files in {root} are damaged or incomplete ({one_line(error)}); expected those of "
            f"torchvision.datasets.{known.kind}; delete them and set data.download=true, or give data.root=FOLDER"
        ) from error


def decoded(options: DataOptions, known: Known, root: Path) -> Arrays:
    """CIFAR or SVHN as arrays (N, C, H, W)."""
    train, test = opened(options, known, root)
    if known.kind == "SVHN":  # channels first already; the digit is the label
        classes, pairs = tuple("0123456789"), [(part.data, part.labels) for part in (train, test)]
    else:
        classes = tuple(train.classes)
        pairs = [(part.data.transpose(0, 3, 1, 2), np.array(part.targets)) for part in (train, test)]
    return arrays.make(classes, pairs[0], pairs[1], size=options.size, fingerprint=checksum(options.name))


def checksum(name: str) -> str:
    """16 hex digits over the checksums that torchvision holds the set to; empty for a set that has none."""
    known = KNOWN[name]
    if not known.pinned:
        return ""
    kind: Any = dataset(known.kind)
    held = kind.split_list if known.kind == "SVHN" else [kind.train_list, kind.test_list]
    return hashlib.sha256(json.dumps([name, held], sort_keys=True).encode()).hexdigest()[:16]


def flowers(options: DataOptions, root: Path) -> Listing:
    """Flowers-102: train and val lists, test list. Classes go by their official numbers."""
    base, *lists = (root / name for name in KNOWN["flowers102"].files)

    def read() -> dict[str, Any]:
        parts = opened(options, KNOWN["flowers102"], root)
        names = [[Path(file).name for file in part._image_files] for part in parts]
        return {"names": names, "labels": [list(map(int, part._labels)) for part in parts]}

    # The lists are checksummed when they are read; torchvision and SciPy take seconds to load for it.
    found = cache.noted(base, signature_of(lists), read)
    names, labels = found["names"], [np.array(part, dtype=np.int64) for part in found["labels"]]
    tree = Tree(
        classes=tuple(f"{number:03d}" for number in range(1, 103)),
        train=(*names[0], *names[1]),
        train_y=np.concatenate(labels[:2]),
        test=tuple(names[2]),
        test_y=labels[2],
    )
    return on_disk(base, tree)


def signature_of(files: Iterable[Path]) -> str:
    """Sizes and times of ``files`` as they are now."""
    return " ".join(f"{status.st_size}-{status.st_mtime_ns}" for status in (file.stat() for file in files))


def caltech(root: Path) -> Listing:
    """Caltech-256: our fixed split. What is no .jpg (two classes hold strays) is passed over."""
    base = root / KNOWN["caltech256"].files[0]
    stats: dict[str, tuple[int, int]] = {}
    walk(base, "", stats, [])
    names = np.array(sorted(name for name in stats if name.count("/") == 1 and name.endswith(".jpg")), dtype=object)
    classes, labels = np.unique([name.split("/")[0] for name in names], return_inverse=True)
    counts = np.bincount(labels)
    if not len(names) or counts.min() <= CALTECH_TRAIN:
        fewest = f"class {classes[counts.argmin()]} has {counts.min()}" if len(names) else "there are none"
        raise DataError(
            f"{base}: too few pictures ({fewest}); expected more than {CALTECH_TRAIN} .jpg in each class folder; "
            "delete the folder and set data.download=true, or give data.root=FOLDER"
        )
    train = split.each(labels, CALTECH_TRAIN, split.OURS)
    tree = Tree(tuple(classes.tolist()), tuple(names[train]), labels[train], tuple(names[~train]), labels[~train])
    return listed(base, tree, stats)


def on_disk(base: Path, tree: Tree) -> Listing:
    """The listing of ``tree`` below ``base``. Raises DataError for a picture that is not there."""
    stats = {}
    for name in (*tree.train, *tree.test):
        try:
            status = (base / name).stat()
        except OSError as error:
            raise DataError(
                f"{base / name}: is not there; expected {len(tree.train) + len(tree.test)} pictures beside it; "
                "delete the folder and set data.download=true, or give data.root=FOLDER"
            ) from error
        stats[name] = status.st_size, status.st_mtime_ns
    return listed(base, tree, stats)
