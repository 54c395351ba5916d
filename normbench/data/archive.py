"""Reading .tar, .tar.xz, .tar.gz, .tgz and .zip member by member, from the open archive; nothing is unpacked."""

from __future__ import annotations

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from normbench.data.picture import is_picture, one_line
from normbench.errors import DataError

SUFFIXES = (".tar", ".tar.xz", ".tar.gz", ".tgz", ".zip")

# A single picture file beyond this is damage or malice; it would be read into memory whole.
LARGEST_MEMBER = 2**30

BROKEN = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError)


def is_archive(path: Path) -> bool:
    """Is ``path`` an archive by its suffix?"""
    return path.name.lower().endswith(SUFFIXES)


def members(path: Path, tick: Callable[[float], None], folders: list[str]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every picture in the archive, in its order; names are cleaned of leading "/", "." and "..".

    tick: called with the share read so far.  folders: filled with the archive's own folder entries.
    Raises DataError for an archive that is empty, cut short, damaged or encrypted.
    """
    if not path.stat().st_size:
        raise DataError(f"{path}: is empty (0 bytes); expected an archive of pictures; fetch or copy it again")
    reader = from_zip if path.name.lower().endswith(".zip") else from_tar
    try:
        with path.open("rb") as file:
            yield from reader(file, path, tick, folders)
    except BROKEN as error:
        raise DataError(
            f"{path}: cannot be read to its end ({one_line(error)}); expected a whole archive "
            f"({', '.join(SUFFIXES)}); it is cut short or damaged: fetch or copy it again"
        ) from error


def from_tar(
    file: IO[bytes], path: Path, tick: Callable[[float], None], folders: list[str]
) -> Iterator[tuple[str, bytes]]:
    """The pictures of a tar, compressed or not. Links are followed inside the archive."""
    total = path.stat().st_size
    with tarfile.open(fileobj=file, mode="r:*") as tar:
        for member in tar:
            name = cleaned(member.name)
            if member.isdir():
                folders.append(name)
            elif is_picture(name):
                yield name, tar_content(tar, member, path)
            tick(file.tell() / total)
        if tar.fileobj is file and not closed_properly(file):
            raise tarfile.ReadError("no end-of-archive mark")


def tar_content(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    """The bytes of ``member``, or of what it links to."""
    check_size(member.name, member.size, path)
    try:
        opened = tar.extractfile(member)
    except KeyError:
        opened = None
    if opened is None:
        raise DataError(
            f"{path}: {member.name} links to {member.linkname!r}, which is not in the archive; expected a file; "
            "pack the file itself"
        )
    return opened.read()


def closed_properly(file: IO[bytes]) -> bool:
    """Does an uncompressed tar end in a block of zeros? (Compressed ones are checked by their own format.)"""
    file.seek(-min(512, file.seek(0, os.SEEK_END)), os.SEEK_END)
    return not any(file.read(512))


def from_zip(
    file: IO[bytes], path: Path, tick: Callable[[float], None], folders: list[str]
) -> Iterator[tuple[str, bytes]]:
    """The pictures of a zip."""
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        for done, info in enumerate(infos, 1):
            name = cleaned(info.filename)
            if info.is_dir():
                folders.append(name)
            elif is_picture(name):
                yield name, zip_content(archive, info, path)
            tick(done / len(infos))


def zip_content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    """The bytes of ``info``. Raises DataError if it is encrypted or packed in a way that Python cannot read."""
    check_size(info.filename, info.file_size, path)
    try:
        return archive.read(info)
    except RuntimeError as error:
        raise DataError(
            f"{path}: {info.filename} cannot be unpacked ({one_line(error)}); expected a plain zip without a password; "
            "pack it again"
        ) from error


def check_size(name: str, size: int, path: Path) -> None:
    """Raise DataError for a member too large to be a picture."""
    if size > LARGEST_MEMBER:
        raise DataError(
            f"{path}: {name} would unpack to {size / 2**30:.1f} GiB; expected a picture of at most "
            f"{LARGEST_MEMBER / 2**30:.0f} GiB; take it out of the archive"
        )


def cleaned(name: str) -> str:
    """``name`` with plain separators and without the parts that point elsewhere; nothing is ever written under it."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))
