"""The config of one cell: typed, checked, hashed. Everything that can change the cell's numbers, and nothing else.

A cell is made from a plain nested dict, what Hydra composed and the command line changed; neither Hydra nor torch
is needed for it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from normbench.errors import ConfigError, UnknownName
from normbench.files import one_value
from normbench.options import (
    AUTO,
    TUNE_EXAMPLE,
    ArchOptions,
    DataOptions,
    EvalOptions,
    Recipe,
    TuneOptions,
    at_least,
    one_of,
)  # fmt: skip

# Raised when the meaning of a configuration changes, so that old results are not taken for new ones.
VERSION = 1
AMP = ("none", "bfloat16")
MEMORY_FORMATS = ("contiguous", "channels_last")
# Where the pictures lie and how many processes decode them cannot change a number; the fingerprint of the pictures,
# which tells a prepared copy from its originals and one way of decoding from another, stands in the id.
NOT_IN_ID = {
    "data": {"title", "root", "download", "prepared", "loaders", "decoder"},
    "recipe": {"source", "base_lr", "base_batch", "lr_rule", "epochs", "steps"},
}
# Options that are younger than the oldest ids: they count only where they are not what they were before they were.
YOUNGER: dict[str, dict[str, Any]] = {
    "arch": {"phase": None},
    "data": {"tune": 0.0, "held_out": None},
    "recipe": {"affine_anchor": "zero"},
    "eval": {"example_weight": 0.0, "isolate": True, "pictures": 4096},
}
YOUNGER_KEYS: dict[str, Any] = {"graph": AUTO, "tune": None}
# Seeds of the trials of tune.lr, from here on: never those of a cell whose rate they choose.
TRIAL_SEED = 1000


@dataclass(frozen=True)
class NormOptions:
    """A normalizer: a registered name, ``file.py:Class`` or ``package.module:Class``, and its constructor's options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One training run: a pure function of these values.

    batch: images that share statistics (one worker's); workers: such groups in one optimizer step; chunk: workers run
    in one forward (None: all). epochs or steps: the length, else the recipe's. lr: the peak rate, else by the
    recipe's rule from batch × workers. amp: none, bfloat16. amp and memory_format may be auto: measured at the start
    (choices.py). graph: whether steps are recorded in a CUDA graph; auto: where that can be. device, like threads and
    versions, is provenance.
    """

    arch: ArchOptions
    data: DataOptions
    norm: NormOptions
    recipe: Recipe
    eval: EvalOptions = field(default_factory=EvalOptions)
    batch: int = 32
    workers: int = 1
    chunk: int | None = None
    seed: int = 0
    epochs: int | None = None
    steps: int | None = None
    lr: float | None = None
    tune: TuneOptions | None = None
    device: str = "auto"
    amp: str = "none"
    memory_format: str = "contiguous"
    compile: bool = False
    graph: str | bool = AUTO
    deterministic: bool = False

    def __post_init__(self) -> None:
        for key in ("batch", "workers", "chunk", "epochs", "steps"):
            at_least(key, getattr(self, key), 1)
        at_least("seed", self.seed, 0)
        if self.seed >= 2**63:
            raise ConfigError(f"seed: got {self.seed}, expected less than 2**63")
        at_least("lr", self.lr, 0)
        if self.amp not in (*AMP, AUTO):
            raise ConfigError(f"amp: got {self.amp!r}, expected true or false, or {', '.join(AMP)} or {AUTO}")
        one_of("memory_format", self.memory_format, (*MEMORY_FORMATS, AUTO))
        if not (isinstance(self.graph, bool) or self.graph == AUTO):
            raise ConfigError(f"graph: got {self.graph!r}, expected auto, true or false")
        if self.graph is True and self.compile:
            raise ConfigError("graph=true and compile=true are both given; they are two ways to the same end, take one")
        if self.epochs and self.steps:
            raise ConfigError(
                f"epochs={self.epochs} and steps={self.steps} are both given; give one, the length of the run"
            )
        if self.chunk and self.chunk > self.workers:
            raise ConfigError(f"chunk: got {self.chunk}, expected at most workers={self.workers}")
        if not (self.length("epochs") or self.length("steps")):
            raise ConfigError(f"recipe={self.recipe.name} gives no length; give epochs=… or steps=…")
        if self.eval.example_weight == AUTO and not self.data.tune:
            raise ConfigError(
                "eval.example_weight=auto is chosen on pictures held out of the training set, and none are; give "
                "data.tune=0.1, the share of them"
            )
        if not (self.epochs or self.steps) and self.recipe.epochs and self.recipe.steps:
            raise ConfigError(f"recipe={self.recipe.name} gives epochs and steps; expected one; epochs=… replaces both")
        if self.tune is not None:
            self._check_tune(self.tune)

    def _check_tune(self, tune: TuneOptions) -> None:
        """The trials have a held-out share and seeds of their own."""
        for key in ("valid", "tune"):
            if share := getattr(self.data, key):
                raise ConfigError(
                    f"data.{key}={share} and tune.lr are both given: trials hold tune.valid={tune.valid:g} of the "
                    f"training pictures out, and the cells train on all of them; leave data.{key} out"
                    + (", and give eval.example_weight a number" if self.eval.example_weight == AUTO else "")
                )
        if TRIAL_SEED <= self.seed < TRIAL_SEED + tune.seeds:
            raise ConfigError(f"seed={self.seed} is that of a trial of tune.lr; take one below {TRIAL_SEED}")

    @property
    def images(self) -> int:
        """Images of one optimizer step."""
        return self.batch * self.workers

    @property
    def peak_lr(self) -> float:
        """As given or chosen, else by the recipe's rule. Raises ConfigError where trials are to choose it first."""
        if self.undecided:
            raise ConfigError("lr: not chosen yet; the trials of tune.lr come before the cell")
        return self.recipe.peak_lr(self.images) if self.lr is None else self.lr

    @property
    def undecided(self) -> bool:
        """Whether trials are to choose the rate, and have not."""
        return self.tune is not None and self.lr is None

    def length(self, unit: str) -> int | None:
        """The run's length in ``epochs`` or ``steps``, None if it is given in the other unit."""
        given = self if self.epochs or self.steps else self.recipe
        return typing.cast("int | None", getattr(given, unit))

    def label(self) -> str:
        """A short name for people: ``bgn-b8-s0``. Not unique."""
        return f"{_word(self.norm.name)}-b{self.batch}-s{self.seed}"

    def nested(self) -> dict[str, Any]:
        """The configuration as a person reads it, with what was resolved: lr, epochs or steps."""
        own = {key.name: getattr(self, key.name) for key in dataclasses.fields(self)}
        resolved: dict[str, Any] = {"epochs": self.length("epochs"), "steps": self.length("steps")}
        resolved["lr"] = None if self.undecided else self.peak_lr
        resolved["chunk"] = None if self.chunk == self.workers else self.chunk
        resolved["tune"] = None if self.tune is None else _options(self.tune)
        groups = {key: _options(own[key]) for key in ("arch", "data", "norm", "recipe", "eval")}
        return {**own, **groups, **resolved}

    def flat(self) -> dict[str, Any]:
        """The configuration with dotted keys; a group's own key (``norm``) holds its name, ``tune`` what it says."""
        flat: dict[str, Any] = {}
        for key, value in self.nested().items():
            if key == "tune":
                flat[key] = None if self.tune is None else self.tune.told()
            elif isinstance(value, dict):
                if "name" in value:
                    flat[key] = value.get("title") or value["name"]
                flat |= {f"{key}.{name}": one_value(item) for name, item in value.items() if name != "name"}
            else:
                flat[key] = value
        return flat

    def identity(self, evidence: Mapping[str, str | None]) -> str:
        """The cell's id: readable, then a hash of all that can change its numbers.

        evidence: the fingerprint of the pictures (``data``) and the hashes of a user's own files (``arch``, ``norm``).

        A cell that is tuned is known by how its rate is chosen, not by the rate, as one of amp=auto is by ``auto``:
        what was asked for has one id, one row and one result, before the trials and after them, whatever they come
        to. So it is another cell than one that was given the same rate: its numbers are the same, what they show is
        not.
        """
        content = {key: value for key, value in self.nested().items() if key != "device"}
        if self.tune is not None:
            del content["lr"]
        content = {key: value for key, value in content.items() if YOUNGER_KEYS.get(key, ...) != value}
        for group, left_out in NOT_IN_ID.items():
            content[group] = {key: value for key, value in content[group].items() if key not in left_out}
        for group, before in YOUNGER.items():
            content[group] = {k: v for k, v in content[group].items() if k not in before or v != before[k]}
            if not content[group]:
                del content[group]
        # A user's file is known by its hash (pictures by theirs): moving it changes nothing.
        for group in ("arch", "norm", "data"):
            content[group] = {**content[group], "name": content[group]["name"].rsplit(":", 1)[-1]}
        text = json.dumps({"version": VERSION, **content, "evidence": dict(evidence)}, sort_keys=True, default=str)
        return f"{self.label()}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def make(config: Mapping[str, Any]) -> Cell:
    """A cell from a nested dict. Raises ConfigError: unknown key (with the near one), wrong type, wrong value."""
    values = dict(config)
    if values.get("amp") is None or isinstance(values["amp"], bool):
        values["amp"] = "bfloat16" if values.get("amp") else "none"
    values["arch"] = construct(ArchOptions, "arch", _group(values, "arch"), own_options=_is_target(values, "arch"))
    values["data"] = construct(DataOptions, "data", _group(values, "data"), own_options=_is_target(values, "data"))
    values["recipe"] = construct(Recipe, "recipe", _group(values, "recipe"))
    values["eval"] = construct(EvalOptions, "eval", values.get("eval") or {})
    values["tune"] = _tune(values.get("tune"))
    norm = _group(values, "norm")
    # null means: not given; the method's or the architecture's own value holds.
    given = {key: value for key, value in norm.items() if key != "name" and value is not None}
    values["norm"] = NormOptions(_text("norm.name", norm.get("name")), given)
    return construct(Cell, "", values)


def construct(cls: type[Any], section: str, values: Mapping[str, Any], *, own_options: bool = False) -> Any:
    """``cls(**values)``, every value checked against the field's annotation.

    own_options: keys that are no fields go to the field ``options`` (a user's callable checks them later).
    """
    hints = _hints(cls)  # type: ignore[arg-type]
    prefix = f"{section}." if section else ""
    known: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in values.items():
        if key == "options" and own_options and isinstance(value, Mapping):
            extra |= value
        elif key in hints and key != "options":
            known[key] = _typed(f"{prefix}{key}", value, hints[key])
        elif own_options:
            extra[key] = value
        else:
            what = f"option of {section}={values['name']}" if "name" in values else "option"
            raise UnknownName(what, f"{prefix}{key}", [f"{prefix}{name}" for name in hints if name != "options"])
    return cls(**known, **({"options": extra} if own_options else {}))


def _tune(given: Any) -> TuneOptions | None:
    """How lr is chosen; None where no rates are given to choose from."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ConfigError(f"tune: got {given!r}, expected an option of it, {TUNE_EXAMPLE}")
    rates = given.get("lr")
    if rates is None:
        # For unknown options and wrong types: what is right is of no use, and grid says so.
        construct(TuneOptions, "tune", {**given, "lr": (1.0, 2.0)})
        return None
    if not isinstance(rates, list | tuple):
        raise ConfigError(f"tune.lr: got {rates!r}, expected all rates to try in one list, {TUNE_EXAMPLE}")
    made: TuneOptions = construct(TuneOptions, "tune", given)
    return made


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _group(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    group = values.get(key)
    if not isinstance(group, Mapping):
        raise ConfigError(f"{key}: got {group!r}, expected the name of one, such as {key}={EXAMPLES[key]}")
    return dict(group)


EXAMPLES = {"arch": "resnet20", "data": "cifar10", "norm": "bgn", "recipe": "cifar"}
EXPECTED = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a word",
    tuple: "a list of numbers", Mapping: "a mapping",
}  # fmt: skip


def _typed(key: str, value: Any, hint: Any) -> Any:
    """``value`` as the annotation wants it, or ConfigError."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        origin: Any = typing.get_origin(kind) or kind
        if isinstance(origin, type) and dataclasses.is_dataclass(origin) and isinstance(value, origin):
            return value
        if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if origin is tuple and isinstance(value, list | tuple):
            return tuple(_typed(f"{key}[{i}]", item, typing.get_args(kind)[0]) for i, item in enumerate(value))
        if origin is str and isinstance(value, str):
            return value
        if (
            origin in (int, bool, Mapping)
            and isinstance(value, origin)
            and (origin is bool or not isinstance(value, bool))
        ):
            return value
    wanted = " or ".join(EXPECTED.get(typing.get_origin(kind) or kind, "null") for kind in kinds)
    raise ConfigError(f"{key}: got {value!r} ({_kind(value)}), expected {wanted}{_sweep_hint(key, value)}")


def _kind(value: Any) -> str:
    return {str: "text", bool: "true/false", int: "a whole number", float: "a fraction", list: "a list"}.get(
        type(value), "nothing"
    )


def _sweep_hint(key: str, value: Any) -> str:
    return f"; to sweep, write {key}={','.join(map(str, value))}" if isinstance(value, list) and value else ""


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{key}: got {value!r}, expected a name")
    return value


def _is_target(values: Mapping[str, Any], key: str) -> bool:
    return ":" in str(_group(values, key).get("name"))


def _options(part: Any) -> dict[str, Any]:
    """The fields of an options object, a user's own options beside them."""
    fields = {item.name: getattr(part, item.name) for item in dataclasses.fields(part)}
    return {**{key: value for key, value in fields.items() if key != "options"}, **fields.get("options", {})}


def _word(name: str) -> str:
    """``name`` as it may stand in a folder's name."""
    return re.sub(r"[^A-Za-z0-9_.+]+", "-", name.rsplit("/", 1)[-1].replace(".py:", ".")).strip("-.")[:40] or "norm"
