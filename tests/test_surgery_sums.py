"""Residual sums in units: which ones are taken, that nothing else sees a difference, and what is told of them."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normbench import norms, surgery
from normbench.models import build
from normbench.options import ArchOptions
from normbench.surgery import sums

TAKERS = [name for name in norms.names() if sums.takes_sums(norms.get(name))]
X = torch.randn(3, 4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def stepped(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers of a training step, and the output in evaluation."""
    net.train().zero_grad()
    y = net(x.clone())
    y.square().mean().backward()
    slopes = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"y": y, **slopes, **dict(net.named_buffers()), "evaluated": net.eval()(x.clone())}


def assert_alike(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1.0, value.abs().max().item())
        torch.testing.assert_close(got[name], value, rtol=1e-7, atol=1e-9 * scale, msg=name)


def network(arch: str, side: int) -> nn.Module:
    torch.manual_seed(0)
    return build(ArchOptions(arch), num_classes=4, picture_size=side).double()


@pytest.mark.parametrize(("arch", "sums_"), [("resnet8", 3), ("resnet20", 9), ("resnet18", 8), ("resnet50", 16)])
def test_a_resnet_trains_as_it_did_with_its_sums_in_the_units(arch: str, sums_: int) -> None:
    model = network(arch, 32)
    applied = surgery.apply(copy.deepcopy(model), "bn")
    taken = surgery.report(applied).taken
    assert len(taken) == sums_
    assert {name.rpartition(".")[2] for name in taken} == {"bn3" if arch == "resnet50" else "bn2"}
    assert list(applied.state_dict()) == list(model.state_dict())
    for forward in (applied._train_forward, applied._eval_forward):
        assert "relu" not in forward.source
        assert " + " not in forward.source
        assert "add" not in forward.source
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert_alike(stepped(applied, x), stepped(model, x))


