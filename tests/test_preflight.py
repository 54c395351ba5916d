"""Checked before anything runs: skips with reasons, sites that do not fit, what is run again, and the time it takes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from normbench import grid
from normbench.errors import ConfigError, InputError
from normbench.preflight import Planned, Preflight, check_machine, check_ranks, will_run
from normbench.records import Store


def plan(tmp_path: Path, *overrides: str) -> list[Planned]:
    return Preflight().plan(grid.read(overrides), Store(tmp_path, "t"))


def reasons(tmp_path: Path, *overrides: str) -> dict[str, str | None]:
    return {item.cell.label(): item.skip for item in plan(tmp_path, *overrides)}


@pytest.mark.parametrize(
    ("overrides", "skipped"),
    [
        (["norm=bn", "batch=1"], False),  # resnet8 on 8×8 digits ends at 2×2
        (["norm=bn", "batch=1", "arch=resnet18", "arch.stem=imagenet"], True),
        (["norm=bn", "batch=2", "arch=resnet18", "arch.stem=imagenet"], False),
        (["norm=ln", "batch=1", "arch=resnet18", "arch.stem=imagenet"], False),
        (["norm=bgn", "norm.num_groups=1", "batch=1", "arch=resnet18", "arch.stem=imagenet"], False),
        (["norm=bgn", "norm.num_groups=512", "norm.group_fit=gcd", "batch=1", "arch=resnet18", "arch.stem=imagenet"],
         True),
    ],
)  # fmt: skip
def test_a_single_value_per_statistic_is_a_skip(tmp_path: Path, overrides: list[str], skipped: bool) -> None:
    (item,) = plan(tmp_path, *overrides)
    assert (item.skip is not None) == skipped
    if skipped:
        assert "single value per channel" in str(item.skip)
        assert "batch=1" in str(item.skip)


def test_a_single_value_of_all_workers_is_counted_over_them(tmp_path: Path) -> None:
    there = ["norm=syncbn", "batch=1", "arch=resnet18", "arch.stem=imagenet"]
    assert "single value per channel with batch=1" in str(plan(tmp_path, *there)[0].skip)
    assert [item.skip for item in plan(tmp_path, *there, "workers=2,4")] == [None, None]


def test_a_backward_that_keeps_state_is_not_compiled(tmp_path: Path) -> None:
    found = plan(tmp_path, "norm=bn,mabn,online", "compile=true")
    assert [item.cell.norm.name for item in found if item.skip is None] == ["bn"]
    assert all("compile=true" in str(item.skip) for item in found if item.skip is not None)
    assert [item.skip for item in plan(tmp_path, "norm=bn,mabn,online")] == [None] * 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["graph=true", "device=cpu"], "graph=true: .*takes a CUDA device, and this is cpu; take graph=auto"),
        (["graph=true", "compile=true"], "graph=true and compile=true are both given"),
        (["graph=often"], "graph: got 'often', expected auto, true or false"),
    ],
)
def test_a_graph_that_cannot_be_is_an_error(tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(tmp_path, "norm=bn", *words)


def test_what_a_cuda_device_would_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normbench.machine.device", lambda _: torch.device("cuda"))
    bn, mbn = plan(tmp_path, "norm=bn,mbn", "graph=true")
    assert bn.skip is None
    assert str(mbn.skip).startswith("mbn: graph=true cannot be: its second forward")
    check_machine(bn.cell)
    with pytest.raises(ConfigError, match=r"graph=true: its ranks wait .* \(ranks=2\); take graph=auto"):
        check_ranks(bn.cell, 2)


def test_to_compile_takes_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"compile=true: found none of g\+\+, clang\+\+.*apt install g\+\+"):
        plan(tmp_path, "norm=bn", "compile=true")
    (tmp_path / "my-c++").touch(mode=0o755)
    monkeypatch.setenv("CXX", "my-c++")
    assert plan(tmp_path, "norm=bn", "compile=true")[0].skip is None


def test_a_graph_that_cannot_be_changed_as_wanted_is_an_error(tmp_path: Path) -> None:
    """The pre-activated network has one placement of ic's units, the other all three."""
    placements = "norm.placement=relu_ic_conv,ic_conv_relu,conv_relu_ic"
    assert len(plan(tmp_path, "norm=ic", placements)) == 3
    assert len(plan(tmp_path, "norm=ic", "arch=preresnet20")) == 1
    with pytest.raises(InputError, match="got placement=ic_conv_relu for a network whose norms stand before"):
        plan(tmp_path, "norm=ic", "arch=preresnet20", placements)


