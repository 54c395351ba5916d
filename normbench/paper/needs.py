"""The data that a table needs: whether it is there, and where it is expected."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from normbench.cell import Cell
from normbench.errors import DataError
from normbench.options import DataOptions

IMAGENET = "imagenet"
# What there is of a set that is fetched at its first use.
FETCHED = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def root(options: DataOptions) -> Path:
    return Path(options.root).expanduser() if options.root else Path("data") / options.name


def there(options: DataOptions) -> bool:
    """Whether the pictures are where they are expected, by the names of their folders alone."""
    place = root(options)
    if options.name == IMAGENET:
        return options.prepared is not None or all((place / split).is_dir() for split in ("train", "val"))
    return (place / FETCHED[options.name]).exists() if options.name in FETCHED else place.exists()


def told(options: DataOptions) -> str:
    """``imagenet: not there; expected …``, for people."""
    if there(options):
        return f"{options.name}: there, in {root(options)}"
    if options.name == IMAGENET:
        return f"{options.name}: not there; expected {layout(options)}"
    later = "fetched at the first run" if options.download and options.name in FETCHED else "not there"
    return f"{options.name}: {later}, to {root(options)}" if options.name in FETCHED else f"{options.name}: {later}"


def layout(options: DataOptions) -> str:
    place = root(options)
    return f"{place}/train/<wnid>/*.JPEG and {place}/val/<wnid>/*.JPEG, or another folder by data.root=…"


def check(table: str, cells: Iterable[Cell]) -> None:
    """Raise DataError for a table whose ImageNet is not there, before anything is run."""
    for options in {repr(cell.data): cell.data for cell in cells}.values():
        if options.name == IMAGENET and not there(options):
            raise DataError(
                f"table {table} needs ImageNet (ILSVRC 2012), which cannot be fetched; looked in {Path.cwd()}, "
                f"expected {layout(options)}; nothing was run"
            )
