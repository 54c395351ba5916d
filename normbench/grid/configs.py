"""The config groups: which files there are, and what Hydra composes of them, once per combination of groups."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normbench.errors import ConfigError, one_line
from normbench.files import conf_folder

GROUPS = ("arch", "data", "norm", "recipe")

Composed = dict[tuple[tuple[str, Any], ...], dict[str, Any]]


def existing(folder: str) -> Path:
    """A folder of configs that somebody named."""
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise ConfigError(
            f"--config-dir: {folder!r} is no folder; expected one that holds norm/, data/, arch/ or recipe/"
        )
    return path


@functools.cache
def _packaged(folder: Path) -> Composed:
    """What was composed of the packaged configs alone, which stay as they are while a process lives."""
    return {}


class Configs:
    """The packaged configs and those of the users' folders, which come after: ours keep their names."""

    def __init__(self, users: Sequence[Path] = ()) -> None:
        self.folders = [conf_folder(), *users]
        self._composed: Composed = _packaged(self.folders[0]) if not users else {}

    @cached_property
    def files(self) -> dict[str, list[str]]:
        """Every group and the names of its files."""
        found: dict[str, set[str]] = {}
        for folder in self.folders:
            for path in folder.rglob("*.yaml"):
                group, _, name = str(path.relative_to(folder).with_suffix("")).partition("/")
                if name:
                    found.setdefault(group, set()).add(name)
        return {group: sorted(names) for group, names in found.items()}

    def options(self, group: str) -> list[str]:
        """The names of a group's files, without their suffix."""
        return self.files.get(group, [])

    def config(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration with these groups chosen, a copy. Names that are no file stand in it bare."""
        key = tuple(sorted(choices.items()))
        if key not in self._composed:
            self._composed[key] = self._compose(choices)
        return copy.deepcopy(self._composed[key])

    def packaged(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """What ours say for the same names; None when nobody else's files can have had a say."""
        if len(self.folders) == 1:
            return None
        names = {group: str(config[group].get("name")) for group in GROUPS}
        ours = self.config({group: name for group, name in names.items() if name in self.options(group)})
        return ours | {group: dict(config[group]) for group, name in names.items() if name not in self.options(group)}

    def _compose(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        bare = {key: value for key, value in choices.items() if value not in self.options(key)}
        chosen = [f"{key}={value}" for key, value in choices.items() if key not in bare]
        try:
            with self._initialized() as search:
                composed = compose(config_name="sweep", overrides=[*search, *chosen, *(f"~{key}" for key in bare)])
            config: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            raise ConfigError(f"the configuration does not compose: {one_line(error)}") from None
        for group in GROUPS:
            if isinstance(config.get(group), dict):
                config[group].setdefault("name", str(choices.get(group)).rsplit("/", 1)[-1])
        return config | {key: {"name": value} for key, value in bare.items()}

    @contextmanager
    def _initialized(self) -> Iterator[list[str]]:
        """Hydra on our folder; the overrides that add the users'."""
        escaped = [str(folder).replace("\\", "\\\\").replace("'", "\\'") for folder in self.folders[1:]]
        paths = ",".join(f"'file://{folder}'" for folder in escaped)
        with initialize_config_dir(str(self.folders[0]), version_base="1.3"):
            yield [f"hydra.searchpath=[{paths}]"] if paths else []
