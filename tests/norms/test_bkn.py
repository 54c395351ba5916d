"""bkn: the filter, what is predicted through the layers between two norms, and the graphs of whole models."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from norm_cases import C, gradients, make, pictures
from norm_cases import Case as Of
from torch import Tensor, nn

from normbench import norms
from normbench.models.preresnet_cifar import PreResNet
from normbench.models.resnet_cifar import ResNet
from normbench.norms import bkn, plain
from normbench.norms.bkn import Law
from normbench.surgery import apply

f64 = torch.float64


def law_of(*shape: int, seed: int = 5, **way: Any) -> Law:
    """A law of (workers, channels)."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(shape, generator=generator, dtype=f64)
    return Law(mean, 0.2 + torch.rand(shape, generator=generator, dtype=f64), **way)


def measured(x: Tensor, workers: int) -> tuple[Tensor, Tensor]:
    return plain.pool(*plain.moments(x), workers, x.shape[1])


# The filter


@pytest.mark.parametrize("batch", [None, 2])
def test_with_a_gain_of_1_it_is_batchnorm_whatever_was_predicted(batch: int | None) -> None:
    """Values, gradients and buffers."""
    ours, theirs = make(Of("bkn", {"gain": 1.0}), batch=batch), make(Of("bn"), batch=batch)
    theirs.load_state_dict(ours.state_dict())
    for seed in range(3):
        x = pictures(4, C, 5, 3, seed=seed).requires_grad_()
        law = law_of(1 if batch is None else 2, C)
        y, expected = ours(x, law)[0], theirs(x)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
        pairs = zip(gradients(y, x, *ours.parameters()), gradients(expected, x, *theirs.parameters()), strict=True)
        for g, h in pairs:
            torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-9)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gain", [0.0, 0.1, 0.7, None])
