"""From a command line to the cells of a grid: Hydra reads the overrides and composes the config groups, once per
combination of groups (a compose costs tens of milliseconds); scalar axes are expanded here, on plain dicts.

The compose API is used rather than hydra.main: sweeps need no -m, errors are ours, and no folder is left behind.

    command.py   the overrides as axes
    configs.py   the config files and what is composed of them
    paper.py     published tables: several such products as one grid
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Glob
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normbench.cell import Cell, make
from normbench.errors import ConfigError, UnknownName, nearest, one_line
from normbench.grid.command import Axis, parse
from normbench.grid.configs import GROUPS, Configs, conf_folder, existing
from normbench.grid.paper import GROUP, Line, Paper, load, scaled
from normbench.options import TUNE_EXAMPLE
from normbench.targets import installed

__all__ = ["GROUPS", "Configs", "Grid", "GridCell", "PaperGrid", "conf_folder", "line_cell", "read", "read_paper"]

WHAT = {"arch": "architecture", "data": "data set", "norm": "normalizer", "recipe": "recipe"}
# Keys of the sweep, the same for every cell of it: they cannot be swept.
SWEEP_KEYS = {
    "name": str, "runs": str, "paper": str, "scale": float, "track": str, "launch": str, "slots": int, "ranks": int,
    "threads": str, "cell_timeout": float, "plan": bool, "rerun": str, "strict": bool, "detach": bool,
    "slurm.partition": str, "slurm.account": str, "slurm.minutes": int, "slurm.cpus": int, "slurm.gpus": int,
    "slurm.memory": float, "slurm.parallel": int, "slurm.setup": str, "slurm.sbatch": dict,
}  # fmt: skip
# They and their group.
NOT_A_CELLS = {key.split(".")[0] for key in SWEEP_KEYS}
# Those that may be null.
MAY_BE_NULL = (
    "name", "paper", "track", "threads", "cell_timeout", "slurm.partition", "slurm.account", "slurm.cpus",
    "slurm.memory", "slurm.parallel", "slurm.setup",
)  # fmt: skip
# Below it any option of sbatch.
SBATCH = "slurm.sbatch."
# Values of these groups that are no config file are looked up further: registered names, torchvision, a user's file.
OPEN_GROUPS = ("arch", "data", "norm")


@dataclass(frozen=True)
class GridCell:
    """A cell of the grid and the keys of it that somebody chose: on the command line, or in a config of theirs."""

    cell: Cell
    changed: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """The cells in the order of the overrides, and the settings of the sweep as a whole."""

    cells: list[GridCell]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class PaperGrid:
    """A published table as the command line has it: its lines with their cells, and the settings of its sweep."""

    paper: Paper
    scale: float
    lines: list[tuple[Line, list[GridCell]]]
    settings: Mapping[str, Any]


def read(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Grid:
    """The grid that the overrides ask for, every cell of it typed and checked.

    config_dirs: folders with more configs of the same groups (``norm/mine.yaml``).
    Raises ConfigError before anything is run: bad syntax, unknown names and options (with the near one), wrong types.
    """
    axes, configs = _parsed(overrides, config_dirs)
    if any(axis.key == GROUP and axis.values != [None] for axis in axes):
        table = _read_paper(axes, configs)
        return Grid([cell for _, cells in table.lines for cell in cells], table.settings)
    axes = [_expand(axis, configs) for axis in axes]
    defaults = configs.config({})
    _check_keys(axes, defaults, configs)
    settings = _settings(axes, defaults)
    if settings["scale"] != 1:
        raise ConfigError(f"scale={settings['scale']:g}: goes with paper=… only; epochs=… or steps=… is a run's length")
    cells = list(_cells(axes, configs))
    _check_tune(axes, cells)
    return Grid(cells, {**settings, "name": settings["name"] or _default_name(cells)})


def read_paper(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> PaperGrid:
    """The grid of a published table, ``paper=…`` among the overrides, line by line. Raises as ``read`` does."""
    return _read_paper(*_parsed(overrides, config_dirs))


def line_cell(paper: Paper, line: Line, batch: int, scale: float, configs: Configs) -> Cell:
    """The cell that stands at a line and a batch in the paper's protocol, at this scale, of the first seed there is."""
    (axes,) = line.axes([batch])
    return scaled(next(_cells([_expand(axis, configs) for axis in axes], configs)).cell, scale)


def _parsed(overrides: Sequence[str], config_dirs: Sequence[str]) -> tuple[list[Axis], Configs]:
    axes, search = parse(overrides)
    return axes, Configs([*(existing(folder) for folder in config_dirs), *search])


