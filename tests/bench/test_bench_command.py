"""The words of the command line, and what is said of bad ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from normbench.bench import command
from normbench.bench.__main__ import main
from normbench.bench.settings import MODES, FitSettings, Settings, StepSettings
from normbench.bench.values import shown
from normbench.errors import ConfigError


def test_words_become_settings() -> None:
    settings = command.read(
        ["norm=bn, gn", "batch=2,32", "dtype=bfloat16", "limit_mib=64", "peers=false", "threads=auto"]
    )
    assert isinstance(settings, Settings)
    assert (settings.norm, settings.batch, settings.dtype) == (("bn", "gn"), (2, 32), ("bfloat16",))
    assert (settings.limit_mib, settings.peers, settings.threads) == (64.0, False, None)
    assert settings.memory_format == ("contiguous", "channels_last")


def test_quick_gives_way_to_what_is_given() -> None:
    quick = command.read(["quick=true", "batch=16"])
    assert isinstance(quick, Settings)
    assert quick.batch == (16,)
    assert quick.seconds == Settings.quick_values["seconds"]


def test_the_first_word_chooses_the_mode() -> None:
    step = command.read(["step", "norm=bn,gn", "batch=2", "workers=8", "loaders=0", "amp=true"])
    assert isinstance(step, StepSettings)
    assert (step.norm, step.batch, step.workers, step.loaders, step.amp) == (("bn", "gn"), (2,), 8, 0, True)
    fit = command.read(["fit", "limit_mib=512", "quick=true", "most=8"])
    assert isinstance(fit, FitSettings)
    assert (fit.limit_mib, fit.most, fit.norm) == (512.0, 8, FitSettings.quick_values["norm"])


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
        ("fits", "Did you mean 'fit'"),
        ("loaders=2", "it goes with python -m normbench.bench step"),
        ("chunk=2", "it goes with python -m normbench.bench fit"),
        ("workers=2", "python -m normbench.bench step and python -m normbench.bench fit"),
    ],
)
def test_a_bad_word_is_told_how_to_mend(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        command.read([word])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("step shapes=resnet50@32", "shapes: step has no such key; it goes with python -m normbench.bench;"),
        ("step most=2", "goes with python -m normbench.bench fit"),
        ("step loader=2", "Did you mean 'loaders'"),
        ("step loaders=-1", "loaders: got '-1', expected a whole number, 0 or more"),
        ("step memory_format=contiguous,channels_last", "expected one of auto, contiguous, channels_last"),
        ("step root=here", "root: goes with data=… only"),
        ("step fit", "fit: the mode stands first"),
        ("norm=bn step", "step: the mode stands first"),
        ("fit chunk=9", "expected at most workers=8"),
        ("fit batch=2", "batch: fit has no such key"),
    ],
)
def test_a_bad_word_of_a_mode(words: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        command.read(words.split())
    assert said in str(error.value)


def test_a_key_twice_is_an_error() -> None:
    with pytest.raises(ConfigError, match="batch=2,8"):
        command.read(["batch=2", "batch=8"])


def test_whole_steps_and_shapes_do_not_mix() -> None:
    with pytest.raises(ConfigError, match="shapes: does not go with arch"):
        command.read(["arch=resnet8", "shapes=resnet50@32"])


@pytest.mark.parametrize("mode", MODES)
def test_help_names_every_key_with_its_default(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*filter(None, [mode]), "--help"]) == 0
    said = capsys.readouterr().out
    for key in fields(MODES[mode]):
        assert f"\n  {key.name}={shown(key.default)}" in said
    assert max(map(len, said.splitlines())) <= 120
    assert ("bench step " in said) == (mode in ("", "step"))


@pytest.mark.parametrize(
    "words",
    [
        ("norm=bnn",),
        ("shapes=resnet5O@32",),
        ("shapes=resnet50@x",),
        ("device=gpu",),
        ("arch=resnet9",),
        ("x=1",),
        ("step", "arch=resnet9"),
        ("step", "norm=bnn"),
        ("step", "data=cifar11"),
        ("step", "batch=9000"),
        ("fit", "arch=resnet9"),
        ("fit", "norm=bnn"),
        ("fit", "device=gpu"),
    ],
)
def test_a_bad_command_exits_2_and_leaves_nothing(
    bench: Callable[..., int], words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(*words) == 2
    assert capsys.readouterr().err.startswith("normbench: ")
    assert not list(tmp_path.glob("bench*"))
