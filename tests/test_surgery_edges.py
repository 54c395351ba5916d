"""The surgery on models that torch.fx would get wrong in silence, and on BatchNorms out of the ordinary."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from normbench import norms, surgery
from normbench.errors import InputError
from normbench.surgery.trace import trace

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(3))


class Base(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, **options), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


def same(left: nn.Module, right: nn.Module, *args: Any, **kwargs: Any) -> None:
    for training in (True, False):
        expected, got = (copy.deepcopy(m).train(training)(*(args or (X,)), **kwargs) for m in (left, right))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------- parameters with defaults


class Masked(Base):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, negative: bool = False) -> Tensor:
        y = super().forward(x)
        if mask is not None:
            y = y * mask
        return -y if negative else y


class Targets(Base):
    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        y = super().forward(x)
        return y if target is None else (y, F.mse_loss(y, target))


class Scaled(Base):
    def forward(self, x: Tensor, scale: float = 2.0, unused: Any = None) -> Tensor:
        return super().forward(x) * scale


@pytest.mark.parametrize(
    ("model", "calls"),
    [
        (Masked(), [{}, {"mask": torch.ones(1) * 3}, {"negative": True}, {"mask": None}]),
        (Targets(), [{}, {"target": X}, {"target": None}]),
        (Scaled(), [{}, {"scale": 3.0}, {"scale": torch.ones(1), "unused": 1}]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_parameters_with_a_default_may_be_given(model: nn.Module, calls: list[dict[str, Any]]) -> None:
    applied = surgery.apply(model, "bn")
    for given in calls:
        same(model, applied, X, **given)


def test_a_parameter_that_decides_the_way_is_held_at_its_default_in_a_graph() -> None:
    masked, scaled = surgery.apply(Masked(), "frn"), surgery.apply(Scaled(), "frn")
    assert torch.equal(masked(X), masked(X, None, negative=False))
    for given, name in (({"mask": torch.ones(1)}, "mask"), ({"negative": True}, "negative")):
        with pytest.raises(InputError, match=rf"got {name}=.*, expected its default .*gives {name} itself"):
            masked(X, **given)
    torch.testing.assert_close(scaled(X, 4.0), 2 * scaled(X))
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(masked, backend="eager", fullgraph=True)(X), masked(X))


# ---------------------------------------------------------------------------------------- what a graph does not hold


class Frozen(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.conv(x)
        return self.bn(x)


class Autocast(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.conv(x)
        return self.bn(x.float())


class Remembers(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.shape = x.shape
        return super().forward(x)


@pytest.mark.parametrize("kind", [Frozen, Autocast, Remembers])
def test_what_a_graph_does_not_hold_is_left_to_the_models_own_forward(kind: type[Base]) -> None:
    model = nn.Sequential(kind())
    attributes = set(vars(model[0]))
    applied = surgery.apply(model, "bn")
    with pytest.raises(InputError, match=r"torch.no_grad or torch.autocast|sets attributes"):
        surgery.apply(model, "frn")
    assert set(vars(model[0])) == attributes, "the model is left as it was"
    same(model, applied)
    applied(X).sum().backward()
    assert (model[0].conv.weight.grad is None) is (kind is Frozen)
    if kind is Remembers:
        assert applied.get_submodule("0").shape == X.shape


def test_a_part_without_batchnorm_that_remembers_is_one_step() -> None:
    class Log(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = x.detach()
            return x

    model = nn.Sequential(Log(), Base())
    applied = surgery.apply(model, "frn")
    assert not hasattr(model[0], "seen")
    applied(X)
    assert torch.equal(applied.get_submodule("0").seen, X)


class Untraceable(Base):
    """Holds its modules a second time, in plain containers, and calls these."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.last = [self.conv, {"bn": self.bn}], (self.relu,)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        return self.last[0](self.steps[1]["bn"](self.steps[0](x)))  # type: ignore[index]


def test_without_a_graph_plain_references_are_exchanged_too() -> None:
    model = Untraceable()
    nn.init.constant_(model.bn.bias, 5.0)
    applied = surgery.apply(model, "none")
    torch.testing.assert_close(applied(X), model.conv(X).add(5).relu())
    assert type(model.steps[1]["bn"]) is nn.BatchNorm2d  # type: ignore[index]


def test_a_wrapped_forward_is_refused_instead_of_going_on_with_the_batchnorms() -> None:
    replaced = Base()
    forward = replaced.forward
    replaced.forward = lambda x: forward(x) * 2  # type: ignore[method-assign]
    for model in (torch.compile(Base(), backend="eager"), replaced):
        with pytest.raises(InputError, match=r"forward set on the instance.*apply the normalizer first, then wrap"):
            surgery.apply(model, "gn")


