"""Binary networks: signs with a slope, binary weights, and what is left when their norms are taken out."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbench import models, norms, surgery
from normbench.errors import ConfigError
from normbench.models import reactnet
from normbench.models.reactnet import BinaryConv2d, Block, BlockA, RSign
from normbench.norms import nf
from normbench.options import ArchOptions
from normbench.surgery import apply

f64 = torch.float64
FREE = {"rules": "bnn", "agc": 0.02}
# 1/√v, α = 0.2, where it is not 1.
BETAS = {
    "reactnet18": [.9806, .9623, *[.9449, .9806, .9623] * 3],
    "reactnet_a": [.9806, .9623, .9449, .9806, .9623, .9449, .9806, .9623, .9449,
                   .9806, .9623, .9449, .9285, .9129, .8980, .8839, .8704, .8575, .8452, .8333, .9806],
}  # fmt: skip


def make(name: str = "reactnet18", side: int = 32, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return models.build(ArchOptions(name, **options), num_classes=10, picture_size=side)  # type: ignore[arg-type]


def slopes(f: object, u: Tensor) -> list[float]:
    u = u.requires_grad_()
    return torch.autograd.grad(f(u).sum(), u)[0].flatten().tolist()  # type: ignore[operator]


def test_the_slope_of_the_sign() -> None:
    u = torch.tensor([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5], dtype=f64)
    assert reactnet.sign(u).tolist() == [-1, -1, -1, 0, 1, 1, 1]
    assert slopes(reactnet.sign, u) == [0, 0, 1, 2, 1, 0, 0]
    assert torch.autograd.functional.jacobian(reactnet.sign, u.detach()).diagonal().tolist() == [0, 0, 1, 2, 1, 0, 0]


def test_the_sign_is_the_papers_written_out() -> None:
    """sign(u) forwards, and backwards a parabola on each side of 0."""
    u = torch.linspace(-1.7, 1.7, 101, dtype=f64)

    def written_out(u: Tensor) -> Tensor:
        inner = torch.where(u < 0, u * u + 2 * u, -u * u + 2 * u)
        smooth = torch.where(u < -1, -1.0, torch.where(u < 1, inner, 1.0))
        return torch.sign(u).detach() + smooth - smooth.detach()

    assert torch.allclose(reactnet.sign(u), written_out(u), atol=1e-15)
    assert slopes(reactnet.sign, u) == pytest.approx(slopes(written_out, u))


def test_binary_weights_have_two_values_per_filter_and_the_gradient_of_what_is_clipped() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3, dtype=f64).requires_grad_()
    binary = reactnet.binarize(weight)
    s = weight.abs().mean((1, 2, 3))
    for own, scale in zip(binary, s, strict=True):
        assert own.unique().tolist() == pytest.approx([-scale.item(), scale.item()])
    # s is a constant: else every weight would have a share of it.
    slope = torch.randn_like(weight)
    (grad,) = torch.autograd.grad((binary * slope).sum(), weight)
    torch.testing.assert_close(grad, torch.where(weight.abs() <= 1, slope, 0.0))


def test_a_binary_convolution_convolves_with_them() -> None:
    conv, x = BinaryConv2d(3, 4, 3, stride=2, padding=1, bias=False), torch.randn(2, 3, 7, 7)
    assert 0 <= conv.weight.min() < conv.weight.max() <= 1e-3
    torch.testing.assert_close(conv(x), F.conv2d(x, reactnet.binarize(conv.weight), stride=2, padding=1))


def test_half_precision_keeps_the_mean_magnitude() -> None:
    weight = torch.full((2, 600, 3, 3), 5e-4)
    assert torch.equal(reactnet.binarize(weight.half()), weight.half())
    sign = RSign(3)
    with torch.autocast("cpu", torch.bfloat16):
        assert sign(torch.full((1, 3, 2, 2), 1e-6, dtype=torch.bfloat16)).unique().tolist() == [1]


def test_without_norms_filters_are_standardized_and_then_binary() -> None:
    """The gain comes after; W is uniform in (0, 0.001)."""
    plain = make().double()
    model = apply(plain, "nf", **FREE)
    conv = model.get_submodule("layer1.0.conv")
    assert isinstance(conv, nf.ScaledStdConv2d)
    seen: list[Tensor] = []
    conv.prepare = lambda weight: seen.append(weight) or reactnet.binarize(weight)  # type: ignore[func-returns-value]
    x = torch.randn(2, 64, 5, 5, dtype=f64)
    y = conv(x)
    standard = nf.reference_weight(conv.weight, "bnn")
    torch.testing.assert_close(seen[0], standard)
    assert standard.flatten(1).sum(1).abs().max() < 1e-12
    assert standard.flatten(1).norm(dim=1).mean().item() == pytest.approx(0.967, abs=2e-3)
    binary = reactnet.binarize(standard)
    assert binary.flatten(1).norm(dim=1).mean().item() == pytest.approx(0.837, abs=5e-3)
    torch.testing.assert_close(y, F.conv2d(x, binary, padding=1))
    assert type(model.get_submodule("conv1")) is nf.ScaledStdConv2d
    assert model.get_submodule("conv1").prepare is None
    assert type(plain.get_submodule("layer1.0.conv")) is BinaryConv2d


@pytest.mark.parametrize("norm", ["mabn", "ws"])
def test_other_methods_for_weights_stay_before_the_signs(norm: str) -> None:
    conv = apply(make(), norm).get_submodule("layer1.0.conv")
    weights: list[Tensor] = []
    forward = F.conv2d
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "conv2d", lambda x, weight, *more: weights.append(weight) or forward(x, weight, *more))  # type: ignore[func-returns-value]
        conv(torch.randn(1, 64, 4, 4))
    assert all(len(own.unique()) == 2 for own in weights[0])
    assert (weights[0] < 0).any(), "of W − mean(W): W itself is positive"


def test_a_method_that_does_not_know_such_convolutions_leaves_them() -> None:
    class Own(nn.Conv2d):
        pass

    row = norms.get("mabn")
    patched = copy.copy(row)
    object.__setattr__(patched, "convolution", lambda conv, _: Own(conv.in_channels, conv.out_channels, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norms, "get", lambda *_: patched)
        model = apply(make(), "mabn")
    assert type(model.get_submodule("layer1.0.conv")) is BinaryConv2d
    assert type(model.get_submodule("conv1")) is Own


@pytest.mark.parametrize("name", BETAS)
def test_betas(name: str) -> None:
    model = apply(make(name, 64), "nf", **FREE)
    code = model._train_forward.source
    assert [float(n) for n in re.findall(r" \* ([\d.]+)", code)] == pytest.approx(BETAS[name], abs=5e-5)
    sums = {"reactnet18": 16, "reactnet_a": 13 + 13 + 5}[name]  # five blocks double their channels
    assert code.count("alpha = 0.2") == sums
    assert not [module for module in model.modules() if isinstance(module, nf.ResidualSum)]


@pytest.mark.parametrize("kind", [Block, BlockA])
def test_with_alpha_0_a_block_is_its_prelus(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    block = kind(4, 4, 1, 2)
    x = torch.randn(2, 4, 5, 5)
    for parameter in block.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    expected = block.activation(x) if kind is Block else block.activation2(block.activation1(x))
    torch.testing.assert_close(apply(block, "nf", rules="bnn", alpha=0)(x), expected)


def test_a_block_is_its_formula() -> None:
    torch.manual_seed(0)
    block, x = Block(4, 8, 2, 2).double(), torch.randn(2, 4, 6, 6, dtype=f64)
    model = apply(block, "nf", rules="bnn")
    binary = lambda conv: reactnet.binarize(nf.reference_weight(conv.weight, "bnn"))  # noqa: E731
    shortcut = F.conv2d(F.avg_pool2d(x, 2), binary(block.shortcut[1]))
    branch = F.conv2d(torch.sign(x + block.sign.bias), binary(block.conv), stride=2, padding=1)
    torch.testing.assert_close(model(x), block.activation(shortcut + 0.2 * branch))


def test_the_sign_keeps_its_slope_in_a_rewritten_model() -> None:
    """A trace must not look into it."""
    block, x = Block(4, 4, 1, 1).double(), torch.randn(2, 4, 5, 5, dtype=f64)
    found = []
    for net in (block, apply(block, "bn")):
        net.zero_grad()
        net(x).square().sum().backward()
        found.append(block.sign.bias.grad.clone())
    assert found[0].abs().min() > 0
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("name", ["reactnet18", pytest.param("reactnet_a", marks=pytest.mark.slow)])
def test_pictures_do_not_mix_and_train_is_eval(name: str) -> None:
    model = apply(make(name, 8), "nf", **FREE).double()
    x = torch.randn(3, 3, 8, 8, dtype=f64)
    y = model(x)
    torch.testing.assert_close(torch.cat([model(one) for one in x.split(1)]), y)
    torch.testing.assert_close(model.eval()(x), y)
    assert not list(model.buffers())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), y)


@pytest.mark.parametrize("norm", ["bn", "none", "nf"])
def test_all_but_the_classifier_are_clipped_and_two_steps_are_finite(norm: str) -> None:
    model = apply(make(), norm, **(FREE if norm == "nf" else {}))
    hooks, update = norms.step_hooks(model), torch.optim.Adam(model.parameters(), lr=5e-4)
    x, y = torch.randn(4, 3, 32, 32), torch.arange(4)
    for _ in range(2):
        update.zero_grad()
        F.cross_entropy(model(x), y).backward()
        before = {name: p.grad.clone() for name, p in model.named_parameters()}
        hooks.gradients()
        changed = {name for name, p in model.named_parameters() if not torch.equal(p.grad, before[name])}
        assert not any(name.startswith("fc") for name in changed)
        assert bool(changed) is (norm == "nf")
        update.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_state_of_the_first_phase_loads_into_the_second() -> None:
    for name in BETAS:
        first, second = make(name, phase=1), make(name)
        assert not [m for m in first.modules() if isinstance(m, BinaryConv2d)]
        second.load_state_dict(first.state_dict())
        kinds = {n for n, m in second.named_modules() if isinstance(m, BinaryConv2d)}
        real = {n for n, m in second.named_modules() if type(m) is nn.Conv2d}
        assert real == {"conv1"}
        assert len(kinds) == {"reactnet18": 16 + 3, "reactnet_a": 13 + 13 + 5}[name]


def test_norms_that_start_at_0_and_sizes_that_are_odd() -> None:
    for name, zeros in (("reactnet18", 16), ("reactnet_a", 31)):
        model = make(name, zero_init=True)
        assert sum(m.weight.count_nonzero() == 0 for m in model.modules() if isinstance(m, nn.BatchNorm2d)) == zeros
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(reactnet.halve()(x), F.avg_pool2d(x, 2))
    assert reactnet.halve()(torch.ones(1, 1, 5, 3)).flatten().tolist() == [1] * 6


def test_phases_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"arch.phase: got 3, expected 1 \(real weights\) or 2"):
        ArchOptions("reactnet18", phase=3)
    for name in ("resnet20", "resnet50"):
        with pytest.raises(ConfigError, match=rf"{name} has no phases; leave it out, or take one of reactnet18"):
            models.resolve(ArchOptions(name, phase=1), picture_size=32)
    assert len(surgery.find_sites(make("reactnet_a", 64))) == 32
