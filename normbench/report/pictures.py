"""All pictures of a sweep: which there are, what each shows, and their files."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from normbench.report import cost, curves, heat, histories, plot
from normbench.report.frame import Spot

# In the order in which they are to be seen.
SHOWN = {
    plot.NAME: "top-1 against batch",
    heat.NAME: "heat map norm × batch",
    curves.NAME: "learning curves",
    cost.NAME: "top-1 against the time of a step and memory",
}
KINDS = ("png", "svg")


def draw(
    folder: Path,
    title: str,
    frame: pd.DataFrame,
    spots: list[Spot],
    told: Sequence[str],
    epochs: Mapping[str, Sequence[Any]],
) -> dict[str, bytes]:
    """From file name (``plot.png``) to bytes, in the order of ``SHOWN``; pictures with nothing to show are left out.

    folder: the sweep's.  frame, spots: of ``report.frame``.  told: settings, for the heads (``notes.settings``).
    epochs: columns of all epochs, among them ``cell_id epoch top1 train_loss`` (``epochs.read``).
    """
    settings = list(told)
    past = histories.collect(frame, epochs)
    made = {
        plot.NAME: plot.draw(title, spots, settings),
        heat.NAME: heat.draw(title, spots, settings),
        curves.NAME: curves.draw(title, spots, past, settings),
        cost.NAME: cost.draw(title, folder, frame, spots, settings),
    }
    return {f"{name}.{kind}": data for name, pictures in made.items() for kind, data in pictures.items()}


def sweep(folder: Path, kept: Mapping[str, bytes]) -> None:
    """Delete the pictures of an earlier report that this one has not."""
    for name in (f"{name}.{kind}" for name in SHOWN for kind in KINDS):
        if name not in kept:
            with contextlib.suppress(OSError):
                (folder / name).unlink()
