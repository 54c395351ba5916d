"""Residual sums in a traced graph: where a branch with norms in it leaves a map, and where it comes back.

What two summed maps have in common last is the fork. Of the two ways from there one is the branch: that with more
convolutions, then that which sees further (larger kernels), then that whose norm is less deep in the model. The other
is the shortcut: the fork itself, or what stands on the way (a projection, a pooling, padding with zeros).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import fx, nn

from normbench.norms.wiring import ADDITIONS, Wiring


@dataclass(frozen=True)
class Residual:
    """A residual sum: the addition ``node`` of a branch, its argument number ``at``, and a shortcut.

    fork: where they part. identity: the shortcut is the fork itself. starts: what the fork goes to of both.
    projected: a convolution stands on the shortcut. unit: the name of the last site on the branch. last: nothing of
    the same block is summed after it.
    """

    node: fx.Node
    at: int
    fork: fx.Node
    identity: bool
    starts: tuple[fx.Node, ...]
    projected: bool
    unit: str
    last: bool = True

    @property
    def block(self) -> str:
        """The name of the module that holds the last site of the branch."""
        return self.unit.rpartition(".")[0]


def find(graph: fx.Graph, wiring: Wiring) -> list[Residual]:
    """The residual sums of ``graph``, in its order. Sums of two ways that are alike, or without a site, are none."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    before: dict[fx.Node, frozenset[fx.Node]] = {}
    found: list[Residual] = []
    for node in graph.nodes:
        before[node] = frozenset({node}).union(*(before[other] for other in node.all_input_nodes))
        if (residual := _residual(node, before, order, wiring)) is not None:
            found.append(residual)
    return [_with_last(residual, found, before) for residual in found]


def _residual(
    node: fx.Node, before: Mapping[fx.Node, frozenset[fx.Node]], order: Mapping[fx.Node, int], wiring: Wiring
) -> Residual | None:
    operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
    if node.op == "call_module" or node.target not in ADDITIONS or len(node.args) != 2 or node.kwargs:
        return None
    if len(operands) != 2 or operands[0] is operands[1]:
        return None
    common = {other for other in before[operands[0]] & before[operands[1]] if other.op != "get_attr"}
    if not common:
        return None
    fork = max(common, key=order.__getitem__)
    ways = {operand: before[operand] - before[fork] for operand in operands}
    weights = {operand: _weight(ways[operand], wiring) for operand in operands}
    shortcut, branch = sorted(operands, key=weights.__getitem__)
    sites = [str(n.target) for n in sorted(ways[branch], key=order.__getitem__) if is_site(n, wiring)]
    if weights[shortcut] == weights[branch] or not sites:
        return None
    starts = tuple(user for user in fork.users if user in ways[branch] or user in ways[shortcut])
    at, projected = operands.index(branch), weights[shortcut][0] > 0
    return Residual(node, at, fork, shortcut is fork, starts, projected, sites[-1])


def _weight(way: frozenset[fx.Node], wiring: Wiring) -> tuple[int, int, int]:
    """What makes a way the branch: convolutions, how far they see together, how shallow its sites lie."""
    modules = [(node, wiring.module(node)) for node in way]
    convolutions = [module for _, module in modules if isinstance(module, nn.Conv2d)]
    sees = sum(max(module.kernel_size) - 1 for module in convolutions)
    depth = [str(node.target).count(".") for node in way if is_site(node, wiring)]
    return len(convolutions), sees, -max(depth, default=0)


def is_site(node: fx.Node, wiring: Wiring) -> bool:
    """Whether ``node`` calls the unit of a site."""
    return node.op == "call_module" and str(node.target) in wiring.units


def _with_last(residual: Residual, found: list[Residual], before: Mapping[fx.Node, frozenset[fx.Node]]) -> Residual:
    later = [r for r in found if r is not residual and residual.node in before[r.node]]
    return replace(residual, last=all(r.block != residual.block for r in later))