@pytest.mark.parametrize("norm", TAKERS)
def test_a_sum_in_the_unit_is_the_sum_behind_it(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network("resnet8", 8), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    applied = surgery.apply(copy.deepcopy(model), norm, batch=2)
    assert len(surgery.report(applied).taken) == 3
    monkeypatch.setattr(sums, "takes_sums", lambda _: False)
    apart = surgery.apply(copy.deepcopy(model), norm, batch=2)
    assert surgery.report(apart).taken == ()
    assert_alike(stepped(applied, x), stepped(apart, x))


def test_who_takes_sums() -> None:
    assert set(TAKERS) == {"bn", "ln", "in", "gn", "bgn", "brn", "gbn", "batch_group", "ws"}


@pytest.mark.parametrize("norm", ["frn", "bkn", "ic", "nf", "cbn", "bne"])
def test_whoever_has_something_of_its_own_after_a_sum_or_in_the_graph_keeps_it(norm: str) -> None:
    applied = surgery.apply(network("resnet8", 8), norm)
    assert surgery.report(applied).taken == ()


@pytest.mark.parametrize("inner", [nn.ReLU(), nn.SiLU()], ids=repr)
@pytest.mark.parametrize("outer", [nn.ReLU(), nn.Identity()], ids=repr)
def test_an_activation_before_the_sum_stays(inner: nn.Module, outer: nn.Module) -> None:
    model = Rectified(inner, outer)
    for norm in ("bn", "gn"):
        assert surgery.report(surgery.apply(copy.deepcopy(model), norm)).taken == ()
    assert_alike(stepped(surgery.apply(copy.deepcopy(model), "bn"), X), stepped(model, X))


def test_a_sum_without_a_rectifier_is_taken_and_another_activation_stays() -> None:
    applied = surgery.apply(network("mobilenet_v2", 32), "bn")
    report = surgery.report(applied)
    assert len(report.taken) == 10
    assert {row.activation for row in report.rows if row.name in report.taken} == {None}
    model = Block(nn.SiLU())
    assert surgery.report(surgery.apply(copy.deepcopy(model), "bn")).taken == ("bn",)
    assert_alike(stepped(surgery.apply(copy.deepcopy(model), "bn"), X), stepped(model, X))


# ------------------------------------------------------------------------------------------------ blocks of one's own


class Rectified(nn.Module):
    """A branch that ends in an activation, the sum with its input, maybe another activation."""

    def __init__(self, inner: nn.Module, outer: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.outer = inner, outer
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.outer(self.inner(self.bn(self.conv(x))) + x)
        return y


class Block(nn.Module):
    """A branch, a shortcut with a projection, a sum, an activation."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.shortcut = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.relu = nn.ReLU(inplace=True) if activation is None else activation
        self.double()

    def branch(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + x)


class Swapped(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.branch(x))


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        out += x
        return self.relu(out)


class Method(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x).add_(x).relu_()


class Function(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.add(x, self.branch(x)))


class LateShortcut(Block):
    """The shortcut is computed behind the branch: its unit would be the later one."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        shortcut = self.shortcut(x)
        return self.relu(out + shortcut)


class EarlyShortcut(Block):
    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        return self.relu(shortcut + self.branch(x))


class Projected(Block):
    """The shortcut alone ends in a BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x) + self.shortcut(x))


class Three(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + x + self.shortcut(x))


class Behind(Block):
    """The residual is itself behind a sum that is taken."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.branch(x) + x)
        return self.relu(y + self.shortcut(y))


TAKEN: dict[type[Block], tuple[str, ...]] = {
    Block: ("bn",),
    Swapped: ("bn",),
    InPlace: ("bn",),
    Method: ("bn",),
    Function: ("bn",),
    LateShortcut: ("bn",),
    EarlyShortcut: ("bn",),
    Projected: ("shortcut.1",),
    Three: ("bn", "shortcut.1"),
    Behind: ("bn", "shortcut.1"),
}


@pytest.mark.parametrize("kind", TAKEN, ids=lambda kind: kind.__name__)
def test_the_branchs_own_unit_takes_the_sum(kind: type[Block]) -> None:
    torch.manual_seed(1)
    model = kind()
    applied = surgery.apply(copy.deepcopy(model), "bn")
    report = surgery.report(applied)
    assert report.taken == TAKEN[kind]
    told = f"bn: {len(report.rows)} sites, {len(TAKEN[kind])} of them with a residual sum"
    assert any(line.startswith(told) for line in str(report).splitlines())
    for twin in (applied, copy.deepcopy(applied), pickle.loads(pickle.dumps(applied))):
        assert surgery.report(twin) == report
        assert_alike(stepped(twin, X), stepped(copy.deepcopy(model), X))


class IntoTheResidual(Block):
    """Whoever reads the shortcut later sees the sum."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut[0](x)
        return torch.sigmoid(shortcut.add_(self.branch(x))) + shortcut


class TwoReaders(Block):
    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        return self.relu(out + x) + out


class Weighed(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(torch.add(self.branch(x), x, alpha=2))


class Number(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + 1.0)


class Itself(Block):
    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        return self.relu(out + out)


class Twice(Block):
    """One BatchNorm, once with a sum behind it and once without."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.branch(x) + x)
        return self.relu(self.branch(x))


class Siblings(Block):
    """Two calls of one BatchNorm meet in a sum."""

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + self.bn(self.shortcut[0](x)))


class Overwritten(Block):
    """The BatchNorm's input changes before the sum."""

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv(x)
        out = self.bn(inner)
        return self.relu(out + inner.mul(2))


class NoConvolution(Block):
    """The BatchNorm's input may be a part of what somebody writes to."""

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv(x).sigmoid()
        return self.relu(self.bn(inner.view_as(x)) + x)


@pytest.mark.parametrize(
    "kind",
    [IntoTheResidual, TwoReaders, Weighed, Number, Itself, Twice, Siblings, Overwritten, NoConvolution],
    ids=lambda kind: kind.__name__,
)
def test_a_sum_that_somebody_else_sees_stays(kind: type[Block]) -> None:
    torch.manual_seed(1)
    model = kind()
    applied = surgery.apply(copy.deepcopy(model), "bn")
    assert surgery.report(applied).taken == ()
    assert_alike(stepped(applied, X), stepped(model, X))


class IntoTheShortcut(Block):
    """The sum is written into what is read once more."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        return self.relu(shortcut.add_(self.branch(x))) + shortcut


class Pooled(Block):
    """The first of the two is the one that broadcasts."""

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x.mean(1, keepdim=True) + self.branch(x))


class Place(Block):
    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.place + self.branch(x))


class Whole(Block):
    """Whole numbers, and one that is no tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x.size(1) + self.relu((x > 0).long() + self.branch(x)) + self.branch(x))


