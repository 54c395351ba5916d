"""A question's candidates timed, and what was measured kept for this machine."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from normbench import choices, grid, machine, steptime
from normbench.cell import Cell
from normbench.choices import Question
from normbench.data import Description, describe
from normbench.files import cache_folder, read_json

AUTO = ("memory_format=auto", "amp=auto")


def cell(*words: str) -> Cell:
    (found,) = grid.read(words).cells
    return found.cell


@pytest.fixture(scope="module")
def digits() -> Description:
    return describe(cell().data)


def question(digits: Description, *words: str) -> Question:
    found = choices.of_format(cell(*AUTO, *words), digits)
    assert found is not None
    return found


def test_candidates_are_timed_on_the_untouched_network(digits: Description, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steptime, "SECONDS", 0.0)
    threads = torch.get_num_threads()
    found = steptime.measure(cell(*AUTO, "batch=4", "workers=2", "chunk=1"), digits, question(digits, "batch=8"))
    assert set(found.times_ms) == {choices.label(setting) for setting in question(digits).candidates()}
    assert all(ms > 0 for ms in found.times_ms.values())
    assert found.where["threads"] == threads
    assert torch.get_num_threads() == threads


def test_what_cannot_be_measured_is_the_plainest_with_the_reason(digits: Description) -> None:
    """BatchNorm refuses a single value per channel."""
    one = cell(*AUTO, "batch=1", "arch=resnet18", "arch.stem=imagenet", "norm=gn")
    asked = choices.of_format(one, digits)
    assert asked is not None
    found = steptime.measure(one, digits, asked)
    assert found.values == choices.PLAIN
    assert "more than 1 value per channel" in found.why
    assert choices.Question.read(asked.plain()) == dataclasses.replace(asked, side=(8, 8))


def test_it_is_kept_by_machine_and_threads_and_a_damaged_file_is_said(
    digits: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steptime, "SECONDS", 0.0)
    small, asked = cell(*AUTO, "batch=2"), question(digits, "batch=2")
    first, complaint = steptime.answer(small, digits, asked)
    assert not complaint
    (path,) = (cache_folder() / "choices").iterdir()
    monkeypatch.setattr(steptime, "measure", lambda *_: pytest.fail("it was measured again"))
    assert steptime.answer(small, digits, asked) == (first, "")
    monkeypatch.undo()
    monkeypatch.setattr(steptime, "SECONDS", 0.0)
    monkeypatch.setenv("NORMBENCH_CACHE", str(path.parent.parent))
    path.write_text("{")
    again, complaint = steptime.answer(small, digits, asked)
    assert "it is measured again" in complaint
    assert read_json(path)["times_ms"] == again.times_ms
    with machine.numerics(deterministic=False, values=1, exactly=2):
        steptime.answer(small, digits, asked)
    assert len(list(path.parent.iterdir())) == 2
