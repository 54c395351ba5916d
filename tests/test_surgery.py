"""The surgery: every site found, the same function with BatchNorm put back, the given model untouched."""

from __future__ import annotations

import copy
import io
import pickle
import random
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbench import norms, surgery
from normbench.errors import ConfigError, InputError, UnknownName

SIDE = 64
# Family: (BatchNorms, sites with an activation, residual sums that end in a ReLU), counted in torchvision's sources.
FAMILIES = {
    "resnet18": (20, 9, 8),
    "resnet50": (53, 33, 16),
    "resnext50_32x4d": (53, 33, 16),
    "densenet121": (121, 121, 0),
    "googlenet": (59, 59, 0),
    "inception_v3": (96, 96, 0),
    "mobilenet_v2": (52, 35, 0),
    "mobilenet_v3_small": (34, 23, 0),
    "mnasnet0_5": (52, 35, 0),
    "shufflenet_v2_x0_5": (56, 37, 0),
    "efficientnet_b0": (49, 33, 0),
    "regnet_y_400mf": (53, 33, 16),
    "vgg11_bn": (8, 8, 0),
}
SIDES = {"inception_v3": 299}
EVERY = ["resnet18", "mobilenet_v3_small"]
# How often a ReLU that stays names itself in generated code: assigned, called, used, freed.
RELU = 4


@pytest.fixture(scope="module")
def family() -> Iterator[Callable[[str], nn.Module]]:
    """torchvision's nets, made once; what is done to them must leave them as they are."""
    import torchvision

    made: dict[str, nn.Module] = {}

    def make(name: str) -> nn.Module:
        if name not in made:
            arguments = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
            torch.manual_seed(0)
            made[name] = torchvision.models.get_model(name, weights=None, num_classes=10, **arguments)
        return made[name]

    yield make
    made.clear()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Fails if anything about ``model`` changes inside."""
    before, state = snapshot(model), {key: value.clone() for key, value in model.state_dict().items()}
    yield
    after = snapshot(model)
    assert list(before) == list(after)
    for name, attributes in before.items():
        assert attributes.keys() == after[name].keys()
        for key, value in attributes.items():
            now = after[name][key]
            assert value == now if isinstance(value, dict | int) else value is now, (name, key)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def snapshot(model: nn.Module) -> dict[str, dict[str, object]]:
    """Every attribute of every module; registries (parameters, children, hooks) by the identity of what is in them."""
    kept = {}
    for name, module in model.named_modules():
        attributes = vars(module)
        registries = {key: {k: id(v) for k, v in d.items()} for key, d in attributes.items() if isinstance(d, dict)}
        kept[name] = {"itself": id(module), **attributes, **registries}
    return kept


def outputs(model: nn.Module, x: Tensor, *, training: bool) -> tuple[Tensor, ...]:
    """The model's outputs as a tuple, its random draws and running statistics from the same start each time."""
    torch.manual_seed(1)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.no_grad():
        y = model.train(training)(x)
    for buffer, before in buffers:
        buffer.copy_(before)
    return y if isinstance(y, tuple) else (y,)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_batchnorm_is_a_site(name: str, family: Callable[[str], nn.Module]) -> None:
    model = family(name)
    sites = surgery.find_sites(model)
    batchnorms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {site.name for site in sites} == batchnorms
    assert (len(sites), sum(site.activation is not None for site in sites)) == FAMILIES[name][:2]
    for site in sites:
        assert getattr(site.activation, "inplace", False) is False
        if site.convolution is not None:
            assert model.get_submodule(site.convolution).out_channels == site.num_features


@pytest.mark.parametrize("name", FAMILIES)
def test_bn_is_the_same_function(name: str, family: Callable[[str], nn.Module]) -> None:
    model = family(name)
    side = SIDES.get(name, SIDE)
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    with untouched(model.train()):
        applied = surgery.apply(model, "bn")
    assert list(applied.state_dict()) == list(model.state_dict())
    for training in (True, False):
        expected, got = outputs(model, x, training=training), outputs(applied, x, training=training)
        assert len(expected) == len(got)
        for e, g in zip(expected, got, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-3, atol=1e-4 * float(e.abs().max()))
    model.train()


@pytest.mark.parametrize("norm", norms.names())
@pytest.mark.parametrize("name", EVERY)
def test_every_normalizer_runs(name: str, norm: str, family: Callable[[str], nn.Module]) -> None:
    model = family(name)
    with untouched(model):
        applied = surgery.apply(model, norm, batch=2).train()
    x = torch.randn(4, 3, SIDE, SIDE)
    loss = F.cross_entropy(applied(x), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in applied.parameters())
    assert not any(isinstance(m, nn.BatchNorm2d) and type(m) is nn.BatchNorm2d for m in applied.modules())
    assert applied.eval()(x).shape == (4, 10)
    model.zero_grad()
    model.train()


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name][2]])
def test_a_tlu_stands_after_every_residual_sum(name: str, family: Callable[[str], nn.Module]) -> None:
    model = family(name)
    with untouched(model):
        applied = surgery.apply(model, "frn")
    report = surgery.report(applied)
    assert len(report.sums) == FAMILIES[name][2]
    kind = norms.get("frn").sum_activation
    for tlu in report.sums:
        owner = tlu.rpartition(".")[0]
        assert type(applied.get_submodule(tlu)) is kind
        assert any(site.name.startswith(owner) for site in report.rows)
    assert not hasattr(model, "tlu")
    if name == "resnet50":
        assert "layer1.0.tlu" in report.sums
        assert applied.layer1[0].tlu.threshold.shape == (256,)
    # A threshold of 0 is a ReLU; lifted, it shows in the output.
    x = torch.randn(2, 3, SIDE, SIDE)
    before = applied.eval()(x)
    with torch.no_grad():
        applied.get_submodule(list(report.sums)[-1]).threshold.fill_(9.0)
    assert not torch.allclose(before, applied(x))


