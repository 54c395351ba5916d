"""Every unit against the plain formula in its own file: outputs and all gradients, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from norm_cases import CASES, C, Case, evaluation, gradients, make, pictures, reference, splits

from normbench import norms
from normbench.norms import plain

SHAPES = [(4, C, 4, 4), (4, C, 3, 5), (4, C, 1, 1), (1, C, 4, 3), (6, C, 7, 1)]


def shares(case: Case, N: int) -> list[int | None]:
    """The batches (images that share statistics) that N images can be cut into."""
    all_of_them = sorted({1, 2, max(N // 2, 1), N} - ({2} if N % 2 else set())) if takes_batch(case) else []
    return [batch for batch in (None, *all_of_them) if splits(case, N, batch)]


def takes_batch(case: Case) -> bool:
    return norms.get(case.name).takes_batch


COMBINED = [(case, shape, batch) for case in CASES for shape in SHAPES for batch in shares(case, shape[0])]


@pytest.mark.parametrize(("case", "shape", "batch"), COMBINED, ids=str)
def test_training_is_the_plain_formula(case: Case, shape: tuple[int, ...], batch: int | None) -> None:
    unit = make(case, batch=batch, activation=torch.nn.ReLU() if norms.get(case.name).own_activation else None)
    if case.name == "frn":
        unit.register_parameter("threshold", torch.nn.Parameter(torch.linspace(-1, 1, C, dtype=torch.float64)))
    unit(pictures(*shape, seed=1))
    x = pictures(*shape).requires_grad_()
    expected = reference(unit, case, x)
    own = norms.get(case.name).own_gradient  # in the files of their own
    got, inputs = unit(x), (*(() if own else (x,)), *unit.parameters())
    assert torch.allclose(got, expected, rtol=0, atol=1e-10)
    scale = max(1, *(g.abs().max().item() for g in gradients(expected, *inputs)))
    for left, right in zip(gradients(got, *inputs), gradients(expected, *inputs), strict=True):
        assert torch.allclose(left, right, rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize("case", [case for case in CASES if norms.get(case.name).train_eval_differ], ids=str)
def test_evaluation_is_the_plain_formula_of_the_running_statistics(case: Case) -> None:
    """Of any number of pictures, whatever the batch."""
    unit = make(case, batch=2)
    unit(pictures(4, C, 4, 3))
    unit.eval()
    x = pictures(3, C, 4, 3, seed=1)
    if unit.__dict__.get("eval_stats") == "batch":
        expected = torch.cat([reference(unit, case, x[:2]), reference(unit, case, x[2:])])
    else:
        expected = evaluation(unit, case, x)
    assert torch.allclose(unit(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradcheck(case: Case, training: bool) -> None:
    if training and norms.get(case.name).own_gradient:
        pytest.skip("its gradient is not its derivative; that is in a file of its own")
    if training and case.name == "brn" and case.options:
        pytest.skip("its r and d are constants for the gradient; test_training_is_the_plain_formula knows that")
    unit = make(case, batch=2, activation=torch.nn.GELU()).train(training)
    unit.eps = 1e-2
    x = pictures(4, C, 2, 3).requires_grad_()
    unit(x)

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        values = dict(zip(dict(unit.named_parameters()), parameters, strict=True))
        # A copy, since what a call keeps may enter the next.
        return torch.func.functional_call(copy.deepcopy(unit), values, (x,))

    assert torch.autograd.gradcheck(run, (x, *unit.parameters()), fast_mode=True)


def test_the_core_functions_can_be_differentiated_twice() -> None:
    x = pictures(2, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(plain.moments, (x,))
    assert torch.autograd.gradgradcheck(plain.moments, (x,))
    assert torch.autograd.gradgradcheck(plain.mean_square, (x,))


@pytest.mark.parametrize("groups", [1, 2, 3, 6, 4, 5])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_pool_is_exact_and_spread_is_its_inverse_in_shape(rows: int, groups: int) -> None:
    x = pictures(4, C, 3, 2)
    mean, var = plain.pool(*plain.moments(x), rows, groups)
    group = torch.tensor([(c * groups) // C for c in range(C)])
    for r, images in enumerate(x.chunk(rows)):
        for g in range(groups):
            values = images[:, group == g]
            torch.testing.assert_close(mean[r, g], values.mean(), atol=1e-13, rtol=0)
            torch.testing.assert_close(var[r, g], values.var(correction=0), atol=1e-13, rtol=0)
    wide = plain.spread(mean, 4, C).expand(4, C)
    assert all(wide[n, c] == mean[n * rows // 4, group[c]] for n in range(4) for c in range(C))
