"""ic: batch norm and dropout as one layer, and where they stand in a network."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from norm_cases import C, gradients, make, pictures
from norm_cases import Case as Of
from torch import Tensor, nn
from torch.nn import functional as F

import normbench
from normbench import norms, surgery
from normbench.errors import InputError
from normbench.models import build as build_model
from normbench.norms import ic
from normbench.options import ArchOptions

PLACEMENTS = ("relu_ic_conv", "ic_conv_relu", "conv_relu_ic")
f64 = torch.float64


def unit(drop: float = 0.0, **options: Any) -> Any:
    return make(Of("ic", {"drop": drop, **options}))


def ours(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(ArchOptions(name, **options), num_classes=10, picture_size=8)


def theirs(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, num_classes=10, **options)


# ------------------------------------------------------------------------------------------------------- the layer


def test_without_dropout_it_is_batchnorm2d() -> None:
    alone, bn = unit(), nn.BatchNorm2d(C, dtype=f64)
    bn.load_state_dict(alone.state_dict())
    x = pictures(4, C, 5, 3).requires_grad_()
    for _ in range(2):
        y, expected = alone(x), bn(x)
        torch.testing.assert_close(y, expected)
        for g, h in zip(gradients(y, x, *alone.parameters()), gradients(expected, x, *bn.parameters()), strict=True):
            torch.testing.assert_close(g, h)
    for key, value in bn.state_dict().items():
        torch.testing.assert_close(alone.state_dict()[key], value)


@pytest.mark.parametrize("channelwise", [False, True])
def test_evaluation_is_batchnorm2ds_and_draws_nothing(channelwise: bool) -> None:
    alone, bn = unit(0.5, channelwise=channelwise), nn.BatchNorm2d(C, dtype=f64)
    alone(pictures(4, C, 5, 3))
    bn.load_state_dict(alone.state_dict())
    x, state = pictures(3, C, 5, 3, seed=1), torch.get_rng_state()
    torch.testing.assert_close(alone.eval()(x), bn.eval()(x))
    assert torch.equal(alone(x), alone(x))
    assert torch.equal(state, torch.get_rng_state())


def test_the_mean_over_masks_is_bn_and_the_variance_is_divided_by_p() -> None:
    """And correlations between channels are multiplied by p: 0.6 becomes 0.57."""
    torch.manual_seed(0)
    p, draws = 0.95, torch.randn(2, 2_000_000, dtype=f64)
    first = draws[0]
    second = 0.6 * first + 0.8 * draws[1]
    x = torch.stack([first, second]).view(1, 2, 1000, 2000)
    layer = norms.build("ic", 2, drop=1 - p, eps=0.0, dtype=f64)
    y, u = layer(x).flatten(2)[0], norms.build("bn", 2, eps=0.0, dtype=f64)(x).flatten(2)[0]
    assert (y.var(1) / u.var(1) * p - 1).abs().max() < 3e-3
    assert torch.cov(u)[0, 1].item() == pytest.approx(torch.cov(y)[0, 1].item(), abs=3e-3)
    assert (torch.corrcoef(y) / torch.corrcoef(u))[0, 1].item() == pytest.approx(p, abs=3e-3)
    small = unit(0.2)
    x = pictures(4, C, 3, 3)
    mean = torch.stack([small(x) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, unit()(x), rtol=0, atol=0.15)


@pytest.mark.parametrize(("channelwise", "atol"), [(False, 0.005), (True, 0.05)])
def test_the_share_that_is_kept_is_p(channelwise: bool, atol: float) -> None:
    torch.manual_seed(0)
    layer = unit(0.3, channelwise=channelwise)
    x = pictures(200, C, 16, 16)
    kept = layer(x) != 0
    assert kept.double().mean() == pytest.approx(0.7, abs=atol)
    whole = kept.flatten(2)
    assert bool((whole.all(2) | ~whole.any(2)).all()) is channelwise


def test_training_is_the_plain_formula_of_its_mask() -> None:
    layer = unit(0.3, channelwise=False)
    layer.batch = 2
    torch.manual_seed(0)
    x = pictures(4, C, 5, 3)
    y = layer(x)
    expected = ic.reference(x, layer.weight, layer.bias, batch=2, drop=0.3, mask=(y != 0).double())
    torch.testing.assert_close(y, expected)


def test_no_gradient_comes_from_what_was_dropped() -> None:
    layer, x = unit(0.3), pictures(4, C, 5, 3).requires_grad_()
    y = layer(x)
    dropped, kept = (y == 0).double(), (y != 0).double()
    for gradient in torch.autograd.grad((y * dropped).sum(), (x, *layer.parameters()), retain_graph=True):
        assert gradient.count_nonzero() == 0
    assert torch.autograd.grad((y * kept).sum(), layer.bias)[0].count_nonzero() == C


def test_alone_it_is_followed_by_its_activation() -> None:
    layer = norms.build("ic", C, drop=0.3, activation=nn.ReLU(), dtype=f64)
    x = pictures(4, C, 5, 3)
    torch.manual_seed(0)
    y = layer(x)
    layer.activation = None
    torch.manual_seed(0)
    assert torch.equal(y, layer(x).relu())


def test_masks_follow_the_seed() -> None:
    layer, x = unit(0.3), pictures(4, C, 5, 3)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(layer(x))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_virtual_workers_are_as_many_forwards() -> None:
    together = unit()
    together.batch = 2
    x, parts, kept = pictures(16, C, 4, 3), [], []
    for worker in x.split(2):
        alone = unit()
        parts.append(alone(worker))
        kept.append(alone.state_dict())
    torch.testing.assert_close(together(x), torch.cat(parts))
    for key in ("running_mean", "running_var"):
        torch.testing.assert_close(together.state_dict()[key], torch.stack([state[key] for state in kept]).mean(0))


# --------------------------------------------------------------------------------------------------------- in a model


def preceded(model: nn.Module, x: Tensor, *, training: bool) -> tuple[set[str], set[str]]:
    """Convolutions and linear layers that are called, and those whose input is a unit's output, pooled or not."""
    seen: set[str] = set()
    fed: set[str] = set()
    outputs: list[Tensor] = []

    def note(name: str) -> Callable[..., None]:
        def look(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.add(name)
            means = [out.mean((2, 3)) for out in outputs] if args[0].dim() == 2 else []
            same = any(args[0] is out for out in outputs)
            if same or any(m.shape == args[0].shape and torch.allclose(m, args[0], atol=1e-6) for m in means):
                fed.add(name)

        return look

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, ic.IndependentComponent):
            handles.append(module.register_forward_hook(lambda _m, _a, y: outputs.append(y)))
        if isinstance(module, nn.Dropout):  # the network's own, before its classifier
            module.p = 0.0
        if isinstance(module, nn.Conv2d | nn.Linear):
            handles.append(module.register_forward_pre_hook(note(name)))
    with torch.no_grad():
        model.train(training)(x)
    for handle in handles:
        handle.remove()
    return seen, fed


