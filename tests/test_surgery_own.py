"""The surgery on models of one's own: whatever way they are written, it is the same function or an error."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from surgery_cases import SIDE, Branching, Small, X, outputs, same, untouched
from torch import Tensor, nn

from normbench import surgery
from normbench.errors import InputError

# How often a ReLU that stays names itself in generated code: assigned, called, used, freed.
RELU = 4


def test_settings_and_state_carry_over() -> None:
    model = Small(eps=1e-3, momentum=0.3)
    nn.init.zeros_(model.bn2.weight)
    nn.init.uniform_(model.bn1.bias)
    model.bn1.running_mean.fill_(0.5)
    model.bn1.num_batches_tracked.fill_(7)
    model.bn1.weight.requires_grad_(False)
    model.bn2.eval()
    bn, gn, frn = (surgery.apply(model, name) for name in ("bn", "gn", "frn"))
    for applied in (bn, gn, frn):
        assert torch.equal(applied.bn1.bias, model.bn1.bias)
        assert applied.bn2.weight.count_nonzero() == 0
        assert not applied.bn1.weight.requires_grad
        assert (applied.training, applied.bn1.training, applied.bn2.training) == (True, True, False)
    assert (bn.bn1.eps, bn.bn1.momentum) == (1e-3, 0.3)
    assert (gn.bn1.eps, frn.bn1.eps) == (1e-3, 1e-6)
    assert torch.equal(bn.bn1.running_mean, model.bn1.running_mean)
    assert bn.bn1.num_batches_tracked == 7
    assert surgery.apply(model, "gn", eps=0.5, num_groups=4).bn1.eps == 0.5


def test_bn_keeps_the_same_running_statistics() -> None:
    model = Small(momentum=0.2)
    applied = surgery.apply(model, "bn")
    for _ in range(3):
        model(X), applied(X)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(applied.state_dict()[key], value)


def test_bn_has_the_same_gradients(family: Callable[[str], nn.Module]) -> None:
    model = copy.deepcopy(family("resnet18")).double().train()
    x = torch.randn(4, 3, SIDE, SIDE, dtype=torch.float64)
    gradients = []
    for net in (model, surgery.apply(model, "bn")):
        net(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
        net.zero_grad(set_to_none=True)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-6, atol=1e-9, msg=name)


def test_dtype_and_device_follow() -> None:
    applied = surgery.apply(Small().double(), "frn")
    assert {p.dtype for p in applied.parameters()} == {torch.float64}
    with torch.device("meta"):
        model = Small()
    assert {p.device.type for p in surgery.apply(model, "bn").parameters()} == {"meta"}


def test_without_affine() -> None:
    model = Small(affine=False)
    applied = surgery.apply(model, "bn")
    assert applied.bn1.weight is None
    assert list(applied.state_dict()) == list(model.state_dict())
    same(model, applied)


def test_batch_reaches_only_who_takes_it() -> None:
    assert surgery.apply(Small(), "bn", batch=2).bn1.batch == 2
    assert surgery.apply(Small(), "gn", batch=2, num_groups=4).bn1.num_groups == 4


class PreActivation(nn.Module):
    """BatchNorm and ReLU whose output is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn, self.conv2 = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn(self.conv1(x)))
        return self.conv2(out) + out


def test_pre_activation() -> None:
    model = PreActivation()
    applied = surgery.apply(model, "bn")
    assert "relu" not in applied._train_forward.source
    same(model, applied)
    assert surgery.report(surgery.apply(model, "frn")).sums == {}


class Shared(nn.Module):
    """One BatchNorm called twice; the first time, and only with ``both`` the second time, with a ReLU after it."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.conv1, self.conv2, self.bn = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.other, self.both = self.bn, both

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(F.relu(self.bn(self.conv1(x))))
        return F.relu(self.other(x)) if self.both else torch.sigmoid(self.other(x))


@pytest.mark.parametrize("both", [True, False])
def test_a_shared_batchnorm_is_one_unit(both: bool) -> None:
    model = Shared(both)
    applied = surgery.apply(model, "bn")
    assert applied.bn is applied.other
    assert list(applied.state_dict()) == list(model.state_dict())
    (row,) = surgery.report(applied).rows
    assert (row.activation, row.convolution) == ("ReLU()" if both else None, None)
    assert applied._train_forward.source.count("relu") == (0 if both else RELU)
    same(model, applied)


class Outputs(nn.Module):
    """Activations that must stay: the BatchNorm's own output is needed too, or a parameter is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.prelu = nn.PReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.bn1(x)
        return F.relu(y) + y, self.prelu(self.bn2(x)) + F.leaky_relu(self.bn3(x), 0.2, True)


def test_activations_that_stay_and_options_of_those_that_go() -> None:
    model = Outputs()
    rows = surgery.report(surgery.apply(model, "bn")).rows
    assert [row.activation for row in rows] == [None, None, "LeakyReLU(negative_slope=0.2)"]
    same(model, surgery.apply(model, "bn"))


