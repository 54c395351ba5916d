"""What the registry says of every method, as words: the facts of its row, and what its unit learns and keeps.

The README's table is made here: ``python -m normbench.norms --markdown``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from textwrap import dedent
from typing import Any

from torch import nn

from normbench.errors import NormbenchError
from normbench.files import conf_folder
from normbench.norms.hooks import StepHooks
from normbench.norms.normalizer import Normalizer
from normbench.norms.registry import build, get, names, ours

HEADER = ("name", "mixes", "train≠eval", "from batch", "activation", "acts on", "learns", "keeps", "method", "paper")
LEGEND = """\
mixes: a training output depends on the other images of the batch.  from batch: the smallest that it trains on.
activation: it puts its own in a ReLU's place, or needs to know it.  acts on: beside the maps, the weights before it,
the gradients, the training loop, or the graph around it.  learns, keeps: parameters and buffers of a unit of C
channels with a ReLU behind it, at batch 8, scalars such as counters left out; layers that a method changes may keep
more (bnp, cbn)."""
# Two widths of a unit: what grows with the channels, and what does not.
NARROW, WIDE, BATCH = 64, 128, 8


def facts(name: str) -> tuple[str, ...]:
    """One line of the table, in the order of HEADER."""
    row = get(name)
    return (
        row.name,
        _yes(row.mixes_samples),
        _yes(row.train_eval_differ),
        str(row.least_batch),
        "own" if row.own_activation or row.sum_activation else "-",
        ", ".join(acts_on(row)) or "-",
        size(name, lambda unit: unit.parameters()),
        size(name, lambda unit: unit.buffers()),
        row.method,
        row.paper or "-",
    )


def acts_on(row: Normalizer) -> list[str]:
    """What else than the maps a method changes."""
    hooks = row.hooks or StepHooks
    found = {
        "weights": row.convolution is not None,
        "gradients": row.own_gradient or hooks.gradients is not StepHooks.gradients,
        "loop": hooks.updated is not StepHooks.updated or hooks.pictures is not StepHooks.pictures,
        "graph": row.wire is not None or row.around is not None,
    }
    return [word for word, true in found.items() if true]


def size(name: str, tensors: Callable[[nn.Module], Any]) -> str:
    """How much of something a unit of C channels has, such as ``2C`` or ``2C + 4``; of batch 8."""
    try:
        narrow, wide = (
            sum(t.numel() for t in tensors(build(name, C, activation=nn.ReLU(), batch=BATCH)) if t.dim())
            for C in (NARROW, WIDE)
        )
    except TypeError:  # a user's class with options that have no default
        return "?"
    each, rest = divmod(wide - narrow, WIDE - NARROW)
    fixed = narrow - each * NARROW
    if rest:
        return f"{narrow} at C={NARROW}"
    words = [*([f"{each if each > 1 else ''}C"] if each else []), *([str(fixed)] if fixed else [])]
    return " + ".join(words) or "0"


def table(chosen: Sequence[str] = ()) -> str:
    """Aligned columns, one line a method; all of them, or the chosen ones."""
    lines = [HEADER, *(map(facts, chosen) if chosen else map(_or_why_not, names()))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def markdown() -> str:
    """The README's table."""
    lines = [HEADER, ("---",) * len(HEADER)]
    lines += [(f"`{name}`", *rest) for name, *rest in map(facts, ours())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def details(name: str) -> str:
    """One method at length: its facts, options with their defaults, and what its file says of it."""
    row = get(name)
    said = dict(zip(HEADER, facts(name), strict=True))
    options = _described(row) or [f"  {option}={default}" for option, default in row.options.items()] or ["  none"]
    about = inspect.getdoc(inspect.getmodule(row.settle or row.unit)) or inspect.getdoc(row.unit) or ""
    said["CUDA graph"] = f"no: {row.no_graph}" if row.no_graph else "yes"
    head = [f"{key}: {value}" for key, value in said.items()]
    return "\n".join([*head, "options:", *options, "", dedent(about)])


def _described(row: Normalizer) -> list[str]:
    """The options as the config file describes them, for ours."""
    path = conf_folder() / "norm" / f"{row.name}.yaml"
    lines = path.read_text().splitlines() if path.is_file() and not row.users else []
    return [f"  {line}" for line in lines if line and not line.startswith(("#", "name:"))]


def _or_why_not(name: str) -> tuple[str, ...]:
    """``facts``; of one that an installed package names and that cannot be had, the reason."""
    try:
        return facts(name)
    except NormbenchError as error:
        return (name, *"?" * (len(HEADER) - 3), str(error), "-")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
