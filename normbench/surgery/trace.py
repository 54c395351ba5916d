"""The forward of a model as two torch.fx graphs, in training and in evaluation mode; the model is left as it was.

Two, because torchvision's nets differ: InceptionV3 has its auxiliary head in training only, and dropout as a function
holds the mode it was traced in.
"""

from __future__ import annotations

import inspect
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from normbench.errors import InputError
from normbench.surgery.tree import shallow
from normbench.surgery.writes import Written, operation, settle

TORCH = Path(torch.__file__).parent


class Untraceable(Exception):
    """The forward cannot be written down as a graph; the message says why and where."""


@dataclass(frozen=True)
class Traced:
    """``root``: a shallow copy of the model, with the constants the graphs read; ``train``, ``eval``: the graphs.

    ``fixed``: parameters of the forward that the graphs hold at their defaults, since their value decides the way.
    """

    root: nn.Module
    train: fx.Graph
    eval: fx.Graph
    fixed: tuple[str, ...] = ()

    @property
    def graphs(self) -> tuple[fx.Graph, fx.Graph]:
        """Both, training first."""
        return self.train, self.eval


def trace(model: nn.Module) -> Traced:
    """Trace ``model`` in both modes. Raises Untraceable."""
    if "forward" in vars(model):
        raise Untraceable("its forward was replaced on the instance, which torch.fx does not see")
    with _flags_kept(model):
        traced = _traced(model)
    root = traced.root
    root.training = model.training
    for graph in traced.graphs:
        _skip_identities(graph, root)
        settle(graph, dict(root.named_modules()))
    _register_constants(traced)
    return traced