def _read_paper(axes: Sequence[Axis], configs: Configs) -> PaperGrid:
    axes = [_expand(axis, configs) for axis in axes]
    defaults = configs.config({})
    _check_keys(axes, defaults, configs)
    settings = _settings(axes, defaults)
    paper, scale = load(settings[GROUP], configs), settings["scale"]
    if not 0 < scale <= 1:
        raise ConfigError(f"scale: got {scale:g}, expected a share of the paper's length, above 0 and up to 1")
    lines = []
    for line, commands in paper.chosen([axis for axis in axes if axis.key.split(".")[0] not in NOT_A_CELLS]):
        expanded = [[_expand(axis, configs) for axis in command] for command in commands]
        for command in expanded:
            _check_keys(command, defaults, configs)
        cells = [cell for command in expanded for cell in _cells(command, configs)]
        lines.append((line, [dataclasses.replace(item, cell=scaled(item.cell, scale)) for item in cells]))
    _check_tune(axes, [item for _, cells in lines for item in cells])
    return PaperGrid(paper, scale, lines, {**settings, "name": settings["name"] or paper.folder(scale)})


def _expand(axis: Axis, configs: Configs) -> Axis:
    """``glob(*)`` over a group's config files, and group values as words."""
    known = configs.options(axis.key)
    if len(axis.values) == 1 and isinstance(axis.values[0], Glob):
        if not known:
            raise ConfigError(f"{axis.key}: got a glob, which is for groups ({', '.join(GROUPS)}); expected values")
        names = axis.values[0].filter(known)
        if not names:
            raise ConfigError(f"{axis.key}: the glob matches none of {', '.join(known)}")
        return Axis(axis.key, names, True)
    if axis.key not in GROUPS:
        return axis
    for value in axis.values:
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            raise ConfigError(f"{axis.key}: got {value!r}, expected a name; to sweep, write {axis.key}=a,b")
        _check_choice(axis.key, str(value), known)
    return Axis(axis.key, [str(value) for value in axis.values], axis.swept)


def _check_choice(group: str, value: str, known: Sequence[str]) -> None:
    if value in known or (group in OPEN_GROUPS and ":" in value) or (group == "norm" and value in installed()):
        return
    if group == "arch":
        # Only here is torchvision worth its import time.
        from normbench.models import names as architectures

        if value in architectures():
            return
        raise UnknownName(
            WHAT[group], value, [*known, *filter(None, [nearest(value, architectures())])],
            "Also any torchvision classifier by name, or file.py:callable.",
        )  # fmt: skip
    known = [*known, *installed()] if group == "norm" else known
    mend = "" if group not in OPEN_GROUPS else "Or your own: file.py:Name."
    raise UnknownName(WHAT[group], value, known, mend)


# Keys that one looks for here, and what they are keys of.
REPORTS = dict.fromkeys(("baseline", "power"), "It is a key of python -m normbench.report DIR.")


def _check_keys(axes: Sequence[Axis], defaults: Mapping[str, Any], configs: Configs) -> None:
    """Unknown top-level keys and groups, with the near name, before anything is composed."""
    for axis in axes:
        first, *rest = axis.key.split(".", 2)
        if first not in defaults and not configs.options(axis.key):
            raise UnknownName("key", axis.key, defaults, REPORTS.get(axis.key, ""))
        if first == "options" and (len(rest) < 2 or not all(rest)):
            raise ConfigError(f"{axis.key}: expected options.<norm>.<option>=value, such as options.gn.num_groups=16")
        if first in SWEEP_KEYS and rest:
            raise ConfigError(f"{axis.key}: {first} is one value; expected {first}=…")
        if first == "slurm" and axis.key not in SWEEP_KEYS and not axis.key.startswith(SBATCH):
            raise UnknownName("key", axis.key, [key for key in SWEEP_KEYS if key.startswith("slurm.")])


def _check_tune(axes: Sequence[Axis], cells: Sequence[GridCell]) -> None:
    """How a rate is chosen says something only of cells whose rate is."""
    stray = next((axis.key for axis in axes if axis.key.startswith("tune.") and axis.key != "tune.lr"), None)
    if stray is not None and all(item.cell.tune is None for item in cells):
        raise ConfigError(f"{stray} is given, but no rates to choose from; add some, {TUNE_EXAMPLE}")


def _settings(axes: Sequence[Axis], defaults: Mapping[str, Any]) -> dict[str, Any]:
    flat = {**defaults, **{f"slurm.{key}": value for key, value in defaults["slurm"].items()}}
    settings = {key: flat[key] for key in SWEEP_KEYS}
    for axis in axes:
        if axis.key in SWEEP_KEYS:
            settings[axis.key] = _setting(axis, SWEEP_KEYS[axis.key])
        elif axis.key.startswith(SBATCH):
            kind = type(axis.values[0]) if type(axis.values[0]) in (bool, int, float) else str
            settings["slurm.sbatch"] |= {axis.key.removeprefix(SBATCH): _setting(axis, kind)}
    return settings


