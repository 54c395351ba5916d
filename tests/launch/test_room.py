"""More slots than memory holds are refused before anything runs; what may fit is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from normbench import grid, memory
from normbench.errors import ConfigError
from normbench.launch import places, room
from normbench.preflight import Planned, Preflight
from normbench.records import Store


def plan(*overrides: str) -> list[Planned]:
    return Preflight().plan(grid.read(overrides), Store("runs", "nothing"))


@pytest.fixture(scope="module")
def cells() -> list[Planned]:
    """Four alike, and one of 40 times the maps."""
    return plan("norm=bn", "arch=resnet20", "batch=32", "seed=range(4)") + plan(
        "norm=bn", "arch=resnet20", "batch=1280"
    )


def free(monkeypatch: pytest.MonkeyPatch, mib: float) -> None:
    monkeypatch.setattr(memory, "free_mib", lambda: mib)


def test_more_slots_than_memory_holds_are_an_error_that_says_how_many_fit(
    cells: list[Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    each = room.needed_mib(cells[0])
    free(monkeypatch, 2.5 * each)
    with pytest.raises(ConfigError, match=r"slots=4: the 4 cells .*bn-b32-s0.* 0\.1 GiB is free here.*; take slots=2"):
        room.check(cells[:4], 4, 1)
    free(monkeypatch, 0.5 * each)
    with pytest.raises(ConfigError, match="take slots=1"):
        room.check(cells[:4], 2, 1)


def test_what_may_fit_is_tried(cells: list[Planned], monkeypatch: pytest.MonkeyPatch) -> None:
    each = room.needed_mib(cells[0])
    free(monkeypatch, 4 * room.SURELY * each + 1)
    assert "may" not in (room.check(cells[:2], 4, 1) or "")  # two cells need two slots' room, however many there are
    warning = room.check(cells[:4], 4, 1)
    assert warning is not None
    assert "slots=3 has room" in warning
    free(monkeypatch, 1.0)
    assert room.check(cells, 1, 1) is None  # one alone: whatever becomes of it is its row
    assert room.check(cells[:1], 2, 1) is None


def test_a_large_cell_further_back_is_a_warning(cells: list[Planned], monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 2 * room.needed_mib(cells[0]))
    warning = room.check(cells, 2, 1)
    assert warning is not None
    assert "ends as oom; slots=1 has room" in warning


def test_the_estimate_follows_what_is_known_of_a_cell() -> None:
    def mib(*words: str) -> float:
        keys = dict(word.split("=") for word in ("norm=bn", "arch=resnet20", "batch=128", *words))
        (item,) = plan(*(f"{key}={value}" for key, value in keys.items()))
        return room.needed_mib(item)

    maps = room.ALIVE * 4 * 128 * 11776 / 2**20  # of ResNet-20 on digits: 7 × 16·8·8, 6 × 32·4·4, 6 × 64·2·2
    assert mib() == pytest.approx(room.OWN + maps, abs=6)
    assert mib("amp=true") == pytest.approx(room.OWN + maps / 2, abs=6)
    assert mib("batch=32", "workers=8") == pytest.approx(room.OWN + 2 * maps, abs=6)
    assert mib("batch=32", "workers=8", "chunk=2") == pytest.approx(room.OWN + maps / 2, abs=6)
    wide = mib("batch=2", "arch=resnet50", "recipe.optimizer=adamw")
    assert wide - mib("batch=2", "arch=resnet50") == pytest.approx(2 * 4 * 23.5e6 / 2**20, rel=0.02)


def test_ranks_share_a_step_and_each_has_its_own_weights(cells: list[Planned], monkeypatch: pytest.MonkeyPatch) -> None:
    (item,) = plan("norm=bn", "arch=resnet20", "batch=64", "workers=4")
    assert room.needed_mib(item, 2) - room.OWN < 0.6 * (room.needed_mib(item) - room.OWN)
    free(monkeypatch, 3 * room.needed_mib(item, 2))
    with pytest.raises(ConfigError, match="slots=2"):
        room.check([item, item], 2, 2)


def test_gpus_that_slots_share_have_room_of_their_own(cells: list[Planned], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_gpus", lambda: ["0", "1"])
    large = [cells[4]] * 4
    on_gpu = room.needed_mib(large[0]) - room.OWN
    free(monkeypatch, 1.0)  # the machine's own memory has no part in it

    def gpus(mib: float) -> Callable[..., object]:
        return lambda *_, **__: type("Done", (), {"stdout": str([mib * 2**20] * 2)})()

    monkeypatch.setattr(room.subprocess, "run", gpus(1.5 * on_gpu))
    with pytest.raises(ConfigError, match=r"slots=4.*on GPU 0.*take slots=2"):
        room.check(large, 4, 1)
    assert room.check(large[:2], 2, 1) is None
    monkeypatch.setattr(room.subprocess, "run", gpus(2.5 * on_gpu))
    assert room.check(large, 4, 1) is None
    on_the_cpu = [dataclasses.replace(item, cell=dataclasses.replace(item.cell, device="cpu")) for item in large]
    with pytest.raises(ConfigError, match="is free here"):
        room.check(on_the_cpu, 4, 1)


def test_it_is_said_before_anything_runs(
    sweep: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free(monkeypatch, 60.0)
    words = ("norm=bn", "batch=8", "seed=range(2)", "data.limit=20", "epochs=1")
    assert sweep(*words, "slots=2") == 2
    said = capsys.readouterr().err
    assert said.startswith("normbench: slots=2: the 2 cells that start together need about 0.1 GiB")
    assert "take slots=1" in said
    assert not (tmp_path / "runs").exists()
    assert sweep(*words) == 0
