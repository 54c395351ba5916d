"""Cells with auto on the digits, and what they ask, for the tests of its rule and of its measuring."""

from __future__ import annotations

import functools

from normbench import choices, grid
from normbench.cell import Cell
from normbench.choices import Question
from normbench.data import Description, describe

AUTO = ("memory_format=auto", "amp=auto")


def cell(*words: str) -> Cell:
    (found,) = grid.read(words).cells
    return found.cell


@functools.cache
def digits() -> Description:
    return describe(cell().data)


def question(*words: str) -> Question:
    """Which format, of a cell with these words."""
    found = choices.of_format(cell(*AUTO, *words), digits())
    assert found is not None
    return found
