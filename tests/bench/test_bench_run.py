"""Tiny runs: the files that are left, and numbers that make sense. Nothing asserts how long anything took."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from normbench import norms
from normbench.bench import cases, contestants, units, unitsjob
from normbench.bench.cases import Case, Shape
from normbench.bench.contestants import EXTRA, Place
from normbench.bench.measure import Rule
from normbench.bench.statistics import BASELINE, COPY

Bench = Callable[..., int]
Rows = Callable[..., list[dict[str, str]]]
CPU = torch.device("cpu")
FILES = ["bench.csv", "bench.json", "bench.png", "bench.svg", "summary.md"]


@pytest.fixture(autouse=True)
def _two_small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {Shape(8, 4, 4, True): 3, Shape(16, 2, 2, False): 1}
    monkeypatch.setattr(cases, "site_counts", lambda network: counts)


ONE = "shapes=resnet50@32"


def test_a_run_leaves_its_files_and_sane_numbers(
    bench: Bench, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("norm=bn,gn,bgn", "batch=2,4", ONE) == 0
    assert sorted(path.name for path in (tmp_path / "bench").iterdir()) == FILES
    found = rows()
    names = [BASELINE, "bn", "gn", "bgn", *EXTRA, "nn.GroupNorm", "nn.InstanceNorm2d", COPY]
    assert list(dict.fromkeys(row["name"] for row in found)) == names
    assert len(found) == len(names) * 2 * 2 * 2 * 2
    for row in found:
        assert row["status"] == "ok", row
        assert float(row["q25_ms"]) <= float(row["median_ms"]) <= float(row["q75_ms"])
        assert 0 < float(row["ratio_q25"]) <= float(row["ratio"]) <= float(row["ratio_q75"])
        assert (int(row["rounds"]), row["sites"]) == (3, "3" if row["C"] == "8" else "1")
    assert {row["ratio"] for row in found if row["name"] == BASELINE} == {"1"}
    assert {row["copy_ratio"] for row in found if row["name"] == COPY} == {"1"}
    about = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert about["command"][:3] == ["python", "-m", "normbench.bench"]
    assert about["threads"] >= 1
    said = capsys.readouterr().out
    assert "largest at" in said
    assert "SyncBatchNorm" in said
    summary = (tmp_path / "bench" / "summary.md").read_text()
    assert "| bgn G=2C |" in summary
    assert "bfloat16 on a CPU: plain PyTorch" in summary
    assert "### channels_last bfloat16" in summary


def test_every_registered_normalizer_can_be_measured() -> None:
    case = Case(Shape(32, 4, 4, True), 4, "contiguous", "float32", {"net": 2})
    entrants = [contestants.baseline(), *contestants.of_registry(["all"])]
    found = units.measure(case, entrants, CPU, Rule(1, 0))
    assert set(norms.names()) <= {row.name for row in found}
    assert [row.reason for row in found if row.status != "ok"] == []


def test_units_share_statistics_over_the_batch_as_in_a_sweep() -> None:
    (cbn,) = contestants.of_registry(["cbn"])
    windows = [cbn.make(Place(N, 8, 4, 4, True, torch.float32)).window for N in (2, 8, 16)]
    assert windows == [8, 2, 1]


def test_units_are_timed_past_their_burn_in() -> None:
    made: list[nn.Module] = []

    def make(place: Place) -> nn.Module:
        made.append(norms.build("cbn", place.C, window=3))
        return made[-1]

    case = Case(Shape(8, 4, 4, True), 4, "contiguous", "float32", {"net": 1})
    entrants = [contestants.baseline(), contestants.Contestant("cbn", "norm", make)]
    assert [row.status for row in units.measure(case, entrants, CPU, Rule(1, 0))] == ["ok"] * 3
    assert made[0].burnin_steps() == 0


def test_a_shape_of_two_networks_is_measured_once_and_told_for_both(bench: Bench, rows: Rows) -> None:
    """Both then have the very same times."""
    assert bench("shapes=resnet50@32,resnet50@224", "norm=bn", "batch=2", "dtype=float32", "peers=false") == 0
    found = rows()
    times = {
        network: [row["median_ms"] for row in found if row["network"] == network]
        for network in ("resnet50@32", "resnet50@224")
    }
    assert times["resnet50@32"] == times["resnet50@224"]


def test_shapes_that_are_too_large_are_rows_with_a_reason(
    bench: Bench, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = cases.ALIVE * 2 * 16 * 2 * 2 * 4 / 2**20
    assert bench("norm=bn", "batch=2", "dtype=float32", f"limit_mib={limit}", "peers=false") == 0
    states = {(row["C"], row["status"]) for row in rows()}
    assert states == {("16", "ok"), ("8", "skipped")}
    assert "2 cases left out" in capsys.readouterr().out


def test_nothing_that_fits_is_exit_1(bench: Bench, rows: Rows) -> None:
    assert bench(ONE, "norm=bn", "batch=2", "limit_mib=0") == 1
    assert {row["status"] for row in rows()} == {"skipped"}


def test_a_unit_that_fails_is_a_row_with_its_reason(bench: Bench, rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Broken(nn.Module):\n"
        "    def __init__(self, num_features):\n"
        "        super().__init__()\n"
        "    def forward(self, x):\n"
        "        raise RuntimeError('no such shape')\n"
    )
    assert (
        bench(ONE, "norm=bn,mine.py:Broken", "batch=2", "dtype=float32", "memory_format=contiguous", "peers=false") == 0
    )
    broken = [row for row in rows() if row["name"] == "mine.py:Broken"]
    assert {(row["status"], row["reason"]) for row in broken} == {("failed", "RuntimeError: no such shape")}
    assert {row["median_ms"] for row in broken} == {""}
    assert "mine.py:Broken: 2 cases failed" in (tmp_path / "bench" / "summary.md").read_text()


def test_a_stop_keeps_what_was_measured(
    bench: Bench, rows: Rows, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured = units.measure
    turns = iter([True, True])

    def stops(*args: object) -> list:
        if not next(turns, False):
            raise KeyboardInterrupt
        return measured(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(unitsjob.units, "measure", stops)
    assert bench(ONE, "norm=bn", "batch=2,4", "peers=false") == 130
    assert len(rows()) == 2 * 3
    assert "stopped before all was measured" in (tmp_path / "bench" / "summary.md").read_text()


def test_a_plot_that_cannot_be_drawn_costs_nothing_else(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(unitsjob.plot, "draw", broken)
    assert bench(ONE, "norm=bn", "batch=2", "dtype=float32", "peers=false") == 0
    assert (tmp_path / "bench" / "summary.md").exists()
    assert "no ink" in capsys.readouterr().out


def test_whole_steps_beside_the_untouched_network(bench: Bench, rows: Rows, tmp_path: Path) -> None:
    assert bench("arch=resnet8", "batch=2", "norm=bn,frn", "out=here") == 0
    found = rows("steps.csv", "here")
    assert [row["name"] for row in found[:3]] == [BASELINE, "bn", "frn"]
    assert len(found) == 3 * 2 * 2
    assert {(row["network"], row["sites"], row["status"], row["reason"]) for row in found} == {
        ("resnet8@32", "7", "ok", "")
    }
    assert {row["ratio"] for row in found if row["name"] == BASELINE} == {"1"}
    assert (tmp_path / "here" / "steps.png").stat().st_size > 10_000
    assert "| frn | resnet8@32 | 2 | channels_last | bfloat16 |" in (tmp_path / "here" / "steps.md").read_text()


def test_peers_compute_what_they_are_named_for() -> None:
    place = Place(4, 48, 4, 4, True, torch.float32)
    found, left = contestants.peers(CPU)
    made = {peer.label: peer.make(place) for peer in found}
    assert made["nn.GroupNorm"][0].num_groups == 16
    assert isinstance(made["nn.GroupNorm"][1], nn.ReLU)
    alone = {peer.label: peer.make(Place(4, 48, 4, 4, False, torch.bfloat16)) for peer in found}
    assert isinstance(alone["nn.GroupNorm"], nn.GroupNorm)
    assert alone["nn.GroupNorm"].weight.dtype == torch.bfloat16
    assert any("SyncBatchNorm" in line for line in left)


def test_timm_stands_in_the_table_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Frn(nn.Module):
        def __init__(self, num_features: int, apply_act: bool = True) -> None:
            super().__init__()
            self.apply_act = apply_act

    layers = ModuleType("timm.layers")
    layers.FilterResponseNormTlu2d = Frn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", ModuleType("timm"))
    monkeypatch.setitem(sys.modules, "timm.layers", layers)
    found, left = contestants.peers(CPU)
    (frn,) = (peer for peer in found if peer.label == "timm FRN")
    assert frn.make(Place(4, 8, 4, 4, False, torch.float32)).apply_act is False
    assert not any("timm" in line for line in left)


def test_a_forecast_grows_with_the_case() -> None:
    forecast = units.Forecast([contestants.baseline()], CPU, Rule(3, 0))
    small, large = (Case(Shape(64, side, side, True), 8, "contiguous", "float32", {}) for side in (4, 256))
    assert 0 < forecast.seconds(small) < forecast.seconds(large)


BROKEN = """
from torch import nn

class Narrow(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.weight = nn.Parameter(__import__("torch").ones(1))

    def forward(self, x):
        return x[:, :1] * self.weight
"""


def test_a_normalizer_that_could_not_be_measured_anywhere_is_no_success(bench: Bench, tmp_path: Path) -> None:
    """That the baseline and a copy were is not what was asked for."""
    path = tmp_path / "mine.py"
    path.write_text(BROKEN)
    assert bench(f"norm={path}:Narrow", "batch=2", "dtype=float32", "peers=false", ONE) == 1
    assert bench(f"norm=bn,{path}:Narrow", "batch=2", "dtype=float32", "peers=false", ONE) == 0
