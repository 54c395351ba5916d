"""Architectures: published sizes, stems, picture sizes, and nets of one's own."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from normbench import models, surgery
from normbench.errors import ConfigError, UnknownName
from normbench.options import ArchOptions

CONF = sorted((Path(__file__).parents[1] / "conf" / "arch").glob("*.yaml"))

# Name: (parameters, BatchNorms, classes). The CIFAR nets' are table 6 of arXiv:1512.03385 (0.27M, 0.46M, 0.85M, 1.7M).
SIZES = {
    "resnet8": (75_290, 7, 10),
    "resnet20": (269_722, 19, 10),
    "resnet32": (464_154, 31, 10),
    "resnet56": (853_018, 55, 10),
    "preresnet20": (269_722, 19, 10),
    "preresnet32": (464_154, 31, 10),
    "preresnet110": (1_727_962, 109, 10),
    "resnetv2_50": (25_549_352, 49, 1000),
    "reactnet18": (11_704_424, 20, 1000),  # counted here: the papers count operations
    "reactnet_a": (29_343_592, 32, 1000),
    "resnet50": (25_557_032, 53, 1000),
    "inception_v3": (27_161_264, 96, 1000),
}


def make(name: str, *, classes: int = 10, side: int | None = 32, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return models.build(ArchOptions(name, **options), num_classes=classes, picture_size=side)  # type: ignore[arg-type]


def batchnorms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name: str) -> None:
    parameters, norms, classes = SIZES[name]
    outline = models.outline(ArchOptions(name), num_classes=classes, picture_size=models.native_size(name))
    assert sum(p.numel() for p in outline.parameters()) == parameters
    assert len(batchnorms(outline)) == norms


@pytest.mark.parametrize("side", [8, 32, 45])
@pytest.mark.parametrize("name", models.OURS)
def test_ours_take_small_pictures(name: str, side: int) -> None:
    model = make(name, side=side)
    y = model(torch.randn(2, 3, side, side))
    assert y.shape == (2, 10)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", models.OURS)
def test_ours_trace_with_every_site_found(name: str) -> None:
    model = make(name)
    sites = surgery.find_sites(model)
    assert {site.name for site in sites} == {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    report = surgery.report(surgery.apply(model, "frn"))
    assert report.traced
    blocks = sum(type(module).__name__ == "Block" for module in model.modules())
    assert len(report.sums) == (blocks if name.startswith("resnet") and "v2" not in name else 0)


@pytest.mark.parametrize("name", models.OURS)
def test_ours_have_no_bias_before_a_norm_and_start_as_published(name: str) -> None:
    model = make(name)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            k, _ = module.kernel_size
            if hasattr(module, "prepare"):  # binary, as their code starts them
                assert 0 <= module.weight.min() < 1e-6
                assert 0.000999 < module.weight.max() <= 1e-3
            else:
                assert module.weight.std().item() == pytest.approx((2 / (k * k * module.out_channels)) ** 0.5, rel=0.05)


def test_shortcut_of_kind_a() -> None:
    from normbench.models.resnet_cifar import shrink

    x = torch.randn(2, 3, 5, 5)
    y = shrink(x, more=4, stride=2)
    assert y.shape == (2, 7, 3, 3)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert y[:, 3:].count_nonzero() == 0


def test_pre_activation_blocks_are_the_identity_when_their_last_convolution_is_zero() -> None:
    model = make("preresnet20")
    block = model.layer1[1]
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(("name", "zeros"), [("resnet20", 9), ("resnet50", 16)])
def test_zero_init(name: str, zeros: int) -> None:
    model, plain = make(name, zero_init=True), make(name)
    assert sum(bn.weight.count_nonzero() == 0 for bn in batchnorms(model)) == zeros
    assert all(bn.weight.count_nonzero() for bn in batchnorms(plain))
    same = [n for n, p in model.named_parameters() if torch.equal(p, plain.get_parameter(n))]
    assert len(same) == len(list(model.parameters())) - zeros


@pytest.mark.parametrize(("name", "words"), [("preresnet20", "end with a convolution"), ("vgg11_bn", "does not offer")])
def test_zero_init_where_there_is_none(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        models.resolve(ArchOptions(name, zero_init=True), picture_size=32)


# ------------------------------------------------------------------------------------------------------------ stems


@pytest.mark.parametrize(("name", "conv", "pool"), [
    ("resnet18", "conv1", "maxpool"), ("resnetv2_50", "conv1", "maxpool"),
    ("densenet121", "features.conv0", "features.pool0"), ("googlenet", "conv1.conv", "maxpool1"),
])  # fmt: skip
def test_stems(name: str, conv: str, pool: str) -> None:
    large, small = make(name, side=224), make(name, side=64)
    assert large.get_submodule(conv).kernel_size == (7, 7)
    three = small.get_submodule(conv)
    assert (three.kernel_size, three.stride, three.padding, three.out_channels) == ((3, 3), (1, 1), (1, 1), 64)
    assert isinstance(small.get_submodule(pool), nn.Identity)
    assert list(small.state_dict()) == list(large.state_dict())
    # He's rule on nine taps for forty-nine; and all other weights are the same with either stem.
    seven = large.get_submodule(conv)
    assert three.weight.std().item() == pytest.approx(seven.weight.std().item() * 7 / 3, rel=0.05)
    pairs = [(p, large.get_parameter(n)) for n, p in small.named_parameters() if n != f"{conv}.weight"]
    assert all(torch.equal(left, right) for left, right in pairs)


def test_the_stem_can_be_chosen() -> None:
    assert make("resnet18", stem="imagenet").conv1.kernel_size == (7, 7)
    assert make("resnet18", stem="cifar", side=224).conv1.kernel_size == (3, 3)
    assert models.resolve(ArchOptions("resnet50", size=32), picture_size=224).stem == "cifar"
    assert models.resolve(ArchOptions("resnet50"), picture_size=None).stem == "imagenet"


@pytest.mark.parametrize("name", ["resnet20", "inception_v3", "mobilenet_v2"])
def test_a_stem_for_a_net_without_one(name: str) -> None:
    with pytest.raises(ConfigError, match="has no 7×7 stem"):
        models.resolve(ArchOptions(name, stem="cifar"), picture_size=32)
    assert models.resolve(ArchOptions(name), picture_size=299).stem is None


# ------------------------------------------------------------------------------------------------- sizes and heads


@pytest.mark.parametrize(
    ("side", "size", "resolved"),
    [
        (32, None, (128, False)), (127, None, (128, False)), (128, None, (None, False)), (298, None, (None, False)),
        (299, None, (None, True)), (None, None, (299, True)), (32, 299, (299, True)), (32, 75, (75, False)),
    ],
)  # fmt: skip
def test_inception_sizes(side: int | None, size: int | None, resolved: tuple[int | None, bool]) -> None:
    got = models.resolve(ArchOptions("inception_v3", size=size), picture_size=side)
    assert (got.size, got.aux) == resolved


def test_inception_runs_at_its_least_sizes() -> None:
    for options in ({"size": 75}, {"size": 299}):
        model = models.outline(ArchOptions("inception_v3", **options), num_classes=5, picture_size=32)
        shapes = surgery.site_shapes(model, (3, options["size"], options["size"]))
        assert len(shapes) == len(batchnorms(model)) == (96 if options["size"] == 299 else 94)
    with pytest.raises(RuntimeError):
        surgery.site_shapes(models.outline(ArchOptions("inception_v3"), num_classes=5, picture_size=32), (3, 74, 74))


def test_googlenet_has_its_heads_when_told() -> None:
    assert len(batchnorms(make("googlenet"))) == 57
    model = make("googlenet", aux=True)
    assert len(batchnorms(model)) == 59
    assert {y.shape for y in model(torch.randn(2, 3, 32, 32))} == {(2, 10)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "inception_v3", "size": 74}, "arch.size=74.*75 or more"),
        ({"name": "inception_v3", "aux": True, "size": 128}, "too large for 128 px; give arch.size=299"),
        ({"name": "resnet50", "aux": True}, "has no auxiliary head"),
    ],
)
def test_sizes_and_heads_that_cannot_be(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        models.resolve(ArchOptions(**options), picture_size=32)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- names and seeds


def test_unknown_names_come_with_near_ones() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'resnet20'") as caught:
        models.resolve(ArchOptions("resnt20"), picture_size=32)
    assert len(caught.value.choices) < 20
    with pytest.raises(UnknownName, match="Did you mean 'efficientnet_b"):
        models.build(ArchOptions("efficientnet_bo"), num_classes=10, picture_size=32)
    with pytest.raises(UnknownName, match="option of resnet20 'depth'"):
        models.resolve(ArchOptions("resnet20", options={"depth": 3}), picture_size=32)


def test_names() -> None:
    names = models.names()
    assert names[: len(models.OURS)] == list(models.OURS)
    assert {"resnet50", "inception_v3", "densenet121"} <= set(names)
    assert "fcn_resnet50" not in names  # not a classifier
    assert len(set(names)) == len(names)


def test_the_seed_gives_the_weights_whatever_was_resolved_before() -> None:
    from normbench.models import _has_stem

    first = make("resnet18")
    _has_stem.cache_clear()
    state = torch.get_rng_state()
    models.resolve(ArchOptions("swin_t"), picture_size=32)
    models.outline(ArchOptions("resnet18"), num_classes=10, picture_size=32)
    assert torch.equal(state, torch.get_rng_state())
    second = make("resnet18")
    assert all(torch.equal(p, second.get_parameter(n)) for n, p in first.named_parameters())


def test_ours_do_without_torchvision() -> None:
    code = (
        "import sys; from normbench import models; from normbench.options import ArchOptions as A\n"
        "models.build(A('resnet8'), num_classes=10, picture_size=8)\n"
        "sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", CONF, ids=lambda path: path.stem)
def test_config_files(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    assert values["name"] == path.stem
    assert set(values) <= {field.name for field in dataclasses.fields(ArchOptions)}
    models.resolve(ArchOptions(**values), picture_size=32)
    lines = path.read_text().splitlines()
    assert all(above.startswith("#") for above, line in itertools.pairwise(lines) if not line.startswith("#"))


def test_every_one_of_ours_has_a_config_file() -> None:
    assert set(models.OURS) | {"resnet50", "inception_v3"} == {path.stem for path in CONF}


# -------------------------------------------------------------------------------------------------- a net of one's own


@pytest.fixture
def nets(tmp_path: Path) -> str:
    path = tmp_path / "nets.py"
    path.write_text(
        "import torch\n"
        "from torch import nn\n"
        "def net(num_classes, width=8, kernel=3):\n"
        "    stride = 2 if kernel == 7 else 1\n"
        "    conv = nn.Conv2d(3, width, kernel, stride, padding=kernel // 2)\n"
        "    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1),\n"
        "                         nn.Flatten(), nn.Linear(width, num_classes))\n"
        "def fixed(): return nn.Conv2d(3, 4, 1)\n"
        "def needs(num_classes, width): return net(num_classes, width)\n"
        "def text(num_classes): return 'net'\n"
    )
    return str(path)


def test_a_net_of_ones_own(nets: str) -> None:
    model = make(f"{nets}:net", options={"width": 16})
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    assert model[0].out_channels == 16
    assert isinstance(make(f"{nets}:fixed"), nn.Conv2d)
    assert len(models.source_hash(f"{nets}:net") or "") == 64
    assert models.source_hash("resnet20") is None
    assert isinstance(make("torchvision.models:resnet18").conv1, nn.Conv2d)


def test_its_stem_changes_only_when_told(nets: str) -> None:
    assert make(f"{nets}:net", options={"kernel": 7})[0].kernel_size == (7, 7)
    assert make(f"{nets}:net", options={"kernel": 7}, stem="cifar")[0].kernel_size == (3, 3)
    with pytest.raises(ConfigError, match="no 7×7 stem"):
        make(f"{nets}:net", stem="cifar")


@pytest.mark.parametrize(
    ("net", "options", "error", "words"),
    [
        ("net", {"options": {"widht": 3}}, UnknownName, "Did you mean 'width'"),
        ("net", {"options": {"num_classes": 3}}, ConfigError, "is given the number of classes"),
        ("needs", {}, ConfigError, "missing a required argument: 'width'"),
        ("net", {"zero_init": True}, ConfigError, "a net of your own"),
        ("nett", {}, UnknownName, "Did you mean 'net'"),
    ],
)
def test_a_net_of_ones_own_that_cannot_be(
    nets: str, net: str, options: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        models.resolve(ArchOptions(f"{nets}:{net}", **options), picture_size=8)  # type: ignore[arg-type]


def test_a_callable_that_makes_no_model(nets: str) -> None:
    with pytest.raises(ConfigError, match=r"expected it to return a torch\.nn\.Module, got str"):
        make(f"{nets}:text")
