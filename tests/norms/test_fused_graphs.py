"""The fused kernels as operators: compiled, exported, by the rules of torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fused_cases import both_formats, unit_of
from norm_cases import C, gradients, pictures

from normbench.norms import operators
from normbench.norms.call import Parts, Shape


@pytest.mark.parametrize("name", ["bn", "gn", "frn", "brn", "gbn", "iebn", "bgn"])
def test_compiled_units_train_as_eager_ones_do(name: str) -> None:
    torch.compiler.reset()
    eager = unit_of(name, torch.float64)
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for step in range(2):
        x = pictures(4, C, 5, 3, seed=step).requires_grad_()
        y, expected = compiled(x), eager(x)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
        for left, right in zip(
            gradients(y, x, *twin.parameters()), gradients(expected, x, *eager.parameters()), strict=True
        ):
            torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
        for key, buffer in eager.named_buffers():
            torch.testing.assert_close(twin.get_buffer(key), buffer, rtol=0, atol=1e-12)


def test_a_compiled_channels_last_unit_gives_channels_last() -> None:
    torch.compiler.reset()
    unit = unit_of("bn")
    x = pictures(4, C, 5, 3, dtype=torch.float32).contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = copy.deepcopy(unit)(x)
    y = torch.compile(unit, fullgraph=True, backend="aot_eager")(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert dx.is_contiguous(memory_format=torch.channels_last)


def test_the_graph_of_a_compiled_unit_holds_the_operators() -> None:
    torch.compiler.reset()
    seen = list[str]()

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    unit = unit_of("bn")
    torch.compile(unit, fullgraph=True, backend=backend)(pictures(4, C, 5, 3, dtype=torch.float32))
    assert sum("normbench.standardize" in target for target in seen) == 1


@pytest.mark.parametrize("name", ["bn", "iebn", "frn"])
def test_an_exported_unit_evaluates_as_the_unit_does(name: str) -> None:
    unit = unit_of(name)
    unit(pictures(4, C, 5, 3, dtype=torch.float32))
    unit.eval()
    x = pictures(4, C, 5, 3, dtype=torch.float32, seed=1)
    program = torch.export.export(unit, (x,))
    torch.testing.assert_close(program.module()(x), unit(x))


OPERANDS = {
    "affine": ("weight", "bias"),
    "threshold and after": ("weight", "bias", "threshold", "scale", "shift"),
    "gate": ("weight", "gate_weight", "gate_bias"),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@both_formats
@pytest.mark.parametrize("names", OPERANDS.values(), ids=OPERANDS)
@pytest.mark.parametrize("given", [False, True], ids=["own", "given"])
def test_the_operators_keep_the_rules_of_torch(
    names: tuple[str, ...], given: bool, memory_format: torch.memory_format
) -> None:
    """Their schema is true, their shapes without values are right, and they go with autograd and compilation."""
    rows, groups = 2, 3
    x = pictures(4, C, 5, 3).contiguous(memory_format=memory_format).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.rand(C, dtype=torch.float64, generator=generator).add_(0.5).requires_grad_()  # noqa: E731
    parts = Parts(**{name: draw() for name in names})
    moments = (
        (torch.zeros(rows, groups, dtype=x.dtype), torch.ones(rows, groups, dtype=x.dtype)) if given else (None, None)
    )
    shape = Shape(rows, groups, 1e-5, True, 0.0, float("inf"))
    kinds = (
        "test_schema",
        "test_autograd_registration",
        "test_faketensor",
        *(["test_aot_dispatch_dynamic"] * (not given)),
    )
    torch.library.opcheck(operators.forward, (x, *shape, *parts, *moments), test_utils=kinds)
    with torch.no_grad():
        work = operators.forward(x, *shape, *parts, *moments)[1]
    still = (None if part is None else part.detach() for part in parts[:7])
    torch.library.opcheck(operators.backward, (torch.ones_like(x), x.detach(), work, *shape, *still, False, given))


@pytest.mark.parametrize("given", [False, True], ids=["of x", "given"])
@both_formats
def test_the_operator_gives_out_no_number_that_it_has_not_written(
    given: bool, memory_format: torch.memory_format, unwritten: None
) -> None:
    x = pictures(4, C, 5, 3).contiguous(memory_format=memory_format)
    moments = (torch.zeros(2, 3, dtype=x.dtype), torch.ones(2, 3, dtype=x.dtype)) if given else (None, None)
    y, work = operators.forward(x, *Shape(2, 3, 1e-5, True, 0.0, float("inf")), *Parts(), *moments)
    assert not y.isnan().any()
    assert not work.isnan().any()