class IntoTheFork(Block):
    """The sum is written into what the fork is, which is read once more."""

    def forward(self, x: Tensor) -> Tensor:
        fork = self.conv(x)
        return self.relu(fork.add_(self.bn(fork * 2)))


# Whether a TLU adds what it cuts.
ADDS: dict[type[Block], bool] = dict.fromkeys(
    (
        *(Block, Swapped, InPlace, Method, Function, LateShortcut, EarlyShortcut, Projected, Behind, TwoReaders),
        *(Pooled, Place, Whole),
    ),
    True,
) | dict.fromkeys((IntoTheShortcut, IntoTheFork, Weighed, Number, Itself), False)


@pytest.mark.parametrize("kind", ADDS, ids=lambda kind: kind.__name__)
def test_a_tlu_adds_what_nobody_else_sees(kind: type[Block], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model = kind()
    applied = surgery.apply(copy.deepcopy(model), "frn")
    monkeypatch.setattr(sums, "_is_addition", lambda _: False)  # TLUs stand behind the additions
    behind = surgery.apply(copy.deepcopy(model), "frn")
    for net in (applied, behind):
        for name in surgery.report(net).sums:
            nn.init.constant_(net.get_submodule(name).threshold, 0.1)
    calls = re.findall(r"tlu\w*\((.*?)\)", applied._train_forward.source)
    assert {"," in call for call in calls} == {ADDS[kind]}
    assert_alike(stepped(applied, X), stepped(behind, X))


def test_a_batchnorm_that_is_called_twice_takes_both_its_sums() -> None:
    class Both(Block):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = self.relu(self.branch(x) + x)
            return x

    model = Both()
    applied = surgery.apply(copy.deepcopy(model), "bn")
    assert surgery.report(applied).taken == ("bn",)
    assert_alike(stepped(applied, X), stepped(model, X))


def test_a_sum_of_other_shapes_broadcasts_as_it_did() -> None:
    class Wide(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.branch(x.mean((2, 3), keepdim=True)) + x)

    model = Wide()
    for norm in ("bn", "bgn"):
        applied = surgery.apply(copy.deepcopy(model), norm)
        assert surgery.report(applied).taken == ("bn",)
        assert applied(X).shape == X.shape
    assert_alike(stepped(surgery.apply(copy.deepcopy(model), "bn"), X), stepped(model, X))


def test_a_users_unit_takes_the_sum_if_its_forward_has_a_residual(tmp_path: Any) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Mine(torch.nn.BatchNorm2d):\n"
        "    def __init__(self, num_features, activation=None):\n"
        "        super().__init__(num_features)\n"
        "        self.activation = activation or torch.nn.Identity()\n"
        "    def forward(self, x, residual=0.0):\n"
        "        return self.activation(super().forward(x) + residual)\n"
    )
    model = Block()
    applied = surgery.apply(copy.deepcopy(model), f"{tmp_path / 'mine.py'}:Mine")
    assert surgery.report(applied).taken == ("bn",)
    assert type(applied.bn.activation) is nn.ReLU
    got, expected = stepped(applied, X), stepped(model, X)
    assert_alike({key: got[key] for key in ("y", "evaluated")}, {key: expected[key] for key in ("y", "evaluated")})


def test_it_compiles_and_exports() -> None:
    torch.compiler.reset()
    applied = surgery.apply(Block(), "bn")
    compiled = copy.deepcopy(applied)
    expected = stepped(applied, X)
    net = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    y = net(X)
    y.square().mean().backward()
    torch.testing.assert_close(y, expected["y"])
    torch.testing.assert_close(compiled.conv.weight.grad, expected["conv.weight"])
    program = torch.export.export(applied, (X,))
    torch.testing.assert_close(program.module()(X), expected["evaluated"])
