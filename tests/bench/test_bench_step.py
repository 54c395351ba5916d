"""Tiny runs of ``step``: both loops do the same work, nobody works in another's turn, the files are left."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from normbench.bench import breakdown, loops, ours, stepplot, steptable
from normbench.bench.plainloop import PlainLoop, Source
from normbench.bench.plainprocess import PlainProcess
from normbench.bench.statistics import BASELINE
from normbench.data import open_pictures
from normbench.errors import ConfigError

Bench = Callable[..., int]
Rows = Callable[..., list[dict[str, str]]]
CPU = torch.device("cpu")
SMALL = ("step", "arch=resnet8", "data=digits", "rounds=2")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "SLICE", 0.0)
    monkeypatch.setattr(loops, "WARM_UP", 1)


@pytest.fixture
def checked() -> ours.Checked:
    return ours.Checks()(ours.cell("resnet8", "bn", 4))


def test_a_run_leaves_its_files_and_sane_numbers(
    bench: Bench, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nclass Mine(nn.BatchNorm2d):\n    mixes_samples = True\n    least_batch = 2\n"
    )
    assert bench(*SMALL, "norm=bn,mine.py:Mine", "batch=1,2", "workers=2", "loaders=0") == 0
    assert sorted(path.name for path in (tmp_path / "bench").iterdir()) == [
        f"step.{end}" for end in ("csv", "json", "md", "png", "svg")
    ]
    found = rows("step.csv")
    assert [row["name"] for row in found] == [loops.PLAIN, BASELINE, "bn", "mine.py:Mine"] * 2
    assert [row["status"] for row in found] == ["ok"] * 3 + ["skipped"] + ["ok"] * 4
    assert [(row["batch"], row["workers"], row["images"]) for row in found[4:]] == [("4", "1", "4")] * 2 + [
        ("2", "2", "4")
    ] * 2
    # A user's class that mixes pictures and is told of no workers runs them one by one.
    assert [row["forwards"] for row in found[4:]] == ["1", "1", "1", "2"]
    for row in found:
        if row["status"] == "ok":
            assert float(row["q25_ms"]) <= float(row["median_ms"]) <= float(row["q75_ms"])
            assert sum(float(row[part]) for part in breakdown.PARTS) == pytest.approx(1, abs=1e-3)
            assert min(float(row[part]) for part in ("convolution", "norm", "optimizer")) > 0
    assert {row["over_plain"] for row in found if row["name"] == loops.PLAIN} == {"1"}
    assert {row["ratio"] for row in found if row["name"] == BASELINE} == {"1"}
    assert found[4]["loaders"] == "0"
    table = (tmp_path / "bench" / "step.md").read_text()
    assert "workers one by one, 2 forwards a step: mine.py:Mine" in table
    assert "mine.py:Mine at 1 × 2: skipped: mine.py:Mine needs batch=2 or more" in table
    assert json.loads((tmp_path / "bench" / "step.json").read_text())["command"][3] == "step"
    assert "× plain loop" in capsys.readouterr().out


def test_a_stop_keeps_what_was_measured_and_ends_the_loaders(
    bench: Bench, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, made = PlainProcess.parts, list[list[int]]()

    def stops(loop: PlainProcess) -> dict[str, float]:
        own = children(loop.process.pid)
        assert own
        made.append([loop.process.pid or 0, *own])
        if len(made) == 2:
            raise KeyboardInterrupt
        return measured(loop)

    monkeypatch.setattr(PlainProcess, "parts", stops)
    assert bench(*SMALL, "norm=bn", "batch=1,2", "loaders=1") == 130
    assert [row["loaders"] for row in rows("step.csv")] == ["1", "0", "0"]  # the plain loop alone has any
    for process in itertools.chain(*made):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def children(process: int | None) -> list[int]:
    """The processes that a process has started (Linux)."""
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_both_loops_are_fed_the_same_pictures() -> None:
    """Not cropped or mirrored, every picture of ours is one of the plain loop's, with its label."""
    cell = ours.cell("resnet8", "bn", 4, data="digits")
    cell = replace(cell, data=replace(cell.data, pad=0, flip=False))
    source = Source(cell, None)
    pictures = open_pictures(cell.data, size=None, device=CPU)
    order = pictures.draws(cell.seed, 1)[0]  # type: ignore[attr-defined]
    x, y = next(iter(pictures.train(seed=cell.seed, epoch=1, batch=4)))
    for k in range(4):
        assert torch.allclose(source.transform(source.x[order[k]]), x[k], atol=1e-5)
        assert source.y[order[k]] == y[k]


