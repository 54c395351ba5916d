"""A question's candidates timed, and what was measured kept for this machine."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from auto_questions import AUTO, cell, digits, question

from normbench import choices, machine, steptime
from normbench.files import cache_folder, read_json


def test_candidates_are_timed_on_the_untouched_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steptime, "SECONDS", 0.0)
    threads = torch.get_num_threads()
    found = steptime.measure(cell(*AUTO, "batch=4", "workers=2", "chunk=1"), digits(), question("batch=8"))
    assert set(found.times_ms) == {choices.label(setting) for setting in question().candidates()}
    assert all(ms > 0 for ms in found.times_ms.values())
    assert found.where["threads"] == threads
    assert torch.get_num_threads() == threads


def test_what_times_threads_leaves_their_number_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steptime, "SECONDS", 0.0)
    asked, before = choices.of_threads(cell("batch=2"), digits(), most=3), torch.get_num_threads()
    assert asked is not None
    assert [setting["threads"] for setting in asked.candidates()] == [1, 2, 3]
    assert len(steptime.measure(cell("batch=2"), digits(), asked).times_ms) == 3
    assert torch.get_num_threads() == before


def test_what_cannot_be_measured_is_the_plainest_with_the_reason() -> None:
    """BatchNorm refuses a single value per channel."""
    one = cell(*AUTO, "batch=1", "arch=resnet18", "arch.stem=imagenet", "norm=gn")
    asked = choices.of_format(one, digits())
    assert asked is not None
    found = steptime.measure(one, digits(), asked)
    assert found.values == choices.PLAIN
    assert "more than 1 value per channel" in found.why
    assert choices.Question.read(asked.plain()) == dataclasses.replace(asked, side=(8, 8))


def test_it_is_kept_by_machine_and_threads_and_a_damaged_file_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steptime, "SECONDS", 0.0)
    small, asked = cell(*AUTO, "batch=2"), question("batch=2")
    first, complaint = steptime.answer(small, digits(), asked)
    assert not complaint
    (path,) = (cache_folder() / "choices").iterdir()
    monkeypatch.setattr(steptime, "measure", lambda *_: pytest.fail("it was measured again"))
    assert steptime.answer(small, digits(), asked) == (first, "")
    monkeypatch.undo()
    monkeypatch.setattr(steptime, "SECONDS", 0.0)
    monkeypatch.setenv("NORMBENCH_CACHE", str(path.parent.parent))
    path.write_text("{")
    again, complaint = steptime.answer(small, digits(), asked)
    assert "it is measured again" in complaint
    assert read_json(path)["times_ms"] == again.times_ms
    with machine.numerics(deterministic=False, values=1, exactly=2):
        steptime.answer(small, digits(), asked)
    assert len(list(path.parent.iterdir())) == 2
