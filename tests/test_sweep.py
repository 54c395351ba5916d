"""The command from end to end: real training on real pictures, exit codes, what is left behind."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normbench import grid
from normbench.files import read_json
from normbench.preflight import Preflight
from normbench.records import Store, cell_status

Sweep = Callable[..., int]
Results = Callable[..., list[dict[str, str]]]

SHORT = ("data.limit=60", "epochs=1")
MY_NORM = """
import torch
from torch import nn

class Half(nn.Module):
    mixes_samples = False

    def __init__(self, num_features, factor=0.5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.factor = factor

    def forward(self, x):
        return x * self.factor * self.weight[:, None, None]

class Broken(nn.Module):
    def __init__(self, num_features):
        super().__init__()

    def forward(self, x):
        raise RuntimeError("this norm is broken")

class Infinite(Half):
    def forward(self, x):
        return super().forward(x) * float("inf")
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MY_NORM)
    return "mine.py"


def test_the_grid_leaves_rows_a_table_and_a_plot(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    assert sweep("norm=bn,bgn", "batch=4,8", *SHORT) == 0
    found = results()
    assert [(row["norm"], row["batch"], row["status"]) for row in found] == [
        ("bgn", "4", "ok"), ("bgn", "8", "ok"), ("bn", "4", "ok"), ("bn", "8", "ok"),
    ]  # fmt: skip
    for row in found:
        assert 0 <= float(row["top1"]) <= float(row["top5"]) <= 100
        assert float(row["train_seconds"]) > 0
        assert float(row["images_per_s"]) > 0
        assert float(row["peak_memory_mib"]) > 50
        assert (row["workers"], row["seed"], row["epochs"], row["split"]) == ("1", "0", "1", "test")
        assert row["data.limit"] == "60"
    folder = tmp_path / "runs" / "resnet8-digits"
    assert {"results.csv", "table.csv", "table.md", "plot.png", "plot.svg"} <= {p.name for p in folder.iterdir()}
    cell = folder / found[0]["cell_id"]
    names = {"config.yaml", "rows.jsonl", "result.json", "provenance.json", "correct.npy"}
    assert {p.name for p in cell.iterdir()} == names
    assert len((cell / "rows.jsonl").read_text().splitlines()) == 1
    result = json.loads((cell / "result.json").read_text())
    assert result["config"]["norm"] == "bgn"
    assert result["eval_count"] == 60
    assert not (tmp_path / "outputs").exists()
    assert not (tmp_path / "multirun").exists()


def test_finished_cells_are_not_run_again(sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("norm=bn", "batch=8", *SHORT) == 0
    (result,) = tmp_path.glob("runs/*/*/result.json")
    before = result.stat().st_mtime_ns
    capsys.readouterr()
    assert sweep("norm=bn", "batch=8,4", *SHORT) == 0
    assert result.stat().st_mtime_ns == before
    assert len(list(tmp_path.glob("runs/*/*/result.json"))) == 2
    assert sweep("norm=bn", "batch=8", *SHORT, "rerun=all") == 0
    assert result.stat().st_mtime_ns > before


def test_a_plan_runs_nothing_and_says_what_would(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("norm=bn", "batch=8", *SHORT) == 0
    capsys.readouterr()
    assert sweep("norm=bn", "batch=8,4", *SHORT, "plan=true") == 0
    said = capsys.readouterr().out
    assert "2 cells: 1 done; 1 new" in said
    assert len(list(tmp_path.glob("runs/*/*/result.json"))) == 1
    assert sweep("norm=bn", "batch=4", "name=other", "plan=true") == 0
    assert not (tmp_path / "runs" / "other").exists()


def test_a_cell_that_cannot_be_is_skipped_with_its_reason(
    sweep: Sweep, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    """ResNet-18 with the ImageNet stem ends at 1×1 on 8×8 digits: BatchNorm at batch 1 sees one value per channel."""
    grid = ("norm=bn,gn", "batch=1", "arch=resnet18", "arch.stem=imagenet", "steps=1", "data.limit=20")
    assert sweep(*grid, "plan=true") == 0
    assert "would be skipped: a single value per channel with batch=1 at site" in capsys.readouterr().out
    assert sweep(*grid) == 0
    found = {row["norm"]: row for row in results("resnet18-digits")}
    assert (found["bn"]["status"], found["gn"]["status"]) == ("skipped", "ok")
    assert "single value per channel" in found["bn"]["reason"]
    assert found["bn"]["top1"] == "NaN"
    assert sweep(*grid, "strict=true") == 1


def test_a_cell_that_raises_or_diverges_is_a_row_and_the_grid_goes_on(
    sweep: Sweep, results: Results, mine: str
) -> None:
    grid = (f"norm={mine}:Broken,{mine}:Infinite,{mine}:Half", "batch=8", *SHORT)
    assert sweep(*grid) == 1
    found = {row["norm"].rsplit(":")[-1]: row for row in results()}
    assert {name: row["status"] for name, row in found.items()} == {
        "Broken": "error", "Infinite": "diverged", "Half": "ok",
    }  # fmt: skip
    assert "this norm is broken" in found["Broken"]["reason"]
    assert "training loss is nan in epoch 1, step 1" in found["Infinite"]["reason"]
    assert found["Infinite"]["top1"] == "NaN"
    # Failed cells stand, and still count.
    assert sweep(*grid) == 1
    assert sweep(*grid, "rerun=failed") == 1


def test_a_rate_that_is_too_high_ends_as_diverged_with_the_last_finite_loss(sweep: Sweep, results: Results) -> None:
    assert sweep("norm=none", "batch=8", "lr=1e9", "data.limit=200", "epochs=2") == 1
    (row,) = results()
    assert row["status"] == "diverged"
    assert math.isfinite(float(row["last_loss"]))


def test_a_users_norm_is_known_by_its_files_content(sweep: Sweep, results: Results, mine: str, tmp_path: Path) -> None:
    assert sweep(f"norm={mine}:Half", "batch=8", *SHORT) == 0
    assert sweep(f"norm={mine}:Half", "norm.factor=0.25,0.5", "batch=8", *SHORT) == 0
    assert len(results()) == 3
    (tmp_path / mine).write_text(MY_NORM + "\n# changed\n")
    assert sweep(f"norm={mine}:Half", "batch=8", *SHORT) == 0
    assert len(results()) == 4


def test_seeds_are_never_averaged_over_a_file_that_changed(
    sweep: Sweep, results: Results, mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(f"norm={mine}:Half", "batch=8", "seed=0", *SHORT) == 0
    (tmp_path / mine).write_text(MY_NORM.replace("factor=0.5", "factor=0.1"))
    capsys.readouterr()
    assert sweep(f"norm={mine}:Half", "batch=8", "seed=1", *SHORT) == 0
    assert len({row["norm.source"] for row in results()}) == 2
    assert "(2)" not in capsys.readouterr().out


def test_what_a_config_of_ones_own_says_has_its_columns(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    (tmp_path / "my" / "norm").mkdir(parents=True)
    (tmp_path / "my" / "norm" / "gn4.yaml").write_text("name: gn\nnum_groups: 4\n")
    assert sweep("--config-dir", "my", "norm=gn4,gn", "batch=8", *SHORT) == 0
    assert {(row["norm"], row["norm.num_groups"]) for row in results()} == {("gn", "4"), ("gn", "")}


def test_a_network_and_pictures_of_ones_own_take_their_options(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("""
import numpy as np
from torch import nn

def net(num_classes, width=2):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, num_classes),
    )

def pictures(count=20):
    x = np.random.default_rng(0).integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)
    return x, np.arange(count) % 2, x, np.arange(count) % 2
""")
    grid = ("norm=bn,frn", "batch=4", "epochs=1", "arch=own.py:net", "data=own.py:pictures", "name=own")
    assert sweep(*grid, "arch.width=4,8", "data.options.count=12") == 0
    found = results("own")
    assert {row["arch.width"] for row in found} == {"4", "8"}
    assert {(row["status"], row["eval_count"], row["sites"]) for row in found} == {("ok", "12", "1")}
    assert sweep(*grid, "arch.widht=4") == 2


def test_a_network_that_looks_at_values_takes_drop_in_norms(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text("""
from torch import nn

class Looks(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, num_classes)

    def forward(self, x):
        x = self.bn(self.conv(x))
        return self.head(x.mean((2, 3)) if x.mean() > -1e9 else x.amax((2, 3)))
""")
    assert sweep("norm=bn,gn", "batch=4", "arch=look.py:Looks", "name=look", *SHORT) == 0
    assert [row["status"] for row in results("look")] == ["ok", "ok"]
    assert sweep("norm=frn", "batch=4", "arch=look.py:Looks", "name=look", *SHORT) == 2


def test_code_that_exits_ends_its_cell_and_not_the_grid(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    (tmp_path / "leave.py").write_text("""
import sys
from torch import nn

class Leave(nn.Module):
    def __init__(self, num_features):
        super().__init__()

    def forward(self, x):
        sys.exit(3)
""")
    assert sweep("norm=leave.py:Leave,gn", "batch=8", *SHORT) == 1
    assert {row["norm"]: row["status"] for row in results()} == {"leave.py:Leave": "error", "gn": "ok"}


def test_two_sweeps_at_once_run_each_cell_once(tmp_path: Path, results: Results) -> None:
    grid = ("norm=bn,gn", "batch=4,8", "epochs=2", "data.limit=100", "name=t")
    both = [command(tmp_path, *grid) for _ in range(2)]
    for process in both:
        process.communicate(timeout=120)
    found = results("t")
    assert [row["status"] for row in found] == ["ok"] * 4
    for row in found:
        cell = tmp_path / "runs" / "t" / row["cell_id"]
        assert read_json(cell / "provenance.json")["attempt"] == 1
        assert len((cell / "rows.jsonl").read_text().splitlines()) == 2


def test_ctrl_c_before_the_first_cell_is_130_too(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("normbench.launch.local.Local.run", stop)
    assert sweep("norm=bn", "batch=8", *SHORT) == 130
    assert "stopped" in capsys.readouterr().err


def test_a_plot_that_fails_costs_no_cell(
    sweep: Sweep, results: Results, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("no plot today")

    monkeypatch.setattr("normbench.report.plot.draw", fail)
    assert sweep("norm=bn", "batch=8", *SHORT) == 0
    assert "no plot today" in capsys.readouterr().err
    assert [row["status"] for row in results()] == ["ok"]


def test_virtual_workers_make_one_step_together(sweep: Sweep, results: Results) -> None:
    assert sweep("norm=bn", "batch=4", "workers=1,4", "data.limit=64", "epochs=1") == 0
    found = {row["workers"]: row for row in results()}
    assert float(found["4"]["lr"]) == pytest.approx(
        2 * float(found["1"]["lr"])
    )  # quick: by the root of batch × workers
    assert {workers: row["step"] for workers, row in found.items()} == {"1": "16", "4": "4"}


def test_deterministic_runs_agree_to_the_last_digit(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    def run(name: str) -> dict[str, str]:
        assert sweep("norm=bgn", "batch=8", "deterministic=true", *SHORT, f"name={name}") == 0
        (row,) = results(name)
        return {
            key: value for key, value in row.items() if key not in ("train_seconds", "images_per_s", "peak_memory_mib")
        }

    assert run("a") == run("b")


def save_pictures(folder: Path, splits: tuple[str, str], side: int, suffix: str) -> Path:
    """Two classes, six noisy pictures each, in class folders."""
    generator = np.random.default_rng(0)
    for split in splits:
        for label, name in enumerate(("n01", "n02")):
            (folder / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = generator.integers(0, 128, (side, side + number, 3)) + 120 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{number}.{suffix}")
    return folder


def test_imagenets_layout_is_streamed(sweep: Sweep, results: Results, tmp_path: Path) -> None:
    root = save_pictures(tmp_path / "imagenet", ("train", "val"), 70, "JPEG")
    grid = ("norm=bn,frn", "batch=2", "workers=2", "arch=resnet18", "data=imagenet", f"data.root={root}")
    assert sweep(*grid, "data.size=64", "data.loaders=0", "epochs=1") == 0
    found = results("resnet18-imagenet")
    assert [row["status"] for row in found] == ["ok", "ok"]
    assert {(row["step"], row["eval_count"], row["sites"]) for row in found} == {("3", "12", "20")}


@pytest.mark.parametrize("kind", ["folder", "tar.xz", "zip"])
def test_pictures_of_ones_own_need_no_code(sweep: Sweep, results: Results, tmp_path: Path, kind: str) -> None:
    root = save_pictures(tmp_path / "my pictures é", ("train", "test"), 16, "png")
    if kind != "folder":
        root = Path(shutil.make_archive(str(root), {"tar.xz": "xztar"}.get(kind, kind), root))
    assert sweep("norm=gn", "batch=4", "data=folder", f"data.root='{root}'", "data.size=16", "epochs=2") == 0
    (row,) = results("resnet8-folder")
    assert (row["status"], row["eval_count"], row["step"]) == ("ok", "12", "6")


BAD = [
    (["norm=bgnn"], "Did you mean 'bgn'?"),
    (["data=digit"], "Did you mean 'digits'?"),
    (["recipe=quik"], "Did you mean 'quick'?"),
    (["arch=resnet7"], "Did you mean"),
    (["norm=gn", "norm.num_group=4"], "Did you mean 'num_groups'?"),
    (["norm=gn", "norm.num_groups=5"], "does not split into num_groups=5"),
    (["norm=bgn", "norm.num_groups=0"], "num_groups=0"),
    (["norm=gn", "norm.num_groups=many"], "num_groups='many'"),
    (["norm=bn,gn", "norm.num_groups=4"], "option of bn"),
    (["batch=0"], "batch: got 0"),
    (["batch=-4"], "batch: got -4"),
    (["batch=two"], "batch: got 'two'"),
    (["batch=2,100000"], "a step takes 100000 pictures"),
    (["batch=512", "workers=4"], "batch=512 × workers=4: a step takes 2048 pictures"),
    (["epochs=0"], "epochs: got 0"),
    (["device=cuda:77"], "device=cuda:77"),
    (["device=gpu"], "device: got 'gpu'"),
    (["data=folder"], "data.root"),
    (["data=folder", "data.root=/nowhere/at/all"], "/nowhere/at/all"),
    (["data=imagenet", "data.root=/nowhere/at/all"], "/nowhere/at/all"),
    (["arch=inception_v3", "arch.size=64"], "75"),
    (["arch=alexnet", "arch.size=224"], "BatchNorm2d"),
    (["norm=nothere.py:X"], "nothere.py"),
    (["track=tensorboard"], "track"),
    (["rerun=some"], "rerun: got 'some'"),
    (["slots=0"], "slots: got 0"),
    (["ranks=many"], "ranks: got 'many'"),
    (["cell_timeout=0"], "cell_timeout: got 0"),
    (["name=a/b"], "name: got 'a/b'"),
    (["lr=nan"], "lr: got nan"),
    (["lr=inf"], "lr: got inf"),
    (["recipe.momentum=1.5"], "recipe.momentum: got 1.5"),
    (["seed=99999999999999999999"], "seed: got"),
    (["arch=vit_b_16"], "vit_b_16"),
    (["norm=BGN"], "Did you mean 'bgn'?"),
    (["seed=range(0)"], "got a range without a number"),
    (["norm=bn,"], "expected a value after the last comma"),
    (["norm bn"], "expected key=value"),
    (["--plan"], "Keys have no dashes: plan=…"),
    (["amp=yes"], "expected true or false"),
    (["data=imagenet", "data.root=/nowhere/at/all", "plan=true"], "/nowhere/at/all"),
    (["norm=bn,gn", "norm.num_groups=4", "batch=2"], "options.<norm>.num_groups=… to one alone"),
    (["--plann"], "unknown flag '--plann'"),
    (["--config-dir", "/nowhere/at/all", "norm=bn"], "no folder"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "words"), BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_bad_input_is_one_line_exit_code_2_and_nothing_run(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    assert sweep(*argv) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.startswith("normbench: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "runs").exists()


def test_a_store_that_cannot_be_written_is_said_before_anything_runs(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").write_text("a file in the way")
    assert sweep("norm=bn", "batch=8", *SHORT) == 2
    assert "runs: cannot write" in capsys.readouterr().err


def test_a_store_of_another_schema_is_left_as_it_is(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "t"
    folder.mkdir(parents=True)
    (folder / "store.json").write_text('{"schema": 0}')
    assert sweep("norm=bn", "batch=8", *SHORT, "name=t") == 2
    assert "schema 0" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["store.json"]


def test_help_names_the_groups_and_every_key(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("--help") == 0
    said = capsys.readouterr().out
    for word in ("norm=bgn batch=2,8,32", "resnet8", "digits", "chunk", "rerun", "--config-dir", "130"):
        assert word in said
    assert max(map(len, said.splitlines())) <= 120


def test_cfg_prints_the_cells_and_runs_nothing(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("norm=bn", "batch=2,8", "--cfg", "job") == 0
    said = capsys.readouterr().out
    assert said.count("\nbatch:") == 2
    assert said.count("name: bn") == 2
    assert not (tmp_path / "runs").exists()


def command(tmp_path: Path, *argv: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "normbench.sweep", *argv]
    return subprocess.Popen(
        words, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def cell_id_of(*overrides: str) -> str:
    (item,) = Preflight().plan(grid.read(overrides), Store("runs", "nothing"))
    return item.cell_id


STOPS = [
    (signal.SIGINT, "interrupted"),
    pytest.param(signal.SIGTERM, "interrupted", marks=pytest.mark.slow),
    (signal.SIGKILL, "killed"),
]


@pytest.mark.parametrize(("sign", "status"), STOPS)
def test_a_stopped_sweep_says_so_and_the_same_command_goes_on(
    tmp_path: Path,
    results: Results,
    sweep: Sweep,
    capsys: pytest.CaptureFixture[str],
    sign: signal.Signals,
    status: str,
) -> None:
    endless = ("norm=bn", "batch=2,32", "data.limit=200", "steps=100000", "name=t")
    folder = tmp_path / "runs" / "t"
    process = command(tmp_path, *endless)
    wait_for(lambda: any(path.stat().st_size for path in folder.glob("*/rows.jsonl")))
    process.send_signal(sign)
    _, err = process.communicate(timeout=60)
    if sign is signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 130, err
        assert "the same command goes on from here" in err
        assert "1 of the 2 cells of this sweep have not begun" in err
        assert [row["status"] for row in results("t")] == [status]
    (cell,) = folder.glob("bn-b2-*")
    wait_for(lambda: cell_status(cell) == status)  # what a killed sweep leaves follows it at once
    assert sweep(*endless, "plan=true") == 0
    assert f"{status}, to be run again" in capsys.readouterr().out
    # The same command goes on: a cell of few steps in place of the endless one, taken over from the dead process.
    short = cell.rename(cell.with_name(cell_id_of("norm=bn", "batch=2", "data.limit=200", "steps=3")))
    assert sweep("norm=bn", "batch=2", "data.limit=200", "steps=3", "name=t") == 0
    assert cell_status(short) == "ok"
    assert read_json(short / "provenance.json")["attempt"] == 2
