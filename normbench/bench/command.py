"""The words of the command line: a mode, then ``key=value[,value…]``, checked before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any, NoReturn

from normbench.bench import loader
from normbench.bench.settings import MODES, FitSettings, Settings, StepSettings
from normbench.bench.values import asks_for_help, shown
from normbench.errors import ConfigError, UnknownName

Mode = type[Settings] | type[StepSettings] | type[FitSettings]
AnySettings = Settings | StepSettings | FitSettings | loader.Settings
# The mode whose keys are those of a cell.
LOADER = "loader"

HELP = """\
{usage} [KEY=VALUE[,VALUE...] ...]

{about}

{examples}

Keys and their defaults
{keys}

Exit code: 0 done; 1 nothing could be measured; 2 a bad command, nothing measured; 130 stopped by Ctrl-C, what was
measured is written.
"""
ABOUT = {
    "": """\
Measures forward + backward of every normalizer with its activation, beside nn.BatchNorm2d + ReLU and beside a memory
copy of the same bytes, and leaves bench.csv, summary.md, bench.png, bench.svg and bench.json. More modes, each
with keys of its own (python -m normbench.bench step --help):

{modes}""",
    "step": """\
Measures training images per second in the loop of a sweep's cell, beside the plain loop most people would write (a
DataLoader with torchvision's transforms, nn.BatchNorm2d, torch's defaults) on the same pictures, taking turns, and
tells where the time goes. Leaves step.csv, step.md, step.png, step.svg and step.json.""",
    "fit": """\
Finds the largest batch that each normalizer can train at, by real steps: on a GPU until its memory is full, on a CPU
until a process of its own would take more than limit_mib. Leaves fit.csv, fit.md and fit.json.""",
}
EXAMPLES = {
    "": """\
  python -m normbench.bench quick=true
  python -m normbench.bench norm=bn,gn shapes=resnet50@32 batch=2,32 dtype=float32
  python -m normbench.bench arch=resnet50 size=32 batch=2,32 norm=bn,gn     # whole training steps""",
    "step": """\
  python -m normbench.bench step quick=true
  python -m normbench.bench step arch=resnet20 data=cifar10 norm=bn,bgn batch=2,8,32,128
  python -m normbench.bench step norm=all batch=2 workers=8     # virtual 8 × 2, beside BatchNorm at batch 16""",
    "fit": """\
  python -m normbench.bench fit quick=true
  python -m normbench.bench fit arch=resnet50 size=224 norm=bn,gn,bgn device=cuda
  python -m normbench.bench fit arch=resnet20 norm=bn,gn limit_mib=2048 workers=8 chunk=1""",
}


def read(words: Sequence[str]) -> AnySettings | None:
    """The settings that ``words`` give; None if help is asked for. Raises ConfigError."""
    if asks_for_help(words):
        return None
    if words and words[0] == LOADER:
        return loader.read(words[1:])
    mode, words = _mode(words)
    known, given = _keys(mode), dict[str, str]()
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or word.startswith("-"):
            _refuse(word, mode)
        if name not in known:
            _unknown(name, mode)
        if name in given:
            raise ConfigError(f"{name}: given twice; give its values as one list, {name}={given[name]},{value}")
        given[name] = value
    values: dict[str, Any] = {name: known[name].metadata["parse"](name, value) for name, value in given.items()}
    mode.check(values)
    return mode(**{**(mode.quick_values if values.get("quick") else {}), **values})


def help_text(words: Sequence[str] = ()) -> str:
    """The mode that ``words`` begin with: every key with its default."""
    if words and words[0] == LOADER:
        return loader.HELP
    mode = MODES[words[0] if words and words[0] in MODES else ""]
    known = _keys(mode)
    usage = {name: f"{name}={shown(known[name].default)}" for name in known}
    width = max(map(len, usage.values()))
    lines = []
    for name, found in known.items():
        lines.append(f"  {usage[name]:<{width}}  {found.metadata['text']}")
        if found.metadata["more"]:
            lines.append(f"  {'':<{width}}  {found.metadata['more']}")
    others = {**{word: MODES[word].about for word in MODES if word}, LOADER: loader.ABOUT}
    modes = "\n".join(f"  python -m normbench.bench {word:<6}  {about}" for word, about in others.items())
    return HELP.format(
        usage=f"python -m normbench.bench {mode.word}".strip(),
        about=ABOUT[mode.word].format(modes=modes),
        examples=EXAMPLES[mode.word],
        keys="\n".join(lines),
    )


def _mode(words: Sequence[str]) -> tuple[Mode, Sequence[str]]:
    """The mode and what follows it."""
    if words and words[0] and words[0] in MODES:
        return MODES[words[0]], words[1:]
    return Settings, words


def _keys(mode: Mode) -> dict[str, Field[Any]]:
    return {found.name: found for found in fields(mode)}


def _refuse(word: str, mode: Mode) -> NoReturn:
    if word.startswith("-"):
        raise ConfigError(f"unknown flag {word!r}; keys have no dashes: {word.lstrip('-').split('=')[0]}=…; see --help")
    if word in (*MODES, LOADER):
        raise ConfigError(f"{word}: the mode stands first, python -m normbench.bench {word} KEY=VALUE…")
    choices = [*_keys(mode), *([] if mode.word else [*filter(None, MODES), LOADER])]
    raise UnknownName("command or key", word, choices, f"Give keys as {word}=…; see --help.")


def _unknown(name: str, mode: Mode) -> NoReturn:
    """A key of another mode, or of none."""
    others = [f"python -m normbench.bench {other.word}".strip() for other in MODES.values() if name in _keys(other)]
    if others:
        here = f"{mode.word or 'units'} has no such key"
        raise ConfigError(f"{name}: {here}; it goes with {' and '.join(others)}; leave it out, or take that")
    raise UnknownName("key", name, _keys(mode))
