"""What a method may change of a traced model beyond the units: its graphs, and the modules they call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain, count

from torch import fx, nn


@dataclass(frozen=True)
class Wiring:
    """A model about to get its new forward. A method's ``wire`` edits ``graphs`` in place.

    tree: the new model's modules, units in place. graphs: of training and of evaluation; both call the modules of
    ``tree`` by name, and each must be edited the same way. units: the unit of every site, by name, in the order of the
    forward. convolutions: the name of the Conv2d right before a site, by the site's name, where there is one.
    activation: the elementwise activation that a node applies, as a new module that does not work in place; None if it
    applies none. A method that acts in training alone edits the first graph. added: the names of what ``add`` made, of
    which a BatchNorm model's state knows nothing.

    Containers of the tree that hold units or replaced convolutions are the new model's own; all else is shared with the
    model given, and must be replaced (``put``), never changed.
    """

    tree: nn.Module
    graphs: tuple[fx.Graph, ...]
    units: Mapping[str, nn.Module]
    convolutions: Mapping[str, str]
    activation: Callable[[fx.Node], nn.Module | None]
    added: list[str] = field(default_factory=list)

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
