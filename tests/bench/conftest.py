"""The bench command in this process, in a folder of its own."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``bench("norm=bn")`` → exit code; as short as can be unless told."""
    from normbench.bench.__main__ import main

    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> int:
        short = [word for word in ("rounds=3", "seconds=0") if not any(w.startswith(word[:6]) for w in words)]
        return main([*words, *(short if words[:1] != ("fit",) else [])])

    return run


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., list[dict[str, str]]]:
    """``rows("bench.csv")`` → its rows."""

    def read(name: str = "bench.csv", folder: str = "bench") -> list[dict[str, str]]:
        with (tmp_path / folder / name).open() as file:
            return list(csv.DictReader(file))

    return read