def test_a_prediction_that_is_true_is_batchnorm_for_every_gain(gain: float | None) -> None:
    x = pictures(4, C, 5, 3)
    unit, bn = make(Of("bkn", {"gain": gain}), batch=2), make(Of("bn"), batch=2)
    y, of_x, _ = unit(x, Law(*measured(x, 2)))
    torch.testing.assert_close(y, bn(x), rtol=0, atol=1e-12)
    for ours, theirs in zip(of_x[:2], measured(x, 2), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_mean_and_variance_are_those_of_the_mixture() -> None:
    """Of values of which a share q comes from the batch and the others from the prediction."""
    q, x, unit = 0.25, pictures(2, C, 4, 3), make(Of("bkn", {"gain": 0.25}))
    predicted = pictures(6, C, 4, 3, seed=1)
    _, of_x, _ = unit(x, Law(*measured(predicted, 1)))
    assert len(x) / (len(x) + len(predicted)) == q
    for ours, theirs in zip(of_x[:2], measured(torch.cat([x, predicted]), 1), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("gain", [0.1, 0.6, None])
def test_it_is_the_plain_formula_with_a_prediction_for_each_worker(gain: float | None) -> None:
    unit, law = make(Of("bkn", {"gain": gain}), batch=2), law_of(3, C)
    law = law._replace(mean=law.mean.requires_grad_(), var=law.var.requires_grad_())
    x = pictures(6, C, 4, 3).requires_grad_()
    inputs = (x, law.mean, law.var, *unit.parameters())
    options = {"prior": (law.mean, law.var), "gain": 2 / 20 if gain is None else gain, "batch": 2}
    expected = bkn.reference(x, unit.weight, unit.bias, **options)
    y = unit(x, law)[0]
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
    for g, h in zip(gradients(y, *inputs), gradients(expected, *inputs), strict=True):
        torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-9)


def test_with_a_gain_of_0_an_image_is_normalized_by_the_prediction_alone() -> None:
    unit, law, x = make(Of("bkn", {"gain": 0.0})), law_of(1, C), pictures(4, C, 5, 3)
    y = unit(x, law)[0]
    assert torch.equal(y[:1], unit(x[:1], law)[0])
    mean, std = law.mean[0][:, None, None], torch.sqrt(law.var[0] + unit.eps)[:, None, None]
    expected = unit.weight[:, None, None] * (x - mean) / std + unit.bias[:, None, None]
    torch.testing.assert_close(y, expected)


def test_the_gain_follows_the_images_of_a_worker() -> None:
    x, law = pictures(2, C, 4, 3), law_of(1, C)
    given, by_batch = make(Of("bkn", {"gain": 0.1})), make(Of("bkn"))
    torch.testing.assert_close(given(x, law)[0], by_batch(x, law)[0])


@pytest.mark.parametrize(("ratio", "trusted"), [(99, True), (101, False)])
def test_a_prediction_that_varies_far_too_much_is_left_out(ratio: float, trusted: bool) -> None:
    """By the mean over the channels, each worker for itself."""
    x = pictures(4, C, 5, 3)
    z, S = measured(x, 2)
    uneven = torch.linspace(0.5, 1.5, C, dtype=f64)
    var = torch.stack([ratio * uneven * S[0], S[1]])
    unit, bn = make(Of("bkn", {"gain": 0.3}), batch=2), make(Of("bn"), batch=2)
    y = unit(x, Law(z + 1, var))[0]
    assert torch.allclose(y[:2], bn(x)[:2]) is not trusted
    assert not torch.allclose(y[2:], bn(x)[2:])
    assert not torch.allclose(make(Of("bkn", {"gate_ratio": float("inf")}), batch=2)(x, Law(z + 1, var))[0], bn(x))
    if not trusted:
        assert torch.allclose(unit.running_mean, 0.1 * (z[0] + (z[1] + 0.7)) / 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_prediction_that_is_no_number_is_left_out(bad: float) -> None:
    x, law = pictures(4, C, 5, 3), law_of(1, C)
    y = make(Of("bkn"))(x, law._replace(var=torch.full_like(law.var, bad)))[0]
    torch.testing.assert_close(y, make(Of("bn"))(x), rtol=0, atol=1e-12)


def test_running_statistics_move_towards_the_mean_of_the_workers_blends() -> None:
    unit, law, x = make(Of("bkn", {"gain": 0.4}), batch=2), law_of(3, C), pictures(6, C, 4, 3)
    apart = [make(Of("bkn", {"gain": 0.4})) for _ in range(3)]
    unit(x, law)
    for worker, images, mean, var in zip(apart, x.split(2), law.mean, law.var, strict=True):
        worker(images, Law(mean[None], var[None]))
    for key in ("running_mean", "running_var"):
        expected = torch.stack([getattr(worker, key) for worker in apart]).mean(0)
        torch.testing.assert_close(getattr(unit, key), expected)


def test_evaluation_knows_no_prediction() -> None:
    unit = make(Of("bkn"), activation=nn.ReLU())
    unit(pictures(4, C, 5, 3))
    unit.eval()
    x = pictures(3, C, 5, 3, seed=1)
    assert torch.equal(unit(x, law_of(1, C))[0], unit(x))
    assert torch.equal(unit(x, None)[0], unit(x))


@pytest.mark.parametrize("prior", ["code", "consistent"])
def test_what_is_said_of_the_output(prior: str) -> None:
    unit, x = make(Of("bkn", {"prior": prior}), activation=nn.ReLU()), pictures(4, C, 5, 3)
    _, of_x, of_y = unit(x, law_of(1, C))
    expected = (unit.bias[None], unit.weight.square()[None]) if prior == "consistent" else of_x[:2]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(of_y[:2], expected, strict=True))
    assert of_x.activation is None
    assert of_y.activation is unit.activation


def test_half_precision_has_predictions_in_float32() -> None:
    unit = make(Of("bkn"), dtype=torch.float32, activation=nn.ReLU())
    x, conv = pictures(4, C, 5, 3, dtype=torch.bfloat16), nn.Conv2d(C, 4, 3).bfloat16()
    y, of_x, of_y = unit(x, None)
    for way in (of_y, of_y._replace(sample=False)):
        law = bkn.convolved(way, y, conv)
        assert (y.dtype, of_x.mean.dtype, law.mean.dtype, law.var.dtype) == (torch.bfloat16, *[torch.float32] * 3)


# Through the layers


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("activation", [None, nn.ReLU()], ids=str)
def test_moments_are_those_of_many_draws(groups: int, activation: nn.Module | None) -> None:
    """On a map without borders: 1000 draws, 64 × 64, at once as so many workers."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, groups=groups, dtype=f64)
    law = law_of(1, 4)._replace(activation=activation)
    x = torch.zeros(1, 4, 64, 64, dtype=f64)
    exact = bkn.convolved(law._replace(sample=False), x, conv)
    means, variances = [], []
    for _ in range(10):
        hundred = law._replace(mean=law.mean.expand(100, 4), var=law.var.expand(100, 4))
        drawn = bkn.convolved(hundred, x, conv)
        means.append(drawn.mean), variances.append(drawn.var)
    torch.testing.assert_close(torch.cat(means).mean(0)[None], exact.mean, rtol=0.01, atol=0.005)
    torch.testing.assert_close(torch.cat(variances).mean(0)[None], exact.var, rtol=0.02, atol=0)


def test_the_moments_of_a_rectified_normal_are_exact() -> None:
    mean, var = torch.tensor([[0.0, 1.0, -2.0, 3.0]], dtype=f64), torch.tensor([[1.0, 0.25, 4.0, 1e-14]], dtype=f64)
    grid = torch.linspace(-9, 9, 400_001, dtype=f64)
    weight = torch.exp(-(grid**2) / 2) / torch.exp(-(grid**2) / 2).sum()
    values = (mean[0][:, None] + torch.sqrt(var[0])[:, None] * grid).relu()
    first = (values * weight).sum(1)
    second = ((values - first[:, None]) ** 2 * weight).sum(1)
    ours = bkn.rectified(mean, var)
    torch.testing.assert_close(ours[0][0], first, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours[1][0], second, rtol=1e-6, atol=1e-6)


def test_a_constant_channel_has_finite_gradients() -> None:
    var = torch.zeros(1, 4, dtype=f64, requires_grad=True)
    law, x = Law(torch.zeros(1, 4, dtype=f64), var, nn.ReLU()), torch.zeros(1, 4, 5, 5, dtype=f64)
    for sample in (True, False):
        mean, spread = bkn.moments(law._replace(sample=sample), x)
        (grad,) = torch.autograd.grad((mean + spread).sum(), var)
        assert grad.isfinite().all()


def test_a_draw_is_of_the_law_and_of_the_size() -> None:
    torch.manual_seed(0)
    law, x = law_of(3, C), torch.zeros(6, C, 90, 70, dtype=torch.float32)
    maps = bkn.maps_of(law, x)
    assert (maps.shape, maps.dtype) == ((3, C, 90, 70), torch.float32)
    mean, var = plain.mean_var(maps.double(), (2, 3))
    torch.testing.assert_close(mean, law.mean, rtol=0, atol=0.08)
    torch.testing.assert_close(var, law.var, rtol=0.1, atol=0)
    assert torch.equal(bkn.drawn(law, x).maps, bkn.drawn(law, x).maps) is False, "fresh in every step"


def test_sums_add_means_and_variances() -> None:
    x, a, b = torch.zeros(4, C, 5, 5), law_of(2, C), law_of(2, C, seed=6)
    law = bkn.added(a, b, x, x)
    assert torch.equal(law.mean, a.mean + b.mean)
    assert torch.equal(law.var, a.var + b.var)
    rectified = bkn.added(a._replace(activation=nn.ReLU()), b, x, x)
    torch.testing.assert_close(rectified.mean, bkn.rectified(a.mean, a.var)[0] + b.mean)


def test_zero_channels_are_constants() -> None:
    x, law = torch.zeros(4, C, 5, 5, dtype=f64), law_of(2, C)
    pad = (0, 0, 0, 0, 0, 3)
    for way in (law, bkn.drawn(law, x)):
        wider = bkn.padded(way, x, pad)
        mean, var = bkn.moments(wider, F.pad(x, pad))
        assert mean.shape == var.shape == (2, C + 3)
        assert not mean[:, C:].any()
        assert not var[:, C:].any()
        torch.testing.assert_close(mean[:, :C], bkn.moments(way, x)[0])


@pytest.mark.parametrize("sample", [True, False])
def test_concatenated_laws_stand_side_by_side(sample: bool) -> None:
    x, a, b = torch.zeros(4, C, 5, 5, dtype=f64), law_of(2, C, sample=sample), law_of(2, C, seed=6, sample=sample)
    relu = nn.ReLU()
    both = bkn.joined([a._replace(activation=relu), b._replace(activation=relu)], [x, x])
    assert both.mean.shape == (2, 2 * C)
    assert both.activation is relu
    mixed = bkn.joined([bkn.drawn(a._replace(activation=relu), x), b], [x, x])
    assert (mixed.maps is not None) is sample
    assert bkn.moments(mixed, torch.cat([x, x], 1))[0].shape == (2, 2 * C)


# In models


def units(net: nn.Module) -> list[Any]:
    return [module for module in net.modules() if norms.is_unit(module)]


def small(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    if kind == "inception_v3":
        return torchvision.models.inception_v3(init_weights=False, num_classes=10), (4, 3, 75, 75)
    made = {"resnet8": lambda: ResNet(8), "preresnet14": lambda: PreResNet(14)}
    make_it = made.get(kind, lambda: torchvision.models.get_model(kind, weights=None, num_classes=10))
    return make_it(), (4, 3, 16, 16) if kind in made else (4, 3, 32, 32)


KINDS = ["resnet8", "preresnet14", "resnet50", "densenet121", "inception_v3"]


def as_tensor(y: Any) -> Tensor:
    return y if isinstance(y, Tensor) else y[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("propagate", ["sample", "moments"])
def test_every_norm_but_the_first_is_given_a_prediction_and_the_net_trains(kind: str, propagate: str) -> None:
    net, shape = small(kind)
    if kind == "inception_v3":
        net.aux_logits, net.AuxLogits = False, None
    ours = apply(net, "bkn", batch=2, propagate=propagate)
    assert [unit.predicted for unit in units(ours)] == [False] + [True] * (len(units(ours)) - 1)
    update = torch.optim.SGD(ours.parameters(), lr=1e-3)
    for _ in range(2):
        update.zero_grad()
        loss = F.cross_entropy(as_tensor(ours(torch.randn(shape))), torch.arange(4))
        loss.backward()
        update.step()
        assert loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())
    assert as_tensor(ours.eval()(torch.randn(shape))).isfinite().all()


def test_an_auxiliary_head_starts_from_its_input() -> None:
    net, _ = small("inception_v3")
    ours = apply(net, "bkn", batch=2)
    assert sum(not unit.predicted for unit in units(ours)) == 1
    with torch.no_grad():
        logits, aux = ours(torch.randn(2, 3, 299, 299))
    assert logits.isfinite().all()
    assert aux.isfinite().all()


@pytest.mark.parametrize("kind", ["resnet8", "preresnet14"])
@pytest.mark.parametrize("propagate", ["sample", "moments"])
def test_a_net_with_a_gain_of_1_is_that_with_batchnorm(kind: str, propagate: str) -> None:
    net, shape = small(kind)
    net = net.double()
    ours = apply(copy.deepcopy(net), "bkn", gain=1.0, propagate=propagate)
    x = torch.randn(shape, dtype=f64)
    for model in (net, ours):
        model(x).square().sum().backward()
    assert dict(ours.named_parameters()).keys() == dict(net.named_parameters()).keys()
    for (key, p), q in zip(net.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-6, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}")
    for key, value in net.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-9, atol=1e-12)


def given(net: nn.Module, x: Tensor) -> dict[str, tuple[Law | None, Tensor]]:
    """What each unit is given for its input, in a forward."""
    found: dict[str, tuple[Law | None, Tensor]] = {}
    for name, unit in net.named_modules():
        if norms.is_unit(unit):
            unit.register_forward_pre_hook(lambda _, args, name=name: found.update({name: (args[1], args[0])}))
    net(x)
    return found


def test_the_trunk_keeps_its_own_and_adds_the_branches() -> None:
    """In a net with the activation before the convolution; where the shape changes, channels of zeros come in."""
    net, shape = small("preresnet14")
    ours = apply(net.double(), "bkn", propagate="moments", batch=2)
    found = given(ours, torch.randn(shape, dtype=f64))
    says: dict[str, Law] = {}

    def branch(block: Any, name: str) -> Law:
        """What a block's second norm and last convolution make of it."""
        law, x = found[f"{name}.bn2"]
        copy_of = copy.deepcopy(block.bn2)
        _, of_x, of_y = copy_of(x, law)
        says[name] = of_x
        return bkn.convolved(of_y, x, block.conv2)

    trunk, x = found["layer1.0.bn1"]
    assert trunk is None
    start = measured(x, 2)
    second, _ = found["layer1.1.bn1"]
    of_branch = branch(ours.layer1[0], "layer1.0")
    torch.testing.assert_close(second.mean, start[0] + of_branch.mean)
    torch.testing.assert_close(second.var, start[1] + of_branch.var)
    third, _ = found["layer2.0.bn1"]
    of_branch = branch(ours.layer1[1], "layer1.1")
    torch.testing.assert_close(third.mean, second.mean + of_branch.mean)
    torch.testing.assert_close(third.var, second.var + of_branch.var)
    fourth, x = found["layer2.1.bn1"]
    assert fourth.mean.shape == (2, 32)
    of_branch = branch(ours.layer2[0], "layer2.0")
    torch.testing.assert_close(fourth.var[:, 16:], of_branch.var[:, 16:])
    assert (fourth.var[:, :16] > of_branch.var[:, :16]).all()
    last, x = found["bn"]
    assert last.mean.shape == last.var.shape == (2, x.shape[1])


def test_a_prediction_of_a_net_with_consistent_laws_is_near_what_comes() -> None:
    """Of fresh weights, on draws: in the mean over channels, variances are right within a factor of 2."""
    net, _ = small("resnet8")
    ours = apply(net, "bkn", prior="consistent", propagate="moments")
    for name, (law, x) in given(ours, torch.randn(64, 3, 16, 16)).items():
        if law is not None:
            ratio = (bkn.moments(law, x)[1] / measured(x, 1)[1]).mean()
            assert 0.5 < ratio < 2, name


class Odd(nn.Module):
    """What lies between two norms, by word."""

    def __init__(self, between: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, C, 1), nn.BatchNorm2d(C)
        self.conv2, self.bn2 = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)
        self.drop, self.between = nn.Dropout(0.5), between

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        between = {
            "dropout": lambda x: self.drop(x),
            "function dropout": lambda x: F.dropout(x, 0.3, self.training),
            "max": lambda x: F.max_pool2d(x, 2),
            "mean": lambda x: F.avg_pool2d(x, 2),
            "slice": lambda x: x[:, :, 1::2, ::2],
            "pad": lambda x: F.pad(x, (1, 1, 0, 2)),
            "silu": lambda x: F.silu(x),
            "twice": lambda x: torch.relu(F.max_pool2d(x, 2)),
            "sum": lambda x: x + self.conv2(x),
            "gate": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
            "shuffle": lambda x: x.view(-1, 2, C // 2, 8, 8).transpose(1, 2).reshape(-1, C, 8, 8),
            "half": lambda x: torch.cat([x[:, : C // 2], x[:, C // 2 :]], 1),
            "constant": lambda x: x + 1,
            "edge": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
        }
        return self.bn2(self.conv2(between[self.between](x)))


UNKNOWN = ["gate", "shuffle", "half", "constant", "edge"]
KNOWN = ["dropout", "function dropout", "max", "mean", "slice", "pad", "silu", "twice", "sum"]


@pytest.mark.parametrize("between", [*KNOWN, *UNKNOWN])
@pytest.mark.parametrize("propagate", ["sample", "moments"])
def test_what_is_understood_is_followed_and_all_else_starts_anew(between: str, propagate: str) -> None:
    ours = apply(Odd(between), "bkn", propagate=propagate, batch=2)
    assert (ours.bn1.predicted, ours.bn2.predicted) == (False, between in KNOWN)
    assert f"predicted={between in KNOWN}" in repr(ours.bn2)
    ours(torch.randn(4, 3, 8, 8)).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in ours.parameters())
    assert ours.eval()(torch.randn(3, 3, 8, 8)).isfinite().all()


def test_the_graph_of_evaluation_carries_nothing() -> None:
    ours, theirs = (apply(ResNet(8), name) for name in ("bkn", "syncbn"))
    assert ours._eval_forward.source == theirs._eval_forward.source
    assert "convolved" in ours._train_forward.source


def test_workers_in_one_forward_are_as_many_forwards() -> None:
    """8 groups of 2: outputs, gradients of their sum, and buffers, which are the mean."""
    torch.manual_seed(0)
    net = ResNet(8).double()
    together = apply(copy.deepcopy(net), "bkn", batch=2, propagate="moments")
    apart = [apply(copy.deepcopy(net), "bkn", propagate="moments") for _ in range(8)]
    x = torch.randn(16, 3, 8, 8, dtype=f64)
    expected = torch.cat([net(part) for net, part in zip(apart, x.split(2), strict=True)])
    y = together(x)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    y.square().sum().backward()
    expected.square().sum().backward()
    for key, parameter in together.named_parameters():
        grads = [dict(net.named_parameters())[key].grad for net in apart]
        torch.testing.assert_close(parameter.grad, torch.stack(grads).sum(0), rtol=1e-6, atol=1e-8)
    for key, buffer in together.named_buffers():
        kept = torch.stack([dict(net.named_buffers())[key] for net in apart])
        torch.testing.assert_close(buffer, kept.double().mean(0).to(buffer.dtype), rtol=1e-9, atol=1e-9)


def test_a_net_and_its_copies_do_the_same() -> None:
    net = apply(PreResNet(8), "bkn", batch=2)
    fresh = apply(PreResNet(8), "bkn", batch=2)
    fresh.load_state_dict(net.state_dict())
    x = torch.randn(4, 3, 8, 8)
    torch.manual_seed(1)
    expected = copy.deepcopy(net)(x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fresh):
        torch.manual_seed(1)
        assert torch.equal(twin(x), expected)
        assert [unit.predicted for unit in units(twin)] == [unit.predicted for unit in units(net)]


def test_a_detached_prediction_is_the_same_without_its_gradient() -> None:
    torch.manual_seed(0)
    net = ResNet(8).double()
    free, cut = (apply(copy.deepcopy(net), "bkn", propagate="moments", detach_prior=detach) for detach in (False, True))
    x = torch.randn(4, 3, 8, 8, dtype=f64)
    y, z = free(x), cut(x)
    torch.testing.assert_close(y, z)
    y.square().sum().backward()
    z.square().sum().backward()
    assert not torch.allclose(free.conv1.weight.grad, cut.conv1.weight.grad)
    laws = [law for law, _ in given(cut, x).values() if law is not None]
    assert not any(law.mean.requires_grad or law.var.requires_grad for law in laws)


def test_a_unit_that_stands_still_says_what_it_knows_of_every_worker() -> None:
    """A frozen norm in a net in training."""
    net = apply(PreResNet(8), "bkn", batch=2)
    net.layer2[0].bn1.eval()
    assert net(torch.randn(4, 3, 8, 8)).isfinite().all()


def test_a_whole_net_compiles() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    net = apply(PreResNet(8), "bkn", batch=2, propagate="moments")
    x = torch.randn(4, 3, 8, 8)
    expected = copy.deepcopy(net)(x)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x), expected)