def test_loaders_stand_still_outside_of_their_turn(checked: ours.Checked) -> None:
    net = ours.untouched(checked, CPU)
    loop = PlainLoop(checked.cell, net, Source(checked.cell, None), CPU, 4, 2)
    try:
        assert len(loop.processes) == 2
        with loop.turn():
            loop.train(loop.fetch())
        while set(map(_state, loop.processes)) != {"T"}:
            time.sleep(0.01)
        with loop.turn():
            loop.train(loop.fetch())
    finally:
        loop.close()


def _state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def test_pictures_that_are_streamed_are_refused(monkeypatch: pytest.MonkeyPatch, checked: ours.Checked) -> None:
    monkeypatch.setattr("normbench.bench.plainloop.find", lambda options: object())
    with pytest.raises(ConfigError, match="expected a set that is"):
        Source(checked.cell, None)


def test_backward_operators_belong_to_what_their_forward_was_called_by() -> None:
    def event(name: str, time: float, caller: SimpleNamespace | None = None, number: int = -1) -> SimpleNamespace:
        return SimpleNamespace(name=name, self_cpu_time_total=time, cpu_parent=caller, sequence_nr=number)

    step = event(breakdown.STEP, 1)
    data = event(f"{breakdown.MARK}data", 2, step)
    norm = event(f"{breakdown.MARK}norm", 4, step)
    mean = event("aten::mean", 8, norm, number=7)
    added = event("aten::add", 16, step, number=8)
    node = event(f"{breakdown.NODE}: MeanBackward1", 32, step, number=7)
    expand = event("aten::expand", 64, node)
    other = event(f"{breakdown.NODE}: AddBackward0", 128, step, number=8)
    conv = event("aten::convolution_backward", 256, event(f"{breakdown.NODE}: ConvolutionBackward0", 0, step, 9))
    update = event("aten::_fused_sgd_", 512, event("Optimizer.step#SGD.step", 0, step))
    events = [step, data, norm, mean, added, node, expand, other, conv, update]
    assert breakdown.by_operator(events) == {
        "data": 2, "convolution": 256, "norm": 4 + 8 + 32 + 64, "optimizer": 512, "other": 16 + 128, "python": 1,
    }  # fmt: skip


@pytest.mark.parametrize("batches", [(2,), (2, 8)])
def test_a_plot_of_whatever_was_measured(batches: tuple[int, ...]) -> None:
    """One batch or several; not profiled; the plain loop failed, so that there is nothing to compare with."""
    row = loops.LoopRow("bn", "norm", "resnet8", "noise", 2, 4, 8, 1, "contiguous", "none", 0, median_ms=8.0)
    over = {"images_per_s": 100.0, "over_plain": 2.0, "over_plain_q25": 1.9, "over_plain_q75": 2.2, "ratio": 1.0}
    alone = [replace(row, batch=batch, images=4 * batch, images_per_s=50.0 * batch) for batch in batches]
    for rows in (alone, [replace(one, **over) for one in alone], [*alone, replace(row, median_ms=float("nan"))]):
        found = stepplot.draw(rows, "here")
        assert found["png"].startswith(b"\x89PNG")
        assert b"</svg>" in found["svg"]
        steptable.make(rows, [], "here").markdown()


def test_kernels_are_told_apart_by_name() -> None:
    names = {
        "multi_tensor_apply_kernel<FusedSgdMathFunctor>": "optimizer",
        "sm90_xmma_fprop_implicit_gemm_f32": "convolution",
        "cudnn::bn_fw_tr_1C11_kernel_NCHW": "norm",
        "at::native::vectorized_gather_kernel": "data",
        "at::native::elementwise_kernel<add>": "other",
    }
    events = [
        SimpleNamespace(name=name, device_type=breakdown.DeviceType.CUDA, self_device_time_total=1.0) for name in names
    ]
    events.append(SimpleNamespace(name="x", device_type=breakdown.DeviceType.CPU, self_device_time_total=9.0))
    found = breakdown.by_kernel(events)
    assert {part for part in names.values() if found[part] != 1} == set()
    assert found["python"] == 0
