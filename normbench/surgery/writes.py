"""Assignments such as ``x += y`` in a forward, which torch.fx by itself writes down as ``x = x + y``.

Where nobody else holds the tensor these two are the same, but for a type that ``x + y`` would widen, and methods look
for sums: so they stay as torch.fx has them. Where somebody does, under another name or as a view, the graph writes into
the tensor as the model does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.proxy import Attribute

# What each operator is where it makes a new value.
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "iadd": operator.add,
    "isub": operator.sub,
    "imul": operator.mul,
    "imatmul": operator.matmul,
    "itruediv": operator.truediv,
    "ifloordiv": operator.floordiv,
    "imod": operator.mod,
    "ipow": operator.pow,
    "ilshift": operator.lshift,
    "irshift": operator.rshift,
    "iand": operator.and_,
    "ior": operator.or_,
    "ixor": operator.xor,
}
# What gives memory of its own, neither its input nor a view of that. Of anything else it is not known; then a sum in
# place is one that methods do not find, if that input is needed again.
FUNCTIONS = {
    *OPERATORS.values(), operator.neg,
    torch.add, torch.sub, torch.mul, torch.div, torch.matmul, torch.bmm, torch.cat, torch.stack, torch.mean, torch.sum,
    torch.relu, torch.sigmoid, torch.tanh, torch.softmax,
    F.conv2d, F.linear, F.batch_norm, F.max_pool2d, F.avg_pool2d, F.interpolate, F.sigmoid, F.tanh, F.gelu, F.softmax,
    F.relu, F.relu6, F.silu, F.mish, F.elu, F.leaky_relu, F.hardswish, F.hardsigmoid,
}  # fmt: skip
METHODS = {"add", "sub", "mul", "div", "neg", "pow", "matmul", "mean", "sum", "clone", "relu", "sigmoid", "tanh"}
# Of torch's own layers these may give their input, or a view of it.
PASSING = (nn.modules.dropout._DropoutNd, nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle)


def in_place(name: str, a: Any, b: Any) -> Any:
    """``a += b`` for the name iadd, and so on; a number, of course, stays what it was."""
    return getattr(operator, name)(a, b)


class Written(fx.Proxy):
    """A proxy that tells ``x += y`` from ``x = x + y``."""

    def __getattr__(self, name: str) -> WrittenAttribute:
        return WrittenAttribute(self, name)


class WrittenAttribute(Attribute, Written):
    """The same for what a property gives: ``y = x.mT``, then ``y += 1``."""


def _operator(name: str) -> Callable[[Written, Any], fx.Proxy]:
    def write(self: Written, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", in_place, (name, self, other), {})

    return write


for _name in OPERATORS:
    setattr(Written, f"__{_name}__", _operator(_name))


def operation(node: fx.Node) -> Any:
    """What the node does: its target, or the operator in place."""
    return node.args[0] if node.target is in_place else node.target


def settle(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Let operators in place make a new value where nobody else holds the old one."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.target is in_place and not _is_held(node, order, modules):
            name, tensor, other = node.args
            node.target, node.args = OPERATORS[str(name)], (tensor, other)


def _is_held(write: fx.Node, order: Mapping[fx.Node, int], modules: Mapping[str, nn.Module]) -> bool:
    """Whether what ``write`` writes into is needed later in another way than by its result."""
    seen: set[Any] = {write}
    waiting: list[Any] = [write.args[1]]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op in ("placeholder", "get_attr") or any(order[user] > order[write] for user in node.users):
            return True
        waiting += [user for user in node.users if not _is_new(user, modules)]
        if not _is_new(node, modules):
            waiting += [node.args[1]] if node.target is in_place else node.all_input_nodes
    return False


def _is_new(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether its value is memory of its own."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        layer = type(module).__module__.startswith("torch.nn.") or isinstance(module, nn.Conv2d | nn.BatchNorm2d)
        return layer and not isinstance(module, PASSING) and not getattr(module, "inplace", False)
    if node.op == "call_method":
        return node.target in METHODS
    flags = [*node.args[1:], node.kwargs.get("inplace")]  # no other function here takes True by place
    into_another = any(flag is True for flag in flags) or node.kwargs.get("out") is not None
    return node.op == "call_function" and node.target in FUNCTIONS and not into_another