def _traced(model: nn.Module) -> Traced:
    """With parameters that have a default left open if they can be: a graph does not see ``if mask is not None``."""
    parameters = inspect.signature(model.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    absent = {name: value for name, value in defaults.items() if value is None}
    try:
        traced = _both(model, {})
    except Untraceable:
        if not defaults:
            raise
        return _both(model, defaults)
    if not absent:
        return traced
    fixed = _both(model, absent)
    return traced if _steps(traced) == _steps(fixed) else fixed


def _both(model: nn.Module, fixed: dict[str, Any]) -> Traced:
    root = shallow(model)
    return Traced(root, _trace(root, True, fixed), _trace(root, False, fixed), tuple(fixed))


def _steps(traced: Traced) -> list[list[tuple[str, Any]]]:
    """What the graphs do, but for how they take their inputs."""
    ways = ([(n.op, operation(n)) for n in graph.nodes if n.op != "placeholder"] for graph in traced.graphs)
    return [[step for step in way if step[1] is not hold] for way in ways]


def _trace(root: nn.Module, training: bool, fixed: dict[str, Any]) -> fx.Graph:
    for module in root.modules():
        module.training = training
    try:
        with _without_draws(), _without_writes(root):
            return Tracer(root, fixed).trace(root)
    except Untraceable:
        raise
    except Exception as error:
        raise Untraceable(_reason(error)) from error


def hold(value: Any, default: Any, name: str) -> None:
    """In a graph: raise InputError if a parameter that decides the way through it has another value."""
    if value is not default and (isinstance(value, torch.Tensor) or value != default):
        raise InputError(
            f"got {name}={value!r:.40}, expected its default {default!r}: the way through this model depends on it, "
            f"and one way is traced; wrap the model in one that gives {name} itself, or take a normalizer that needs "
            "no graph"
        )


class Tracer(fx.Tracer):
    """Looks into every module; takes torch.nn's own, and those that resist and hold no BatchNorm, as one step."""

    # A buffer is read at every forward, not once while tracing; and code that updates one is refused, not run.
    proxy_buffer_attributes = True

    def __init__(self, root: nn.Module, fixed: dict[str, Any]) -> None:
        super().__init__()
        self.fixed = fixed
        self.modes = _modes()
        self.holders = {m for m in root.modules() if any(isinstance(n, nn.BatchNorm2d) for n in m.modules())}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Also subclasses of what a site consists of, and torchvision's layers, which read their mode when called."""
        layer = type(m).__module__.startswith("torchvision.ops") and next(m.children(), None) is None
        return isinstance(m, nn.Conv2d | nn.BatchNorm2d) or layer or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace through ``m``; if that fails and there is no BatchNorm in it, take it as one step."""
        if m in self.holders or self.is_leaf_module(m, self.path_of_module(m)):
            with _without_writes(m):
                return super().call_module(m, forward, args, kwargs)
        last, stack = next(reversed(self.graph.nodes), None), self.module_stack.copy()
        try:
            with _without_draws(), _without_writes(m):
                return super().call_module(m, forward, args, kwargs)
        except Exception:
            for node in reversed(self.graph.nodes):
                if node is last:
                    break
                self.graph.erase_node(node)
            self.module_stack = stack
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        """Give the forward its defaults for the fixed parameters, and the graph a step that refuses another value."""
        forward, given = super().create_args_for_root(*args, **kwargs)
        for i, value in enumerate(given):
            name = value.node.target if isinstance(value, fx.Proxy) else None
            if name in self.fixed:
                self.create_proxy("call_function", hold, (value, self.fixed[name], name), {})
                given[i] = self.fixed[name]
        return forward, given

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Refuse what a graph does not hold: blocks without gradients or under autocast."""
        if _modes() != self.modes:
            raise Untraceable("it computes in torch.no_grad or torch.autocast, which a graph does not hold")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """One that tells ``x += y`` from ``x = x + y``."""
        return Written(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Read a parameter anew each time: a cached read might be among the erased."""
        return super().getattr(attr, attr_val, {})


@contextmanager
def _flags_kept(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def _without_draws() -> Iterator[None]:
    """What is drawn while tracing would be the same at every forward: refuse it, and put the generators back."""
    state, python_state = torch.get_rng_state(), random.getstate()
    try:
        yield
        if not torch.equal(state, torch.get_rng_state()) or random.getstate() != python_state:
            raise Untraceable("it draws random numbers in Python, which a graph would freeze")
    finally:
        torch.set_rng_state(state)
        random.setstate(python_state)


@contextmanager
def _without_writes(module: nn.Module) -> Iterator[None]:
    """What a forward sets on its module would be set once, and be no value: refuse it, and put the attributes back."""
    before = dict(vars(module))
    try:
        yield
        now = {key: value for key, value in vars(module).items() if not key.startswith("_tensor_constant")}
        if now.keys() - before.keys() or any(value is not before[key] for key, value in now.items()):
            raise Untraceable(f"the forward of {type(module).__name__} sets attributes, which a graph does not hold")
    finally:
        added = {key: value for key, value in vars(module).items() if key.startswith("_tensor_constant")}
        vars(module).clear()
        vars(module).update(before | added)


def _modes() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        (torch.is_autocast_enabled("cuda")),
    )


def _skip_identities(graph: fx.Graph, root: nn.Module) -> None:
    """Take out nn.Identity, which stands between a norm and its activation where a net might have had dropout."""
    for node in list(graph.nodes):
        layer = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if type(layer) is nn.Identity and not layer._forward_hooks and len(node.all_input_nodes) == 1:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)


def _register_constants(traced: Traced) -> None:
    """Make buffers of the tensors that the forward created, so that they move with the model; not in its state dict."""
    targets = {str(node.target) for graph in traced.graphs for node in graph.nodes if node.op == "get_attr"}
    for name in sorted(targets & vars(traced.root).keys()):
        traced.root.register_buffer(name, traced.root.__dict__.pop(name), persistent=False)


def _reason(error: Exception) -> str:
    """The error in a line, and the last place outside torch it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if TORCH not in Path(f.filename).parents and f.filename != __file__]
    where = f" at {Path(own[-1].filename).name}:{own[-1].lineno}, {own[-1].line}" if own else ""
    message = str(error).partition("\n")[0]
    return f"{message or type(error).__name__}{where}"
