"""Units that take the same step again and again: the short way, the long way, and what both come to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fused_cases import unit_of
from torch import Tensor, nn

from normbench.norms import core, repeated
from normbench.norms.frn import TLU

SHAPE = (4, 6, 5, 5)
Found = dict[str, Tensor]


def went_soon(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ == "_RepeatedBackward"


@contextlib.contextmanager
def the_long_way() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeated, "again", lambda *_: (None, None))
        yield


def inputs(
    memory_format: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, ...] = SHAPE,
) -> list[Tensor]:
    """x, a residual and a gradient of y, the same at every call."""
    draw = torch.Generator().manual_seed(3)
    made = [torch.randn(shape, generator=draw).to(dtype).contiguous(memory_format=memory_format) for _ in range(3)]
    return [made[0].requires_grad_(), made[1].requires_grad_(), made[2]]


def step(unit: Any, given: list[Tensor], joined: bool = False) -> tuple[bool, Found]:
    """Whether a forward went soon, and all that it and its backward came to."""
    x, residual, dy = given
    unit.zero_grad()
    x.grad = residual.grad = None
    y = unit(x, residual) if joined else unit(x)
    if y.requires_grad:
        y.backward(dy)
    found = {"y": y.detach(), "x": x.grad, "residual": residual.grad}
    found |= {name: parameter.grad for name, parameter in unit.named_parameters()}
    found |= {name: buffer.clone() for name, buffer in unit.named_buffers()}
    return went_soon(y), {name: value for name, value in found.items() if value is not None}


def late(unit: Any, given: list[Tensor], joined: bool = False) -> Found:
    """What the same step comes to the long way."""
    with the_long_way():
        soon, found = step(unit, given, joined)
    assert not soon
    return found


def assert_equal(found: Found, expected: Found) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


class Scaled(nn.Module):
    """Scales and shifts, by as many of weight and bias as ``parts`` names."""

    def __init__(self, *parts: str) -> None:
        super().__init__()
        for seed, name in enumerate(("weight", "bias")):
            drawn = torch.randn(6, generator=torch.Generator().manual_seed(seed))
            self.register_parameter(name, nn.Parameter(drawn) if name in parts else None)

    def forward(self, x: Tensor) -> Tensor:
        return core.scale_shift(x, self.weight, self.bias, nn.ReLU())


def tlu() -> nn.Module:
    """A TLU, whose thresholds are drawn at random."""
    unit = TLU(6)
    nn.init.normal_(unit.threshold, generator=torch.Generator().manual_seed(0))
    return unit


def warm(name: str | nn.Module, given: list[Tensor], joined: bool = False, **options: Any) -> Any:
    """A unit that has had three steps, of which the second went forward soon, and the third backward too."""
    unit = unit_of(name, given[0].dtype) if isinstance(name, str) else name.to(given[0].dtype)
    for option, value in options.items():
        setattr(unit, option, value)
    assert [step(unit, given, joined)[0] for _ in range(3)] == [False, True, True]
    return unit
