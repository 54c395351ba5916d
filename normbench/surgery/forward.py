"""A module that runs code generated from graphs, and can be copied, pickled, compiled and debugged like any other."""

from __future__ import annotations

import hashlib
import importlib
import linecache
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

from torch import fx, nn


class Forward:
    """A generated ``forward(self, …)``: its source, and the functions and types that the source names.

    Pickled as these two, so that torch.fx's own classes are in no file. Tracebacks show the source.
    """

    def __init__(self, source: str, names: dict[str, Any]) -> None:
        self.source = source
        code = compile(source, self.filename, "exec")
        self.names = {name: names[name] for name in sorted(_used(code)) if name in names}
        scope = dict(self.names)
        exec(code, scope)
        self.function = scope["forward"]
        # No time stamp: linecache keeps the entry.
        linecache.cache[self.filename] = (len(source), None, source.splitlines(True), self.filename)

    @classmethod
    def of(cls, graph: fx.Graph) -> Forward:
        """The code of a graph."""
        for node in graph.nodes:
            node.type = None  # annotations say nothing that runs, and may name what cannot be pickled
        code = graph.python_code(root_module="self")
        return cls(code.src.strip() + "\n", code.globals)

    @property
    def filename(self) -> str:
        """What tracebacks call the source."""
        return f"<normbench.surgery {hashlib.sha256(self.source.encode()).hexdigest()[:12]}>"

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.function(module, *args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Forward) and (self.source, self.names) == (other.source, other.names)

    def __hash__(self) -> int:
        return hash(self.source)

    def __deepcopy__(self, memo: Any) -> Forward:
        return self

    def __reduce__(self) -> Any:
        return _restore, (self.source, {name: _pack(value) for name, value in self.names.items()})


class Rewritten(nn.Module):
    """A model whose forward is generated code, one for training and one for evaluation.

    Its children, parameters, buffers and plain attributes are those of the model it was made from. The containers among
    the children are there for their names: they are not called, so that hooks set on them later are not either.
    ``around``: a function that evaluates in the forward's place, given the model, the forward and the arguments.
    """

    def __init__(
        self, tree: nn.Module, train: Forward, evaluate: Forward, around: Callable[..., Any] | None = None
    ) -> None:
        super().__init__()
        self.__dict__.update(vars(tree))
        self._train_forward = train
        self._eval_forward = train if evaluate == train else evaluate
        self._around = around

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = self._train_forward if self.training else self._eval_forward
        if self._around is not None and not self.training:
            return self._around(self, forward, *args, **kwargs)
        return forward(self, *args, **kwargs)


def _used(code: CodeType) -> set[str]:
    inner = (_used(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _pack(value: Any) -> tuple[str, Any]:
    return ("module", value.__name__) if isinstance(value, ModuleType) else ("value", value)


def _restore(source: str, packed: dict[str, tuple[str, Any]]) -> Forward:
    return Forward(source, {name: _unpack(*item) for name, item in packed.items()})


def _unpack(kind: str, value: Any) -> Any:
    return importlib.import_module(value) if kind == "module" else value
