"""python -m normbench.paper from end to end: real training under a reduced protocol, what is missing, the list."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from normbench import grid
from normbench.paper import cost
from normbench.paper.__main__ import main

Say = Callable[[], str]
TINY = ("arch=resnet8", "data=digits", "data.limit=40")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Say:
    return lambda: " ".join(capsys.readouterr().out.split())


def test_a_table_is_run_resumed_and_compared(tmp_path: Path, said: Say) -> None:
    words = ["run", "hysts", "norm=bn,gn", "batch=8", *TINY, "scale=0.005"]
    assert main(words) == 0
    out = said()
    assert "(scale 0.005)" in out
    assert "other pictures: data digits (cifar10)" in out
    assert "gn 8 × 1 –" in out
    assert "not published; reduced [1]" in out
    folder = tmp_path / "runs" / "paper-hysts-scale0.005"
    assert {"paper.csv", "paper.md", "paper.png", "paper.svg", "results.csv"} <= {
        path.name for path in folder.iterdir()
    }
    with (folder / "paper.csv").open() as file:
        found = {(row["line"], row["batch"]): row for row in csv.DictReader(file)}
    ours = found["BN, cosine", "8"]
    assert float(ours["difference"]) == pytest.approx(float(ours["ours"]) - 92.30)
    assert "scale 0.005" in ours["reduced"]
    assert found["BN, cosine", "16"]["state"] == "not run"
    results = sorted(folder.glob("*/result.json"))
    assert len(results) == 3
    assert json.loads(results[0].read_text())["config"]["epochs"] == 1
    command = json.loads((results[0].parent / "provenance.json").read_text())["command"]
    assert command[:4] == ["python", "-m", "normbench.sweep", "paper=hysts"]

    files = {path: path.read_bytes() for path in folder.glob("paper.*")}
    before = [path.stat().st_mtime_ns for path in results]
    assert main(words) == 0
    assert [path.stat().st_mtime_ns for path in results] == before
    assert main(["show", "hysts", "scale=0.005"]) == 0
    assert {path: path.read_bytes() for path in folder.glob("paper.*")} == files


def test_a_table_without_its_imagenet_says_where_it_belongs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "gn"]) == 2
    error = capsys.readouterr().err
    assert "data/imagenet/train/<wnid>/*.JPEG and data/imagenet/val/<wnid>/*.JPEG" in error
    assert "nothing was run" in error
    assert main(["run", "gn", "data.root=elsewhere"]) == 2
    assert "elsewhere/train/<wnid>" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_showing_runs_nothing(tmp_path: Path, said: Say) -> None:
    assert main(["show", "bgn"]) == 0
    assert "BGN 2 × 8 76.096 – – not run" in said()
    assert main(["run", "gn", "plan=true"]) == 0
    assert "13 cells: 13 new" in said()
    assert list(tmp_path.iterdir()) == []


def test_comparing_needs_no_torch() -> None:
    code = (
        "import sys; from normbench.paper.__main__ import main; main(['show', 'bgn']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum", "gn"], "Did you mean 'run'"),
        (["run"], "run: got no table, expected one of bgn"),
        (["show", "gm"], "Did you mean 'gn'"),
        (["run", "gn", "scale=2"], "scale: got 2"),
        (["list", "measure=no"], "measure: got 'no', expected true or false"),
    ],
)
def test_bad_commands_are_answered(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_help_names_the_tables(said: Say) -> None:
    assert main(["--help"]) == 0
    assert "Tables: bgn, bkn," in said()


def test_the_list_tells_what_a_table_needs_and_costs(said: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_step_seconds", lambda cell, description, images, device: 0.01 * images)
    assert main(["list", "gn", "online-cifar10", "device=cpu"]) == 0
    out = said()
    assert "13 runs, 13 published numbers" in out
    assert "imagenet: not there; expected data/imagenet/train/<wnid>/*.JPEG" in out
    assert "cifar10: fetched at the first run, to data/cifar10" in out
    assert "years on this CPU" not in out
    assert out.count("on this CPU (") == 2
    assert main(["list", "gn", "measure=false"]) == 0
    assert "cost not measured" in said()


def test_a_cost_is_steps_times_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []

    def step(cell: object, description: object, images: int, device: object) -> float:
        timed.append(images)
        return 0.002 + 0.001 * images

    monkeypatch.setattr(cost, "_step_seconds", step)
    cells = [item.cell for item in grid.read(["paper=hysts", "batch=128"]).cells]
    found = cost.seconds(cells, torch.device("cpu"))
    steps, images = 200 * (50_000 // 128), 200 * 10_000
    assert found == pytest.approx(2 * (steps * (0.002 + 0.128) + images * 0.001 / 3))
    assert timed == [8, 64]
    assert cost.seconds(cells, torch.device("cpu")) == found
    assert timed == [8, 64]  # from the cache


def test_real_steps_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "SECONDS", 1e-9)  # two steps of each size
    (item, *_) = grid.read(["paper=online-cifar10", "norm=bn", "arch=resnet8"]).cells
    pace = cost.of(item.cell, cost.described(item.cell), torch.device("cpu"))
    assert 0 < pace.step(8) < pace.step(512)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.5, "about 0.5 seconds"), (89, "about 89 seconds"), (150, "about 2.5 minutes"), (3600 * 47, "about 47 hours"),
        (86400 * 3, "about 3 days"), (86400 * 300, "about 9.9 months"), (31557600 * 406, "about 406 years"),
    ],
)  # fmt: skip
def test_costs_in_plain_words(seconds: float, words: str) -> None:
    assert cost.words(seconds) == words
