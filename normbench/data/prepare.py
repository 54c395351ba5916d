"""Making a prepared copy: every picture resized and encoded anew, on all cores, packed; a killed one goes on."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, features

from normbench import __version__
from normbench.data import packs, prepared
from normbench.data.files import in_order
from normbench.data.listing import Listing, scan, sha256
from normbench.data.packs import Index, Loose, Names, pack_name
from normbench.data.picture import read
from normbench.data.prepared import MANIFEST, UNFINISHED, Recipe
from normbench.data.progress import Tick, shown
from normbench.data.tree import EXPECTED, SPLITS
from normbench.errors import ConfigError, DataError
from normbench.files import read_json, sweep_up, temporary, write_atomically, write_json

# Pictures of a pack: what is lost by a kill is at most one, and ImageNet is 160 files of 300 to 700 MB.
PER_PACK = 8192
# What a tar pads a member to, in bytes.
BLOCK = 512


@dataclass(frozen=True)
class Originals:
    """The pictures to be copied, of all wanted splits. root: what the names start from."""

    root: Path
    names: tuple[str, ...]
    sizes: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Of names and sizes."""
        return sha256("".join(f"{name} {size}\n" for name, size in zip(self.names, self.sizes, strict=True)))

    def part(self, number: int) -> Originals:
        """Those of pack ``number``."""
        own = slice(number * PER_PACK, (number + 1) * PER_PACK)
        return Originals(self.root, self.names[own], self.sizes[own])

    def shelf(self) -> Loose:
        return Loose(self.root, Names([*self.names]), self.sizes)


def prepare(root: Path, out: Path, recipe: Recipe, *, threads: int, progress: Tick | None = None) -> dict[str, Any]:
    """Copy the pictures below ``root`` into ``out`` by ``recipe``; the manifest. What is there already is not redone.

    Raises DataError for a source that is not whole (every picture is decoded), ConfigError for an ``out`` that holds
    something else.
    """
    found = originals(root, recipe.splits)
    begun = {"recipe": recipe.as_dict(), "made_by": versions()}
    if not begin(out, found, begun, recipe):
        return read_json(out / MANIFEST)
    sweep_up(out)
    with shown(f"preparing {len(found.names):,} pictures in {out}", progress) as tick:
        parts = list(pack_all(out, found, recipe, threads, tick))
    return finish(out, found, begun, parts)


