"""What a person sees while pictures are decoded."""

from __future__ import annotations

import sys

from normbench.data import progress


def test_nothing_is_said_of_what_is_quick(capsys):
    with progress.shown("decoding") as tick:
        tick(0.5)
        tick(1.0)
    assert capsys.readouterr() == ("", "")


def test_one_plain_line_where_it_takes_long(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    with progress.shown("decoding") as tick:
        tick(0.5)
        tick(1.0)
    assert capsys.readouterr() == ("", "decoding …\n")


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.shown("decoding") as tick:
        tick(1.0)
    assert "decoding" in capsys.readouterr().err