def test_only_the_last_relu_of_a_sum_is_left_to_frn(family: Callable[[str], nn.Module]) -> None:
    code = surgery.apply(family("resnet50"), "frn")._train_forward.source
    assert "relu" not in code
    assert code.count(".tlu(") == 16


def test_inception_returns_what_it_returned(family: Callable[[str], nn.Module]) -> None:
    from torchvision.models.inception import InceptionOutputs

    model = family("inception_v3")
    applied = pickle.loads(pickle.dumps(surgery.apply(model, "gn")))
    x = torch.randn(1, 3, 299, 299)
    with torch.no_grad():
        y = applied.train()(x)
        assert type(y) is InceptionOutputs
        assert (y.logits.shape, y.aux_logits.shape) == ((1, 10), (1, 10))
        assert type(applied.eval()(x)) is Tensor


@pytest.mark.parametrize("name", ["squeezenet1_0", "convnext_tiny"])
def test_a_model_without_batchnorm_is_refused(name: str, family: Callable[[str], nn.Module]) -> None:
    for call in (surgery.find_sites, lambda m: surgery.apply(m, "gn"), lambda m: surgery.check_traceable(m, "frn")):
        with pytest.raises(InputError, match=r"has no nn\.BatchNorm2d to replace"):
            call(family(name))


def test_no_random_number_is_drawn(family: Callable[[str], nn.Module]) -> None:
    model = family("resnet18")
    state, python_state = torch.get_rng_state(), random.getstate()
    for norm in norms.names():
        surgery.apply(model, norm)
    surgery.site_shapes(model, (3, SIDE, SIDE))
    assert torch.equal(state, torch.get_rng_state())
    assert random.getstate() == python_state


def test_what_is_not_replaced_is_shared(family: Callable[[str], nn.Module]) -> None:
    model = family("resnet18")
    applied = surgery.apply(model, "gn")
    assert applied.conv1 is model.conv1
    assert applied.layer1[0].conv1 is model.layer1[0].conv1
    assert applied.layer1 is not model.layer1
    assert applied.bn1.weight is not model.bn1.weight


# ---------------------------------------------------------------------------------------------- models of one's own


class Small(nn.Module):
    """Convolution, BatchNorm, ReLU, twice, and a head."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8, **options)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8, **options)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x)).relu()
        return self.fc(x.mean((2, 3)))


class Branching(Small):
    """Cannot be traced: which way it goes depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        return super().forward(x)


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def same(left: nn.Module, right: nn.Module, x: Tensor = X) -> None:
    for training in (True, False):
        for l, r in zip(outputs(left, x, training=training), outputs(right, x, training=training), strict=True):  # noqa: E741
            torch.testing.assert_close(l, r, rtol=1e-4, atol=1e-5)


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
            pytest.raises(InputError, match=r"(?s)frn needs the graph.*control flow.*test_surgery.py:\d+.*bn, ln"),
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


# ---------------------------------------------------------------------------------------------- what comes out of it


@pytest.mark.parametrize("norm", ["bn", "frn", "bgn"])
def test_copies_and_pickles(norm: str, family: Callable[[str], nn.Module]) -> None:
    applied = surgery.apply(family("resnet18"), norm)
    x = torch.randn(2, 3, SIDE, SIDE)
    expected = outputs(applied, x, training=True)
    file = io.BytesIO()
    torch.save(applied, file)
    file.seek(0)
    for twin in (copy.deepcopy(applied), torch.load(file, weights_only=False)):
        assert torch.equal(outputs(twin, x, training=True)[0], expected[0])
        assert twin.conv1.weight is not applied.conv1.weight
        assert surgery.report(twin) == surgery.report(applied)
        assert twin._train_forward == applied._train_forward


def test_compiles() -> None:
    applied = surgery.apply(Small(), "bn")
    compiled = torch.compile(applied, backend="eager", fullgraph=True)
    for training in (True, False):
        applied.train(training)
        torch.testing.assert_close(compiled(X), applied(X), rtol=1e-3, atol=1e-4)


def test_tracebacks_show_the_code() -> None:
    applied = surgery.apply(Small(), "bn")
    with pytest.raises(RuntimeError) as caught:
        applied(torch.randn(2, 5, 8, 8))
    text = "".join(traceback.format_exception(caught.value))
    assert "conv1 = self.conv1(x)" in text


