"""From a command line to the cells of a grid: Hydra reads the overrides and composes the config groups, once per
combination of groups (a compose costs tens of milliseconds); scalar axes are expanded here, on plain dicts.

The compose API is used rather than hydra.main: sweeps need no -m, errors are ours, and no folder is left behind.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normbench.cell import Cell, make
from normbench.errors import ConfigError, UnknownName, nearest, one_line

GROUPS = ("arch", "data", "norm", "recipe")
WHAT = {"arch": "architecture", "data": "data set", "norm": "normalizer", "recipe": "recipe"}
# Keys of the sweep, the same for every cell of it: they cannot be swept.
SWEEP_KEYS = {
    "name": str, "runs": str, "track": str, "launch": str, "slots": int, "ranks": int,
    "plan": bool, "rerun": str, "strict": bool,
}  # fmt: skip
# Values of these groups that are no config file are looked up further: registered names, torchvision, a user's file.
OPEN_GROUPS = ("arch", "data", "norm")


@dataclass(frozen=True)
class GridCell:
    """A cell of the grid and the keys of it that somebody chose: on the command line, or by sweeping them."""

    cell: Cell
    changed: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """The cells in the order of the overrides, and the settings of the sweep as a whole."""

    cells: list[GridCell]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """One override: the key and its values; ``swept`` when it was written as a list."""

    key: str
    values: list[Any]
    swept: bool


@dataclass
class Composer:
    """Composes the config groups with Hydra and remembers what it composed."""

    folders: Sequence[Path]
    others: Sequence[str]
    memory: dict[tuple[tuple[str, Any], ...], dict[str, Any]] = field(default_factory=dict)

    def config(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        key = tuple(choices.items())
        if key not in self.memory:
            self.memory[key] = self._compose(choices)
        return copy.deepcopy(self.memory[key])

    def _compose(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """Groups whose value is no config file are composed without and get the bare name."""
        bare = {key: value for key, value in choices.items() if value not in options(key, self.folders)}
        known = [f"{key}={value}" for key, value in choices.items() if key not in bare]
        overrides = [*self.others, *known, *(f"~{key}" for key in bare)]
        try:
            composed = compose(config_name="sweep", overrides=overrides)
            config: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            raise ConfigError(f"the configuration does not compose: {one_line(error)}") from None
        return config | {key: {"name": value} for key, value in bare.items()}


def conf_folder() -> Path:
    """conf/ inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "sweep.yaml").is_file():
            return folder
    raise ConfigError(f"no conf/sweep.yaml in or beside {package}; expected the installed package or a checkout")