class Spaced(nn.Module):
    """nn.Identity in every gap of a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.gap, self.relu = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gap(self.relu(self.gap(self.bn1(self.gap(self.conv(x))))))
        return self.relu(self.gap(self.gap(self.bn2(y)) + x))


def test_nothing_in_between_is_no_hindrance() -> None:
    model = Spaced()
    report = surgery.report(surgery.apply(model, "frn"))
    assert [(row.convolution, row.activation) for row in report.rows] == [("conv", "ReLU()"), (None, None)]
    assert list(report.sums) == ["tlu"]
    same(model, surgery.apply(model, "bn"))


ACTIVATIONS = {
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "relu_": lambda x: x.relu_(),
    "torch.relu": torch.relu,
    "F.relu6": F.relu6,
    "F.silu": F.silu,
    "F.hardswish": F.hardswish,
    "F.gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "F.elu": lambda x: F.elu(x, 0.5),
    "F.hardtanh": lambda x: F.hardtanh(x, -0.5, 0.5),
    "F.softplus": lambda x: F.softplus(x, beta=2),
    "F.mish": F.mish,
    "F.selu": F.selu,
    "F.celu": lambda x: F.celu(x, alpha=2.0),
    "tanh": lambda x: x.tanh(),
    "torch.sigmoid": torch.sigmoid,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_function_becomes_the_module_that_does_the_same(name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return ACTIVATIONS[name](self.bn(x))

    model = Net()
    (site,) = surgery.find_sites(model)
    assert site.activation is not None
    y = torch.randn(2, 3, 4, 4)
    assert torch.equal(site.activation(y), ACTIVATIONS[name](y.clone()))
    same(model, surgery.apply(model, "bn"))


class Adder(nn.Module):
    """Adds in a module of its own, without a BatchNorm."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(torch.add(x, y))


class TwoSums(nn.Module):
    """The same adder twice, and a sum whose ReLU is not the only one to see it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.add = nn.Conv2d(3, 3, 1), Adder()
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.add(self.bn1(self.conv(x)), x)
        x = self.add(x, self.bn2(x))
        seen = self.bn3(x) + x
        return seen.relu() + seen


def test_sums_get_a_unit_each_where_they_are_added() -> None:
    model = TwoSums()
    with untouched(model):
        applied = surgery.apply(model, "frn")
    assert surgery.report(applied).sums == {"add.tlu": 3, "add.tlu_1": 3}
    assert applied._train_forward.source.count("relu") == RELU  # the third
    assert applied(X).isfinite().all()


def test_untraceable_takes_what_needs_no_graph() -> None:
    model = Branching()
    with untouched(model):
        applied = surgery.apply(model, "bn")
        surgery.check_traceable(model, "gn")
    assert type(applied) is Branching
    same(model, applied)
    report = surgery.report(applied)
    assert (report.traced, len(report.rows)) == (False, 2)
    assert "not traced" in str(report)
    assert [site.name for site in surgery.find_sites(model)] == ["bn1", "bn2"]
    for call in (surgery.apply, surgery.check_traceable):
        with (
            untouched(model),
            pytest.raises(InputError, match=r"(?s)frn needs the graph.*control flow.*surgery_cases.py:\d+.*bn, ln"),
        ):
            call(model, "frn")


def test_flags_survive_an_error() -> None:
    model = Branching()
    model.bn1.eval()
    with untouched(model), pytest.raises(InputError):
        surgery.apply(model, "frn")


class Gate(nn.Module):
    """Cannot be traced, and holds no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.scale
        return y if y.sum() > 0 else -y


class Drop(nn.Module):
    """Draws random numbers in Python."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.training and random.random() < 0.5 else x


class Gated(Small):
    """Small with parts that resist."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.drop = Gate(), Drop()
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate(self.drop(x - self.mean))
        return super().forward(self.gate(-x)) + torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_parts_without_batchnorm_may_resist() -> None:
    model = Gated()
    with untouched(model):
        applied = surgery.apply(model, "bn")
    assert surgery.report(applied).traced
    assert list(applied.state_dict()) == list(model.state_dict())
    for seed in range(4):
        random.seed(seed)
        expected = outputs(model, X, training=True)
        random.seed(seed)
        torch.testing.assert_close(outputs(applied, X, training=True), expected)
    applied.eval(), model.eval()
    torch.testing.assert_close(applied(-X), model(-X))
    model.mean.fill_(3.0)  # shared, and read at every forward
    torch.testing.assert_close(applied(X), model(X))
    assert applied.to(torch.float64)(X.double()).dtype is torch.float64


class RandomDepth(Small):
    """Draws in the module that holds the BatchNorms."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2 if torch.rand(()) < 0.5 else x)


def test_draws_are_not_frozen() -> None:
    with pytest.raises(InputError, match="draws random numbers in Python"):
        surgery.apply(RandomDepth(), "frn")
    applied = surgery.apply(RandomDepth(), "bn").eval()
    seen = {float(applied(X).sum().detach()) for _ in range(20)}
    assert len(seen) == 2


class Others(nn.Module):
    """BatchNorms of other kinds, one that is not called, and one with a forward of its own."""

    class Mine(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.unused, self.mine = nn.BatchNorm2d(3), nn.BatchNorm2d(3), Others.Mine(3)
        self.sync, self.one = nn.SyncBatchNorm(3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.mine(self.bn(x)).mean((2, 3)))


def test_what_is_left_alone_is_said() -> None:
    model = Others()
    applied = surgery.apply(model, "gn")
    left = {item.name: item.why for item in surgery.report(applied).left}
    assert left == {
        "unused": "the forward does not call it", "mine": "its class has a forward of its own",
        "sync": "not a BatchNorm2d", "one": "not a BatchNorm2d",
    }  # fmt: skip
    assert applied.mine is model.mine
    assert "left alone: sync (SyncBatchNorm)" in str(surgery.report(applied))