def test_root_parameters_keep_their_names() -> None:
    class Net(Small):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.register_buffer("shift", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.scale + self.shift)

    model = Net()
    applied = surgery.apply(model, "frn")
    assert next(iter(dict(applied.named_parameters()))) == "scale"
    assert applied.scale is model.scale
    assert set(model.state_dict()) - set(applied.state_dict()) == {
        f"bn{i}.{name}" for i in (1, 2) for name in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_a_batchnorm_checkpoint_loads() -> None:
    model = Small()
    nn.init.uniform_(model.bn1.weight)
    applied = surgery.apply(Small(), "bn")
    applied.load_state_dict(model.state_dict())
    same(model, applied)


def test_the_report_reads_units_as_they_are() -> None:
    applied = surgery.apply(Small(), "gn", num_groups=4)
    report = surgery.report(nn.ModuleDict({"wrapped": applied}))
    assert [(row.name, row.num_groups, row.parameters, row.unit) for row in report.rows] == [
        ("bn1", 4, 16, "gn"), ("bn2", 4, 16, "gn"),
    ]  # fmt: skip
    assert report.parameters == 32
    table = str(report).splitlines()
    assert table[0].split() == ["site", "C", "convolution", "activation", "unit", "groups", "parameters"]
    assert table[1].split() == ["bn1", "8", "conv1", "ReLU()", "gn", "4", "16"]
    assert table[-1] == "gn: 2 sites, 32 parameters"
    with pytest.raises(InputError, match="not of normbench's making"):
        surgery.report(Small())


def test_bad_names_and_options_are_refused_first() -> None:
    model = nn.Linear(2, 2)  # no BatchNorm in it: the options are looked at before that
    with pytest.raises(UnknownName, match="gn"):
        surgery.apply(model, "gnn")
    with pytest.raises(UnknownName, match="num_groups"):
        surgery.apply(model, "gn", num_group=4)
    with pytest.raises(ConfigError):
        surgery.apply(model, "gn", num_groups="many")
    with pytest.raises(InputError, match=r"site bn1 \(8 channels\)"):
        surgery.apply(Small(), "gn", num_groups=3)
    with pytest.raises(InputError, match=r"normbench\.build"):
        surgery.apply(nn.BatchNorm2d(3), "gn")


def test_a_users_unit_leaves_the_activation_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Scale(torch.nn.Module):\n"
        "    def __init__(self, num_features, gain=1.0):\n"
        "        super().__init__()\n"
        "        self.gain = gain\n"
        "        self.weight = torch.nn.Parameter(torch.ones(num_features))\n"
        "    def forward(self, x):\n"
        "        return x * self.weight[:, None, None] * self.gain\n"
    )
    model = Small()
    nn.init.uniform_(model.bn1.weight)
    applied = surgery.apply(model, f"{tmp_path / 'mine.py'}:Scale", gain=2.0)
    assert applied._train_forward.source.count("functional.relu") == 1
    assert torch.equal(applied.bn1.weight, model.bn1.weight)
    assert applied(X).shape == (4, 4)


# ----------------------------------------------------------------------------------------------------------- shapes


def test_shapes_at_the_sites(family: Callable[[str], nn.Module]) -> None:
    model = family("resnet50")
    start = time.perf_counter()
    with untouched(model):
        shapes = surgery.site_shapes(model, (3, 224, 224))
    assert time.perf_counter() - start < 5
    assert len(shapes) == 53
    assert (shapes["bn1"], shapes["layer4.2.bn3"]) == ((64, 112, 112), (2048, 7, 7))


def test_shapes_of_the_auxiliary_head(family: Callable[[str], nn.Module]) -> None:
    shapes = surgery.site_shapes(family("inception_v3"), (3, 299, 299))
    assert len(shapes) == 96
    assert shapes["AuxLogits.conv1.bn"] == (768, 1, 1)


def test_shapes_of_a_shared_batchnorm_are_the_smallest() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(F.max_pool2d(self.bn(x), 2))

    assert surgery.site_shapes(Net(), (3, 8, 8)) == {"bn": (3, 4, 4)}


def test_watching_hooks_are_not_called() -> None:
    model, seen = Small(), []
    model.conv1.register_forward_hook(lambda *_: seen.append(1))
    surgery.site_shapes(model, (3, 8, 8))
    assert seen == []
    surgery.apply(model, "gn")(X)
    assert seen == [1]


def test_told_the_pictures_shape_units_have_their_buffers_at_once(family: Callable[[str], nn.Module]) -> None:
    """BGN with more groups than channels cuts maps into strips: its buffers depend on H × W."""
    model = family("resnet18").eval()
    late = surgery.apply(model, "bgn", num_groups=128, group_fit="gcd")
    early = surgery.apply(model, "bgn", num_groups=128, group_fit="gcd", input_shape=(3, 64, 64))
    assert "bn1.running_mean" not in late.state_dict()
    assert early.state_dict()["bn1.running_mean"].shape == (128,)
    late(torch.zeros(2, 3, 64, 64))
    assert {k: v.shape for k, v in early.state_dict().items()} == {k: v.shape for k, v in late.state_dict().items()}
