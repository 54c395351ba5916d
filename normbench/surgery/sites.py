"""Sites and residual sums in a traced graph.

A site is a BatchNorm2d, the convolution it follows and the activation that follows it, if its output goes nowhere else.
A sum is a ReLU on an addition with a site's bare output in it: the end of a block in a ResNet of the first kind.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from normbench.norms.wiring import ADDITIONS, Sum

# Elementwise and without parameters, so that a unit may apply them itself. The functions of each take, after the
# input, what its constructor takes.
ACTIVATIONS: dict[type[nn.Module], tuple[Callable[..., Any], ...]] = {
    nn.ReLU: (F.relu, F.relu_, torch.relu, torch.relu_),
    nn.ReLU6: (F.relu6,),
    nn.LeakyReLU: (F.leaky_relu, F.leaky_relu_),
    nn.ELU: (F.elu, F.elu_),
    nn.CELU: (F.celu, F.celu_, torch.celu, torch.celu_),
    nn.SELU: (F.selu, F.selu_, torch.selu, torch.selu_),
    nn.GELU: (F.gelu,),
    nn.SiLU: (F.silu,),
    nn.Mish: (F.mish,),
    nn.Hardswish: (F.hardswish,),
    nn.Hardtanh: (F.hardtanh, F.hardtanh_),
    nn.Softplus: (F.softplus,),
    nn.Sigmoid: (F.sigmoid, torch.sigmoid, torch.sigmoid_),
    nn.Tanh: (F.tanh, torch.tanh, torch.tanh_),
}
FUNCTIONS = {function: kind for kind, functions in ACTIVATIONS.items() for function in functions}
METHODS: dict[str, type[nn.Module]] = {
    name + ending: kind
    for name, kind in (("relu", nn.ReLU), ("sigmoid", nn.Sigmoid), ("tanh", nn.Tanh))
    for ending in ("", "_")
}
GATES = (operator.mul, operator.imul, torch.mul, "mul", "mul_", F.dropout, F.dropout2d)
DROPS = ("Dropout", "Dropout2d", "StochasticDepth", "DropPath")


@dataclass(frozen=True)
class Site:
    """A BatchNorm2d in a model, by its name.

    convolution: name of the Conv2d before it. activation: a fresh copy, not in place, of what follows it. Both None
    where there is none, where the uses of a shared BatchNorm disagree, and throughout a model that cannot be traced.
    """

    name: str
    num_features: int
    convolution: str | None = None
    activation: nn.Module | None = None


@dataclass(frozen=True)
class Use:
    """One call of a site's BatchNorm in a graph; ``after``: the node of its activation."""

    graph: fx.Graph
    node: fx.Node
    convolution: str | None
    activation: nn.Module | None
    after: fx.Node | None


@dataclass
class Found:
    """What a model's graphs hold."""

    uses: dict[str, list[Use]] = field(default_factory=dict)
    sums: list[Sum] = field(default_factory=list)

    def sites(self, modules: Mapping[str, nn.Module]) -> list[Site]:
        """One for each BatchNorm, in the order of the forward."""
        return [_merge(name, modules[name].num_features, uses) for name, uses in self.uses.items()]  # type: ignore[arg-type]


def is_batchnorm(module: nn.Module) -> bool:
    """Whether it is a BatchNorm2d that does no more than one (a subclass with a forward of its own may)."""
    return isinstance(module, nn.BatchNorm2d) and type(module).forward is nn.BatchNorm2d.forward


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


def find(graphs: Iterable[fx.Graph], modules: Mapping[str, nn.Module]) -> Found:
    """The sites and sums in ``graphs``; ``modules``: those of the traced model, by name."""
    found = Found()
    for graph in graphs:
        for node in graph.nodes:
            if _is_call(node, modules, is_batchnorm):
                node.args, node.kwargs = (*node.args, *node.kwargs.values()), {}  # units do not call it ``input``
                found.uses.setdefault(str(node.target), []).append(_use(node, modules))
            elif (added := _sum(node, modules)) is not None:
                found.sums.append(added)
    return found


def activation(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The activation that ``node`` applies to its first argument, as a new module that does not work in place."""
    made: Any = None
    if node.op == "call_module":
        module = modules[str(node.target)]
        made = copy.deepcopy(module) if type(module) in ACTIVATIONS else None
    elif node.op in ("call_function", "call_method"):
        kind = METHODS.get(node.target) if isinstance(node.target, str) else FUNCTIONS.get(node.target)
        made = _construct(kind, node) if kind else None
    if hasattr(made, "inplace"):
        made.inplace = False
    return made


def _construct(kind: type[nn.Module], node: fx.Node) -> nn.Module | None:
    """The module that does what a call of the function does; None if an argument is only known in the forward."""
    kwargs = {key: value for key, value in node.kwargs.items() if key not in ("input", "inplace")}
    if any(isinstance(value, fx.Node) for value in (*node.args[1:], *kwargs.values())):
        return None
    return kind(*node.args[1:], **kwargs)


def _use(node: fx.Node, modules: Mapping[str, nn.Module]) -> Use:
    before = next(iter(node.all_input_nodes), None)
    convolution = str(before.target) if before and _is_call(before, modules, _is_convolution) else None
    after = next(iter(node.users)) if len(node.users) == 1 else None
    follows = activation(after, modules) if after else None
    return Use(node.graph, node, convolution, follows, after if follows else None)


def _sum(node: fx.Node, modules: Mapping[str, nn.Module]) -> Sum | None:
    """``node`` as the ReLU of a residual sum. An addition with another use is none: the ReLU may work in place."""
    if type(activation(node, modules)) is not nn.ReLU or len(node.all_input_nodes) != 1:
        return None
    addition = node.all_input_nodes[0]
    if addition.op == "call_module" or addition.target not in ADDITIONS or len(addition.users) != 1:
        return None
    bare = [site for operand in addition.all_input_nodes for site in _bare(operand, modules)]
    if not bare:
        return None
    stack = addition.meta.get("nn_module_stack") or {}
    owner = list(stack.values())[-1][0] if stack else ""
    # The sum is as wide as its widest; then the branch's own norm rather than one inside a projection of the shortcut.
    site = min(bare, key=lambda name: (-modules[name].num_features, name.count(".")))  # type: ignore[operator]
    return Sum(node.graph, node, owner, site)


def _bare(node: fx.Node, modules: Mapping[str, nn.Module]) -> list[str]:
    """The sites whose output ``node`` is or adds, maybe behind a gate or a dropout of the branch."""
    if _is_call(node, modules, is_batchnorm):
        return [str(node.target)]
    drops = node.op == "call_module" and type(modules[str(node.target)]).__name__ in DROPS
    gates = node.op in ("call_function", "call_method") and node.target in (*ADDITIONS, *GATES)
    return [site for operand in node.all_input_nodes for site in _bare(operand, modules)] if drops or gates else []


def _is_call(node: fx.Node, modules: Mapping[str, nn.Module], wanted: Callable[[nn.Module], bool]) -> bool:
    return node.op == "call_module" and wanted(modules[str(node.target)])


def _merge(name: str, num_features: int, uses: list[Use]) -> Site:
    """A shared BatchNorm has one unit, which can only take what all uses have."""
    alike = len({repr(use.activation) for use in uses}) == 1
    convolutions = {use.convolution for use in uses}
    one = uses[0]
    convolution = one.convolution if len(convolutions) == 1 else None
    return Site(name, num_features, convolution, one.activation if alike else None)
