"""The cache is believed only when it is whole and of the same source."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from data_files import noise

from normbench import files
from normbench.data import arrays, cache

COUNTS = {"decodes": 0}


def decode():
    COUNTS["decodes"] += 1
    x, y = noise(0, (9, 3, 5, 4)), np.arange(9) % 3
    return arrays.make(("ä", "b", "c"), (x, y), (x[:5], y[:5]))


@pytest.fixture
def kept(tmp_path):
    COUNTS["decodes"] = 0
    source = tmp_path / "set.tar.xz"

    def call(signature="s", size=None, **kwargs):
        return cache.kept(source, signature, size, decode, **kwargs)

    return call


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_the_second_time_nothing_is_decoded(kept, cache_folder):
    first, second = kept(), kept()
    assert COUNTS["decodes"] == 1
    assert only_file(cache_folder).name.startswith("set-")
    for name in cache.PARTS:
        np.testing.assert_array_equal(getattr(second, name), getattr(first, name))
        assert getattr(second, name).dtype == getattr(first, name).dtype
    for name in ("classes", "mean", "std", "fingerprint"):
        assert getattr(second, name) == getattr(first, name)


def test_a_changed_source_is_decoded_again_in_place_of_the_old(kept, cache_folder):
    kept("old")
    kept("new")
    assert COUNTS["decodes"] == 2
    only_file(cache_folder)
    kept("new")
    assert COUNTS["decodes"] == 2


def test_every_size_has_a_file_of_its_own(kept, cache_folder):
    kept(size=None)
    kept(size=5)
    assert len(list(cache_folder.iterdir())) == 2


@pytest.mark.parametrize("place", [0, 60, 130, 140, 200, -1, -200, -600])
def test_a_flipped_byte_is_noticed(kept, cache_folder, place):
    right = kept()
    file = only_file(cache_folder)
    data = bytearray(file.read_bytes())
    data[place] ^= 8
    file.write_bytes(data)
    again = kept()
    np.testing.assert_array_equal(again.train_x, right.train_x)
    assert (again.mean, again.classes) == (right.mean, right.classes)
    # The last bytes of a .npy header are spaces: nothing is lost with one.
    assert COUNTS["decodes"] == 2 or place in (60,)


@pytest.mark.parametrize("length", [0, 10, 100, 140, 300, -1])
def test_a_truncated_file_is_made_again(kept, cache_folder, length):
    kept()
    file = only_file(cache_folder)
    file.write_bytes(file.read_bytes()[:length])
    kept()
    assert COUNTS["decodes"] == 2
    kept()
    assert COUNTS["decodes"] == 2


def test_describing_does_not_read_the_pixels(kept, cache_folder):
    kept()
    file = only_file(cache_folder)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    kept(verify=False)
    assert COUNTS["decodes"] == 1
    kept()
    assert COUNTS["decodes"] == 2


def test_what_is_written_into_the_arrays_does_not_reach_the_file(kept):
    kept()
    kept().train_x[:] = 0
    assert kept().train_x.any()
    assert COUNTS["decodes"] == 1


def test_a_folder_that_cannot_be_written_is_said_once(kept, cache_folder, capsys):
    cache_folder.write_text("a file where the folder should be")
    kept()
    kept()
    assert COUNTS["decodes"] == 2
    assert capsys.readouterr().err.count("decoded pictures cannot be kept here") == 1


def test_a_write_that_fails_leaves_nothing(kept, cache_folder, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write", full)
    kept()
    assert list(cache_folder.iterdir()) == []


def test_two_at_once_are_safe(kept, cache_folder):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: kept().fingerprint, range(8)))
    assert len(set(found)) == 1
    only_file(cache_folder)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"NORMBENCH_CACHE": "/x/y"}, "/x/y"),
        ({"XDG_CACHE_HOME": "/z"}, "/z/normbench"),
        ({"HOME": "/home/me"}, "/home/me/.cache/normbench"),
    ],
)
def test_where_the_cache_is(monkeypatch, variables, expected):
    for name in ("NORMBENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert os.fspath(files.cache_folder()) == expected
