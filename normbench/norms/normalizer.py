"""A row of the registry: what the harness must know of a method, and what its constructor's signature says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import nn

from normbench.norms import options as checks
from normbench.norms.wiring import Wiring

if TYPE_CHECKING:
    from normbench.norms.hooks import StepHooks

# Parameters of a constructor that the harness gives; all others are the method's options.
GIVEN = ("num_features", "activation", "batch", "device", "dtype")


@dataclass(frozen=True)
class Normalizer:
    """What the harness must know of a method: beside its unit and its papers, traits, each false or None by default.

    A user's class may say the traits as attributes (registry.TRAITS).
    """

    name: str
    unit: type[nn.Module]
    method: str
    paper: str

    #: A training output depends on the other images of the batch.
    mixes_samples: bool
    #: The two modes compute different things.
    train_eval_differ: bool
    #: The smallest batch it can train on.
    least_batch: int = 1
    #: Its statistics are those of all workers of a step, which are therefore never run a chunk at a time.
    joins_workers: bool = False
    #: It has running statistics also where the BatchNorm had none.
    keeps_statistics: bool = False
    #: The replaced BatchNorm's eps does not carry over.
    own_eps: bool = False

    #: Its backward is its own, not the derivative of its forward, and keeps state; so it cannot be compiled or
    #: differentiated twice.
    own_gradient: bool = False
    #: Its gradient takes parts of its training forward that depend on the input for constants.
    held_constant: bool = False

    #: Why a training step with it cannot be recorded in a CUDA graph and replayed; empty if it can: then its Python
    #: does nothing but ask the device for work, the same in every step, and never waits for an answer.
    no_graph: str = ""

    #: It can stand in a BatchNorm2d's place without a look at the graph. Not so with any of the following.
    drop_in: bool = True
    #: It does more with a ReLU after it than apply it: its own in its place, or something behind it.
    own_activation: bool = False
    #: What it puts in place of a ReLU after a residual sum, made with num_features.
    sum_activation: type[nn.Module] | None = None
    #: What it puts in place of the Conv2d right before a site, made from that and the site's unit.
    convolution: Callable[[nn.Conv2d, nn.Module | None], nn.Module] | None = None
    #: ``convolution`` is asked for all other Conv2d too, with None for the unit.
    every_convolution: bool = False
    #: What it puts in place of every Conv2d and Linear, made from that and the first site's unit.
    layer: Callable[[nn.Module, nn.Module], nn.Module] | None = None
    #: What else it changes of the graphs, the units being in place.
    wire: Callable[[Wiring], None] | None = None
    #: ``wire`` leaves units elsewhere than their BatchNorms stood, whose weights and statistics are then not theirs.
    moves_units: bool = False
    #: The evaluation forward of a whole model, given the model, its own forward and the arguments.
    around: Callable[..., Any] | None = None

    #: What it does in the training loop.
    hooks: type[StepHooks] | None = None

    #: Raises ConfigError for a bad value of an option; None: values are not checked.
    check: Callable[[Mapping[str, Any], str], None] | None = checks.check
    #: Options, and their defaults, that the row itself takes and the unit is not given.
    row_options: Mapping[str, Any] = field(default_factory=dict)
    #: The row that holds under given options, where the unit and what is said here depend on them.
    settle: Callable[[Mapping[str, Any]], Normalizer] | None = None
    #: It is a user's.
    users: bool = False
    #: SHA-256 of the user's file.
    source_hash: str | None = None

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The constructor's parameters, by name."""
        return inspect.signature(self.unit).parameters

    @property
    def takes_any(self) -> bool:
        """Whether the constructor has **kwargs (a user's may)."""
        return any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())

    @property
    def takes_activation(self) -> bool:
        """Whether the unit applies the activation itself."""
        return "activation" in self.parameters

    @cached_property
    def takes_residual(self) -> bool:
        """Whether the unit's forward takes a residual to add before the activation: ``forward(x, residual=None)``."""
        return "residual" in inspect.signature(self.unit.forward).parameters

    @property
    def takes_batch(self) -> bool:
        """Whether images share statistics by ``batch``."""
        return "batch" in self.parameters

    @property
    def takes_size(self) -> bool:
        """Whether the unit wants to know H × W when it is made."""
        return "size" in self.parameters

    @property
    def takes_domains(self) -> bool:
        """Whether the unit wants to know how many domains the training pictures are of."""
        return "domains" in self.parameters

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options and their defaults."""
        named = (p for p in self.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        return {**self.row_options, **{p.name: p.default for p in named if p.name not in GIVEN}}