NETS: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "resnet8": (lambda: ours("resnet8"), 8, "conv1"),
    "preresnet20": (lambda: ours("preresnet20"), 8, "conv1"),
    "resnet18": (lambda: theirs("resnet18"), 32, "conv1"),
    "resnet50": (lambda: theirs("resnet50"), 32, "conv1"),
    "resnetv2_50": (lambda: ours("resnetv2_50"), 32, "conv1"),
    "inception_v3": (lambda: theirs("inception_v3", init_weights=False), 299, "Conv2d_1a_3x3.conv"),
    "densenet121": (lambda: theirs("densenet121"), 32, "features.conv0"),
}


@pytest.mark.parametrize("placement", PLACEMENTS[:2])
@pytest.mark.parametrize("net", NETS)
def test_a_unit_stands_before_every_weight_layer_but_the_stem(net: str, placement: str) -> None:
    plain, side, stem = NETS[net]
    if placement != "relu_ic_conv" and net in ("preresnet20", "resnetv2_50", "densenet121"):
        pytest.skip("pre-activated")
    model = normbench.apply(plain(), "ic", drop=0.0, placement=placement)
    for training in (True, False):
        seen, fed = preceded(model, torch.randn(2, 3, side, side), training=training)
        pooled = {"features.denseblock1.denselayer1.conv1"} if net == "densenet121" else set()  # a pooling between
        assert seen - fed - pooled == {stem}
        assert len(seen) >= 8


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_block_is_what_its_placement_says(placement: str) -> None:
    """resnet8, written out."""
    plain = ours("resnet8").double()
    model = normbench.apply(plain, "ic", drop=0.0, placement=placement, batch=2).double()
    x = torch.randn(4, 3, 8, 8, dtype=f64)

    def whole(net: Any) -> Tensor:
        first = placement != "conv_relu_ic"
        y = net.conv1(x).relu() if first else net.bn1(net.conv1(x).relu())
        for i, layer in enumerate((net.layer1, net.layer2, net.layer3)):
            (block,) = layer
            shortcut = y if i == 0 else F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 0, y.shape[1]))
            for conv, bn in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
                if placement == "relu_ic_conv":
                    y = conv(bn(y.relu()))
                elif placement == "ic_conv_relu":
                    y = conv(bn(y)).relu()
                else:
                    y = bn(conv(y).relu())
            y = y + shortcut
        if placement == "relu_ic_conv":
            y = y.relu()
        return net.fc((net.ic(y) if first else y).mean((2, 3)))

    twin = copy.deepcopy(model)
    torch.testing.assert_close(model(x), whole(twin))
    torch.testing.assert_close(model.eval()(x), whole(twin.eval()))
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value)


