"""The largest batch: found in few tries, and proven by real steps on both sides of the limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from normbench.bench import trial
from normbench.bench.fit import largest
from normbench.bench.fitjob import Finder, Question
from normbench.bench.settings import FitSettings
from normbench.bench.statistics import BASELINE

Bench = Callable[..., int]
Rows = Callable[..., list[dict[str, str]]]
CPU = torch.device("cpu")


def line(batch: int) -> float:
    return 300 + 7 * batch


def test_a_line_is_followed_to_the_limit_in_few_tries() -> None:
    found = largest(line, 300 + 7 * 1234.5, most=10**6)
    assert (found.batch, found.peak, found.next_peak) == (1234, line(1234), line(1235))
    assert found.each == pytest.approx(7)
    assert not found.capped
    assert len(found.tried) <= 8
    again = largest(line, 300 + 7 * 1234.5, most=10**6, first=1230, each=7)
    assert (again.batch, len(again.tried)) == (1234, 3)


@pytest.mark.parametrize(
    "peak",
    [
        lambda batch: 300 + 7 * batch + 40 * math.sin(batch),  # an allocator's gaps
        lambda batch: 300 + batch**1.5,
        lambda batch: 300 + 64 * (batch // 64),  # in blocks
        lambda batch: 100 if batch <= 321 else math.inf,  # a GPU that tells nothing until it is full
    ],
)
def test_whatever_memory_does_both_neighbours_are_measured(peak: Callable[[int], float]) -> None:
    found = largest(peak, 2000, most=10**5)
    assert found.tried[found.batch] <= 2000 < found.tried[found.batch + 1]
    assert len(found.tried) <= 40
    assert max(found.tried) <= 8 * 2000


def test_ends_of_the_search() -> None:
    capped = largest(line, 10**6, most=64)
    assert (capped.batch, capped.capped, math.isnan(capped.next_peak)) == (64, True, True)
    none = largest(line, 10, most=64, least=2)
    assert (none.batch, none.next_peak) == (0, line(2))
    assert math.isnan(none.peak)
    assert largest(line, 308, most=64).batch == 1


@pytest.fixture
def by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries cost nothing: 300 MiB, 1 for each picture of a step and 9 for each in a forward."""

    def peak(asked: trial.Try, device: torch.device) -> float:
        if asked.checked.cell.norm.name == "gn" and asked.checked.cell.workers > 1:
            raise trial.FailedTry("RuntimeError: no such thing")
        forward = asked.checked.cell.batch * asked.checked.at_once
        return 300 + asked.checked.cell.images + 9 * forward

    monkeypatch.setattr(trial, "peak_mib", peak)


@pytest.mark.usefixtures("by_line")
def test_a_run_leaves_its_files(bench: Bench, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("fit", "arch=resnet8", "norm=bn,gn", "limit_mib=1111", "workers=4", "most=80") == 0
    assert sorted(path.name for path in (tmp_path / "bench").iterdir()) == ["fit.csv", "fit.json", "fit.md"]
    found = rows("fit.csv")
    key = ("name", "workers", "chunk", "at_once", "batch", "images", "peak_mib", "next_mib", "capped", "status")
    assert [tuple(row[k] for k in key) for row in found] == [
        (BASELINE, "1", "1", "1", "80", "80", "1100", "", "true", "ok"),
        ("bn", "1", "1", "1", "80", "80", "1100", "", "true", "ok"),
        ("bn", "4", "4", "4", "20", "80", "1100", "", "true", "ok"),
        ("bn", "4", "1", "1", "62", "248", "1106", "1119", "false", "ok"),
        ("gn", "1", "1", "1", "80", "80", "1100", "", "true", "ok"),
        ("gn", "4", "4", "0", "0", "0", "", "", "false", "failed"),
        ("gn", "4", "1", "0", "0", "0", "", "", "false", "failed"),
    ]
    said = capsys.readouterr().out
    assert "4 workers, chunk=1: batch" in said
    assert "80 or more" in said
    assert "gn, 4 workers, chunk=1: failed: RuntimeError: no such thing" in said


@pytest.mark.usefixtures("by_line")
def test_nothing_that_fits_is_exit_1_and_a_stop_keeps_what_there_is(
    bench: Bench, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench("fit", "arch=resnet8", "norm=bn", "limit_mib=100", "workers=1") == 1
    assert [row["status"] for row in rows("fit.csv")] == ["skipped"] * 2
    assert rows("fit.csv")[1]["reason"] == "batch=1 takes 310 MiB"

    def stops(asked: trial.Try, device: torch.device) -> float:
        if asked.checked.cell.workers > 1:
            raise KeyboardInterrupt
        return line(asked.checked.cell.batch)

    monkeypatch.setattr(trial, "peak_mib", stops)
    assert bench("fit", "arch=resnet8", "norm=bn", "limit_mib=400", "most=2", "out=stopped") == 130
    assert [row["name"] for row in rows("fit.csv", "stopped")] == [BASELINE, "bn"]


def test_real_steps_prove_the_answer() -> None:
    """Steps of the batch that is named stay within the limit, those of the next do not; chunk saves what it should."""
    finder = Finder(FitSettings(arch="resnet8", size=128, most=4), CPU)
    alone = Question("none", 1, None)
    finder.limit = finder._peak(alone, 2) + 7  # a picture takes 14 and more, whatever torch itself takes here
    found, _ = finder.answer(alone, None)
    assert (found.batch, found.capped) == (2, False)
    assert found.peak <= finder.limit < finder._peak(alone, 3)
    together, chunked = (finder._peak(Question("none", 4, chunk), 1) for chunk in (None, 1))
    assert chunked < finder.limit < together


@pytest.mark.slow
def test_compiling_kernels_is_no_part_of_a_peak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NORMBENCH_CACHE", str(tmp_path))
    finder, question = Finder(FitSettings(arch="resnet8", size=32), CPU), Question("none", 1, None)
    asked = trial.Try(finder.checked(question, 2), False, None, 4000.0)
    first, compiled = trial._tried(asked, CPU)
    assert compiled
    again = trial.peak_mib(asked, CPU)
    assert again < first - 20
    monkeypatch.setenv("NORMBENCH_CACHE", str(tmp_path / "empty"))
    asked = trial.Try(finder.checked(question, 2), False, None, 4000.0)
    assert trial.peak_mib(asked, CPU) < first - 20


def test_a_try_that_cannot_have_its_memory_is_no_error_and_one_that_fails_is() -> None:
    finder = Finder(FitSettings(arch="resnet8", size=224, limit_mib=1.0), CPU)
    question = Question("none", 1, None)
    assert finder._peak(question, 20000) == math.inf
    asked = trial.Try(finder.checked(question, 2), False, None, 1.0)
    broken = replace(asked, checked=replace(asked.checked, description=replace(finder.pictures, height=None)))
    with pytest.raises(trial.FailedTry, match="Error"):
        trial.peak_mib(broken, CPU)


@pytest.mark.gpu
def test_on_a_gpu_memory_is_tried_until_it_runs_out() -> None:
    finder = Finder(FitSettings(arch="resnet8", size=224, limit_mib=1500.0), torch.device("cuda"))
    found, _ = finder.answer(Question("bn", 1, None), None)
    assert 0 < found.batch < finder.most
    assert found.peak <= 1500
    assert found.next_peak == math.inf
