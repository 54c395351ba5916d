"""The surgery on torchvision's networks: every site found, the same function, the shapes at the sites."""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from surgery_cases import SIDE, Small, X, outputs, untouched
from torch import Tensor, nn

from normbench import norms, surgery
from normbench.errors import InputError

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


# The shapes at the sites.


def test_shapes_at_the_sites(family: Callable[[str], nn.Module]) -> None:
    model = family("resnet50")
    start = time.process_time()
    with untouched(model):
        shapes = surgery.site_shapes(model, (3, 224, 224))
    assert time.process_time() - start < 5
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