def test_widths_are_those_of_the_convolutions_inputs_and_names_stay() -> None:
    plain = theirs("resnet50")
    rows = {row.name: row for row in surgery.report(normbench.apply(plain, "ic")).rows}
    assert len(rows) == 53
    assert [rows[f"layer1.1.bn{i}"].num_features for i in (1, 2, 3)] == [256, 64, 64]
    assert rows["layer4.0.downsample.1"].num_features == 1024
    assert "bn1" not in rows
    assert rows["ic"].num_features == 2048
    for row in rows.values():
        if row.convolution is not None:
            assert plain.get_submodule(row.convolution).in_channels == row.num_features
    kept = surgery.report(normbench.apply(plain, "ic", placement="conv_relu_ic")).rows
    assert [(row.name, row.num_features) for row in kept] == [
        (site.name, site.num_features) for site in surgery.find_sites(plain)
    ]


def test_the_model_given_is_left_as_it_was() -> None:
    for make_net in (lambda: ours("resnet8"), lambda: theirs("mobilenet_v3_small")):
        plain = make_net().eval()
        names, state = [name for name, _ in plain.named_modules()], copy.deepcopy(plain.state_dict())
        x = torch.randn(2, 3, 32, 32)
        before = plain(x)
        applied = normbench.apply(plain, "ic")
        applied.train()(x)
        assert [name for name, _ in plain.named_modules()] == names
        assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())
        assert torch.equal(plain.eval()(x), before)


def test_units_start_at_one_whatever_the_last_norm_started_at() -> None:
    plain = ours("resnet8", zero_init=True)
    for placement in PLACEMENTS:
        last = normbench.apply(plain, "ic", placement=placement).layer3[0].bn2
        assert last.weight.sum().item() == (0 if placement == "conv_relu_ic" else 64)


def test_options_of_the_replaced_batchnorm_and_of_the_call_reach_all_units() -> None:
    plain = theirs("inception_v3", init_weights=False)
    model = normbench.apply(plain, "ic", drop=0.2, batch=2, channelwise=True)
    found = [module for module in model.modules() if norms.is_unit(module)]
    assert len(found) == 97  # 96, less the stem's, and the two classifiers'
    assert {(u.drop, u.batch, u.channelwise, u.eps, u.activation) for u in found} == {(0.2, 2, True, 1e-3, None)}
    assert {name for name, u in model.named_modules() if norms.is_unit(u) and name.endswith("ic")} == {
        "ic",
        "AuxLogits.ic",
    }


def test_gates_have_no_unit_and_shortcuts_of_linear_bottlenecks_none_either() -> None:
    plain = theirs("mobilenet_v3_small")
    rows = surgery.report(normbench.apply(plain, "ic")).rows
    assert len(rows) == 34  # of 34 BatchNorms: less the stem's, and the classifier's
    assert not [row for row in rows if "fc" in str(row.convolution)]


@pytest.mark.parametrize("placement", PLACEMENTS[1:])
def test_a_preactivated_network_has_one_placement(placement: str) -> None:
    with pytest.raises(InputError, match=rf"ic: got placement={placement}.* expected relu_ic_conv"):
        normbench.apply(ours("preresnet20"), "ic", placement=placement)


def test_a_batchnorm_that_follows_no_convolution_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn0, self.conv1, self.bn1 = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.conv2, self.bn2, self.fc = nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn1(self.conv1(self.bn0(x))).relu()
            return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))

    model: Any = normbench.apply(Net(), "ic", drop=0.0)
    x = torch.randn(2, 3, 8, 8)
    twin = copy.deepcopy(model)
    y = twin.conv1(twin.bn0(x)).relu()
    y = twin.ic(twin.conv2(twin.bn2(y)).relu()).mean((2, 3))
    torch.testing.assert_close(model(x), twin.fc(y))
    assert not hasattr(model, "bn1")


@pytest.mark.parametrize("net", ["resnet8", "resnet50", "inception_v3"])
def test_training_steps_are_finite(net: str) -> None:
    plain, side, _ = NETS[net]
    model = normbench.apply(plain(), "ic", batch=2).train()
    update = torch.optim.SGD(model.parameters(), 0.01)
    x, y = torch.randn(2, 3, side, side), torch.tensor([1, 2])
    for _ in range(2):
        update.zero_grad()
        out = model(x)
        heads = [out] if isinstance(out, Tensor) else list(out)
        loss = sum(F.cross_entropy(head, y) for head in heads)
        assert isinstance(loss, Tensor)
        assert loss.isfinite()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        update.step()


def test_copies_pickles_and_states() -> None:
    model = normbench.apply(ours("resnet8"), "ic").train()
    x = torch.randn(4, 3, 8, 8)
    model(x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = normbench.apply(ours("resnet8"), "ic")
    other.load_state_dict(torch.load(file, weights_only=True))
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other, model]
    found = []
    for twin in twins:
        torch.manual_seed(1)
        found.append(twin.train()(x))
        found.append(twin.eval()(x))
    for i in (2, 4, 6):
        assert torch.equal(found[i], found[0])
        assert torch.equal(found[i + 1], found[1])