def test_workers_that_are_run_together_count_in_the_size_of_a_cell(tmp_path: Path) -> None:
    bn, syncbn = plan(tmp_path, "norm=bn,syncbn", "batch=4", "workers=8", "chunk=2")
    assert syncbn.values == 4 * bn.values


def test_a_group_number_that_does_not_fit_names_the_site(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"site bn1 \(16×8×8\): gn: num_features=16 does not split into num_groups=32"
    ):
        plan(tmp_path, "norm=gn", "norm.num_groups=32")
    assert plan(tmp_path, "norm=gn", "norm.num_groups=32", "norm.group_fit=gcd")[0].skip is None


def test_batches_are_held_against_the_training_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="take batch=359 or less"):
        plan(tmp_path, "norm=bn", "batch=400", "workers=4")


def test_the_same_cell_asked_for_twice_is_one(tmp_path: Path) -> None:
    assert len(plan(tmp_path, "norm=bn", "epochs=null,6")) == 1


def test_labels_tell_the_cells_of_a_grid_apart(tmp_path: Path) -> None:
    found = plan(tmp_path, "norm=bn,gn", "options.gn.num_groups=4,8", "arch=resnet8,resnet20", "lr=0.1")
    assert [item.label for item in found] == [
        "bn-b32-s0 resnet8", "bn-b32-s0 resnet20", "gn-b32-s0 resnet8 num_groups=4", "gn-b32-s0 resnet8 num_groups=8",
        "gn-b32-s0 resnet20 num_groups=4", "gn-b32-s0 resnet20 num_groups=8",
    ]  # fmt: skip


def test_what_rerun_lets_run(tmp_path: Path) -> None:
    store = Store(tmp_path, "t")
    store.create()
    states = ("ok", "diverged", "interrupted", "error")
    items = plan(tmp_path, "norm=bn", "seed=range(5)")
    for item, status in zip(items, states, strict=False):
        attempt = store.begin(item.cell_id, {}, item.known)
        assert attempt is not None
        attempt.finish({"status": status, **item.known})
    again = plan(tmp_path, "norm=bn", "seed=range(5)")
    assert [item.status for item in again] == [*states, "new"]
    chosen = {rerun: [item.status for item in will_run(again, rerun)] for rerun in ("none", "failed", "all")}
    assert chosen == {
        "none": ["interrupted", "new"],
        "failed": ["diverged", "interrupted", "error", "new"],
        "all": ["ok", "diverged", "interrupted", "error", "new"],
    }


def test_two_thousand_cells_are_planned_in_ten_seconds(tmp_path: Path) -> None:
    begun = time.process_time()
    found = plan(tmp_path, "norm=bn,gn,bgn,frn,ln", "batch=2,4,8,16,32,64,128,256", "seed=range(50)", "arch=resnet20")
    assert len(found) == 2000
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("arch", ["resnet50", "inception_v3"])
def test_large_networks_are_checked_without_building_them(tmp_path: Path, arch: str) -> None:
    begun = time.process_time()
    found = plan(tmp_path, "norm=bn,gn,bgn,frn", "batch=2,8", f"arch={arch}")
    assert [item.skip for item in found] == [None] * 8
    assert time.process_time() - begun < 10
