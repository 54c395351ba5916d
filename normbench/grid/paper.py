"""conf/paper: published tables as grids. A line of a table is one normalizer in one setting at several batches.

The command line chooses among a table's cells with ``norm`` and ``batch`` and changes anything else of them. What it
names that no line has is added in the setting of the first line: a normalizer, or a batch, that nobody published there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from normbench.cell import Cell
from normbench.errors import ConfigError, UnknownName, one_line
from normbench.grid.command import Axis
from normbench.grid.configs import Configs

GROUP = "paper"
# What a file holds: words for people, what all cells share, and the lines.
KEYS = ("title", "claim", "differs", "cells", "lines")
# The one key that may have several values on a line.
SEVERAL = "seed"
# By these the command line chooses among the cells.
CHOOSING = ("norm", "batch")


@dataclass(frozen=True)
class Line:
    """Cells of one normalizer. label: as in the published data, where several lines may bear it.

    settings: keys and values as on a sweep's command line, all but ``batch``; several seeds are a list. images: of one
    optimizer step, where it is the same at every batch; workers follow. recovered: its published numbers are known.
    """

    label: str
    settings: Mapping[str, Any]
    batches: tuple[int, ...]
    images: int | None = None
    recovered: bool = True

    @property
    def norm(self) -> str:
        return str(self.settings["norm"])

    def axes(self, batches: Sequence[int]) -> list[list[Axis]]:
        """The line as command lines: one, or one for each batch where workers follow the batch."""
        if self.images is None:
            return [self._axes({"batch": list(batches)})]
        return [self._axes({"batch": [batch], "workers": [self._workers(batch)]}) for batch in batches]

    def _axes(self, lists: Mapping[str, list[Any]]) -> list[Axis]:
        single = {key: _values(key, value) for key, value in self.settings.items()}
        return [Axis(key, list(values), len(values) > 1) for key, values in {**single, **lists}.items()]

    def _workers(self, batch: int) -> int:
        assert self.images is not None
        if self.images % batch:
            raise ConfigError(
                f"batch={batch}: every step of this table has {self.images} images; expected a divisor of that"
            )
        return self.images // batch


@dataclass(frozen=True)
class Paper:
    """A published table. differs: where our cells are not the paper's, or the paper's are not known."""

    name: str
    title: str
    claim: str
    differs: tuple[str, ...]
    lines: tuple[Line, ...]

    def folder(self, scale: float) -> str:
        """The name of its sweep: another one at every scale, so that they never mix."""
        return f"paper-{self.name}" + ("" if scale == 1 else f"-scale{scale:g}")

    def line(self, label: str, batch: int) -> Line:
        """The line of this label that has ``batch``, else the first one of the label."""
        of_label = [line for line in self.lines if line.label == label]
        return next((line for line in of_label if batch in line.batches), of_label[0])

    def chosen(self, axes: Sequence[Axis]) -> list[tuple[Line, list[list[Axis]]]]:
        """The lines that ``axes`` leave, each with its command lines. Raises ConfigError."""
        given = {axis.key: axis.values for axis in axes}
        others = [axis for axis in axes if axis.key not in CHOOSING]
        norms = [str(norm) for norm in given.get("norm", ())]
        batches = [_whole(batch) for batch in given.get("batch", ())]
        known = {line.norm for line in self.lines}
        lines = [*self.lines, *(self.added(norm) for norm in norms if norm not in known)]
        kept = [(line, own) for line in lines if not norms or line.norm in norms if (own := _own(line, lines, batches))]
        _check_options(others, [line for line, _ in kept])
        return [(line, [_over(command, _reaching(others, line)) for command in line.axes(own)]) for line, own in kept]

    def added(self, norm: str) -> Line:
        """A line of a normalizer that the table has not, in the first line's setting."""
        first = self.lines[0]
        shared = {key: value for key, value in first.settings.items() if not key.startswith("norm.")}
        every = dict.fromkeys(batch for line in self.lines for batch in line.batches)
        return Line(norm, {**shared, "norm": norm}, tuple(every), first.images)