def test_what_none_leaves_is_no_alias() -> None:
    """A ReLU that works in place must not reach what the shortcut carries."""

    class Pre(Base):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 1e9:
                return x
            x = x * 2
            return self.conv(self.relu(self.bn(x))) + x

    model = Pre(affine=False)
    torch.testing.assert_close(surgery.apply(model, "none")(X), model.conv(X.mul(2).relu()) + X * 2)


# ------------------------------------------------------------------------------------- BatchNorms out of the ordinary


@pytest.mark.parametrize("norm", norms.names())
def test_without_running_statistics(norm: str) -> None:
    model = Base(track_running_stats=False)
    applied = surgery.apply(model, norm, batch=2)
    applied(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not norms.get(norm).moves_units:
            applied.load_state_dict(model.state_dict())
    assert applied.eval()(X[:3]).isfinite().all()
    if norm in ("bn", "bgn"):  # evaluation takes the pictures' own statistics
        groups = {"num_groups": 3} if norm == "bgn" else {}
        same(model, surgery.apply(model, norm, **groups))
    if norm == "bn":
        assert list(applied.state_dict()) == list(model.state_dict())
        torch.testing.assert_close(applied.eval()(X), model.eval()(X))


def test_statistics_that_stand_still() -> None:
    model = Base()
    model.bn.track_running_stats = False
    applied = surgery.apply(model, "bn")
    applied(X)
    assert torch.equal(applied.bn.running_mean, torch.zeros(3))


def test_tied_parameters_stay_tied() -> None:
    model = nn.Sequential(Base(), Base())
    model[1].bn.weight = model[0].bn.weight
    applied = surgery.apply(model, "gn")
    assert applied.get_submodule("1.bn").weight is applied.get_submodule("0.bn").weight
    assert applied.get_submodule("1.bn").bias is not applied.get_submodule("0.bn").bias
    assert len(list(applied.parameters())) == len(list(model.parameters()))


def test_the_count_of_an_average_is_not_carried_without_the_average() -> None:
    model = Base(momentum=None)
    model(X), model(X)
    applied = surgery.apply(model, "bgn", num_groups=4, group_fit="gcd")
    assert applied.bn.num_batches_tracked == 0
    applied(X)
    torch.testing.assert_close(applied.bn.running_mean.mean(), model.conv(X).mean())


def test_a_batchnorm_called_by_keyword() -> None:
    class Keyword(Base):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(input=self.bn(input=self.conv(input=x)))

    model = Keyword()
    same(model, surgery.apply(model, "bn"))


# ------------------------------------------------------------------------------------------------ sums and checkpoints


class Block(Base):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.drop, self.gate = how, nn.Dropout(0.1), nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        sums = {
            "gated": lambda: x + y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True))),
            "dropped": lambda: self.drop(y) + x,
            "of three": lambda: (y + x) + x,
        }
        return self.relu(sums[self.how]())


@pytest.mark.parametrize("how", ["gated", "dropped", "of three"])
def test_a_sum_is_found_behind_what_stands_in_its_branch(how: str) -> None:
    applied = surgery.apply(Block(how), "frn")
    assert surgery.report(applied).sums == {"tlu": 3}
    assert applied(X).isfinite().all()


@pytest.mark.parametrize("norm", [name for name in norms.names() if not norms.get(name).moves_units])
def test_a_whole_batchnorm_checkpoint_loads_strictly(norm: str) -> None:
    model = nn.Sequential(Block("dropped"), Block("gated"))
    applied = surgery.apply(model, norm, **({"num_groups": 1} if norm == "bgn" else {}))
    nn.init.uniform_(model[0].bn.weight)
    wrapped = {f"0.{key}": value for key, value in model.state_dict().items()}
    twin = copy.deepcopy(applied)
    for net, state in ((applied, model.state_dict()), (nn.Sequential(applied), wrapped), (twin, model.state_dict())):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            net.load_state_dict(state)
        assert len(said) == (
            norm not in ("bn", "gbn", "batch_group", "syncbn", "bkn", "bne")
        )  # whose whole state it is
    for net in (applied, twin):
        assert torch.equal(net.get_submodule("0.bn").weight, model[0].bn.weight)


