"""A prepared copy of class-per-folder pictures: recognised, checked against its manifest and its source, listed.

A copy is a folder of packs and their index; ``prepared.json``, the manifest, is written last, so that a copy without
one is not whole. Every check here is made before training starts; each picture's CRC-32 is taken when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from normbench.data import packs
from normbench.data.listing import Listing, listed, scan, sha256
from normbench.data.packs import SIZE, SOURCE, Index, pack_name
from normbench.data.tree import arrange
from normbench.errors import DataError, one_line
from normbench.files import read_json

MANIFEST, UNFINISHED = "prepared.json", "unfinished.json"
# Raise this when the same recipe gives other pictures, or the files of a copy mean something else.
VERSION = 1
COMMAND = "python -m normbench.data prepare"


@dataclass(frozen=True)
class Recipe:
    """How a picture becomes its copy.

    One whose shorter side is above ``size`` pixels is resized to it (Lanczos, antialiased), the longer side in
    proportion, rounded, and encoded as JPEG of ``quality`` (Pillow's scale; chroma at half the resolution), grey or
    RGB, without EXIF. Any other is copied byte for byte: none is ever enlarged.
    splits: the folders that are copied.
    """

    size: int
    quality: int
    splits: tuple[str, ...]
    version: int = VERSION

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "splits": list(self.splits)}

    def words(self) -> str:
        """As they stand on the command line."""
        return f"size={self.size} quality={self.quality} split={','.join(self.splits)}"


def is_copy(folder: Path) -> bool:
    """Is ``folder`` a prepared copy, or the beginning of one?"""
    return any((folder / name).exists() for name in (MANIFEST, UNFINISHED, packs.INDEX, packs.pack_name(0)))


def find(folder: Path, source: Path | None, splits: Sequence[str], expected: str) -> Listing:
    """The pictures of the copy in ``folder``, all checks passed.

    source: the folder it was made from: if it is there, names and sizes must be what they were then. Pictures to
    evaluate on that the copy does not hold are read from it as they are.
    Raises DataError for a copy that is not whole, not of this version or does not match its source.
    """
    recipe, index = check(folder)
    held = tuple(split for split in splits if split in recipe.splits)
    originals = scan(source, held or splits, expected) if source is not None and source.is_dir() else None
    if originals is not None:
        for split in ("train", *held[:1]):
            compare(folder, index, originals, split)
    stats = {
        name: (size, 0)
        for name, size in zip(index.names, index.rows[:, SIZE].tolist(), strict=True)
        if name.split("/", 1)[0] in ("train", *held)
    }
    root = folder
    if not held:
        if originals is None:
            raise DataError(
                f"{folder}: holds train/ alone, without pictures to evaluate on; expected those of its source; give "
                f"data.prepared={folder} data.root=… with the folder that it was made from"
            )
        root = originals.root
        stats |= {name: (originals.sizes[name], 0) for name in originals.tree.test}
    found = listed(root, arrange(stats, [], str(folder), held or splits, expected), stats)
    mark = sha256(index.digest + found.fingerprint)
    return Listing(root, found.tree, found.sizes, mark, mark[:16], index)


def check(folder: Path) -> tuple[Recipe, Index]:
    """The recipe and the index of the copy in ``folder``. Raises DataError unless it is whole and of this version."""
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder (looked in {Path.cwd()}); expected a prepared copy; make it with "
            f"{COMMAND} root=… out={folder}"
        )
    manifest = read_json(folder / MANIFEST)
    if not manifest:
        raise DataError(f"{folder}: {unfinished(folder)}")
    try:
        recipe = recipe_of(manifest)
        sizes = [int(size) for size in manifest["packs"]]
        digest = str(manifest["digest"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / MANIFEST}: is damaged ({one_line(error)}); expected what {COMMAND} wrote; {packs.MEND}"
        ) from None
    if recipe.version != VERSION:
        raise DataError(
            f"{folder}: was prepared by version {recipe.version} of the recipe, expected version {VERSION}; prepare it "
            f"anew into another folder: {COMMAND} root=… out=… {recipe.words()}"
        )
    for number, size in enumerate(sizes):
        check_pack(folder / pack_name(number), size)
    try:
        index = packs.load(folder)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{folder / packs.INDEX}: cannot be read ({one_line(error)}); {packs.MEND}") from None
    if index.digest != digest:
        raise DataError(
            f"{folder}: its index is not that of {MANIFEST} (digest {index.digest[:16]}, expected {digest[:16]}); "
            f"{packs.MEND}"
        )
    return recipe, index


def recipe_of(manifest: Mapping[str, Any]) -> Recipe:
    """The recipe in a manifest. Raises KeyError, TypeError or ValueError for a damaged one."""
    size, quality, version = (int(manifest["recipe"][key]) for key in ("size", "quality", "version"))
    return Recipe(size, quality, tuple(map(str, manifest["recipe"]["splits"])), version)


def unfinished(folder: Path) -> str:
    """What is wrong with a copy without a manifest."""
    begun = read_json(folder / UNFINISHED)
    if begun:
        try:
            words = f"{recipe_of(begun).words()} "
        except (KeyError, TypeError, ValueError):
            words = ""
        return (
            f"the copy is not finished; expected all of its pictures; the command that began it goes on: "
            f"{COMMAND} root=… out={folder} {words}".rstrip()
        )
    return f"holds no {MANIFEST}, or a damaged one; expected a prepared copy; make it with {COMMAND} root=… out=…"


def check_pack(path: Path, size: int) -> None:
    """Raise DataError unless the pack is there and has its size."""
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected {size} bytes; {packs.MEND}") from None
    if found != size:
        raise DataError(f"{path}: has {found} bytes, expected {size}; {packs.MEND}")


def compare(folder: Path, index: Index, originals: Listing, split: str) -> None:
    """Raise DataError unless the pictures of ``split`` are, by names and sizes, those that ``index`` was made from."""
    of_split = f"{split}/"
    made_from = {
        name: size
        for name, size in zip(index.names, index.rows[:, SOURCE].tolist(), strict=True)
        if name.startswith(of_split)
    }
    there = {name: size for name, size in originals.sizes.items() if name.startswith(of_split)}
    if made_from == there:
        return
    odd = sorted(name for name in {*made_from, *there} if made_from.get(name) != there.get(name))
    more = f", and {len(odd) - 1} more" if len(odd) > 1 else ""
    raise DataError(
        f"{folder}: does not match its source {originals.root}: {told(odd[0], there, made_from)}{more}; expected the "
        f"pictures it was made from, by names and sizes; put them back, or prepare them anew: {COMMAND} "
        f"root={originals.root} out=…; data.root={folder} alone takes the copy for itself"
    )


def told(name: str, there: Mapping[str, int], made_from: Mapping[str, int]) -> str:
    """How picture ``name`` differs."""
    if name not in there:
        return f"{name} is gone"
    if name not in made_from:
        return f"{name} is new"
    return f"{name} has {there[name]} bytes (had {made_from[name]})"
