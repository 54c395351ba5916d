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
    """What the harness must know of a method.

    mixes_samples: a training output depends on the other images of the batch. train_eval_differ: the two modes compute
    different things. least_batch: the smallest batch it can train on. own_activation: it does more with a ReLU after it
    than apply it (its own in its place, or something behind it). own_eps: the replaced BatchNorm's eps does not carry
    over. drop_in: it can stand in a BatchNorm2d's place without a look at the graph. sum_activation: what it puts in
    place of a ReLU after a residual sum, made with num_features. convolution: what it puts in place of the Conv2d right
    before a site, made from that and the site's unit. every_convolution: it is asked for all others too, with None for
    the unit. layer: what it puts in place of every Conv2d and Linear, made from that and the first site's unit; not
    drop_in then. wire: what else it changes of the graphs, the units being in place; not drop_in then. hooks: what it
    does in the training loop. joins_workers: its statistics are those of all workers of a step, which are therefore
    never run a chunk at a time. own_gradient: its backward is its own, not the derivative of its forward, and keeps
    state; so it cannot be compiled or differentiated twice. held_constant: its gradient takes parts of its training
    forward that depend on the input for constants. keeps_statistics: it has running statistics also where the BatchNorm
    had none. source_hash: SHA-256 of a user's file; None for ours. users: it is a user's. check: raises ConfigError for
    a bad value of an option; None: values are not checked. row_options: options, and their defaults, that the row
    itself takes and the unit is not given. settle: the row that holds under given options, where the unit and what is
    said here depend on them.
    """

    name: str
    unit: type[nn.Module]
    method: str
    paper: str
    mixes_samples: bool
    train_eval_differ: bool
    least_batch: int = 1
    own_activation: bool = False
    own_eps: bool = False
    drop_in: bool = True
    sum_activation: type[nn.Module] | None = None
    convolution: Callable[[nn.Conv2d, nn.Module | None], nn.Module] | None = None
    every_convolution: bool = False
    layer: Callable[[nn.Module, nn.Module], nn.Module] | None = None
    wire: Callable[[Wiring], None] | None = None
    hooks: type[StepHooks] | None = None
    joins_workers: bool = False
    own_gradient: bool = False
    held_constant: bool = False
    keeps_statistics: bool = False
    source_hash: str | None = None
    users: bool = False
    check: Callable[[Mapping[str, Any], str], None] | None = checks.check
    row_options: Mapping[str, Any] = field(default_factory=dict)
    settle: Callable[[Mapping[str, Any]], Normalizer] | None = None

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

    @property
    def takes_batch(self) -> bool:
        """Whether images share statistics by ``batch``."""
        return "batch" in self.parameters

    @property
    def takes_size(self) -> bool:
        """Whether the unit wants to know H × W when it is made."""
        return "size" in self.parameters

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options and their defaults."""
        named = (p for p in self.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        return {**self.row_options, **{p.name: p.default for p in named if p.name not in GIVEN}}