def originals(root: Path, splits: Sequence[str]) -> Originals:
    """The pictures of ``splits`` below ``root``, in the order they are packed. Raises DataError for a wrong layout."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder (looked in {Path.cwd()}); {EXPECTED}; give root=…")
    if prepared.is_copy(root):
        raise DataError(f"{root}: is a prepared copy itself; expected the pictures as they were published")
    listings: list[Listing] = [scan(root, (split,), EXPECTED) for split in splits if split != "train"]
    listings = listings or [scan(root, SPLITS, EXPECTED)]
    names = [*listings[0].tree.train]
    if len(splits) > 1:
        names += [name for listing in listings for name in listing.tree.test]
    sizes = {name: size for listing in listings for name, size in listing.sizes.items()}
    return Originals(listings[0].root, tuple(names), np.array([sizes[name] for name in names], dtype=np.int64))


def begin(out: Path, found: Originals, begun: dict[str, Any], recipe: Recipe) -> bool:
    """Make ``out`` ready; False if the copy is there already, whole. Raises ConfigError if it holds anything else."""
    if (out / MANIFEST).exists():
        there, index = prepared.check(out)
        made_from = (index.names, index.rows[:, packs.SOURCE].tolist())
        if there == recipe and made_from == (found.names, found.sizes.tolist()):
            return False
        what = there.words() if there != recipe else "other pictures of the source"
        raise ConfigError(
            f"out={out}: holds a copy already ({what}); expected a new folder for {recipe.words()}; give another out=…"
        )
    if (out / UNFINISHED).exists():
        earlier = read_json(out / UNFINISHED)
        odd = [key for key in begun if earlier.get(key) != begun[key]]
        if odd:
            told = ", ".join(f"{key} {earlier.get(key)!r}, now {begun[key]!r}" for key in odd)
            raise ConfigError(
                f"out={out}: holds the beginning of another copy ({told}); expected the same recipe and versions "
                "to go on; give another out=… or delete it"
            )
        return True
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out={out}: is there and holds other things; expected a new or an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / UNFINISHED, begun)
    return True


def pack_all(out: Path, found: Originals, recipe: Recipe, threads: int, tick: Tick) -> Iterator[dict[str, Any]]:
    """What lies where in each pack; those that an earlier call left whole are not written again."""
    total = len(found.names)
    for number, start in enumerate(range(0, total, PER_PACK)):
        own = found.part(number)
        part = kept(out, number, own)
        if part is None:
            part = pack(out, number, own, recipe, threads, lambda done: tick((start + done) / total))  # noqa: B023
            write_json(note_of(out, number), part)
        yield part


def note_of(out: Path, number: int) -> Path:
    """Where it is noted what lies in pack ``number``, until the index is written."""
    return out / f"{pack_name(number)}.json"


def kept(out: Path, number: int, own: Originals) -> dict[str, Any] | None:
    """What an earlier call noted of pack ``number``; None unless both are whole and its pictures are still ``own``."""
    part, path = read_json(note_of(out, number)), out / pack_name(number)
    if not part or part.get("source") != own.fingerprint:
        return None
    return part if path.exists() and path.stat().st_size == part["bytes"] else None


def pack(
    out: Path, number: int, own: Originals, recipe: Recipe, threads: int, told: Callable[[int], None]
) -> dict[str, Any]:
    """Write pack ``number``, of the pictures ``own``, whole or not at all; what is noted of it.

    told: called with the number of pictures done.
    """
    shelf, path, rows, resized = own.shelf(), out / pack_name(number), [], 0

    def work(i: int) -> tuple[int, bytes | None]:
        data = shelf.read(i)
        return i, copied(data, shelf.where(i), recipe)

    with temporary(path) as beside:
        with beside.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for i, made in in_order(work, range(len(shelf)), threads):
                data = shelf.read(i) if made is None else made
                member = tarfile.TarInfo(shelf.names[i])  # of no time and no owner: the same bytes every time
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                start = tar.offset - -(-len(data) // BLOCK) * BLOCK
                rows.append([number, start, len(data), zlib.crc32(data), int(shelf.sizes[i])])
                resized += made is not None
                told(i + 1)
            tar.close()
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    return {"source": own.fingerprint, "rows": rows, "resized": resized, "bytes": path.stat().st_size}


def copied(data: bytes, name: str, recipe: Recipe) -> bytes | None:
    """The picture in ``data`` by ``recipe``; None if it is small enough to be copied as it is.

    Decoded in any case: a damaged picture is found here, and not in the middle of an epoch.
    """
    image = read(data, name)
    W, H = image.size
    if min(W, H) <= recipe.size:
        return None
    scale = recipe.size / min(W, H)
    image = image.resize((round(W * scale), round(H * scale)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=recipe.quality, subsampling="4:2:0")
    return out.getvalue()


def finish(out: Path, found: Originals, begun: dict[str, Any], parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write the index and, last, the manifest; the latter."""
    rows = np.array([row for part in parts for row in part["rows"]], dtype=np.int64)
    index = Index(out, found.names, rows)
    buffer = io.BytesIO()
    np.save(buffer, rows)
    write_atomically(out / packs.INDEX, buffer.getvalue())
    write_atomically(out / packs.NAMES, "\0".join(found.names).encode(errors="surrogateescape"))
    splits = Counter(name.split("/", 1)[0] for name in found.names)
    manifest = {
        **begun,
        "source": found.fingerprint,
        "pictures": dict(splits),
        "resized": sum(part["resized"] for part in parts),
        "source_bytes": int(found.sizes.sum()),
        "bytes": int(rows[:, packs.SIZE].sum()),
        "packs": [part["bytes"] for part in parts],
        "digest": index.digest,
    }
    write_json(out / MANIFEST, manifest)
    for number in range(len(parts)):
        note_of(out, number).unlink(missing_ok=True)
    (out / UNFINISHED).unlink(missing_ok=True)
    return manifest


def versions() -> dict[str, str | None]:
    """Of what decodes, resizes and encodes: others may give other bytes."""
    return {
        "normbench": __version__,
        "pillow": PIL.__version__,
        "jpeg": features.version("libjpeg_turbo") or features.version("jpg"),
    }
