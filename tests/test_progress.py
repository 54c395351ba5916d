"""How far a cell is, and how that is said."""

import time

import pytest

from normbench.progress import Progress, clock

ROW = {"epoch": 1, "train_loss": 0.213, "top1": 97.2, "images_per_s": 1520.0}


@pytest.fixture
def clockwork(monkeypatch):
    """A clock that goes on only when it is told to: ``clockwork(seconds)``."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def goes_on(seconds):
        now[0] += seconds

    return goes_on


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (11100, "3:05:00")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_before_the_first_step_a_cell_is_starting():
    assert Progress("x", 2, 10).told() == "starting"


def test_a_cell_that_is_done_has_no_time_left():
    cell = Progress("x", 2, 10)
    cell.close_epoch(ROW)
    assert "left" in cell.told()
    cell.close_epoch({**ROW, "epoch": 2})
    assert cell.told() == "epoch 2/2  loss 0.213  top-1 97.2  1520 images/s"


def test_a_cell_that_goes_on_is_judged_by_what_it_did_since(clockwork):
    cell = Progress("x", 100, 10)
    clockwork(30)
    cell.step(91, 5, 0.1, 1000.0)
    assert cell.told().endswith("~9:30 left")
    cell.close_epoch({**ROW, "epoch": 91})
    assert cell.share == pytest.approx(0.91)
    assert cell.work == pytest.approx(0.01)
    assert cell.told().endswith("~4:30 left")


def test_a_young_cell_is_expected_to_take_as_long_as_others(clockwork):
    cell = Progress("x", 1, 1000)
    clockwork(10)
    assert cell.expect(60.0) == 60.0, "it has not begun to train"
    cell.step(1, 1, 0.1, 1000.0)
    assert cell.expect(60.0) == pytest.approx(60, abs=1), "and not 10 s for each of 999 steps"
    cell.step(1, 500, 0.1, 1000.0)
    assert cell.expect(60.0) == pytest.approx(10), "its own pace"


def test_numbers_that_make_no_sense_are_no_obstacle():
    cell = Progress("x", 0, 0)
    cell.step(0, 0, float("inf"), float("nan"))
    assert cell.told() == "starting"
    cell.step(5, 5, float("inf"), float("nan"))
    assert cell.told() == "epoch 5/1  loss inf"
    assert 0 <= cell.work <= cell.share == 1
