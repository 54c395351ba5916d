"""Weight Standardization (Qiao, Wang, Liu, Shen & Yuille 2019, arXiv:1903.10520) in front of another normalizer.

    Ŵ = (W − μ) / √(σ² + ε)          y = norm(Ŵ ∗ x)
W, Ŵ: (O, I, kh, kw).  μ, σ²: (O,), over the I·kh·kw weights of a filter; σ² biased; ε: ``ws_eps``.
The convolution right before a site works with Ŵ in the place of W; the gradient flows through μ and σ². The unit at the
site is that of ``base``, and takes its options; what mixes images, differs between train and eval or is kept is the
base's too. A convolution that no norm follows, and the classifier, stay as they are.
Train and eval: Ŵ alike.  Works from the base's least batch.
Differs from the paper: its README divides by the unbiased deviation plus 1e-5; the same group's batch-channel code has
ε inside the root of the variance, as here. Biased variance and 1e-5 are our choice of three conventions (timm's eps is
1e-6). The paper's norms are gn, the default, and bcn.  Where n = I·kh·kw is small (depthwise) Ŵ is noisy; of a single
weight per filter it is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normbench.errors import UnknownName
from normbench.norms import core, options, registry
from normbench.norms.convolution import Reweighted, adopt, as_filters, as_maps
from normbench.norms.normalizer import Normalizer

NAME = "ws"
ROW_OPTIONS = {"base": "gn", "ws_eps": 1e-5}


def reference(weight: Tensor, *, ws_eps: float = 1e-5) -> Tensor:
    """The plain formula, of the weights."""
    mu = weight.mean((1, 2, 3), keepdim=True)
    var = ((weight - mu) ** 2).mean((1, 2, 3), keepdim=True)
    return (weight - mu) / torch.sqrt(var + ws_eps)


class StandardizedConv2d(Reweighted):
    """A Conv2d whose filters have mean 0 and variance 1."""

    ws_eps: float

    def reweigh(self, weight: Tensor) -> Tensor:
        maps = as_maps(weight)  # a filter is to its weights what a channel is to instance norm
        return as_filters(core.standardize(maps, 1, len(weight), self.ws_eps, None, None), weight)


def _convolution(convolution: nn.Conv2d, _unit: nn.Module | None, ws_eps: float) -> nn.Module:
    made = adopt(StandardizedConv2d, convolution)
    made.ws_eps = ws_eps
    return made


def _settle(given: Mapping[str, Any]) -> Normalizer:
    """The row for a base: the base's unit, traits and options. Raises UnknownName for what cannot be one."""
    name = given.get("base", ROW_OPTIONS["base"])
    bases = [other for other in registry.ours() if other != NAME and registry.get(other).drop_in]
    if name not in bases:
        raise UnknownName(f"base of {NAME}", str(name), bases, "It must be able to stand in a BatchNorm's place.")
    base = registry.get(name)
    ws_eps = given.get("ws_eps", ROW_OPTIONS["ws_eps"])
    return replace(
        base,
        name=NAME,
        method="Weight Standardization before another norm",
        paper="Qiao, Wang, Liu, Shen & Yuille 2019, arXiv:1903.10520",
        drop_in=False,
        convolution=partial(_convolution, ws_eps=ws_eps),
        check=partial(_check, base),
        row_options={**ROW_OPTIONS, "base": name},
        settle=_settle,
    )


def _check(base: Normalizer, given: Mapping[str, Any], name: str) -> None:
    options.check({key: value for key, value in given.items() if key == "ws_eps"}, name)
    if base.check is not None:
        base.check({key: value for key, value in given.items() if key not in ROW_OPTIONS}, name)


registry.register(_settle({}))
