"""bnp: the preconditioned gradient, the moments it is made of, and whole models."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from norm_cases import C, make, pictures
from norm_cases import Case as Of
from torch import Tensor, nn

import normbench
from normbench import norms
from normbench.models.resnet_cifar import ResNet
from normbench.norms import bnp
from normbench.surgery import apply

f64 = torch.float64
PLAIN: dict[str, Any] = {"q_scale": False, "decay": 0.0}  # the moments are the step's own
EXACT: dict[str, Any] = {**PLAIN, "eps1": 0.0, "eps2": 0.0}


def layer_of(plain: nn.Module, **options: Any) -> Any:
    """The layer with its moments, as a model has it."""
    return bnp.watched(plain, norms.build("bnp", C, **options))


def changed(layer: Any) -> tuple[Tensor, Tensor | None]:
    """The gradients of the layer, after they were preconditioned."""
    bnp.Precondition(layer).gradients()
    return layer.weight.grad, None if layer.bias is None else layer.bias.grad


def features(N: int, n: int, seed: int = 0) -> Tensor:
    """Of other means and scales, far from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, n, generator=generator, dtype=f64)
    return x * torch.logspace(-1, 1, n, dtype=f64) + torch.linspace(-5, 20, n, dtype=f64)


def backward(layer: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """An uneven loss; the plain gradients."""
    y = layer(x)
    slopes = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    (slopes * y + 0.1 * y.square()).sum().backward()
    return layer.weight.grad.clone(), None if layer.bias is None else layer.bias.grad.clone()


# The transform


@pytest.mark.parametrize("eps", [(0.0, 0.0), (1e-2, 1e-4)])
def test_a_dense_layer_has_the_gradient_that_the_matrices_give(eps: tuple[float, float]) -> None:
    x, layer = features(20, 5), layer_of(nn.Linear(5, 3, dtype=f64), **PLAIN, eps1=eps[0], eps2=eps[1])
    plain = backward(layer, x)
    mean, var = x.mean(0), x.var(0, correction=0)
    s2 = var + eps[0] * var.max() + eps[1]
    expected, P = bnp.reference_gradient(*plain, mean, s2), bnp.matrix(mean, s2).abs()
    # Of terms that large the result is the small difference, and it is as exact as they are.
    terms = torch.cat([plain[1][:, None], plain[0]], 1).abs() @ P @ P.T  # type: ignore[index]
    for ours, theirs, size in zip(changed(layer), expected, (terms[:, 1:], terms[:, 0]), strict=True):
        assert ours is not None
        assert ((ours - theirs).abs() <= 1e-13 * size).all()


def test_a_step_is_a_step_in_the_coordinates_of_normalized_inputs() -> None:
    x, lr = features(20, 5), 0.01
    layer = layer_of(nn.Linear(5, 3, dtype=f64), **EXACT)
    W, b = layer.weight.detach().clone(), layer.bias.detach().clone()
    mean, std = x.mean(0), x.std(0, correction=0)
    other = nn.Linear(5, 3, dtype=f64)
    with torch.no_grad():
        other.weight.copy_(W * std), other.bias.copy_(b + W @ mean)
    for net, given in ((layer, x), (other, (x - mean) / std)):
        net(given).square().sum().backward()
    changed(layer)
    with torch.no_grad():
        for net in (layer, other):
            for parameter in net.parameters():
                parameter -= lr * parameter.grad
        torch.testing.assert_close(layer.weight * std, other.weight)
        torch.testing.assert_close(layer.bias + layer.weight @ mean, other.bias)
        assert not torch.allclose(layer.weight, W)


@pytest.mark.parametrize("plain", [nn.Linear(5, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(4, 6, 3, bias=False)])
def test_with_moments_0_and_1_gradients_stay(plain: nn.Module) -> None:
    layer = layer_of(copy.deepcopy(plain).double(), decay=1.0, eps1=0.0, eps2=0.0, q_scale=False)
    before = backward(layer, features(6, 5) if isinstance(plain, nn.Linear) else pictures(2, 4, 5, 5))
    for ours, theirs in zip(changed(layer), before, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


@pytest.mark.parametrize("correlated", [False, True])
def test_the_curvature_is_better_conditioned(correlated: bool) -> None:
    """The identity for features without correlation, which is not removed; with it, still by orders of magnitude."""
    x = features(4000, 6)
    if correlated:
        x = x @ torch.eye(6, dtype=f64).add(0.2)
    else:
        q, _ = torch.linalg.qr(x - x.mean(0))
        x = q * len(q) ** 0.5 * torch.logspace(-1, 1, 6, dtype=f64) + 7
    ones = torch.cat([torch.ones(len(x), 1, dtype=f64), x], 1)
    H, P = ones.T @ ones / len(ones), bnp.matrix(x.mean(0), x.var(0, correction=0))
    better = P.T @ H @ P
    torch.testing.assert_close(better.diagonal(), torch.ones(7, dtype=f64))
    assert torch.linalg.cond(better) < 1e-2 * torch.linalg.cond(H)
    identity = torch.allclose(better, torch.eye(7, dtype=f64), rtol=0, atol=1e-9)
    assert identity is not correlated


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_a_dense_layer_on_patches(groups: int, stride: int) -> None:
    """On a ring, where every tap sees each pixel as often, or, of stride 2, with moments given."""
    conv = nn.Conv2d(4, 8, 3, stride, padding=1, padding_mode="circular", groups=groups, dtype=f64)
    layer, x = layer_of(conv, **PLAIN), pictures(3, 4, 6, 6)
    of_weight, of_bias = backward(layer, x)
    assert of_bias is not None
    ours = changed(layer)
    patches = F.unfold(F.pad(x, (1, 1, 1, 1), mode="circular"), 3, stride=stride)
    patches = patches.transpose(1, 2).reshape(-1, groups, 4 // groups * 9)
    largest = x.var((0, 2, 3), correction=0).max()
    for g in range(groups):
        own, rows = patches[:, g], slice(g * 8 // groups, (g + 1) * 8 // groups)
        channels = x[:, g * 4 // groups : (g + 1) * 4 // groups]
        mean, var = channels.mean((0, 2, 3)), channels.var((0, 2, 3), correction=0)
        mean, var = mean.repeat_interleave(9), var.repeat_interleave(9)
        if stride == 1:
            torch.testing.assert_close(mean, own.mean(0))
            torch.testing.assert_close(var, own.var(0, correction=0))
        damped = var + 1e-2 * largest + 1e-4
        expected = bnp.reference_gradient(of_weight[rows].flatten(1), of_bias[rows], mean, damped)
        torch.testing.assert_close(ours[0][rows].flatten(1), expected[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours[1][rows], expected[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frozen", [False, True])
def test_without_a_bias_gradients_are_divided_by_the_mean_square(frozen: bool) -> None:
    """Or with one that learns nothing."""
    conv = nn.Conv2d(4, 6, 3, bias=frozen, dtype=f64)
    if frozen:
        conv.bias.requires_grad_(False)
    layer, x = layer_of(conv, **EXACT), pictures(3, 4, 6, 6)
    of_weight = torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]
    layer.weight.grad = of_weight.clone()
    expected = of_weight / x.square().mean((0, 2, 3))[:, None, None]
    torch.testing.assert_close(changed(layer)[0], expected)


@pytest.mark.parametrize(("images", "q2"), [(2, 2.5), (5, 1.0), (20, 1.0)])
def test_the_batch_correction_is_inputs_over_outputs(images: int, q2: float) -> None:
    by_q, plain = (layer_of(nn.Linear(5, 3, dtype=f64), decay=0.5, q_scale=q) for q in (True, False))
    plain.load_state_dict(by_q.state_dict())
    for layer in (by_q, plain):
        backward(layer, features(images, 5))
    for ours, theirs in zip(changed(by_q), changed(plain), strict=True):
        torch.testing.assert_close(ours * q2, theirs)


def test_the_batch_correction_of_a_convolution_counts_pixels() -> None:
    """Of 5 × 5 outputs of 1 image, with 3 · 3 · 4 inputs each."""
    by_q, plain = (layer_of(nn.Conv2d(8, 6, 3, groups=2, dtype=f64), decay=0.5, q_scale=q) for q in (True, False))
    plain.load_state_dict(by_q.state_dict())
    for layer in (by_q, plain):
        backward(layer, pictures(1, 8, 7, 7))
    torch.testing.assert_close(changed(by_q)[0] * 36 / 25, changed(plain)[0])


def test_shifting_and_scaling_the_input_changes_no_trajectory() -> None:
    """With the weights that make the same function of it, and no damping."""
    x, target = features(30, 4), torch.randn(30, 3, dtype=f64)
    scale, shift = torch.tensor([0.1, 3.0, 7.0, 0.5], dtype=f64), torch.tensor([5.0, -2.0, 0.0, 30.0], dtype=f64)
    one, two = (layer_of(nn.Linear(4, 3, dtype=f64), **EXACT) for _ in range(2))
    with torch.no_grad():  # of x · scale + shift
        two.weight.copy_(one.weight / scale)
        two.bias.copy_(one.bias - two.weight @ shift)
    for _ in range(5):
        outputs = []
        for layer, given in ((one, x), (two, x * scale + shift)):
            layer.zero_grad()
            y = layer(given)
            outputs.append(y.detach())
            (y - target).square().mean().backward()
            changed(layer)
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter -= 0.1 * parameter.grad
        torch.testing.assert_close(*outputs)
    assert not torch.allclose(outputs[0], layer_of(nn.Linear(4, 3, dtype=f64))(x))


# The moments


@pytest.mark.parametrize("around", ["batch", "running"])
@pytest.mark.parametrize("debias", [False, True])
def test_moments_are_of_all_values_of_a_step_in_however_many_forwards(around: str, debias: bool) -> None:
    """The variance of all, not the mean of theirs."""
    conv = nn.Conv2d(C, 4, 3, dtype=f64)
    whole, parts = (layer_of(copy.deepcopy(conv), decay=0.9, around=around, debias=debias) for _ in range(2))
    mean, var = torch.zeros(C, dtype=f64), torch.ones(C, dtype=f64)
    for step in range(3):
        x = pictures(6, C, 5, 4, seed=step) + torch.arange(6, dtype=f64)[:, None, None, None]
        whole(x)
        for part in x.split([1, 2, 3]):
            parts(part)
        for layer in (whole, parts):
            changed(layer)
        own = x.var((0, 2, 3), correction=0)
        if around == "running":
            own = (x - mean[:, None, None]).square().mean((0, 2, 3))
        share = max(0.1, 1 / (step + 1)) if debias else 0.1
        mean, var = mean.lerp(x.mean((0, 2, 3)), share), var.lerp(own, share)
        for layer in (whole, parts):
            torch.testing.assert_close(layer.running_mean, mean, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(layer.running_var, var, rtol=1e-10, atol=1e-10)
            assert int(layer.num_batches_tracked) == step + 1


def test_a_layer_that_is_called_twice_has_the_moments_of_both() -> None:
    layer, x = layer_of(nn.Linear(5, 5, dtype=f64), decay=0.0), features(6, 5)
    y = layer(layer(x))
    y.sum().backward()
    changed(layer)
    both = torch.cat([x, F.linear(x, layer.weight, layer.bias)])
    torch.testing.assert_close(layer.running_mean, both.mean(0))
    torch.testing.assert_close(layer.running_var, both.var(0, correction=0))


def test_steps_of_one_image_have_a_variance_around_the_running_mean() -> None:
    """A dense layer's own is 0, and ends at the damping."""
    around, batch = (layer_of(nn.Linear(5, 3, dtype=f64), decay=0.9, around=way) for way in ("running", "batch"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        x = 2 * torch.randn(1, 5, generator=generator, dtype=f64) + 3
        for layer in (around, batch):
            layer.zero_grad()
            backward(layer, x)
            changed(layer)
    assert (around.running_var > 1).all()
    assert (batch.running_var < 1e-12).all()
    assert all(p.grad.isfinite().all() for layer in (around, batch) for p in layer.parameters())


def test_nothing_is_seen_in_evaluation() -> None:
    layer = layer_of(nn.Linear(5, 3, dtype=f64)).eval()
    before = {key: value.clone() for key, value in layer.named_buffers()}
    backward(layer, features(6, 5))
    plain = layer.weight.grad.clone()
    changed(layer)
    assert all(torch.equal(value, before[key]) for key, value in layer.named_buffers())
    assert torch.equal(layer.weight.grad, plain), "and without moments gradients stay"


def test_inputs_that_are_constant_leave_gradients_as_they_are() -> None:
    """Else they would be divided by the damping alone."""
    layer = layer_of(nn.Conv2d(C, 4, 3, dtype=f64), decay=0.0)
    before = backward(layer, torch.zeros(2, C, 5, 5, dtype=f64))
    for ours, theirs in zip(changed(layer), before, strict=True):
        assert torch.equal(ours, theirs)
    some = layer_of(nn.Conv2d(C, 4, 3, dtype=f64), decay=0.0)
    x = pictures(2, C, 5, 5)
    x[:, 2:] = 0  # dead channels among others
    largest = x.var((0, 2, 3), correction=0).max()
    before = backward(some, x)
    ours = changed(some)[0]
    assert ours.isfinite().all()
    torch.testing.assert_close(ours[:, 2:], before[0][:, 2:] / (1e-2 * largest + 1e-4))


def test_layers_without_a_gradient_are_skipped_and_a_shared_weight_counts_once() -> None:
    net = nn.Sequential(layer_of(nn.Linear(5, 5, dtype=f64), **EXACT), layer_of(nn.Linear(5, 5, dtype=f64), **EXACT))
    net[0].requires_grad_(False)
    net(features(6, 5)).sum().backward()
    bnp.Precondition(net).gradients()
    assert net[0].weight.grad is None
    tied = nn.Sequential(*(layer_of(nn.Linear(5, 5, dtype=f64), **EXACT) for _ in range(2)))
    tied[1].weight = tied[0].weight
    x = features(6, 5)
    tied(x).sum().backward()
    plain, of_bias = tied[0].weight.grad.clone(), tied[0].bias.grad.clone()
    bnp.Precondition(tied).gradients()
    expected, _ = bnp.reference_gradient(plain, of_bias, x.mean(0), x.var(0, correction=0))
    torch.testing.assert_close(tied[0].weight.grad, expected)


def test_half_precision_has_moments_in_float32() -> None:
    layer = layer_of(nn.Linear(5, 3).bfloat16(), decay=0.0, q_scale=False)
    x = (features(64, 5)).bfloat16()
    backward(layer, x)
    changed(layer)
    assert layer.running_var.dtype == torch.float32
    torch.testing.assert_close(layer.running_var.double(), x.double().var(0, correction=0), rtol=1e-4, atol=0)
    assert layer.weight.grad.dtype == torch.bfloat16
    amp = layer_of(nn.Linear(5, 3), decay=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        amp(features(64, 5).float())
    changed(amp)
    torch.testing.assert_close(amp.running_mean, features(64, 5).float().mean(0), msg="before it was cast")


# In models


def layers(net: nn.Module) -> list[Any]:
    return bnp.Precondition(net).layers


@pytest.mark.parametrize("add_bias", [False, True])
@pytest.mark.parametrize("base", ["none", "gn"])
def test_the_function_is_that_of_the_network_without(base: str, add_bias: bool) -> None:
    plain = ResNet(8)
    before = {key: (value, value.clone()) for key, value in plain.state_dict().items()}
    ours, theirs = apply(plain, "bnp", base=base, add_bias=add_bias), apply(plain, base)
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    names = dict(theirs.named_parameters()).keys()
    added = {f"{key.removesuffix('.weight')}.bias" for key in names if "conv" in key} if add_bias else set()
    assert dict(ours.named_parameters()).keys() == names | added
    assert len(layers(ours)) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in plain.modules())
    assert not layers(plain)
    state = plain.state_dict()
    assert state.keys() == before.keys()
    assert all(state[key] is value or torch.equal(state[key], kept) for key, (value, kept) in before.items())
    assert ours.conv1.weight is plain.conv1.weight


class Shared(nn.Module):
    """A container without a norm, one layer in two places, and one of a class of its own."""

    class Own(nn.Linear):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, C, 3), nn.BatchNorm2d(C)
        self.head = nn.Sequential(nn.Linear(C, C), nn.ReLU(), nn.Linear(C, C))
        self.again, self.own = self.head[0], self.Own(C, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self.again(self.head(self.bn(self.conv(x)).relu().mean((2, 3)))))


def test_layers_are_watched_wherever_they_are_and_the_model_given_stays() -> None:
    plain = Shared()
    ours = apply(plain, "bnp")
    assert [type(layer) for layer in layers(ours)] == [bnp.WatchedConv2d, *[bnp.WatchedLinear] * 2]
    assert ours.again is ours.head[0]
    assert type(ours.own) is Shared.Own
    assert [type(m) for m in plain.head] == [nn.Linear, nn.ReLU, nn.Linear]
    ours(torch.randn(4, 3, 8, 8)).sum().backward()
    norms.step_hooks(ours).gradients()
    assert all(p.grad.isfinite().all() for p in ours.parameters())


@pytest.mark.parametrize("base", ["none", "gn"])
@pytest.mark.parametrize("kind", ["resnet8", "resnet50", "inception_v3"])
def test_networks_train(kind: str, base: str) -> None:
    """Two finite steps."""
    torch.manual_seed(0)
    if kind == "resnet8":
        net, shape = ResNet(8), (4, 3, 8, 8)
    elif kind == "resnet50":
        net, shape = torchvision.models.resnet50(num_classes=10), (4, 3, 32, 32)
    else:
        net = torchvision.models.inception_v3(init_weights=False, num_classes=10, aux_logits=False)
        shape = (4, 3, 75, 75)
    ours = normbench.apply(net, "bnp", batch=2, base=base)
    hooks, update = norms.step_hooks(ours), torch.optim.SGD(ours.parameters(), lr=1e-6)
    for _ in range(2):
        update.zero_grad()
        loss = F.cross_entropy(ours(torch.randn(shape)), torch.arange(4))
        loss.backward()
        hooks.gradients()
        update.step()
        assert loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())


def test_ranks_that_share_their_sums_stay_equal() -> None:
    """Two that take half of a step each, and the one that takes all of it; real ones are in test_ranks."""
    torch.manual_seed(0)
    net = apply(ResNet(8).double(), "bnp", q_scale=False, decay=0.5)
    one, two = copy.deepcopy(net), copy.deepcopy(net)
    x, y = torch.randn(8, 3, 8, 8, dtype=f64), torch.arange(8)
    F.cross_entropy(net(x), y).backward()
    for rank, part in ((one, slice(0, 4)), (two, slice(4, 8))):
        F.cross_entropy(rank(x[part]), y[part]).backward()
    with torch.no_grad():
        for p, q in zip(one.parameters(), two.parameters(), strict=True):
            p.grad = q.grad = (p.grad + q.grad) / 2
            q.grad = p.grad.clone()
        for a, b in zip(one.buffers(), two.buffers(), strict=True):
            if a.is_floating_point():
                a.copy_((a + b) / 2), b.copy_(a)
    for rank in (net, one, two):
        norms.step_hooks(rank).gradients()
    for key, p in net.named_parameters():
        ours, theirs = (dict(rank.named_parameters())[key].grad for rank in (one, two))
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, p.grad, rtol=1e-8, atol=1e-10)
    for key, value in net.state_dict().items():
        torch.testing.assert_close(one.state_dict()[key], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("add_bias", [False, True])
def test_a_plain_models_state_loads_and_its_own_with_a_hole_does_not(add_bias: bool) -> None:
    plain = ResNet(8)
    ours = apply(ResNet(8), "bnp", add_bias=add_bias)
    ours(torch.randn(4, 3, 8, 8)).sum().backward()
    norms.step_hooks(ours).gradients()
    kept = ours.conv1.running_var.clone()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ours.load_state_dict(plain.state_dict())
    assert len(said) == 1
    assert torch.equal(ours.conv1.weight, plain.conv1.weight)
    assert torch.equal(ours.conv1.running_var, kept)
    state = ours.state_dict()
    del state["conv1.running_var"]
    with pytest.raises(RuntimeError, match="Missing key"):
        apply(ResNet(8), "bnp", add_bias=add_bias).load_state_dict(state)


def test_a_net_and_its_copies_do_the_same() -> None:
    """The moments are in the state."""
    x, y = torch.randn(4, 3, 8, 8), torch.arange(4)

    def step(net: nn.Module) -> list[Tensor]:
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()
        norms.step_hooks(net).gradients()
        return [p.grad.clone() for p in net.parameters()]

    net = apply(ResNet(8), "bnp", base="gn", decay=0.7)
    step(net)
    fresh = apply(ResNet(8), "bnp", base="gn", decay=0.7)
    fresh.load_state_dict(net.state_dict())
    twins = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fresh]
    expected = step(net)
    for twin in twins:
        assert all(torch.equal(a, b) for a, b in zip(step(twin), expected, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(twin.buffers(), net.buffers(), strict=True))


def test_the_base_is_group_norm_or_nothing() -> None:
    x = pictures(4, C, 5, 3)
    theirs = norms.build("gn", C, num_groups=3, dtype=f64)
    assert torch.equal(norms.build("bnp", C, base="gn", num_groups=3, dtype=f64)(x), theirs(x))
    unit = make(Of("bnp"))
    torch.testing.assert_close(unit(x), unit.weight[:, None, None] * x + unit.bias[:, None, None])


def test_layers_are_decayed_as_the_network_is() -> None:
    """They are no units, whose weights may be decayed by another rule."""
    net = apply(ResNet(8), "bnp")
    assert not any(norms.is_unit(layer) for layer in layers(net))
