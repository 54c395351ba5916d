"""Assignments such as ``x += y`` in a forward, which torch.fx by itself writes down as ``x = x + y``.

Where nobody else holds the tensor these two are the same, and a sum is easier to work with. Where somebody does, under
another name or as a view, the graph must write into the tensor as the model does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

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
# What gives memory of its own, that is neither its input nor a view of that.
LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.MaxPool2d, nn.AvgPool2d)
FUNCTIONS = {*OPERATORS.values(), operator.neg, torch.add, torch.mul, torch.cat, torch.relu}
RECTIFIERS, RECTIFY = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.LeakyReLU), (F.relu, F.relu6, F.silu, F.hardswish)


def in_place(name: str, a: Any, b: Any) -> Any:
    """``a += b`` for the name iadd, and so on; a number, of course, stays what it was."""
    return getattr(operator, name)(a, b)


class Written(fx.Proxy):
    """A proxy that tells ``x += y`` from ``x = x + y``."""


def _operator(name: str) -> Callable[[Written, Any], fx.Proxy]:
    def write(self: Written, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", in_place, (name, self, other), {})

    return write


for _name in OPERATORS:
    setattr(Written, f"__{_name}__", _operator(_name))


def settle(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Let operators in place make a new value where that is the same."""
    seen: set[fx.Node] = set()
    for node in graph.nodes:
        seen.add(node)
        if node.target is not in_place:
            continue
        name, tensor, other = node.args
        # Whoever used it before must have kept nothing of it.
        others = set(tensor.users) - {node}
        if _is_new(tensor, modules) and others <= seen and all(_is_new(user, modules) for user in others):
            node.target, node.args = OPERATORS[str(name)], (tensor, other)


def _is_new(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether its value is memory of its own."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return isinstance(module, LAYERS) or (isinstance(module, RECTIFIERS) and not getattr(module, "inplace", False))
    if node.op != "call_function":
        return False
    return node.target in FUNCTIONS or (
        node.target in RECTIFY and len(node.args) == 1 and not node.kwargs.get("inplace")
    )
