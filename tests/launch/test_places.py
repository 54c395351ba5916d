"""Which GPUs and how many cores each slot gets."""

from __future__ import annotations

import pytest

from normbench import grid
from normbench.launch import child, places
from normbench.launch.order import Order
from normbench.launch.places import Places


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_gpus", lambda: ["4", "7"])
    monkeypatch.setattr(places, "_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.usefixtures("two_gpus")
def test_slots_get_gpus_of_their_own_then_shared_ones_in_turn() -> None:
    found = Places(slots=3, ranks=1)
    assert [found.environment(slot, "auto") for slot in range(3)] == [
        {"CUDA_VISIBLE_DEVICES": number} for number in ("4", "7", "4")
    ]
    assert Places(slots=2, ranks=2).environment(1, "cuda") == {"CUDA_VISIBLE_DEVICES": "4,7"}


@pytest.mark.usefixtures("two_gpus")
def test_a_device_that_was_chosen_and_a_cpu_are_left_alone() -> None:
    found = Places(slots=3, ranks=1)
    assert found.environment(0, "cuda:1") == found.environment(0, "cpu") == {}
    assert (found.gpus_of(0, "cuda:1"), found.gpus_of(0, "cpu")) == (["7"], [])
    assert Places(slots=1, ranks=1).environment(0, "auto") == {}


@pytest.mark.usefixtures("two_gpus")
def test_cores_are_shared_out_among_all_processes() -> None:
    assert (Places(2, 2).threads, Places(2, 2).loaders) == (2, 2)
    assert (Places(16, 1).threads, Places(16, 1).loaders) == (1, 1)
    assert (Places(1, 1).threads, Places(1, 1).loaders) == (None, None)


def test_a_cell_decodes_with_its_share_unless_it_says_otherwise() -> None:
    def loaders(*words: str) -> int | None:
        (item,) = grid.read(["norm=bn", *words]).cells
        order = Order("runs/t", "x", item.cell.nested(), {}, 0, 1, loaders=3)
        return child._here(order.cell, order).data.loaders

    assert (loaders(), loaders("data.loaders=0"), loaders("data.loaders=5")) == (3, 0, 5)
