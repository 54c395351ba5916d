"""What can be chosen for the parts of a cell: architecture, data, recipe. Typed, checked when made, free of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from normbench.errors import ConfigError, nearest

STEMS = ("auto", "imagenet", "cifar")
OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "step", "constant")
LR_RULES = ("linear", "sqrt", "none")
RAMPS = ("linear", "cosine")
ANCHORS = ("zero", "one", "init")
DECODERS = ("torchvision", "pillow", "cuda")
AUTO = "auto"
TUNE_EXAMPLE = "such as 'tune.lr=[0.01,0.03,0.1]'"


@dataclass(frozen=True)
class ArchOptions:
    """An architecture: any plain model with nn.BatchNorm2d in it.

    name: one of ours, a torchvision name, ``file.py:callable`` or ``package.module:callable``.
    stem: ``imagenet`` (7×7, stride 2, max-pool), ``cifar`` (3×3, stride 1, none) or ``auto`` (``cifar`` up to 64 px).
    size: side in pixels that pictures are brought to before the net; None: the net's own rule.
    aux: InceptionV3's auxiliary head; None: on from 299 px.
    zero_init: start the last norm of every residual branch at weight 0.
    phase: of the training of a binary net: 1 real weights, 2 binary ones; None: the net's own, the last.
    options: what else a user's own callable takes.
    """

    name: str
    stem: str = "auto"
    size: int | None = None
    aux: bool | None = None
    zero_init: bool = False
    phase: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        one_of("arch.stem", self.stem, STEMS)
        at_least("arch.size", self.size, 1)
        if self.phase not in (None, 1, 2):
            raise ConfigError(f"arch.phase: got {self.phase}, expected 1 (real weights) or 2 (binary weights)")


@dataclass(frozen=True)
class DataOptions:
    """A data set and how its pictures are prepared.

    name: one of ours, ``file.py:callable`` or ``package.module:callable``.
    title: what tables call it; None: its name.
    root: folder or archive the pictures are in; None: ``data/<name>`` here.
    download: fetch what is missing where the data set can be fetched.
    limit: at most so many pictures of each split, balanced over the classes, always the same ones.
    valid: share of the training pictures held out; evaluation is then on these and the test set stays unseen.
    tune: share of the training pictures held out to choose by after training (eval.example_weight=auto); evaluation
        is on the test set.
    held_out: of a set with domains, the one that is not trained but evaluated on.
    size: side in pixels that pictures are stored at; None: as they are, or the net's size when they are streamed.
    pad, flip: augmentation of in-memory pictures: zero-pad by ``pad`` and crop back; mirror at random.
    stream: read pictures from disk at every epoch; None: only if they do not fit in memory.
    prepared: folder of a prepared copy that is read in place of ``root``; ``root``, if it is there, is what the copy is
        compared with.
    loaders: processes that decode when streaming; None: one per core, shared out among slots and ranks.
    decoder: of streamed pictures, and who crops and resizes them: see normbench/data/view.py.
    eval_batch: pictures of one evaluation forward.
    options: what else a user's own callable takes.
    """

    name: str
    title: str | None = None
    root: str | None = None
    download: bool = True
    limit: int | None = None
    valid: float = 0.0
    tune: float = 0.0
    held_out: str | None = None
    size: int | None = None
    pad: int = 0
    flip: bool = False
    stream: bool | None = None
    prepared: str | None = None
    loaders: int | None = None
    decoder: str = "torchvision"
    eval_batch: int = 256
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least("data.limit", self.limit, 1)
        at_least("data.size", self.size, 1)
        at_least("data.pad", self.pad, 0)
        at_least("data.loaders", self.loaders, 0)
        one_of("data.decoder", self.decoder, DECODERS)
        at_least("data.eval_batch", self.eval_batch, 1)
        for name in ("valid", "tune"):
            if not 0 <= (got := getattr(self, name)) < 1:
                raise ConfigError(f"data.{name}: got {got}, expected a share from 0 up to below 1, such as 0.1")
        if self.valid and self.tune:
            raise ConfigError(
                f"data.valid={self.valid} and data.tune={self.tune} are both given; expected one: with valid the test "
                "set stays unseen, with tune it is what is evaluated"
            )


@dataclass(frozen=True)
class EvalOptions:
    """How a cell is evaluated.

    example_weight: the share of an image's own moments in the statistics that it is evaluated with, beside the running
    ones, for methods that keep such (inference example weighing, Summers & Dinneen, ICLR 2020, arXiv:1906.03548); or
    ``auto``: chosen after the last epoch on the pictures that ``data.tune`` holds out.
    isolate: after the last epoch evaluate in other ways too, which tell what the normalizer alone does (isolate.py).
    pictures: of the training set, that take part in that.
    """

    example_weight: float | str = 0.0
    isolate: bool = True
    pictures: int = 4096

    def __post_init__(self) -> None:
        at_least("eval.pictures", self.pictures, 1)
        got = self.example_weight
        if got != AUTO and (isinstance(got, str) or not 0 <= got <= 1):
            raise ConfigError(f"eval.example_weight: got {got!r}, expected a share from 0 to 1, such as 0.1, or {AUTO}")


@dataclass(frozen=True)
class Recipe:
    """How a cell is trained.

    base_lr holds for base_batch images a step; ``lr_rule`` says how it follows batch × workers (linear, sqrt, none).
    milestones: shares of the run after which the rate is multiplied by ``decay`` (schedule ``step``).
    warmup_epochs: the rate rises from 0 to the peak, along ``warmup`` (linear or cosine).
    affine_weight_decay: decay of the units' weight and bias; None: the same as ``weight_decay``.
    affine_anchor: where that pulls the weight: to ``zero`` (as torch does), ``one`` (arXiv:1906.03548's code) or where
    it started (``init``: apart from ``one`` at a zero-initialised weight). The bias goes to zero.
    clip: largest norm of the whole gradient; None: unclipped.
    """

    name: str
    source: str = ""
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0
    affine_weight_decay: float | None = None
    affine_anchor: str = "zero"
    base_lr: float = 0.1
    base_batch: int = 256
    lr_rule: str = "linear"
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.3, 0.6, 0.9)
    decay: float = 0.1
    warmup_epochs: float = 0.0
    warmup: str = "linear"
    epochs: int | None = None
    steps: int | None = None
    label_smoothing: float = 0.0
    clip: float | None = None

    def __post_init__(self) -> None:
        one_of("recipe.optimizer", self.optimizer, OPTIMIZERS)
        one_of("recipe.schedule", self.schedule, SCHEDULES)
        one_of("recipe.lr_rule", self.lr_rule, LR_RULES)
        one_of("recipe.warmup", self.warmup, RAMPS)
        one_of("recipe.affine_anchor", self.affine_anchor, ANCHORS)
        at_least("recipe.epochs", self.epochs, 1)
        at_least("recipe.steps", self.steps, 1)
        at_least("recipe.base_batch", self.base_batch, 1)
        for name in ("base_lr", "weight_decay", "affine_weight_decay", "warmup_epochs", "decay"):
            at_least(f"recipe.{name}", getattr(self, name), 0)
        decay = self.weight_decay if self.affine_weight_decay is None else self.affine_weight_decay
        if self.affine_anchor != "zero" and not decay:
            raise ConfigError(
                f"recipe.affine_anchor={self.affine_anchor} says where affine_weight_decay pulls to, and that is 0; "
                "give recipe.affine_weight_decay=1e-4 too"
            )
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"recipe.momentum: got {self.momentum}, expected 0 up to below 1, such as 0.9")
        if not all(0 <= share <= 1 for share in self.milestones):
            got = list(self.milestones)
            raise ConfigError(f"recipe.milestones: got {got}, expected shares of the run, such as [0.3,0.6,0.9]")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"recipe.label_smoothing: got {self.label_smoothing}, expected 0 up to below 1")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ConfigError(f"recipe.clip: got {self.clip}, expected a norm above 0, or null for no clipping")

    def peak_lr(self, images: int) -> float:
        """The peak learning rate for ``images`` (batch × workers) images a step."""
        ratio = images / self.base_batch
        return self.base_lr * {"linear": ratio, "sqrt": ratio**0.5, "none": 1.0}[self.lr_rule]


@dataclass(frozen=True)
class TuneOptions:
    """How the peak learning rate of a cell is chosen: by trials on pictures held out of its training set.

    lr: the rates that are tried, two or more; kept in rising order.
    valid: share of the training pictures that trials do not train on and are evaluated on.
    seeds: trials of each rate.
    budget: length of a trial as a share of the cell's, rounded up to whole epochs (or steps).
    """

    lr: tuple[float, ...]
    valid: float = 0.1
    seeds: int = 1
    budget: float = 1.0

    def __post_init__(self) -> None:
        for rate in self.lr:
            if not 0 < rate < math.inf:
                raise ConfigError(f"tune.lr: got {rate}, expected rates above 0, and finite")
        object.__setattr__(self, "lr", tuple(sorted(set(self.lr))))
        if len(self.lr) < 2:
            got = f"one rate, {self.lr[0]:g}" if self.lr else "none"
            one = f"; a single one is lr={self.lr[0]:g}" if self.lr else ""
            raise ConfigError(f"tune.lr: got {got}, expected two or more to choose from, {TUNE_EXAMPLE}{one}")
        if not 0 < self.valid < 1:
            raise ConfigError(f"tune.valid: got {self.valid}, expected a share above 0 and below 1, such as 0.1")
        at_least("tune.seeds", self.seeds, 1)
        if not 0 < self.budget <= 1:
            raise ConfigError(f"tune.budget: got {self.budget}, expected a share of the run above 0 and up to 1")

    @property
    def rates(self) -> str:
        """``0.01, 0.1``."""
        return ", ".join(f"{rate:g}" for rate in self.lr)

    def told(self) -> str:
        """``0.01, 0.1 on a held-out 10 % of the training set (1 seed, full length)``."""
        seeds = f"{self.seeds} seed{'s'[: self.seeds > 1]}"
        length = "full length" if self.budget == 1 else f"{100 * self.budget:g} % of the length"
        return f"{self.rates} on a held-out {100 * self.valid:g} % of the training set ({seeds}, {length})"


def one_of(key: str, got: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless ``got`` is one of ``choices``."""
    if got not in choices:
        near = nearest(str(got), choices)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigError(f"{key}: got {got!r}, expected one of {', '.join(choices)}{hint}")


def at_least(key: str, got: float | None, least: float) -> None:
    """Raise ConfigError if ``got`` is given and below ``least``, infinite or not a number."""
    if got is not None and not least <= got < math.inf:
        raise ConfigError(f"{key}: got {got}, expected {least} or more, and finite")