def _setting(axis: Axis, kind: type) -> Any:
    if axis.swept:
        raise ConfigError(f"{axis.key} holds for the whole sweep and cannot be swept; got {len(axis.values)} values")
    value = axis.values[0]
    if value is None and axis.key in MAY_BE_NULL:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is str and number:  # name=2026 is a name
        return str(value)
    if kind is float and number:
        return float(value)
    if not isinstance(value, kind) or value == "" or (kind is int and not number):
        wanted = {
            str: "a word", int: "a whole number", bool: "true or false", float: "a number",
            dict: f"an option of sbatch below it, such as {SBATCH}qos=high",
        }[kind]  # fmt: skip
        raise ConfigError(f"{axis.key}: got {value!r}, expected {wanted}")
    return value


def _cells(axes: Sequence[Axis], configs: Configs) -> Iterator[GridCell]:
    """The product of the axes, the last one varying fastest; options of one norm multiply only that norm's cells."""
    own = [axis for axis in axes if axis.key.startswith("options.")]
    shared = [axis for axis in axes if axis not in own and axis.key.split(".")[0] not in NOT_A_CELLS]
    groups = [axis.key for axis in shared if configs.options(axis.key)]
    met: set[str] = set()
    norms: set[str] = set()
    for values in itertools.product(*(axis.values for axis in shared)):
        given = dict(zip((axis.key for axis in shared), values, strict=True))
        config = configs.config({key: given[key] for key in groups})
        scalars = {key: value for key, value in given.items() if key not in groups}
        names = _norm_names(config, given)
        norms |= names
        here = [axis for axis in own if axis.key.split(".")[1] in names]
        met |= {axis.key for axis in here}
        for extra in itertools.product(*(axis.values for axis in here)):
            chosen = {f"norm.{axis.key.split('.', 2)[2]}": value for axis, value in zip(here, extra, strict=True)}
            yield _cell(config, {**scalars, **chosen}, "recipe" in given, configs)
    for axis in own:
        if axis.key not in met:
            norm = axis.key.split(".")[1]
            near = nearest(norm, norms)
            hint = f"did you mean options.{near}.…?" if near else f"add it to norm={','.join(sorted(norms))}"
            raise ConfigError(f"{axis.key} is given, but norm={norm} is not in this grid; {hint}")


def _norm_names(config: Mapping[str, Any], given: Mapping[str, Any]) -> set[str]:
    """What ``options.<norm>`` may call the norm: its config file, its name, a user's class."""
    named = str(config["norm"].get("name"))
    return {named, named.rsplit(":", 1)[-1], str(given.get("norm", named))}


def _cell(composed: dict[str, Any], scalars: Mapping[str, Any], recipe_given: bool, configs: Configs) -> GridCell:
    """One cell of it. composed: what the groups come to; scalars: what the command line puts over it."""
    config = _plain(composed)
    packaged = configs.packaged(config)
    for key, value in scalars.items():
        _put(config, key, value)
    if any("${" in str(value) for value in scalars.values()):
        try:
            config = OmegaConf.to_container(OmegaConf.create(config), resolve=True)  # type: ignore[assignment]
        except OmegaConfBaseException as error:
            raise ConfigError(f"cannot resolve {', '.join(map(str, scalars.values()))}: {one_line(error)}") from None
    cell = make(config)
    if cell.tune is not None and cell.lr is not None:
        raise ConfigError(f"lr={cell.lr:g} and tune.lr are both given; expected one: the rate, or those to choose from")
    changed = [*dict.fromkeys("tune" if key.startswith("tune.") else key for key in scalars)]
    changed += ["recipe"] if recipe_given else []
    if packaged is not None:
        ours, theirs = make(_plain(packaged)).flat(), cell.flat()
        changed += [key for key in theirs if theirs[key] != ours.get(key) and key not in (*GROUPS, *changed)]
    return GridCell(cell, tuple(changed))


def _plain(composed: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a cell alone, with the options that configs give to its norm."""
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in composed.items()}
    own = config.pop("options", None) or {}
    config["norm"] |= own.get(config["norm"]["name"], {})
    return {key: value for key, value in config.items() if key not in NOT_A_CELLS}


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    place = config
    for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise ConfigError(f"{key}: {part} holds a single value, expected a group of options")
    place[last] = value


def _default_name(cells: Sequence[GridCell]) -> str:
    """<arch>-<data>: what is compared within one table."""
    words = [
        dict.fromkeys(item.cell.arch.name for item in cells),
        dict.fromkeys(item.cell.data.title or item.cell.data.name for item in cells),
    ]
    name = "-".join("+".join(word.rsplit("/", 1)[-1].replace(":", ".") for word in group) for group in words)
    return name if len(name) <= 80 else name[:77] + "..."
