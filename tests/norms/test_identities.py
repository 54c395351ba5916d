"""The identities of the methods' cards, one table: what equals what, and when. A failure reads as a sentence."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from norm_cases import WITHOUT_DRAWS, gradients, pictures
from torch import Tensor, nn
from torch.nn import functional as F

from normbench import norms
from normbench.norms import bkn

Function = Callable[[Tensor], Tensor]
f64 = {"dtype": torch.float64}
N, C, H, W = 4, 6, 4, 6


def unit(name: str, batch: int | None = None, features: int = C, **options: object) -> Function:
    return norms.build(name, features, batch=batch, **f64, **options)


def evaluated(name: str, **options: object) -> Function:
    """The unit after two updates, in evaluation mode."""
    return _evaluated(norms.build(name, C, **f64, **options))


def _evaluated(module: nn.Module) -> nn.Module:
    for seed in (5, 6):
        module(pictures(N, C, H, W, seed=seed))
    return module.eval()


def on_groups(G: int) -> Function:
    """1-D batch norm of G features on the (N, G, S) view, without affine."""
    norm = nn.BatchNorm1d(G, affine=False, **f64)
    return lambda x: norm(x.reshape(len(x), G, -1)).view(x.shape)


def flattened(x: Tensor) -> Tensor:
    return nn.BatchNorm1d(x[0].numel(), **f64)(x.flatten(1)).view(x.shape)


def channels_last_layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x.permute(0, 2, 3, 1), (C,)).permute(0, 3, 1, 2)


def worker_by_worker(name: str, n: int) -> Function:
    return lambda x: torch.cat([unit(name)(worker) for worker in x.split(n)])


def alone(name: str, **options: object) -> Function:
    return lambda x: torch.cat([unit(name, **options)(image[None]) for image in x])


def frn_with_relu(**options: object) -> Function:
    return lambda x: unit("frn", **options)(x).relu()


def frn_tlu(x: Tensor) -> Tensor:
    return norms.build("frn", C, activation=nn.ReLU(), **f64)(x)


def centred(function: Function) -> Function:
    return lambda x: function(x - x.mean((2, 3), keepdim=True))


def scaled(function: Function, *, by: float = 3.0, plus: float = 0.0) -> Function:
    return lambda x: function(by * x + plus)


def per_pixel(function: Function) -> Function:
    def scaled_and_shifted(x: Tensor) -> Tensor:
        maps = pictures(len(x), 1, *x.shape[2:], seed=9)
        return function(x * (maps.abs() + 0.5) + maps)

    return scaled_and_shifted


def permuted(function: Function, axis: int, order: list[int]) -> Function:
    """Permute, apply, permute back."""
    index, back = torch.tensor(order), torch.tensor(order).argsort()
    return lambda x: function(x.index_select(axis, index)).index_select(axis, back)


def mirrored(function: Function) -> Function:
    return lambda x: function(x.flip(3)).flip(3)


def batch_group(groups: int, ghost_size: int) -> Function:
    return unit("batch_group", num_groups=groups, ghost_size=ghost_size)


def whole_tensor(x: Tensor) -> Tensor:
    return (x - x.mean()) / torch.sqrt(x.var(correction=0) + 1e-5)


def dimmed(function: Function, by: float = -1.0) -> Function:
    return lambda x: function(x) * torch.sigmoid(torch.tensor(by, **f64))


def clamped(x: Tensor, bound: float) -> Tensor:
    """A constant, which hangs on x with a gradient of zero."""
    return 0 * x + x.clamp(-bound, bound).detach()


def per_pixel_centred(function: Function) -> Function:
    return lambda x: function(x - x.mean(1, keepdim=True))


def then(first: Function, second: Function) -> Function:
    return lambda x: second(first(x))


def predicted(gain: float) -> Function:
    """bkn with a prediction far off."""
    law = bkn.Law(torch.full((1, C), 3.0, **f64), torch.full((1, C), 5.0, **f64))
    return lambda x: norms.build("bkn", C, gain=gain, **f64)(x, law)[0]


def one_of_two_domains(x: Tensor) -> Tensor:
    module = norms.build("bne", C, domains=2, **f64)
    norms.step_hooks(module).pictures(torch.ones(len(x), dtype=torch.long))
    return module(x)


def rectified(name: str) -> Function:
    return norms.build(name, C, activation=nn.ReLU(), **f64)


def _gates(weight: float, bias: float) -> nn.Module:
    module = norms.build("iebn", C, **f64)
    with torch.no_grad():
        module.gate_weight.fill_(weight)
        module.gate_bias.fill_(bias)
    return module


def opened(x: Tensor) -> Tensor:
    return _gates(0.0, 40.0)(x)


def gated(x: Tensor) -> Tensor:
    return _gates(0.7, -0.2)(x)


def proxied(activation: nn.Module, **options: object) -> Function:
    return norms.build("proxy", C, activation=activation, **f64, **options)


def standardized(function: Function) -> Function:
    """Behind it, the mean and variance of relu over 256 quantiles of the normal distribution, with 0.03."""
    quantiles = torch.special.ndtri((torch.arange(256, **f64) + 0.5) / 256).relu()
    return lambda x: (function(x) - quantiles.mean()) / torch.sqrt(quantiles.var(correction=0) + 0.03)


def _by_moments(x: Tensor, name: str) -> Tensor:
    module = evaluated(name)
    mean, var = (getattr(module, key)[:, None, None] for key in ("running_mean", "running_var"))
    return (x - mean) / torch.sqrt(var + 1e-5)


def where(x: Tensor, **shape: int) -> Tensor:
    """The first of ``x``: where(x, N=1, H=1, W=1)."""
    return x[: shape.get("N", N), :, : shape.get("H", H), : shape.get("W", W)]


ANY: dict[str, int] = {}
ONE_IMAGE = {"N": 1}
ONE_PIXEL = {"H": 1, "W": 1}
DOT = {"N": 1, "H": 1, "W": 1}
EPS0 = {"eps": 0.0}
AS_BN = {"r_max": 1.0, "d_max": 0.0}
BGN_UNEVEN = {"group_fit": "uneven"}
# (sentence, left, right, on which pictures)
TABLE: list[tuple[str, Function, Function, dict[str, int]]] = [
    ("none is the identity at the start", unit("none"), lambda x: x, ANY),
    ("bn is BatchNorm2d in training", unit("bn"), nn.BatchNorm2d(C, **f64), ANY),
    ("bn is BatchNorm2d in evaluation", evaluated("bn"), _evaluated(nn.BatchNorm2d(C, **f64)), ANY),
    ("bn with batch=2 is bn on every 2 images", unit("bn", batch=2), worker_by_worker("bn", 2), ANY),
    ("bn with batch=1 is in, in training", unit("bn", batch=1), unit("in"), ANY),
    ("bn of one image is in, in training", unit("bn"), unit("in"), ONE_IMAGE),
    ("ln is GroupNorm(1, C)", unit("ln"), nn.GroupNorm(1, C, **f64), ANY),
    ("ln is LayerNorm over C, H, W", unit("ln"), lambda x: F.layer_norm(x, x.shape[1:]), ANY),
    ("in is InstanceNorm2d", unit("in"), nn.InstanceNorm2d(C, **f64), ANY),
    ("gn is GroupNorm", unit("gn", num_groups=3), nn.GroupNorm(3, C, **f64), ANY),
    ("gn by default is GroupNorm(gcd(32, C))", unit("gn"), nn.GroupNorm(2, C, **f64), ANY),
    ("gn of one group is ln", unit("gn", num_groups=1), unit("ln"), ANY),
    ("gn of C groups is in", unit("gn", num_groups=C), unit("in"), ANY),
    ("gn uneven is strict where it divides", unit("gn", num_groups=3, **BGN_UNEVEN), unit("gn", num_groups=3), ANY),
    ("gn uneven of more groups than channels is in", unit("gn", num_groups=32, **BGN_UNEVEN), unit("in"), ANY),
    ("pn is LayerNorm over C at each pixel", unit("pn"), channels_last_layer_norm, ANY),
    ("pn is GroupNorm(1, C) on one pixel", unit("pn"), nn.GroupNorm(1, C, **f64), ONE_PIXEL),
    (
        "pn unbiased is pn times √((C − 1)/C), eps aside",
        unit("pn", unbiased=True, eps=0),
        lambda x: unit("pn", eps=0)(x) * ((C - 1) / C) ** 0.5,
        ANY,
    ),
    ("pn puts back its moments", lambda x: _moment_shortcut(x), lambda x: x, ANY),
    ("bgn of C groups is BatchNorm2d in training", unit("bgn", num_groups=C), nn.BatchNorm2d(C, **f64), ANY),
    (
        "bgn of C groups is BatchNorm2d in evaluation",
        evaluated("bgn", num_groups=C),
        _evaluated(nn.BatchNorm2d(C, **f64)),
        ANY,
    ),
    *(
        (f"bgn of {G} groups is 1-D batch norm on (N, G, S)", unit("bgn", num_groups=G), on_groups(G), ANY)
        for G in (1, 2, 3, 4, 6, 8, 9, 12, 16, 36, 48, 72, 144)
    ),
    *(
        (
            f"bgn uneven of {G} groups is strict, where it divides",
            unit("bgn", num_groups=G, **BGN_UNEVEN),
            unit("bgn", num_groups=G),
            ANY,
        )
        for G in (1, 3, 4, 12, 16, 144)
    ),
    *(
        (f"bgn of {G} groups of one image is gn", unit("bgn", num_groups=G), unit("gn", num_groups=G), ONE_IMAGE)
        for G in (1, 2, 3, 6)
    ),
    ("bgn of one group of one image is ln", unit("bgn", num_groups=1), unit("ln"), ONE_IMAGE),
    ("bgn of C groups of one image is in", unit("bgn", num_groups=C), unit("in"), ONE_IMAGE),
    ("bgn of one group with batch=1 is ln", unit("bgn", num_groups=1, batch=1), unit("ln"), ANY),
    ("bgn of D groups is BatchNorm1d on the flat images", unit("bgn", num_groups=144), flattened, ANY),
    ("bgn uneven of more than D groups is of D", unit("bgn", num_groups=999, **BGN_UNEVEN), flattened, ANY),
    ("bgn by default is uneven of 32", unit("bgn"), unit("bgn", num_groups=32, **BGN_UNEVEN), ANY),
    (
        "bgn by gcd is of gcd(G, D) groups",
        unit("bgn", num_groups=10, group_fit="gcd"),
        unit("bgn", num_groups=2),
        ANY,
    ),
    (
        "bgn permutes with the channels of a group",
        permuted(unit("bgn", num_groups=2), 1, [2, 0, 1, 4, 3, 5]),
        unit("bgn", num_groups=2),
        ANY,
    ),
    ("bgn of whole rows mirrors with the maps", mirrored(unit("bgn", num_groups=12)), unit("bgn", num_groups=12), ANY),
    ("frn with τ = 0 is frn, then ReLU", frn_tlu, frn_with_relu(), ANY),
    ("frn is in on centred pictures", centred(unit("frn", eps=1e-5)), unit("in"), ANY),
    ("frn with |ε_l| is frn with the sum", unit("frn", learn_eps=True), unit("frn", eps=1e-6 + 1e-4), ANY),
    (
        "frn with |ε_l| on one pixel is x/√(x² + ε)",
        unit("frn", learn_eps=True),
        lambda x: x / torch.sqrt(x**2 + 1e-6 + 1e-4),
        ONE_PIXEL,
    ),
    ("frn ignores scale, eps aside", scaled(unit("frn", **EPS0)), unit("frn", **EPS0), ANY),
    ("brn starts as bn", unit("brn"), unit("bn"), ANY),
    ("brn with r_max=1, d_max=0 is BatchNorm2d in training", unit("brn", **AS_BN), nn.BatchNorm2d(C, **f64), ANY),
    ("brn with r_max=1, d_max=0 and batch=2 is bn's", unit("brn", 2, **AS_BN), unit("bn", 2), ANY),
    (
        "brn on one pixel of one image is d",
        unit("brn", r_max=3, d_max=5),
        lambda x: clamped(x, 5),
        DOT,
    ),
    ("gbn of one ghost batch is BatchNorm2d in training", unit("gbn", ghost_size=N), nn.BatchNorm2d(C, **f64), ANY),
    ("gbn by default is bn for as few images, in training", unit("gbn"), unit("bn"), ANY),
    ("gbn of 1 image is in, in training", unit("gbn", ghost_size=1), unit("in"), ANY),
    ("gbn of 2 images is bn on every 2 images", unit("gbn", ghost_size=2), worker_by_worker("bn", 2), ANY),
    ("gbn of 2 images in workers of 4 is that of 2", unit("gbn", N, ghost_size=2), unit("gbn", ghost_size=2), ANY),
    (
        "gbn of 2 images on one pixel is a sign",
        unit("gbn", ghost_size=2, eps=1e-20),
        lambda x: (x - x.view(-1, 2, C, 1, 1).mean(1).repeat_interleave(2, 0)).sign() + 0 * x,
        ONE_PIXEL,
    ),
    ("gbn evaluates alike whatever its ghost_size", evaluated("gbn", ghost_size=2), evaluated("gbn"), ANY),
    ("gbn in evaluation is bn of its moments", evaluated("gbn"), lambda x: _by_moments(x, "gbn"), ANY),
    ("batch_group of C groups and all images is bn", batch_group(C, N), unit("bn"), ANY),
    ("batch_group of C groups is gbn", batch_group(C, 2), unit("gbn", ghost_size=2), ANY),
    ("batch_group of C groups of 1 image is in", batch_group(C, 1), unit("in"), ANY),
    ("batch_group of one group of 1 image is ln", batch_group(1, 1), unit("ln"), ANY),
    *(
        (f"batch_group of {G} groups of 1 image is gn", batch_group(G, 1), unit("gn", num_groups=G), ANY)
        for G in (2, 3)
    ),
    *(
        (f"batch_group of {G} groups and all images is bgn", batch_group(G, N), unit("bgn", num_groups=G), ANY)
        for G in (1, 2, 3, 6)
    ),
    ("batch_group by default is of gcd(32, C) groups of 2 images", unit("batch_group"), batch_group(2, 2), ANY),
    ("batch_group of one group and all images is of the whole tensor", batch_group(1, N), whole_tensor, ANY),
    (
        "batch_group permutes with the channels of a group",
        permuted(batch_group(2, 2), 1, [2, 0, 1, 4, 3, 5]),
        batch_group(2, 2),
        ANY,
    ),
    *(
        (f"{name} permutes with the images of a ghost batch", permuted(left, 0, [1, 0, 3, 2]), left, ANY)
        for name, left in (("gbn", unit("gbn", ghost_size=2)), ("batch_group", batch_group(3, 2)))
    ),
    (
        "batch_group of C groups evaluates as gbn",
        evaluated("batch_group", num_groups=C),
        evaluated("gbn"),
        ANY,
    ),
    ("iebn starts as BatchNorm2d times sigmoid(−1), in training", unit("iebn"), dimmed(nn.BatchNorm2d(C, **f64)), ANY),
    (
        "iebn starts as BatchNorm2d times sigmoid(−1), in evaluation",
        evaluated("iebn"),
        dimmed(_evaluated(nn.BatchNorm2d(C, **f64))),
        ANY,
    ),
    ("iebn with its gate open is bn", opened, unit("bn"), ANY),
    ("iebn permutes with the pixels", permuted(gated, 3, [5, 3, 1, 0, 2, 4]), gated, ANY),
    ("ic without dropout is BatchNorm2d in training", unit("ic", drop=0.0), nn.BatchNorm2d(C, **f64), ANY),
    ("ic is BatchNorm2d in evaluation", evaluated("ic", drop=0.3), _evaluated(nn.BatchNorm2d(C, **f64)), ANY),
    ("bne of one domain is BatchNorm2d in training", unit("bne"), nn.BatchNorm2d(C, **f64), ANY),
    ("bne of one domain is BatchNorm2d in evaluation", evaluated("bne"), _evaluated(nn.BatchNorm2d(C, **f64)), ANY),
    ("proxy without an activation is ln", unit("proxy"), unit("ln"), ANY),
    (
        "proxy of 3 groups and no activation is GroupNorm",
        unit("proxy", num_groups=3),
        nn.GroupNorm(3, C, **f64),
        ANY,
    ),
    (
        "proxy with a ReLU is ln, ReLU, proxy",
        proxied(nn.ReLU()),
        standardized(lambda x: unit("ln")(x).relu()),
        ANY,
    ),
    (
        "proxy of 2 groups with a ReLU is gn, ReLU, proxy",
        proxied(nn.ReLU(), num_groups=2),
        standardized(lambda x: unit("gn", num_groups=2)(x).relu()),
        ANY,
    ),
    (
        "proxy takes images one by one with its ReLU",
        lambda x: torch.cat([*map(proxied(nn.ReLU()), x.split(1))]),
        proxied(nn.ReLU()),
        ANY,
    ),
    *(
        (f"{name} ignores scale and shift, eps aside", scaled(unit(name, **EPS0), plus=7), unit(name, **EPS0), ANY)
        for name in ("bn", "ln", "in", "gn", "pn", "bgn", "brn", "gbn", "batch_group", "proxy")
    ),
    ("pn ignores scale and shift of every pixel", per_pixel(unit("pn", **EPS0)), unit("pn", **EPS0), ANY),
    ("pn permutes with the pixels", permuted(unit("pn"), 3, [5, 3, 1, 0, 2, 4]), unit("pn"), ANY),
    ("rms is pn where the mean of every pixel is 0", per_pixel_centred(unit("rms", eps=1e-5)), unit("pn"), ANY),
    ("bcn is gn of bn, in training", unit("bcn", num_groups=3), then(unit("bn"), unit("gn", num_groups=3)), ANY),
    ("rbn starts as bn times sigmoid(1)", unit("rbn"), dimmed(unit("bn"), 1.0), ANY),
    ("syncbn of all workers is bn of all", unit("syncbn", 2), nn.BatchNorm2d(C, **f64), ANY),
    ("dyt is odd", lambda x: -unit("dyt")(-x), unit("dyt"), ANY),
    ("dyt of a large slope is a sign", unit("dyt", alpha_init=1e9), torch.sign, ANY),
    ("bkn alone is BatchNorm2d in training", unit("bkn"), nn.BatchNorm2d(C, **f64), ANY),
    ("bkn in evaluation is bn in evaluation", evaluated("bkn"), evaluated("bn"), ANY),
    ("bkn of a gain of 1 takes no prediction", predicted(1.0), unit("bn"), ANY),
    ("bnp is no normalization", unit("bnp"), unit("none"), ANY),
    ("bnp around gn is gn", unit("bnp", base="gn"), unit("gn"), ANY),
    ("cbn of one step is BatchNorm2d in training", unit("cbn", window=1), nn.BatchNorm2d(C, **f64), ANY),
    ("cbn burns in as bn", unit("cbn", window=4, burnin=9), unit("bn"), ANY),
    ("cbn in evaluation is bn in evaluation", evaluated("cbn", window=4), evaluated("bn"), ANY),
    ("mbn of eta=1 is BatchNorm2d in training", unit("mbn", eta=1.0), nn.BatchNorm2d(C, **f64), ANY),
    ("mbn of eta=1 with batch=2 is bn's", unit("mbn", 2, eta=1.0), unit("bn", 2), ANY),
    ("mbn that remembers nothing yet is bn", unit("mbn", eta=0.3), unit("bn"), ANY),
    ("ic in evaluation is bn in evaluation", evaluated("ic"), evaluated("bn"), ANY),
    ("bne of one domain in evaluation is bn in evaluation", evaluated("bne"), evaluated("bn"), ANY),
    ("bne of two domains, all of one, is bn", one_of_two_domains, unit("bn"), ANY),
    ("ws is its base, gn, behind the weights", unit("ws", num_groups=3), unit("gn", num_groups=3), ANY),
    ("ws of bn is BatchNorm2d in training", unit("ws", base="bn"), nn.BatchNorm2d(C, **f64), ANY),
    ("nf without an activation is the identity", unit("nf"), lambda x: x, ANY),
    ("nf of a ReLU is a ReLU times its code's constant", rectified("nf"), lambda x: x.relu() * 1.7139588594446636, ANY),
    *(
        (f"{name} permutes with the images", permuted(copy.deepcopy(whole), 0, [2, 0, 3, 1]), whole, ANY)
        for name in norms.names()
        if name != "online"  # which goes through them one after another
        for given in ({"ghost_size": N} if "ghost_size" in norms.get(name).options else WITHOUT_DRAWS.get(name, {}),)
        for whole in (unit(name, **given),)
    ),
    *(
        (f"{name} takes images one by one", alone(name), unit(name), ANY)
        for name in norms.names()
        if not norms.get(name).mixes_samples
    ),
]


def _moment_shortcut(x: Tensor) -> Tensor:
    sigma = torch.sqrt(x.var(1, correction=0, keepdim=True) + 1e-5)
    return unit("pn")(x) * sigma + x.mean(1, keepdim=True)


@pytest.mark.parametrize(("sentence", "left", "right", "on"), TABLE, ids=[row[0] for row in TABLE])
def test_identity(sentence: str, left: Function, right: Function, on: dict[str, int]) -> None:
    x = where(pictures(N, C, H, W), **on).clone().requires_grad_()
    ours, theirs = left(x), right(x)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-11), f"not so: {sentence}"
    (g,), (h,) = gradients(ours, x), gradients(theirs, x)
    scale = max(1, h.abs().max().item())
    assert torch.allclose(g, h, rtol=1e-9, atol=1e-9 * scale), f"not so in the gradient: {sentence}"


def test_the_table_has_no_sentence_twice() -> None:
    assert len({row[0] for row in TABLE}) == len(TABLE)
