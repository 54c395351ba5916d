"""ws: standardized convolutions before the unit of any drop-in norm, with that norm's options and traits."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from norm_cases import C, gradients, pictures
from torch import Tensor, nn
from whole_nets import NETS, net, pictures_of, train, trained

from normbench import norms, surgery
from normbench.errors import ConfigError, UnknownName
from normbench.norms import ws
from normbench.norms.convolution import adopt
from normbench.norms.hooks import StepHooks
from normbench.surgery import apply

f64 = torch.float64
BASES = [name for name in norms.names() if name != "ws" and norms.get(name).drop_in]


def standardized(*shape: int, dtype: torch.dtype = f64, **options: Any) -> ws.StandardizedConv2d:
    torch.manual_seed(0)
    conv = adopt(ws.StandardizedConv2d, nn.Conv2d(shape[1], shape[0], shape[2:], dtype=dtype, **options))
    conv.ws_eps = 1e-5
    return conv


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (8, 16, 1, 1), (3, 2, 1, 5)])
def test_filters_have_mean_0_and_deviation_1(shape: tuple[int, ...]) -> None:
    conv = standardized(*shape)
    with torch.no_grad():
        conv.weight.mul_(100).add_(3)  # eps is nothing
    filters = conv.reweigh(conv.weight)
    assert filters.mean((1, 2, 3)).abs().max() < 1e-12
    assert torch.allclose(filters.var((1, 2, 3), correction=0), torch.ones(shape[0], dtype=f64), atol=1e-6)
    x = torch.randn(2, shape[1], 6, 6, dtype=f64)
    torch.testing.assert_close(conv(x), torch.nn.functional.conv2d(x, filters, conv.bias))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_weights_are_the_plain_formulas_with_its_gradient(memory_format: torch.memory_format) -> None:
    conv = standardized(8, 4, 3, 3).to(memory_format=memory_format)
    got, expected = conv.reweigh(conv.weight), ws.reference(conv.weight)
    torch.testing.assert_close(got, expected)
    for left, right in zip(gradients(got, conv.weight), gradients(expected, conv.weight), strict=True):
        torch.testing.assert_close(left, right)


def test_scale_and_shift_of_a_filter_change_nothing_and_get_no_gradient() -> None:
    conv, x = standardized(8, 4, 3, 3), torch.randn(2, 4, 6, 6, dtype=f64)
    with torch.no_grad():
        conv.weight.mul_(50)
    y = conv(x)
    (grad,) = gradients(y, conv.weight)
    flat, centred = grad.flatten(1), (conv.weight - conv.weight.mean((1, 2, 3), keepdim=True)).flatten(1)
    assert flat.sum(1).abs().max() < 1e-9 * grad.abs().max()
    cosine = (flat * centred).sum(1) / flat.norm(dim=1) / centred.norm(dim=1)
    assert cosine.abs().max() < 1e-6, "but for eps"
    with torch.no_grad():
        conv.weight.mul_(torch.linspace(1, 9, 8, dtype=f64)[:, None, None, None]).add_(4)
    torch.testing.assert_close(conv(x), y, rtol=1e-5, atol=1e-6)


def test_group_norm_behind_it_does_not_see_the_scale_of_the_weights() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)).double()
    x = torch.randn(2, 3, 6, 6, dtype=f64)
    with torch.no_grad():
        plain[0].weight.mul_(100)
        y = apply(plain, "ws", num_groups=4)(x)
        plain[0].weight.mul_(3)
    torch.testing.assert_close(apply(plain, "ws", num_groups=4)(x), y, rtol=1e-6, atol=1e-6)


def test_constant_filters_have_finite_gradients() -> None:
    """The reports of NaN were of an eps outside the root."""
    conv = standardized(4, 3, 3, 3, dtype=torch.float32)
    nn.init.constant_(conv.weight, 0.5)
    conv(torch.randn(2, 3, 6, 6)).square().sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.isfinite().all()
    single = standardized(4, 1, 1, 1)
    assert single.reweigh(single.weight).count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_standardized_in_float32(dtype: torch.dtype) -> None:
    conv = standardized(8, 4, 3, 3)
    nn.init.uniform_(conv.weight, 100, 101)
    half = copy.deepcopy(conv).to(dtype)
    exact = ws.reference(half.weight.double())
    assert half.reweigh(half.weight).dtype == dtype
    assert (half.reweigh(half.weight).double() - exact).abs().max() < 4 * torch.finfo(dtype).eps * exact.abs().max()


def test_only_what_a_norm_follows_is_standardized_and_nothing_changes_its_name() -> None:
    plain = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.ReLU(), nn.Conv2d(C, 4, 1), nn.Flatten())
    model = apply(plain, "ws")
    assert [type(layer) for layer in plain][:2] == [nn.Conv2d, nn.BatchNorm2d]
    assert type(model.get_submodule("0")) is ws.StandardizedConv2d
    assert type(model.get_submodule("3")) is nn.Conv2d
    assert model.get_submodule("0").weight is plain[0].weight
    assert list(dict(model.named_parameters())) == list(dict(plain.named_parameters()))
    eps = apply(plain, "ws", ws_eps=0.5).get_submodule("0").ws_eps
    assert eps == 0.5


@pytest.mark.parametrize("base", BASES)
def test_every_base_is_its_own_unit_with_its_traits(base: str) -> None:
    row, own = norms.get("ws", {"base": base}), norms.get(base)
    for trait in ("unit", "mixes_samples", "train_eval_differ", "least_batch", "own_eps", "joins_workers", "hooks"):
        assert getattr(row, trait) == getattr(own, trait)
    assert (row.name, row.drop_in, row.takes_batch) == ("ws", False, own.takes_batch)
    assert row.options == {"base": base, "ws_eps": 1e-5, **own.options}
    unit = norms.build("ws", 8, base=base, batch=2)
    assert type(unit) is own.unit
    x = pictures(4, 8, 4, 3, dtype=torch.float32)
    torch.manual_seed(0)
    y = unit(x)
    torch.manual_seed(0)
    assert torch.equal(y, norms.build(base, 8, batch=2)(x))


@pytest.mark.parametrize("base", ["bn", "bcn", "bgn", "gn"])
def test_a_network_is_the_bases_with_standardized_weights(base: str) -> None:
    plain = net("resnet8")
    ours, theirs = apply(plain, "ws", base=base, batch=2), copy.deepcopy(apply(plain, base, batch=2))
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(ws.reference(module.weight))
    x = pictures_of("resnet8")
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-4)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_options_are_the_bases_and_an_unknown_one_names_them() -> None:
    assert norms.build("ws", 12, num_groups=4).num_groups == 4
    assert norms.build("ws", 12, base="bn", momentum=0.3).momentum == 0.3
    assert norms.build("ws", 12, base="bgn", num_groups={2: 3}, batch=2).num_groups == 3
    with pytest.raises(
        UnknownName, match=r"option of ws 'momentum'.*Choices: affine, base, eps, group_fit, num_groups, ws_eps"
    ):
        norms.check_options("ws", {"momentum": 0.1})
    with pytest.raises(UnknownName, match=r"base of ws 'gm'. Did you mean 'gn'\? Choices: .*\bbn\b"):
        norms.build("ws", 8, base="gm")
    for base in ("frn", "mabn", "ws", "nf", 3):  # which need the graph
        with pytest.raises(UnknownName, match="stand in a BatchNorm's place"):
            norms.check_options("ws", {"base": base})
    with pytest.raises(ConfigError, match=r"ws: got momentum=2, expected a share"):
        norms.check_options("ws", {"base": "bn", "momentum": 2})


def test_the_hooks_are_the_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hooks(StepHooks):
        pass

    object.__setattr__(norms.get("gn"), "hooks", Hooks)
    try:
        plain = net("resnet8")
        assert type(norms.step_hooks(apply(plain, "ws"))) is Hooks
        assert type(norms.step_hooks(copy.deepcopy(apply(plain, "ws", base="bn")))) is StepHooks
    finally:
        object.__setattr__(norms.get("gn"), "hooks", None)


def groups_and_whole(norm: str, **options: Any) -> None:
    """16 pictures in one forward, of which 2 share statistics, against 8 forwards of 2."""
    whole = apply(net("resnet8"), norm, batch=2, **options).double()
    apart = [copy.deepcopy(whole) for _ in range(8)]
    x = pictures_of("resnet8", 16).double()
    y = torch.cat([one(part) for one, part in zip(apart, x.split(2), strict=True)])
    torch.testing.assert_close(whole(x), y, rtol=1e-9, atol=1e-9)
    for key, buffer in whole.named_buffers():
        if buffer.is_floating_point():
            mean = torch.stack([one.get_buffer(key) for one in apart]).mean(0)
            torch.testing.assert_close(buffer, mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("base", ["gn", "bn", "bcn"])
def test_workers_in_one_forward_are_as_many_forwards(base: str) -> None:
    groups_and_whole("ws", base=base)


@pytest.mark.parametrize("name", NETS)
def test_it_trains_whole_networks(name: str) -> None:
    model = trained(name, "ws")
    convolutions = [site.convolution for site in surgery.find_sites(net(name))]
    assert all(type(model.get_submodule(conv)) is ws.StandardizedConv2d for conv in convolutions if conv)


@pytest.mark.parametrize("base", ["gn", "bn"])
def test_copies_and_a_stopped_run_go_on_bit_for_bit(base: str) -> None:
    model = apply(net("resnet8"), "ws", base=base, batch=2, ws_eps=1e-4)
    train(model, "resnet8")
    content = io.BytesIO()
    torch.save(model.state_dict(), content)
    content.seek(0)
    again = apply(net("resnet8", seed=1), "ws", base=base, batch=2, ws_eps=1e-4)
    again.load_state_dict(torch.load(content, weights_only=True))
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), again]
    expected = train(model, "resnet8")
    for twin in twins:
        assert torch.equal(train(twin, "resnet8"), expected)
        assert all(torch.equal(value, twin.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_batchnorm_model_loads() -> None:
    plain = net("resnet8", seed=1)
    for base, said in (("bn", False), ("gn", True)):
        model = apply(net("resnet8"), "ws", base=base)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            model.load_state_dict(plain.state_dict())
        assert bool(found) is said
        assert torch.equal(model.get_parameter("layer1.0.conv1.weight"), plain.get_parameter("layer1.0.conv1.weight"))


def test_autocast_standardizes_in_float32() -> None:
    conv = standardized(8, 4, 3, 3, dtype=torch.float32)
    seen: list[Tensor] = []
    conv.prepare = lambda weight: seen.append(weight) or weight  # type: ignore[func-returns-value]
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.randn(2, 4, 6, 6)).dtype == torch.bfloat16
    assert seen[0].dtype == torch.float32
