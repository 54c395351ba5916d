"""Residual sums that a unit adds itself, in one call: activation(unit(x) + residual), or activation(x + residual)."""

from __future__ import annotations

import operator
from collections.abc import Container, Mapping
from dataclasses import dataclass
from itertools import chain

from torch import fx, nn

from normbench.norms import Normalizer
from normbench.norms.wiring import ADDITIONS
from normbench.surgery.sites import Found, Use, activation

# What a unit's kernels apply; any other activation stays where it is, behind the sum.
RECTIFIERS = (nn.ReLU, nn.ReLU6)


@dataclass(frozen=True)
class Taken:
    """An addition with a call of a site's BatchNorm in it, and the rectifier behind (None: another, or none)."""

    call: fx.Node
    addition: fx.Node
    rectifier: fx.Node | None
    activation: nn.Module | None


def takes_sums(row: Normalizer) -> bool:
    """Whether the method's units may take sums: not where it has something of its own in mind for the graph."""
    own = row.sum_activation, row.wire, row.around, row.hooks
    return row.takes_residual and row.takes_activation and not any(own)


def find_taken(found: Found, modules: Mapping[str, nn.Module]) -> dict[str, list[Taken]]:
    """The sums that sites take, by the site's name: one for every call of its BatchNorm, all with the same activation.

    A sum of two sites is the one's whose name has fewer dots, the branch's own rather than one inside a projection of
    the shortcut; then the one's that is called first.
    """
    taken: dict[str, list[Taken]] = {}
    gone: set[fx.Node] = set()
    for site in sorted(found.uses, key=lambda name: name.count(".")):  # which keeps the order of calls
        sums = [sum_ for use in found.uses[site] if (sum_ := _taken(use, modules)) is not None]
        additions = {sum_.addition for sum_ in sums}
        alike = len({repr(sum_.activation) for sum_ in sums}) == 1
        # Fewer additions than calls: some have no sum, or two meet in one.
        if alike and len(additions) == len(found.uses[site]) and not additions & gone:
            taken[site] = sums
            gone |= additions
    return taken


def take(taken: Mapping[str, list[Taken]]) -> None:
    """Let the calls add the residuals, and apply the activations: each at the place of its addition."""
    for sum_ in chain.from_iterable(taken.values()):
        graph, last = sum_.call.graph, sum_.rectifier or sum_.addition
        with graph.inserting_before(sum_.addition):
            joined = graph.call_module(str(sum_.call.target), (*sum_.call.args, *_others(sum_.addition, sum_.call)))
        last.replace_all_uses_with(joined)
        for node in dict.fromkeys((last, sum_.addition, sum_.call)):
            graph.erase_node(node)


def _taken(use: Use, modules: Mapping[str, nn.Module]) -> Taken | None:
    """The sum that a call of a BatchNorm ends in, if nothing else sees a difference when that is done at the sum."""
    call, before = use.node, use.node.all_input_nodes
    if use.after is not None:  # an activation of its own comes between it and the sum
        return None
    if len(call.users) != 1 or len(call.args) != 1:
        return None
    # Done later, it must still find its input: a convolution's output is no view, and nobody else may write to it.
    if use.convolution is None or len(before[0].users) != 1:
        return None
    addition = next(iter(call.users))
    if not _is_addition(addition):
        return None
    if not _others(addition, call) or (_writes(addition) and addition.args[0] is not call):  # into the residual
        return None
    after = next(iter(addition.users)) if len(addition.users) == 1 else None
    found = None if after is None else activation(after, modules)
    if after is None or type(found) not in RECTIFIERS:
        return Taken(call, addition, None, None)
    return Taken(call, addition, after, found)


def _is_addition(node: fx.Node) -> bool:
    """Whether it is the plain sum of two nodes."""
    if node.target not in ADDITIONS or node.op == "call_module" or node.kwargs:
        return False
    return len(node.args) == 2 and all(isinstance(arg, fx.Node) for arg in node.args)


def _others(addition: fx.Node, call: fx.Node) -> list[fx.Node]:
    """What else is added: the residual, or nothing."""
    return [node for node in addition.all_input_nodes if node is not call]


def _writes(addition: fx.Node) -> bool:
    """Whether it writes the sum into its first operand."""
    return addition.target in (operator.iadd, "add_")


def join(rectifier: fx.Node, unit: str, units: Container[str]) -> None:
    """Let ``unit`` do what the rectifier behind a sum does, which alone sees that; and add, if these are two nodes.

    ``units``: the names of the sites'.
    """
    graph, (summed,) = rectifier.graph, rectifier.all_input_nodes
    adds = _is_addition(summed) and len(summed.all_input_nodes) == 2
    if adds and _writes(summed):  # into the output of a unit, for which nobody waits
        into = summed.all_input_nodes[0]
        adds = into.target in units and len(into.users) == 1
    with graph.inserting_before(summed if adds else rectifier):
        node = graph.call_module(unit, tuple(summed.args) if adds else (summed,))
    rectifier.replace_all_uses_with(node)
    for old in (rectifier, summed) if adds else (rectifier,):
        graph.erase_node(old)
