"""How far one running cell is, and how that is said: for the display, which shows many of them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any


class Progress:
    """How far a cell is. ``at``: epoch, step in it (both from 1), loss, images/s."""

    def __init__(self, label: str, epochs: int, steps_per_epoch: int) -> None:
        self.label, self.epochs, self.steps = label, max(epochs, 1), max(steps_per_epoch, 1)
        self.at: tuple[int, int, float, float] = (0, 0, math.nan, math.nan)
        self.top1 = math.nan
        self.news, self.told_at = "", 0.0  # of the last epoch, where lines stay; when a line was last given to it
        self._from: float | None = None
        self._start = time.monotonic()

    @property
    def share(self) -> float:
        """Part of the training steps that are done, 0 to 1."""
        epoch, step, *_ = self.at
        return min(1.0, max(0.0, ((epoch - 1) * self.steps + step) / (self.epochs * self.steps))) if epoch else 0.0

    @property
    def work(self) -> float:
        """The part of ``share`` done since ``begin``: a cell that goes on has the rest from before."""
        return max(0.0, self.share - (self._from or 0.0))

    @property
    def seconds(self) -> float:
        """Since ``begin``."""
        return time.monotonic() - self._start

    def expect(self, each: float) -> float:
        """Seconds to go, where a cell takes ``each`` on average; from a quarter on its own pace alone is believed.

        Before that it would mislead: most of the time went into reading data and compiling.
        """
        if not self.work:
            return each
        trust = min(1.0, 4 * self.work) ** 2
        return (each * (1 - trust) + self.seconds / self.work * trust) * (1 - self.share)

    def step(self, epoch: int, step: int, loss: float, images_per_s: float) -> None:
        self.at = (epoch, step, loss, images_per_s)
        if self._from is None:  # of a step it is not known whether earlier ones were told: from the epoch's start
            self._from = max(0, epoch - 1) / self.epochs

    def close_epoch(self, row: Mapping[str, Any]) -> None:
        """Take over the row of a finished epoch."""
        self.step(
            int(row.get("epoch") or self.at[0]), self.steps, number(row, "train_loss"), number(row, "images_per_s")
        )
        self.top1 = number(row, "top1")

    def told(self) -> str:
        """``epoch 4/10  loss 0.213  top-1 97.2  1520 images/s  ~0:12 left``, without what is not known."""
        return "  ".join(fact for fact in self.facts() if fact)

    def facts(self) -> tuple[str, str, str, str, str]:
        """The parts of ``told``, the first the most important; empty what is not known."""
        epoch, _, loss, images_per_s = self.at
        if not epoch:
            return ("starting", "", "", "", "")
        left = f"~{clock(self.seconds / self.work * (1 - self.share))} left" if self.work and self.share < 1 else ""
        return (
            f"epoch {epoch}/{self.epochs}",
            said("loss {:.3f}", loss),
            said("top-1 {:.1f}", self.top1),
            speed(images_per_s),
            left,
        )


def end(status: str, result: Mapping[str, Any]) -> str:
    """What follows the status of a finished cell: the measurements, or the reason."""
    if status != "ok":
        reason = " ".join(str(result.get("reason") or "").split())
        return f"  {reason}" if reason else ""
    parts = (
        said("top-1 {:.1f}", number(result, "top1")),
        said("{:.1f} s", number(result, "train_seconds")),
        speed(number(result, "images_per_s")),
    )
    return "".join(f"  {part}" for part in parts if part)


def clock(seconds: float) -> str:
    """``0:07``, ``12:40``, ``3:05:00``."""
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def number(row: Mapping[str, Any], key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def said(form: str, value: float) -> str:
    return "" if math.isnan(value) else form.format(value)


def speed(value: float) -> str:
    """Below ten with a decimal: a slow net is not at a standstill."""
    return said("{:.1f} images/s" if value < 9.95 else "{:.0f} images/s", value)