def test_a_frn_checkpoint_without_a_threshold_does_not() -> None:
    applied = surgery.apply(Block("dropped"), "frn")
    state = applied.state_dict()
    del state["tlu.threshold"]
    with pytest.raises(RuntimeError, match=r"Missing key.*tlu.threshold"):
        applied.load_state_dict(state)


def test_load_hooks_of_a_container_know_the_copy() -> None:
    def note(module: nn.Module, *_: Any) -> None:
        module.loaded = True

    model = nn.Sequential(Base())
    model[0].register_load_state_dict_pre_hook(note)
    applied = surgery.apply(model, "bn")
    applied.load_state_dict(model.state_dict())
    assert applied.get_submodule("0").loaded
    assert not hasattr(model[0], "loaded")


# ------------------------------------------------------------------------------------------------- x += y and its like


class Aliased(Base):
    """What is added to is also held by another name."""

    def forward(self, x: Tensor) -> Tensor:
        y = before = self.bn(self.conv(x))
        y += x
        return y * before


class Viewed(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        flat = y.flatten(1)
        y *= x
        return y + flat.view_as(y)


class Written(Base):
    """The caller sees it."""

    def forward(self, x: Tensor) -> Tensor:
        x -= 1
        return super().forward(x)


class Counted(Base):
    """Numbers are no tensors: the other name keeps its own."""

    def forward(self, x: Tensor) -> Tensor:
        n = half = x.shape[0] // 2
        n += 1
        n **= 2
        return super().forward(x) * n + half


class Transposed(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        turned = y.mT
        turned += 1
        return y * 2


class Rectified(Base):
    """By layers and functions that may give their input itself."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.relu(F.dropout(y, training=False))
        z += 1
        u = F.relu(y, True)
        u *= 2
        v = F.relu(u, inplace=True)
        v -= 0.5
        return self.bn(self.conv(x)) + y + z + u + v


class Given(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        z = torch.add(x, self.bn(self.conv(x)).detach(), out=y)
        z += 1
        return z * y


class Branched(Base):
    """Nobody else holds it: its other users made something new of it."""

    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        z = self.bn(self.conv(y))
        y += z
        z /= 2
        return self.relu(y) + F.relu(z)


@pytest.mark.parametrize("norm", ["none", "bn", "gn"])
@pytest.mark.parametrize("kind", [Aliased, Viewed, Written, Counted, Transposed, Rectified, Given, Branched])
def test_what_is_written_into_is_seen_by_whoever_holds_it(kind: type[Base], norm: str) -> None:
    model = kind()
    new = surgery.apply(model, norm, **({"num_groups": 3} if norm == "gn" else {}))
    model.bn = copy.deepcopy(new.get_submodule("bn"))  # with the unit, without an activation in it
    if hasattr(model.bn, "activation"):
        model.bn.activation = None
    for training in (True, False):
        (one, x), (other, z) = ((copy.deepcopy(m).train(training), X.clone()) for m in (model, new))
        torch.testing.assert_close(other(z), one(x))
        torch.testing.assert_close(z, x)


def test_a_sum_in_place_that_nobody_else_sees_is_a_sum() -> None:
    graph = trace(Branched()).train
    assert [node.target for node in graph.nodes if node.op == "call_function"].count(operator.add) == 3


class Residual(Base):
    """A block that adds in place, behind something that may give its input itself."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.between, self.gate = between, nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        y *= torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        y = self.between(y)
        y += x
        return self.relu(y)


@pytest.mark.parametrize(
    "between", [nn.Identity(), nn.Dropout(0.1), StochasticDepth(0.1, "row"), nn.ReLU(inplace=True)], ids=str
)
def test_methods_find_a_sum_in_place_that_nobody_else_sees(between: nn.Module) -> None:
    traced = trace(nn.Sequential(Residual(between), Residual(between)))
    for graph in traced.graphs:
        targets = [node.target for node in graph.nodes if node.op == "call_function"]
        assert targets.count(operator.add) == targets.count(operator.mul) == 2


def test_torchvisions_sums_in_place_are_found(family: Callable[[str], nn.Module]) -> None:
    for graph in trace(family("efficientnet_b0")).graphs:
        assert [node.target for node in graph.nodes].count(operator.add) == 9


class Chosen(Base):
    """The operators in place are all that tells one way from the other."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.bn(self.conv(x))
        if mask is None:
            y += 1
        else:
            y *= 2
        return y


def test_ways_that_differ_in_what_they_do_in_place_are_told_apart() -> None:
    model = Chosen()
    same(model, surgery.apply(model, "bn"))
