"""The loader's ceiling beside the network's appetite: a tiny run, the verdicts, bad commands."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from normbench.bench.__main__ import main
from normbench.bench.loader import read
from normbench.bench.loaderjob import Row, verdict


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label in ("ant", "bee", "cat"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(generator.integers(0, 256, (40, 30, 3), dtype=np.uint8))
                picture.save(tmp_path / "set" / split / label / f"{i}.JPEG")
    return tmp_path / "set"


@pytest.mark.parametrize("loaders", ["0", pytest.param("0,2", marks=pytest.mark.slow)])
def test_a_tiny_run_leaves_its_files(root, tmp_path, capsys, loaders):
    words = (f"data.root={root}", "arch=resnet8", "arch.size=16", "batch=4", f"loaders={loaders}", "rounds=2")
    assert main(["loader", *words, "seconds=0", "device=cpu"]) == 0
    with (tmp_path / "bench/loader.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["processes"] for row in rows] == [*loaders.split(","), ""]
    assert [row["what"] for row in rows] == ["loader"] * len(loaders.split(",")) + ["resnet8"]
    assert all(float(row["images_per_s"]) > 0 and row["batch"] == "4" and row["rounds"] == "2" for row in rows)
    table = (tmp_path / "bench/loader.md").read_text()
    assert "| loader, 0 processes |" in table
    assert "share the cores" in table
    told = json.loads((tmp_path / "bench/loader.json").read_text())
    assert told["verdict"] in table
    assert told["torch"]
    assert table in capsys.readouterr().out


def rows(network, **loaders):
    found = [Row("loader", int(key[1:]), 4, rate, rate, rate, 3) for key, rate in loaders.items()]
    return [*found, Row("resnet8", None, 4, network, network, network, 3)]


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (rows(150, p0=100, p1=90, p2=180, p4=300), "data.loaders=2 gives 180 and is enough: from there on"),
        (
            rows(1000, p1=100, p4=320),
            "the limit: 320 images/s at most, of 4 processes; 10 would be enough",
        ),
        (rows(100, p0=100), "without processes the loader takes turns with it: 50 images/s"),
        (rows(100, p0=200, p1=90), "the loader is the limit: 90 images/s at most, of 1 process; 2 would be enough"),
    ],
)
def test_the_verdict(measured, expected):
    assert expected in verdict(measured, 8)


def test_what_is_not_given_is_resnet50_on_imagenet():
    settings = read(["data.root=x", "loaders=3"])
    assert settings is not None
    assert (settings.cell.arch.name, settings.cell.data.name, settings.loaders) == ("resnet50", "imagenet", (3,))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loaders=1,x"], "loaders: got 'x', expected a whole number"),
        (["loaders=1,1"], "in which a value stands twice"),
        (["loaders=1", "loaders=2"], "loaders: given twice"),
        (["lodaers=1"], "unknown key 'lodaers'. Did you mean 'loaders'?"),
        (["slots=2"], "unknown key 'slots'"),
        (["data.loaders=2"], "give the numbers as loaders=1,2,4"),
        (["batch=2,4"], "got 2 cells; expected one value for each key but loaders"),
        (["rounds=0"], "rounds: got '0'"),
        (["seconds=-1"], "seconds: got '-1'"),
        (["out="], "out: got nothing"),
        (["data=digits"], "its pictures are held in memory"),
        (["data.root=/nowhere/at/all"], "/nowhere/at/all: no such folder"),
        (["data.root=ROOT", "batch=64"], "a step takes 64 pictures, data=imagenet has 12"),
        (["data.root=ROOT", "data.decoder=cuda", "device=cpu", "batch=2"], "data.decoder=cuda with device=cpu"),
    ],
)
def test_a_bad_command_is_one_line(root, words, message, capsys):
    assert main(["loader", *(word.replace("ROOT", str(root)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help(capsys):
    assert main(["loader", "--help"]) == 0
    assert "loaders=0,1,2,4" in capsys.readouterr().out
