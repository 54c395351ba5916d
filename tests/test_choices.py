"""What auto comes to: the rule, the questions, the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from auto_questions import AUTO, cell, digits, question

from normbench import choices
from normbench.choices import Choice
from normbench.errors import StoreError


@pytest.mark.parametrize(
    ("times", "wins"),
    [
        ({"contiguous, float32": 10.0, "channels_last, float32": 9.8}, "contiguous, float32"),
        ({"contiguous, float32": 10.0, "channels_last, float32": 9.6}, "channels_last, float32"),
        ({"contiguous, float32": 10.0, "channels_last, float32": 10.5, "contiguous, bfloat16": 9.5},
         "contiguous, float32"),
        ({"contiguous, float32": 10.0, "channels_last, float32": 10.5, "contiguous, bfloat16": 9.0},
         "contiguous, bfloat16"),
        ({"contiguous, float32": 10.0, "contiguous, bfloat16": 5.1, "channels_last, bfloat16": 5.0},
         "contiguous, bfloat16"),
        ({"contiguous, float32": 10.0, "contiguous, bfloat16": 8.0, "channels_last, bfloat16": 5.0},
         "channels_last, bfloat16"),
        ({"channels_last, bfloat16": 9.0}, "channels_last, bfloat16"),
    ],
)  # fmt: skip
def test_of_equal_ones_the_plainest_wins_and_bfloat16_must_be_clearly_faster(
    times: dict[str, float], wins: str
) -> None:
    assert choices.label(choices.choose(question().candidates(), times)) == wins


def test_of_equal_threads_the_fewest_win() -> None:
    found = choices.of_threads(cell(), digits(), most=6)
    assert found is not None
    assert [setting["threads"] for setting in found.candidates()] == [1, 2, 4, 6]
    times = {"1 thread": 20.0, "2 threads": 10.2, "4 threads": 10.0, "6 threads": 11.0}
    assert choices.choose(found.candidates(), times) == {"threads": 2}


def test_what_is_given_is_not_asked() -> None:
    formats = choices.of_format(cell("memory_format=auto", "amp=true"), digits())
    assert formats is not None
    assert {setting["amp"] for setting in formats.candidates()} == {"bfloat16"}
    assert choices.of_format(cell(), digits()) is None
    strict = cell(*AUTO, "deterministic=true")
    assert choices.of_format(strict, digits()) is None
    assert choices.of_threads(strict, digits(), most=2) is None
    assert choices.resolved(strict, {}) == cell("deterministic=true")
    assert choices.resolved(cell(*AUTO), {"memory_format": "channels_last", "amp": "none"}) == cell(
        "memory_format=channels_last"
    )


def test_normalizers_seeds_and_rates_share_an_answer_and_sizes_do_not() -> None:
    def mark(*words: str) -> str:
        return question(*words).mark()

    assert mark() == mark("norm=frn", "seed=3") == mark("lr=1") == mark("recipe.weight_decay=0.1")
    assert len({mark(), mark("batch=8"), mark("arch=resnet20"), mark("workers=4"), mark("workers=4", "chunk=1")}) == 5


def test_defaults_leave_the_ids_as_they_were() -> None:
    evidence = {"data": "", "arch": None, "norm": None}
    assert cell("norm=bn", "batch=8").identity(evidence) == cell(
        "norm=bn", "batch=8", "memory_format=contiguous", "amp=false"
    ).identity(evidence)
    assert cell("norm=bn", *AUTO).identity(evidence) != cell("norm=bn").identity(evidence)


def test_an_answer_is_kept_once_and_what_is_damaged_or_foreign_is_said(tmp_path: Path) -> None:
    asked, other = question(), question("batch=8")
    path = choices.path_in(tmp_path, asked)
    first, second = (Choice(setting, {choices.label(setting): 1.0}, {}) for setting in asked.candidates()[:2])
    assert choices.read(path, asked) is None
    assert choices.keep(path, asked, first) == first
    assert choices.keep(path, asked, second) == first  # another process was quicker
    assert choices.read(path, asked) == first
    good = json.loads(path.read_text())
    for broken in ("", "{", "[]", json.dumps({**good, "schema": 0}), json.dumps({**good, "values": {"amp": "half"}}),
                   json.dumps({**good, "times_ms": {}}), json.dumps({**good, "question": other.plain()})):  # fmt: skip
        path.write_text(broken)
        with pytest.raises(StoreError, match="damaged, or answers another question"):
            choices.read(path, asked)
