"""Archives of each kind are read member by member; damaged ones are one line."""

from __future__ import annotations

import io
import tarfile
import zipfile

import pytest
from data_files import encoded, noise, one_line, pack, write_tree

from normbench.data import archive
from normbench.errors import DataError

KINDS = ("tar", "tar.xz", "tar.gz", "tgz", "zip")
PICTURE = encoded(noise(0, (4, 4)))


def read(path):
    shares, folders = [], []
    return dict(archive.members(path, shares.append, folders)), shares, folders


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_comes_out_once(tmp_path, kind):
    root = write_tree(tmp_path / "set")
    (root / "train/notes.txt").write_text("no picture")
    found, shares, _ = read(pack(root, kind, "set/"))
    assert found == {f"set/{p.relative_to(root)}": p.read_bytes() for p in root.rglob("*.png")}
    assert shares == sorted(shares)
    assert 0 < shares[-1] <= 1


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_empty_folders_are_seen(tmp_path, kind):
    path = tmp_path / f"set.{kind}"
    (tmp_path / "c").mkdir()
    if kind == "tar":
        with tarfile.open(path, "w") as tar:
            tar.add(tmp_path / "c", "train/c")
    else:
        with zipfile.ZipFile(path, "w") as packed:
            packed.mkdir("train/c")
    assert read(path)[2] == ["train/c"]


def test_names_that_point_elsewhere_are_never_written(tmp_path):
    path = tmp_path / "in" / "set.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as packed:
        for name in ("../../train/a/1.png", "/train/a/2.png", "./train//a/3.png", r"train\a\4.png"):
            packed.writestr(name, PICTURE)
    assert sorted(read(path)[0]) == [f"train/a/{i}.png" for i in range(1, 5)]
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def tar_with(path, *members: tuple[tarfile.TarInfo, bytes]):
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def linked(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.LNKTYPE, target
    return info, b""


def test_links_are_followed_inside_the_archive(tmp_path):
    path = tar_with(tmp_path / "set.tar", (tarfile.TarInfo("a/1.png"), PICTURE), linked("b/1.png", "a/1.png"))
    assert read(path)[0] == {"a/1.png": PICTURE, "b/1.png": PICTURE}


def test_links_out_of_the_archive_are_refused(tmp_path):
    path = tar_with(tmp_path / "set.tar", linked("b/1.png", "/etc/passwd"))
    with pytest.raises(DataError, match=r"b/1.png links to '/etc/passwd', which is not in the archive") as error:
        read(path)
    one_line(error.value)


@pytest.mark.parametrize("part", [0.02, 0.5, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_was_cut_short_is_one_line(tmp_path, kind, part):
    path = pack(write_tree(tmp_path / "set", train=8, shape=(12, 12, 3)), kind)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DataError, match=r"cannot be read to its end .*cut short or damaged") as error:
        read(path)
    one_line(error.value)


def test_a_tar_cut_between_two_members_is_noticed(tmp_path):
    path = tar_with(tmp_path / "set.tar", (tarfile.TarInfo("a/1.png"), PICTURE), (tarfile.TarInfo("a/2.png"), PICTURE))
    with tarfile.open(path) as tar:
        second = tar.getmembers()[1].offset
    path.write_bytes(path.read_bytes()[:second])
    with pytest.raises(DataError, match="no end-of-archive mark"):
        read(path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_archive_is_one_line(tmp_path, kind):
    path = tmp_path / f"set.{kind}"
    path.write_bytes(b"not found\n" * 200)
    with pytest.raises(DataError, match="expected a whole archive") as error:
        read(path)
    one_line(error.value)


def test_an_empty_file_is_said_to_be_empty(tmp_path):
    (tmp_path / "set.tar").touch()
    with pytest.raises(DataError, match=r"is empty \(0 bytes\)"):
        read(tmp_path / "set.tar")


def test_a_flipped_bit_in_a_zip_is_noticed(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("a/1.png", PICTURE)
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read to its end"):
        read(path)


def test_a_zip_with_a_password_is_one_line(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("a/1.png", PICTURE)
    data = bytearray(path.read_bytes())
    for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag "encrypted", in both headers
        data[data.index(sign) + place] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="expected a plain zip without a password"):
        read(path)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_member_too_large_for_a_picture_is_refused(tmp_path, monkeypatch, kind):
    path = pack(write_tree(tmp_path / "set"), kind)
    monkeypatch.setattr(archive, "LARGEST_MEMBER", 50)
    with pytest.raises(DataError, match=r"would unpack to .* take it out"):
        read(path)
