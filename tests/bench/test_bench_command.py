"""The words of the command line, and what is said of bad ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from normbench.bench import command
from normbench.bench.__main__ import main
from normbench.errors import ConfigError


def test_words_become_settings() -> None:
    settings = command.read(
        ["norm=bn, gn", "batch=2,32", "dtype=bfloat16", "limit_mib=64", "peers=false", "threads=auto"]
    )
    assert settings is not None
    assert (settings.norm, settings.batch, settings.dtype) == (("bn", "gn"), (2, 32), ("bfloat16",))
    assert (settings.limit_mib, settings.peers, settings.threads) == (64.0, False, None)
    assert settings.memory_format == ("contiguous", "channels_last")
    assert settings.mode == "units"


def test_quick_gives_way_to_what_is_given() -> None:
    quick = command.read(["quick=true", "batch=16"])
    assert quick is not None
    assert quick.batch == (16,)
    assert quick.seconds == command.QUICK["seconds"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("norms=bn", "Did you mean 'norm'"),
        ("batsh=2", "Did you mean 'batch'"),
        ("batch=0", "batch: got '0', expected a whole number"),
        ("batch=2,", "batch: got '2,'"),
        ("batch=2,2", "a value stands twice"),
        ("dtype=bfloat", "did you mean 'bfloat16'"),
        ("memory_format=nchw", "expected one of contiguous, channels_last"),
        ("rounds=many", "rounds: got 'many'"),
        ("seconds=-1", "seconds: got '-1'"),
        ("seconds=inf", "seconds: got 'inf'"),
        ("peers=perhaps", "peers: got 'perhaps'"),
        ("out=", "out: got nothing"),
        ("size=32", "size: goes with arch"),
        ("--norm=bn", "keys have no dashes: norm="),
        ("fit", "unknown command or key 'fit'"),
    ],
)
def test_a_bad_word_is_told_how_to_mend(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        command.read([word])
    assert said in str(error.value)


def test_a_key_twice_is_an_error() -> None:
    with pytest.raises(ConfigError, match="batch=2,8"):
        command.read(["batch=2", "batch=8"])


def test_whole_steps_and_shapes_do_not_mix() -> None:
    with pytest.raises(ConfigError, match="shapes: does not go with arch"):
        command.read(["arch=resnet8", "shapes=resnet50@32"])


def test_help_names_every_key_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for key in command.KEYS:
        assert f"\n  {key}=" in said
    assert "batch=2,8,32,128" in said
    assert max(map(len, said.splitlines())) <= 120


@pytest.mark.parametrize(
    "words",
    [("norm=bnn",), ("shapes=resnet5O@32",), ("shapes=resnet50@x",), ("device=gpu",), ("arch=resnet9",), ("x=1",)],
)
def test_a_bad_command_exits_2_and_leaves_nothing(
    bench: Callable[..., int], words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(*words) == 2
    assert capsys.readouterr().err.startswith("normbench: ")
    assert not list(tmp_path.glob("bench*"))
