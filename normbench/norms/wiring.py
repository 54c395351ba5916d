"""What a method may change of a traced model beyond the units: its graphs, and the modules they call."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain, count

import torch
from torch import fx, nn

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass(frozen=True)
class Sum:
    """A ReLU after a residual addition. ``owner``: name of the module that adds; ``site``: whose output it adds."""

    graph: fx.Graph
    node: fx.Node
    owner: str
    site: str


@dataclass(frozen=True)
class Wiring:
    """A model about to get its new forward. A method's ``wire`` edits ``graphs`` in place.

    tree: the new model's modules, units in place. graphs: of training and of evaluation; both call the modules of
    ``tree`` by name, and each must be edited the same way. units: the unit of every site, by name, in the order of the
    forward. convolutions: the name of the Conv2d right before a site, by the site's name, where there is one.
    activation: the elementwise activation that a node applies, as a new module that does not work in place; None if it
    applies none. sums: the ReLUs after residual additions, as far as the method has not put its own there. make: a unit
    as that of a site, for another number of channels and with fresh weights and statistics. added: the names of what
    ``add`` made, of which a BatchNorm model's state knows nothing. A method that acts in training alone edits the first
    graph.

    Containers, which hold other modules, are the new model's own; all else is shared with the model given, and must be
    replaced (``put``), never changed.
    """

    tree: nn.Module
    graphs: tuple[fx.Graph, ...]
    units: dict[str, nn.Module]
    convolutions: Mapping[str, str]
    activation: Callable[[fx.Node], nn.Module | None]
    sums: tuple[Sum, ...]
    make: Callable[[str, int], nn.Module]
    added: list[str] = field(default_factory=list)
    changed: dict[str, int | None] = field(default_factory=dict)  # what ``remake``, ``drop`` and ``add_unit`` did

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that ``node`` calls, None if it calls none."""
        return self.tree.get_submodule(str(node.target)) if node.op == "call_module" else None

    def add(self, owner: str, module: nn.Module, word: str) -> str:
        """Make ``module`` a child of the module called ``owner``, as ``word`` or ``word_1`` …; its full name."""
        parent = self.tree.get_submodule(owner)
        name = next(name for name in chain([word], (f"{word}_{i}" for i in count(1))) if not hasattr(parent, name))
        parent.add_module(name, module)
        self.added.append(f"{owner}.{name}" if owner else name)
        return self.added[-1]

    def put(self, name: str, module: nn.Module) -> None:
        """Let ``module`` take the place called ``name``."""
        owner, _, own = name.rpartition(".")
        self.tree.get_submodule(owner).add_module(own, module)

    def remake(self, site: str, num_features: int) -> nn.Module:
        """Give a site's place to a new unit for ``num_features`` channels."""
        self.units[site], self.changed[site] = self.make(site, num_features), num_features
        self.put(site, self.units[site])
        return self.units[site]

    def drop(self, site: str) -> None:
        """Take a site's unit out of the model; no graph may call it any more."""
        owner, _, own = site.rpartition(".")
        del self.tree.get_submodule(owner)._modules[own], self.units[site]
        self.changed[site] = None

    def add_unit(self, owner: str, word: str, like: str, num_features: int) -> str:
        """Add one more unit, for ``num_features`` channels and else as that of the site ``like``; its full name."""
        unit = self.make(like, num_features)
        name = self.add(owner, unit, word)
        self.units[name], self.changed[name] = unit, num_features
        return name
