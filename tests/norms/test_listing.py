"""The registry as a person reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from normbench import norms
from normbench.norms import listing
from normbench.norms.__main__ import main

README = Path(__file__).parents[2] / "README.md"


def test_the_readmes_table_is_this_one() -> None:
    assert listing.markdown() in README.read_text(), "make it again: python -m normbench.norms --markdown"


@pytest.mark.parametrize("name", norms.names())
def test_sizes_are_those_of_a_unit_of_another_width(name: str) -> None:
    unit = norms.build(name, 192, activation=nn.ReLU(), batch=8)
    for word, tensors in (
        (listing.size(name, lambda u: u.parameters()), unit.parameters()),
        (listing.size(name, lambda u: u.buffers()), unit.buffers()),
    ):
        terms = word.split(" + ")
        said = sum(192 * int(term[:-1] or 1) if term.endswith("C") else int(term) for term in terms)
        assert said == sum(t.numel() for t in tensors if t.dim())


def test_the_command_lists_all_and_tells_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{name} " in said for name in norms.names())
    assert main(["frn"]) == 0
    said = capsys.readouterr().out
    assert "  learn_eps: null" in said
    assert "learns: 3C" in said
    assert "TLU" in said
    assert main(["frm"]) == 2
    assert "'frn'" in capsys.readouterr().err


def test_what_a_method_acts_on() -> None:
    assert listing.acts_on(norms.get("mabn")) == ["weights", "gradients"]
    assert listing.acts_on(norms.get("bn")) == []