def read(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Grid:
    """The grid that the overrides ask for, every cell of it typed and checked.

    config_dirs: folders with more configs of the same groups (``norm/mine.yaml``).
    Raises ConfigError before anything is run: bad syntax, unknown names and options (with the near one), wrong types.
    """
    folders = [conf_folder(), *(_existing(folder) for folder in config_dirs)]
    axes, search = _parse(overrides, folders)
    folders += search
    axes = [_expand(axis, folders) for axis in axes]
    paths = ",".join(f"'file://{folder}'" for folder in folders[1:])
    with initialize_config_dir(str(folders[0]), version_base="1.3"):
        composer = Composer(folders, [f"hydra.searchpath=[{paths}]"] if paths else [])
        defaults = composer.config({})
        _check_keys(axes, defaults, folders)
        settings = _settings(axes, defaults)
        cells = list(_cells(axes, composer))
    return Grid(cells, {**settings, "name": settings["name"] or _default_name(cells)})


def options(group: str, folders: Iterable[Path]) -> list[str]:
    """The config files of a group, in all folders, without their suffix."""
    return sorted(
        {
            str(path.relative_to(folder / group).with_suffix(""))
            for folder in folders
            for path in (folder / group).rglob("*.yaml")
        }
    )


def _parse(overrides: Sequence[str], folders: Sequence[Path]) -> tuple[list[Axis], list[Path]]:
    """The axes in order, and the folders that ``hydra.searchpath`` adds."""
    parser, axes, search = OverridesParser.create(), {}, []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            raise ConfigError(
                f"cannot read {text!r}: {one_line(error)}; expected key=value or key=value,value,…"
            ) from None
        key = override.key_or_group
        if override.is_delete():
            raise ConfigError(f"cannot remove {key!r}; give it another value, or null for its default")
        if key == "hydra.searchpath":
            named = override.value()
            search += [
                _existing(str(folder).removeprefix("file://"))
                for folder in (named if isinstance(named, list) else [named])
            ]
        elif key.split(".")[0] == "hydra":
            raise ConfigError(
                f"{key}: normbench composes with Hydra but runs the grid itself; only hydra.searchpath is read"
            )
        elif key in axes:
            raise ConfigError(f"{key} is given twice; give it once, with all its values: {key}=a,b")
        else:
            axes[key] = Axis(key, _values(override), override.is_sweep_override())
    return list(axes.values()), search


def _values(override: Override) -> list[Any]:
    value = override.value()
    if isinstance(value, Glob):
        return [value]
    if isinstance(value, IntervalSweep):
        raise ConfigError(
            f"{override.key_or_group}: an interval has no end of values; expected a list, range() or glob()"
        )
    values = list(override.sweep_iterator()) if override.is_sweep_override() else [value]
    return [item.text if isinstance(item, QuotedString) else item for item in values]


def _expand(axis: Axis, folders: Sequence[Path]) -> Axis:
    """``glob(*)`` over a group's config files, and group values as words."""
    if len(axis.values) == 1 and isinstance(axis.values[0], Glob):
        names = axis.values[0].filter(options(axis.key, folders))
        if not names:
            raise ConfigError(
                f"{axis.key}: the glob matches none of {', '.join(options(axis.key, folders)) or 'no config files'}"
            )
        return Axis(axis.key, names, True)
    if axis.key not in GROUPS:
        return axis
    for value in axis.values:
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            raise ConfigError(f"{axis.key}: got {value!r}, expected a name; to sweep, write {axis.key}=a,b")
        _check_choice(axis.key, str(value), folders)
    return Axis(axis.key, [str(value) for value in axis.values], axis.swept)


def _check_choice(group: str, value: str, folders: Sequence[Path]) -> None:
    known = options(group, folders)
    if value in known or (group in OPEN_GROUPS and ":" in value):
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
    mend = "" if group not in OPEN_GROUPS else "Or your own: file.py:Name."
    raise UnknownName(WHAT[group], value, known, mend)


def _check_keys(axes: Sequence[Axis], defaults: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """Unknown top-level keys and groups, with the near name, before anything is composed."""
    known = [*defaults, *SWEEP_KEYS]
    for axis in axes:
        first = axis.key.split(".")[0]
        if first not in known and not options(axis.key, folders):
            raise UnknownName("key", axis.key, known)
        if axis.key == "options" or (first in SWEEP_KEYS and axis.key != first):
            raise ConfigError(
                f"{axis.key}: expected {first if first in SWEEP_KEYS else 'options.<norm>.<option>'}=value"
            )


def _settings(axes: Sequence[Axis], defaults: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: defaults[key] for key in SWEEP_KEYS}
    for axis in axes:
        if axis.key not in SWEEP_KEYS:
            continue
        if axis.swept:
            raise ConfigError(
                f"{axis.key} holds for the whole sweep and cannot be swept; got {len(axis.values)} values"
            )
        value, kind = axis.values[0], SWEEP_KEYS[axis.key]
        value = str(value) if kind is str and isinstance(value, int | float) and not isinstance(value, bool) else value
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            wanted = {str: "a word", int: "a whole number", bool: "true or false"}[kind]
            raise ConfigError(f"{axis.key}: got {value!r}, expected {wanted}")
        settings[axis.key] = value
    return settings


def _cells(axes: Sequence[Axis], composer: Composer) -> Iterator[GridCell]:
    """The product of the axes, the last one varying fastest; options of one norm multiply only that norm's cells."""
    own = [axis for axis in axes if axis.key.startswith("options.")]
    shared = [axis for axis in axes if axis not in own and axis.key not in SWEEP_KEYS]
    met: set[str] = set()
    for values in itertools.product(*(axis.values for axis in shared)):
        given = dict(zip((axis.key for axis in shared), values, strict=True))
        config = composer.config({key: value for key, value in given.items() if options(key, composer.folders)})
        scalars = {key: value for key, value in given.items() if not options(key, composer.folders)}
        here = [axis for axis in own if axis.key.split(".")[1] in _norm_names(config, given)]
        met |= {axis.key for axis in here}
        for extra in itertools.product(*(axis.values for axis in here)):
            chosen = {f"norm.{axis.key.split('.', 2)[2]}": value for axis, value in zip(here, extra, strict=True)}
            yield _cell(config, {**scalars, **chosen}, given)
    for axis in own:
        if axis.key not in met:
            raise ConfigError(
                f"{axis.key} is given, but norm={axis.key.split('.')[1]} is not in this grid; add it to norm=…"
            )


def _norm_names(config: Mapping[str, Any], given: Mapping[str, Any]) -> set[str]:
    return {str(config["norm"].get("name")), str(given.get("norm"))}


def _cell(composed: Mapping[str, Any], scalars: Mapping[str, Any], given: Mapping[str, Any]) -> GridCell:
    config = copy.deepcopy({key: value for key, value in composed.items() if key not in SWEEP_KEYS})
    own = config.pop("options", None) or {}
    config["norm"] |= own.get(config["norm"]["name"], {})
    for key, value in scalars.items():
        _put(config, key, value)
    if any("${" in str(value) for value in scalars.values()):
        config = OmegaConf.to_container(OmegaConf.create(config), resolve=True)  # type: ignore[assignment]
    changed = [*scalars, *(key for key in given if key == "recipe")]
    return GridCell(make(config), tuple(changed))


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    place = config
    for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise ConfigError(f"{key}: {part} holds a single value, expected a group of options")
    place[last] = value


def _existing(folder: str) -> Path:
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise ConfigError(
            f"--config-dir: {folder!r} is no folder; expected one that holds norm/, data/, arch/ or recipe/"
        )
    return path


def _default_name(cells: Sequence[GridCell]) -> str:
    """<arch>-<data>: what is compared within one table."""
    words = [dict.fromkeys(item.cell.flat()[key] for item in cells) for key in ("arch", "data")]
    name = "-".join("+".join(word.rsplit("/", 1)[-1].replace(":", ".") for word in group) for group in words)
    return name if len(name) <= 80 else name[:77] + "..."