def _values(key: str, value: Any) -> list[Any]:
    return value if key == SEVERAL and isinstance(value, list) else [value]


def load(name: str, configs: Configs) -> Paper:
    """The table in conf/paper, or in a user's folder. Raises UnknownName, and ConfigError for a file that is none."""
    if name not in configs.options(GROUP):
        raise UnknownName("table", name, configs.options(GROUP), "python -m normbench.paper list tells of each.")
    path = next(path for folder in configs.folders if (path := folder / GROUP / f"{name}.yaml").is_file())
    try:
        return _paper(name, yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{GROUP}/{path.name}: {one_line(error)}; expected {', '.join(KEYS)}, see {GROUP}/gn.yaml"
        ) from None


def _paper(name: str, content: Mapping[str, Any]) -> Paper:
    for key in content:
        if key not in KEYS:
            raise UnknownName(f"key of {GROUP}={name}", key, KEYS)
    lines = tuple(_line(content["cells"], item) for item in content["lines"])
    if not lines:
        raise ValueError("no lines")
    return Paper(name, content["title"], content["claim"], tuple(content.get("differs") or ()), lines)


def _line(shared: Mapping[str, Any], item: Mapping[str, Any]) -> Line:
    both = {**shared, **item}
    label, batch, images = both.pop("line"), both.pop("batch"), both.pop("images", None)
    recovered = both.pop("recovered", True)
    both["norm"]  # what a line is of
    return Line(str(label), both, tuple(batch if isinstance(batch, list) else [batch]), images, recovered)


def scaled(cell: Cell, scale: float) -> Cell:
    """The cell with this share of its epochs or steps, one at least, and of its warm-up."""
    if scale == 1:
        return cell
    epochs, steps = (
        None if length is None else max(1, round(length * scale)) for length in map(cell.length, ("epochs", "steps"))
    )
    recipe = dataclasses.replace(cell.recipe, warmup_epochs=cell.recipe.warmup_epochs * scale)
    return dataclasses.replace(cell, epochs=epochs, steps=steps, recipe=recipe)


def _own(line: Line, lines: Sequence[Line], batches: Sequence[int]) -> list[int]:
    """The batches of a line that are chosen; those that no line of its norm has go to the first of these."""
    if not batches:
        return list(line.batches)
    kin = [other for other in lines if other.norm == line.norm]
    new = [batch for batch in batches if not any(batch in other.batches for other in kin)] if line is kin[0] else []
    return [*(batch for batch in line.batches if batch in batches), *new]


def _over(command: list[Axis], given: Sequence[Axis]) -> list[Axis]:
    """The line's own axes, in their order, with the command line's in the place of those of the same key."""
    new = {axis.key: axis for axis in given}
    length = {"epochs", "steps"}
    if length & new.keys():  # one length replaces the other
        command = [axis for axis in command if axis.key not in length or axis.key in new]
    own = [new.pop(axis.key, axis) for axis in command]
    return [*own, *new.values()]


def _reaching(axes: Sequence[Axis], line: Line) -> list[Axis]:
    """Those axes that are for this line: an option of one norm is not for the others'."""
    return [axis for axis in axes if not axis.key.startswith("options.") or axis.key.split(".")[1] == line.norm]


def _check_options(axes: Sequence[Axis], lines: Sequence[Line]) -> None:
    norms = sorted({line.norm for line in lines})
    for axis in axes:
        if axis.key.startswith("options.") and axis.key.split(".")[1] not in norms:
            raise ConfigError(f"{axis.key} is given, but the cells chosen are of {', '.join(norms)} only")


def _whole(batch: object) -> int:
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise ConfigError(f"batch: got {batch!r}, expected whole numbers from 1")
    return batch
