"""nf: standardized filters, scaled activations, scaled branches found in the graph, clipped gradients."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from norm_cases import C, gradients, pictures
from torch import Tensor, nn
from whole_nets import NETS, net, pictures_of, train, trained

from normbench import models, norms
from normbench.norms import nf
from normbench.norms.convolution import adopt
from normbench.options import ArchOptions
from normbench.surgery import apply

f64 = torch.float64
# 1/√v of every block of a ResNet-50, α = 0.2.
BETAS = [
    1, .9806, .9623, .9449, .9806, .9623, .9449, .9285, .9806, .9623, .9449, .9285, .9129, .898, .9806, .9623,
]  # fmt: skip


def standardized(*shape: int, rules: str = "nf") -> nf.ScaledStdConv2d:
    torch.manual_seed(0)
    conv = adopt(nf.ScaledStdConv2d, nn.Conv2d(shape[1], shape[0], shape[2:], dtype=f64, bias=False))
    conv.rules = rules
    return conv


def built(name: str, side: int) -> nn.Module:
    torch.manual_seed(0)
    return models.build(ArchOptions(name), num_classes=10, picture_size=side)


def gains(model: nn.Module) -> list[nf.ResidualSum]:
    return [module for module in model.modules() if isinstance(module, nf.ResidualSum)]


# ----------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("rules", ["nf", "bnn"])
def test_filters_have_sum_0_and_norm_1(rules: str) -> None:
    conv = standardized(8, 16, 3, 3, rules=rules)
    with torch.no_grad():
        conv.weight.mul_(1e6 if rules == "bnn" else 1)  # eps is nothing
    filters = conv.reweigh(conv.weight).flatten(1)
    assert filters.sum(1).abs().max() < 1e-12
    assert torch.allclose(filters.norm(dim=1), torch.ones(8, dtype=f64), atol=1e-8)


def test_the_gain_is_the_units_weight() -> None:
    """g Ŵ ∗ x + b, with g and b behind the convolution."""
    plain = nn.Sequential(nn.Conv2d(3, C, 3, bias=False), nn.BatchNorm2d(C)).double()
    model = apply(plain, "nf")
    unit = model.get_submodule("1")
    nn.init.uniform_(unit.weight, 0.5, 2)
    nn.init.uniform_(unit.bias)
    x = torch.randn(2, 3, 6, 6, dtype=f64)
    weight = unit.weight[:, None, None, None] * nf.reference_weight(plain[0].weight)
    assert torch.allclose(weight.flatten(1).square().sum(1), unit.weight.square())
    torch.testing.assert_close(model(x), F.conv2d(x, weight, unit.bias))


@pytest.mark.parametrize("rules", ["nf", "bnn"])
@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (8, 16, 1, 1), (5, 1, 3, 3)])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_weights_are_the_plain_formulas_with_its_gradient(
    rules: str, shape: tuple[int, ...], scale: float, memory_format: torch.memory_format
) -> None:
    """Also where the floor takes the place of the variance, of one filter or all."""
    conv = standardized(*shape, rules=rules).to(memory_format=memory_format)
    with torch.no_grad():
        conv.weight[0].mul_(1e-3)
    with torch.no_grad():
        conv.weight.mul_(scale)
    got, expected = conv.reweigh(conv.weight), nf.reference_weight(conv.weight, rules)
    torch.testing.assert_close(got, expected)
    for left, right in zip(gradients(got, conv.weight), gradients(expected, conv.weight), strict=True):
        torch.testing.assert_close(left, right)


def test_the_floor_is_on_the_variance_times_the_weights_of_a_filter() -> None:
    conv = standardized(4, 16, 3, 3)
    with torch.no_grad():
        conv.weight.mul_(1e-4)
    centred = conv.weight - conv.weight.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(conv.reweigh(conv.weight), centred * 100)


@pytest.mark.parametrize("rules", ["nf", "bnn"])
def test_scale_and_shift_of_a_filter_change_nothing(rules: str) -> None:
    conv, x = standardized(8, 16, 3, 3, rules=rules), torch.randn(2, 16, 6, 6, dtype=f64)
    with torch.no_grad():
        conv.weight.mul_(1e6)
        y = conv(x)
        conv.weight.mul_(torch.linspace(1, 9, 8, dtype=f64)[:, None, None, None]).add_(4)
    torch.testing.assert_close(conv(x), y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rules", ["nf", "bnn"])
def test_filters_without_variance_have_finite_gradients(rules: str) -> None:
    for shape in ((4, 3, 3, 3), (4, 1, 1, 1)):
        conv = standardized(*shape, rules=rules)
        nn.init.constant_(conv.weight, 0.5)
        conv(torch.randn(2, shape[1], 6, 6, dtype=f64)).square().sum().backward()
        assert conv.weight.grad is not None
        assert conv.weight.grad.isfinite().all()


def test_half_precision_weights_are_standardized_in_float32() -> None:
    conv = standardized(8, 16, 3, 3)
    nn.init.uniform_(conv.weight, 100, 101)
    half = conv.to(torch.bfloat16)
    exact = nf.reference_weight(half.weight.double())
    got = half.reweigh(half.weight)
    assert got.dtype == torch.bfloat16
    assert (got.double() - exact).abs().max() < 0.02 * exact.abs().max()


def test_which_convolutions_are_standardized() -> None:
    """Those before a site, and those without a bias, of which none is the classifier."""
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    model = apply(plain, "nf", rules="bnn")
    kinds = [type(model.get_submodule(str(i))) for i in (0, 2, 4)]
    assert kinds == [nf.ScaledStdConv2d, nf.ScaledStdConv2d, nn.Conv2d]
    assert {model.get_submodule(str(i)).rules for i in (0, 2)} == {"bnn"}
    assert type(plain[2]) is nn.Conv2d
    assert list(dict(model.named_parameters())) == list(dict(plain.named_parameters()))


# ------------------------------------------------------------------------------------------------------- activations


def test_alone_the_unit_is_the_identity_with_a_scaled_activation() -> None:
    x = pictures(4, C, 5, 3)
    assert torch.equal(norms.build("nf", C, dtype=f64)(x), x)
    assert torch.allclose(norms.build("nf", C, activation=nn.ReLU(), dtype=f64)(x), x.relu() * 1.7139588594436646)
    assert torch.equal(norms.build("nf", C, activation=nn.ReLU(), rules="bnn", dtype=f64)(x), x.relu())


@pytest.mark.parametrize(
    ("activation", "constant", "near"),
    [
        (nn.ReLU(), math.sqrt(2 / (1 - 1 / math.pi)), 2e-3),
        (nn.SiLU(), 1.7881293296813965, 0),
        (nn.GELU(), 1.7015043497085571, 0),
        (nn.LeakyReLU(1.0), 1.0, 1e-12),
        (nn.PReLU(C, init=1.0), 1.0, 1e-12),
        (nn.ELU(), 1.2716, 3e-3),  # as sampled by others
        (nn.Tanh(), 1.5939, 3e-3),
        (nn.Threshold(99.0, 3.0), 1.0, 0),  # a constant
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_constants(activation: nn.Module, constant: float, near: float) -> None:
    assert nf.constant(activation, C) == pytest.approx(constant, abs=near or 1e-15)
    assert activation.training, "looked at in a copy"


@pytest.mark.parametrize("kind", [nn.ReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Tanh])
def test_a_site_restores_the_variance_and_the_next_convolution_the_mean(kind: type[nn.Module]) -> None:
    """On standard normal maps; 576 weights per filter."""
    torch.manual_seed(0)
    x = torch.randn(8, 64, 32, 32)
    y = norms.build("nf", 64, activation=kind())(x)
    assert y.var((0, 2, 3)).mean().item() == pytest.approx(1, abs=0.02)
    z = adopt(nf.ScaledStdConv2d, nn.Conv2d(64, 64, 3, bias=False))(y)
    assert z.mean((0, 2, 3)).square().mean() < 0.01
    assert 0.9 < z.var((0, 2, 3)).mean() < 1.1


# ------------------------------------------------------------------------------------------------------ residual sums


def betas(model: nn.Module) -> list[float]:
    found = [float(number) for number in re.findall(r" \* ([\d.]+)", model._train_forward.source)]
    return [number for number in found if number < 1]


@pytest.mark.parametrize("name", ["resnetv2_50", "resnet50"])
def test_the_betas_of_a_resnet_50(name: str) -> None:
    model = apply(built(name, 64), "nf")
    assert betas(model) == pytest.approx(BETAS[1:], abs=5e-5)  # times 1 is left out
    assert len(gains(model)) == 16
    other = betas(apply(built(name, 64), "nf", alpha=0.5))
    assert other[0] == pytest.approx(1 / math.sqrt(1.25))


def inputs_and_outputs(model: nn.Module, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Shortcut, branch and sum of every block."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    for module in gains(model):
        module.register_forward_hook(lambda _, args, y: seen.append((*args, y.clone())))  # a ReLU may follow in place
    with torch.no_grad():
        model(x)
    return seen


@pytest.mark.parametrize("name", ["resnet8", "preresnet20", "resnetv2_50", "resnet18", "mobilenet_v2"])
def test_a_block_begins_as_its_shortcut(name: str) -> None:
    model = apply(built(name, 32), "nf")
    seen = inputs_and_outputs(model, torch.randn(2, 3, 32, 32))
    assert {"resnet8": 3, "preresnet20": 9, "resnetv2_50": 16, "resnet18": 8, "mobilenet_v2": 10}[name] == len(seen)
    assert all(torch.equal(shortcut, y) for shortcut, _, y in seen)
    assert all(module.skip_gain.shape == () and module.skip_gain == 0 for module in gains(model))


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "preresnet20"])
def test_a_block_that_begins_as_the_identity_hands_its_input_on(name: str) -> None:
    """With the ReLU behind the sum too, through which what is positive goes as it is."""
    model = apply(built(name, 32), "nf")
    seen = inputs_and_outputs(model, torch.randn(2, 3, 32, 32))
    last = seen[-1][0], seen[-2][2]
    behind = last[1] if name.startswith("pre") else last[1].relu()
    if name == "resnet18":  # its last block but one is a transition, with a projection
        behind = behind * nf.CONSTANTS[nn.ReLU]
    torch.testing.assert_close(last[0], behind)


def test_the_signal_has_the_expected_variance_through_all_16_blocks() -> None:
    model = apply(built("resnetv2_50", 128), "nf")
    for module in gains(model):
        nn.init.ones_(module.skip_gain)
    torch.manual_seed(0)
    seen = inputs_and_outputs(model, torch.randn(8, 3, 128, 128))
    v, ratios = 1.0, []
    for i, (_, branch, y) in enumerate(seen):
        v = (1.0 if i in (0, 3, 7, 13) else v) + 0.04
        ratios.append(y.var((0, 2, 3)).mean().item() / v)
        assert branch.mean((0, 2, 3)).square().mean() < 0.02
    assert 0.85 < min(ratios) <= max(ratios) < 1.1  # zero padding takes some on the 4×4 maps at the end


def test_a_branch_ends_in_alpha_times_its_gain() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.bn(self.conv(x))
            return x + self.bn(self.conv(x))

    plain = Block().double()
    model, x = apply(plain, "nf", alpha=0.3), pictures(2, C, 5, 5)
    (module,) = gains(model)  # of a branch that is gone through twice
    nn.init.constant_(module.skip_gain, 1.5)
    weight = nf.reference_weight(plain.conv.weight)
    h = x + 0.45 * F.conv2d(x, weight, padding=1)
    expected = h + 0.45 * F.conv2d(h / math.sqrt(1.09), weight, padding=1)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model.eval()(x), expected)


def test_other_sums_stay_as_they_are() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)
            self.conv2, self.bn2 = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)
            self.shift = nn.Parameter(torch.ones(C, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn1(self.conv1(x)) + self.bn2(self.conv2(x))  # two ways that are alike
            return (x + self.shift + 1).relu()

    model = apply(Sums(), "nf")
    assert not gains(model)
    assert betas(model) == []


def test_a_net_without_residual_sums_has_weights_and_activations_alone() -> None:
    model = apply(net("inception_v3"), "nf")
    assert not gains(model)
    assert betas(model) == []
    assert {module.constant for module in model.modules() if isinstance(module, nf.NormalizerFree)} == {
        nf.CONSTANTS[nn.ReLU]
    }


def test_the_variance_without_a_gain_by_the_other_rules() -> None:
    """torch.add with α; the first block of a stage counts as a transition, and after one v is 1."""
    model = apply(built("resnet18", 32), "nf", rules="bnn", alpha=0.5)
    assert not gains(model)
    assert model._train_forward.source.count("alpha = 0.5") == 8
    assert betas(model) == pytest.approx([1 / math.sqrt(1.25)] * 3)


# ----------------------------------------------------------------------------------------------------------- clipping


def clipped(weight: Tensor, grad: Tensor, clipping: float = 0.02) -> Tensor:
    parameter = nn.Parameter(weight)
    parameter.grad = grad.clone()
    nf.clip([parameter, nn.Parameter(torch.ones(2))], clipping)
    return parameter.grad


@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (5, 7)])
def test_a_units_gradient_is_at_most_lambda_times_its_weights(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight, grad = torch.randn(shape, dtype=f64), torch.randn(shape, dtype=f64)
    length = lambda t: t.flatten(1).norm(dim=1)  # noqa: E731
    ratio = torch.tensor([2, 0.5, 100, 0.99, 0.0], dtype=f64) * 0.02
    grad = grad * (ratio * length(weight) / length(grad)).view(-1, *(1 for _ in shape[1:]))
    got = clipped(weight, grad)
    torch.testing.assert_close(length(got)[[0, 2]], 0.02 * length(weight)[[0, 2]])
    assert torch.equal(got[[1, 3, 4]], grad[[1, 3, 4]]), "to the bit, and zero stays zero"
    assert torch.allclose(F.cosine_similarity(got.flatten(1)[[0, 2]], grad.flatten(1)[[0, 2]]), torch.ones(2).double())


def test_small_weights_count_as_a_thousandth_and_vectors_as_one_unit() -> None:
    assert clipped(torch.zeros(3, 4), torch.ones(3, 4)).norm(dim=1).tolist() == pytest.approx([2e-5] * 3)
    assert clipped(torch.zeros(4), torch.ones(4)).norm().item() == pytest.approx(2e-5)
    assert clipped(torch.tensor(0.0), torch.tensor(-3.0)).item() == pytest.approx(-2e-5)
    assert clipped(torch.zeros(1, 4, 1, 1), torch.ones(1, 4, 1, 1)).norm().item() == pytest.approx(2e-5)


class Two(nn.Sequential):
    """Of two layers that look like a classifier the last is."""

    def __init__(self) -> None:
        layers = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, 4), nn.ReLU(), nn.Linear(4, 4)
        super().__init__(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), *layers)


@pytest.mark.parametrize(("name", "head"), [("resnet8", "fc"), ("inception_v3", "fc"), ("two", "6")])
def test_all_but_the_classifier_is_clipped(name: str, head: str) -> None:
    plain = Two() if name == "two" else net(name)
    for model in (apply(plain, "nf", agc=1e-6), nn.Sequential(apply(plain, "nf", agc=1e-6))):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        norms.step_hooks(model).gradients()
        whole = {n.rpartition(".")[0] for n, p in model.named_parameters() if (p.grad == 1).all()}
        assert whole == {head if type(model) is not nn.Sequential else f"0.{head}"}


def test_without_agc_gradients_stay() -> None:
    model = apply(net("resnet8"), "nf")
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 9.0)
    norms.step_hooks(model).gradients()
    assert all((parameter.grad == 9).all() for parameter in model.parameters())


def test_a_network_put_together_by_hand_is_clipped_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, C, 3), norms.build("nf", C, agc=1e-6), nn.Flatten(), nn.Linear(C, 2))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    norms.step_hooks(model).gradients()
    assert [(parameter.grad == 1).all().item() for parameter in model.parameters()] == [False] * 4 + [True] * 2


# ------------------------------------------------------------------------------------------------------ whole networks


@pytest.mark.parametrize("name", ["resnet8", "preresnet20"])
def test_pictures_do_not_mix_and_train_is_eval(name: str) -> None:
    model = apply(built(name, 16), "nf").double()
    for module in gains(model):
        nn.init.ones_(module.skip_gain)
    x = torch.randn(4, 3, 16, 16, dtype=f64)
    y = model(x)
    torch.testing.assert_close(torch.cat([model(one) for one in x.split(1)]), y)
    torch.testing.assert_close(model.eval()(x), y)
    assert not list(model.buffers())


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {"agc": 0.02}) for name in NETS), ("resnet8", {"rules": "bnn"})], ids=str
)
def test_it_trains_whole_networks(name: str, options: dict[str, Any]) -> None:
    model = trained(name, "nf", **options)
    moved = [module.skip_gain != 0 for module in gains(model)]
    assert all(moved)


def test_copies_and_a_stopped_run_go_on_bit_for_bit() -> None:
    model = apply(net("resnet8"), "nf", agc=0.02)
    train(model, "resnet8")
    content = io.BytesIO()
    torch.save(model.state_dict(), content)
    content.seek(0)
    again = apply(net("resnet8", seed=1), "nf", agc=0.02)
    again.load_state_dict(torch.load(content, weights_only=True))
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), again]
    expected = train(model, "resnet8")
    for twin in twins:
        assert torch.equal(train(twin, "resnet8"), expected)
        assert all(torch.equal(value, twin.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_batchnorm_model_loads_and_its_own_state_must_be_whole() -> None:
    plain = net("resnet8", seed=1)
    nn.init.uniform_(plain.get_parameter("bn1.weight"))
    model = apply(net("resnet8"), "nf")
    for module in gains(model):
        nn.init.constant_(module.skip_gain, 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.load_state_dict(plain.state_dict())
    assert torch.equal(model.get_parameter("bn1.weight"), plain.get_parameter("bn1.weight"))
    assert all(module.skip_gain == torch.tensor(0.3) for module in gains(model))
    state = model.state_dict()
    del state["layer1.0.residual_sum.skip_gain"]
    with pytest.raises(RuntimeError, match=r"Missing key.*residual_sum.skip_gain"):
        model.load_state_dict(state)


def test_the_model_given_stays_as_it_is_and_gains_do_not_decay() -> None:
    from normbench.optimize import parameter_groups
    from normbench.options import Recipe

    plain = net("resnet8")
    names = list(dict(plain.named_modules()))
    model = apply(plain, "nf")
    assert list(dict(plain.named_modules())) == names
    assert not hasattr(plain, nf.HEADS)
    groups = {group["name"]: group for group in parameter_groups(model, Recipe("r", weight_decay=0.1))}
    assert {id(p) for p in groups["extra"]["params"]} == {id(module.skip_gain) for module in gains(model)}
    assert groups["extra"]["weight_decay"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_keeps_its_dtype_through_the_sums(dtype: torch.dtype) -> None:
    model = apply(net("resnet8"), "nf")
    seen: list[torch.dtype] = []
    for module in gains(model):
        module.register_forward_hook(lambda _, args, y: seen.append(y.dtype))
    with torch.autocast("cpu", dtype):
        model(pictures_of("resnet8"))
    assert set(seen) == {dtype}
