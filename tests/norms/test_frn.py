"""frn: the mean square, the threshold, the learned eps, and where each of them stands."""

from __future__ import annotations

import contextlib

import pytest
import torch
from norm_cases import C, Case, gradients, make, pictures
from torch import nn

from normbench import norms
from normbench.norms import fused
from normbench.norms.frn import TLU
from normbench.norms.plain import thresholded


def test_a_relu_becomes_a_tlu_and_anything_else_is_kept() -> None:
    assert set(dict(norms.build("frn", C).named_parameters())) == {"weight", "bias"}
    with_relu = norms.build("frn", C, activation=nn.ReLU(inplace=True))
    assert set(dict(with_relu.named_parameters())) == {"weight", "bias", "threshold"}
    assert with_relu.threshold.shape == (C,)
    for activation in (nn.ReLU6(), nn.SiLU(), nn.LeakyReLU()):
        unit = norms.build("frn", C, activation=activation)
        assert unit.activation is activation
        assert unit.threshold is None


def test_parameters_start_as_in_the_paper() -> None:
    unit = norms.build("frn", C, activation=nn.ReLU(), learn_eps=True)
    assert unit.eps == 1e-6
    assert unit.eps_l.shape == ()
    assert unit.eps_l.item() == pytest.approx(1e-4)
    for parameter, value in ((unit.weight, 1), (unit.bias, 0), (unit.threshold, 0)):
        assert torch.equal(parameter.detach(), torch.full((C,), float(value)))
    extra = norms.extra_parameters(unit)
    assert {id(p) for p in extra} == {id(unit.threshold), id(unit.eps_l)}


def test_mean_square_of_the_output() -> None:
    x = pictures(2, C, 4, 4)
    nu2 = x.square().mean((2, 3))
    z = norms.build("frn", C, dtype=torch.float64)(x)
    assert torch.allclose(z.square().mean((2, 3)), nu2 / (nu2 + 1e-6), rtol=1e-12)


def test_learned_eps_enters_by_its_absolute_value() -> None:
    x = pictures(2, C, 4, 4)
    plus, minus = (norms.build("frn", C, learn_eps=True, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        plus.eps_l.fill_(0.5)
        minus.eps_l.fill_(-0.5)
    assert torch.equal(plus(x), minus(x))
    (up,), (down,) = gradients(plus(x), plus.eps_l), gradients(minus(x), minus.eps_l)
    assert torch.allclose(up, -down)


def test_the_threshold_takes_the_gradient_below_it_and_at_a_tie() -> None:
    y = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64).view(1, 3, 1, 1).requires_grad_()
    tau = torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    z = thresholded(y, tau)
    dy, dtau = torch.autograd.grad(z.sum(), (y, tau))
    assert z.flatten().tolist() == [0.0, 0.5, 2.0]
    assert dy.flatten().tolist() == [0, 0, 1]
    assert dtau.tolist() == [1, 1, 0]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
@pytest.mark.parametrize("shape", [(2, C, 1, 1), (2, C, 3, 3), (9, C, 2, 2), (2, C, 12, 12)], ids=str)
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "frn"])
def test_where_all_is_at_the_threshold_y_gets_what_relu_gives(
    alone: bool, shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    """Black pictures, and a last norm whose weight begins at 0: kernels and plain form agree that it is nothing."""
    unit = norms.get("frn").sum_activation(C) if alone else make(Case("frn"), activation=nn.ReLU())
    for parameter, value in zip(unit.parameters(), [0.0] if alone else [1.0, 0.0, 0.0], strict=True):
        nn.init.constant_(parameter, value)
    x = torch.zeros(shape).contiguous(memory_format=memory_format)
    x[:, 0] = 1.0
    for context in (contextlib.nullcontext, fused.unfused, contextlib.nullcontext):
        leaf = x.clone().requires_grad_()
        with context():
            y = unit(leaf)
            dx, dtau = torch.autograd.grad(y.sum(), (leaf, unit.threshold))
        assert dx[:, 1:].count_nonzero() == 0
        assert torch.equal(dtau[1:], torch.full((C - 1,), float(x[:, 0].numel())))
        assert dtau[0] == 0
        assert not alone or torch.equal(dx[:, 0], torch.ones_like(dx[:, 0]))


def test_a_threshold_alone_keeps_what_the_next_layer_keeps_too() -> None:
    """As relu: its output, and not its input beside it."""
    unit, x = norms.get("frn").sum_activation(C), pictures(2, C, 8, 8).float().requires_grad_()
    for _ in range(3):
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.data_ptr()) or t, lambda t: t):
            y = unit(x)
        assert set(kept) == {y.data_ptr(), unit.threshold.data_ptr()}
        y.sum().backward()


def test_tlu_is_a_relu_moved_along_the_diagonal() -> None:
    tau = torch.linspace(-1, 1, C, dtype=torch.float64, requires_grad=True)
    y = pictures(2, C, 3, 3).requires_grad_()
    ours, theirs = thresholded(y, tau), (y - tau[:, None, None]).relu() + tau[:, None, None]
    assert torch.allclose(ours, theirs)
    for g, h in zip(gradients(ours, y, tau), gradients(theirs, y, tau), strict=True):
        assert torch.allclose(g, h)


def test_tlu_stands_alone_after_a_sum() -> None:
    unit = norms.get("frn").sum_activation(C)
    assert isinstance(unit, TLU)
    assert norms.is_unit(unit)
    assert norms.affine_parameters(unit) == []
    assert [id(p) for p in norms.extra_parameters(unit)] == [id(unit.threshold)]
    x = pictures(2, C, 3, 3).float()
    assert torch.equal(unit(x), x.relu())
    assert unit(x.half()).dtype == torch.float16


def test_the_gradient_is_orthogonal_to_the_input() -> None:
    x = pictures(2, C, 4, 4).requires_grad_()
    y = norms.build("frn", C, eps=0.0, dtype=torch.float64)(x)
    (gradient,) = gradients(y, x)
    assert (x * gradient).sum((2, 3)).abs().max() < 1e-10


def test_silent_channels_have_the_slope_of_the_card() -> None:
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    norms.build("frn", 1, dtype=torch.float64)(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, torch.full_like(x, 1000.0))


def test_float16_squares_do_not_overflow() -> None:
    x = torch.full((1, C, 4, 4), 1000.0, dtype=torch.float16)
    assert torch.equal(norms.build("frn", C)(x), torch.ones_like(x))
