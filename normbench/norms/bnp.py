"""Batch Normalization Preconditioning (Lange, Helfrich & Ye, JMLR 23(72), 2022, arXiv:2108.01110).

The function is that of the network without normalizers; the gradients of its layers are those that gradient descent
would follow if each layer's inputs were normalized. A dense layer h = W x + b, G_W and G_b its gradients:
    s² = v + ε₁ max(v) + ε₂                              μ, v: running mean and variance of x, (n,)
    G_W ← (G_W − G_b μᵀ) / s²    per column of W         G_b ← G_b − G_W μ    with the new G_W
    both / q²,  q² = max(n / N, 1)                       N: outputs of the layer, of all images of a step; ``q_scale``
which is G P Pᵀ, P = [[1, −μᵀ], [0, I]] diag(1, 1/s), for [b W] and [1, x]. A convolution is a dense layer on patches,
whose moments are taken to be those of their channels, (C,): W: (O, C/groups, k, k), n = k k C/groups, N = images × H·W
of the output; a group has the moments of its own channels, and max(v) is of the whole layer.
Without b nothing could take up μ: P = diag(1/s), v + μ² (the mean square) in the place of v, G_W ← G_W / s².
``add_bias`` gives every convolution and linear layer a bias, from 0.
μ, v: running_mean, running_var of the layer, from 0 and 1; they move before the step's gradients are changed:
    μ ← ρ μ + (1 − ρ) mean x        v ← ρ v + (1 − ρ) var x
over all images of a step, those of all chunks and ranks: the variance is of all values, not the mean of the chunks' or
the workers' (forwards add up Σ (x − μ) and Σ (x − μ)², and ranks share these). ``around="running"``: v by the mean of
(x − μ)², μ as before the step, for steps of a single image, in which a dense layer's variance is 0. ``debias``: step t
counts 1/t in the first 1/(1 − ρ) steps, so that the start is forgotten at once.
Left as they are: gradients of a layer that was in no forward yet, or whose inputs are constant (max(v) below ε₂), and
of whatever is no nn.Conv2d or nn.Linear itself. A weight that several layers have in common is changed by the first.
In the training loop (``hooks``): after the backward, before clipping, whose bound is then in other units; weight decay
is added later, so outside of it. All training forwards since the last time are one step's.
At the sites: ``base="none"``, γ x + β; or ``gn``, group norm.  x, y: (N, C, H, W).  γ, β: (C,).  Train and eval alike.

Derived here, and tested, from the principle of the paper, whose text was not at hand: the transform. Recollections: ρ,
ε₁, ε₂, q, the start, and that the authors pair it with group norm on ResNets. Ours: the channels' moments for
convolutions, the form without b, ``around``, ``debias``, and the layers left as they are.
The edges of a padded convolution see zeros that the channels' moments do not know of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, gn, groups, none, plain, running
from normbench.norms.convolution import adopt
from normbench.norms.hooks import StepHooks
from normbench.norms.registry import Normalizer, register
from normbench.ranks import together_now

KEPT = ("running_mean", "running_var", "num_batches_tracked")


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, *, base: str = "none", num_groups: int = 1, eps: float = 1e-5
) -> Tensor:
    """The plain formula at a site."""
    if base == "none":
        return none.reference(x, weight, bias)
    return gn.reference(x, weight, bias, num_groups=num_groups, eps=eps)


def reference_gradient(of_weight: Tensor, of_bias: Tensor, mean: Tensor, s2: Tensor) -> tuple[Tensor, Tensor]:
    """G P Pᵀ of a dense layer, by the matrices: W's (m, n) and b's (m,); μ, s²: (n,)."""
    P = matrix(mean, s2)
    G = torch.cat([of_bias[:, None], of_weight], 1) @ P @ P.T
    return G[:, 1:], G[:, 0]


def matrix(mean: Tensor, s2: Tensor) -> Tensor:
    """P, (n + 1, n + 1)."""
    U = torch.eye(len(mean) + 1, dtype=mean.dtype)
    U[0, 1:] = -mean
    return U @ torch.diag(torch.cat([torch.ones(1, dtype=mean.dtype), 1 / torch.sqrt(s2)]))


@dataclass(frozen=True)
class Way:
    """How gradients are preconditioned."""

    decay: float
    eps1: float
    eps2: float
    q_scale: bool
    around: str
    debias: bool
    add_bias: bool


class Bare(nn.Module):
    """Scale and shift, or group norm: (N, C, H, W) → the same, then ``activation``. The rest is in the layers.

    Raises InputError for a ``num_groups`` that does not divide C (``strict``).
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        base: str = "none",
        num_groups: int | None = None,
        group_fit: str | None = None,
        decay: float = 0.99,
        eps1: float = 1e-2,
        eps2: float = 1e-4,
        q_scale: bool = True,
        around: str = "batch",
        debias: bool = False,
        add_bias: bool = False,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        activation: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.base, self.eps = num_features, base, eps
        self.num_groups = None
        if base == "gn":
            wanted, fit = groups.choose(num_groups, group_fit, gn.DEFAULT_GROUPS, "gcd")
            self.num_groups = groups.fit(num_features, wanted, fit, "bnp", f"num_features={num_features}")
        self.way = Way(decay, eps1, eps2, q_scale, around, debias, add_bias)
        self.activation = activation
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(running.leave_statistics_out)

    def forward(self, x: Tensor) -> Tensor:
        N, *_ = core.check_input(x, self.num_features, "bnp")
        if self.num_groups is not None:
            return core.standardize(x, N, self.num_groups, self.eps, *core.affine(self))
        x = x if self.weight is not None else x.clone()  # what works in place behind it must not reach its input
        return core.scale_shift(x, *core.affine(self))

    def extra_repr(self) -> str:
        return f"{self.num_features}, base={self.base}, num_groups={self.num_groups}, {self.way}"


class WatchedConv2d(nn.Conv2d):
    """A Conv2d that remembers the moments of its training inputs."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        _see(self, input, y, channel=-3)
        return y


class WatchedLinear(nn.Linear):
    """A Linear that remembers the moments of its training inputs."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        _see(self, input, y, channel=-1)
        return y


def watched(layer: nn.Module, unit: nn.Module) -> nn.Module:
    """The layer with its input's moments, running_mean and running_var, (in channels,); ``unit`` says how they move.

    seen_mean, seen_square: sums of x − μ and its square since gradients were last changed; seen: how many values they
    are of, and how many outputs there were.
    """
    made: Any = adopt(WatchedConv2d if isinstance(layer, nn.Conv2d) else WatchedLinear, layer)
    channels = made.in_channels if isinstance(made, nn.Conv2d) else made.in_features
    factory = {"device": made.weight.device, "dtype": plain.at_least_float32(made.weight.dtype)}
    made.way = unit.way
    running.add(made, channels, **factory)
    del made.example_weight  # no image is normalized by them
    for name in ("seen_mean", "seen_square"):
        made.register_buffer(name, torch.zeros(channels, **factory), persistent=False)
    made.register_buffer("seen", torch.zeros(2, **factory), persistent=False)
    if made.way.add_bias and made.bias is None:
        made.bias = nn.Parameter(made.weight.new_zeros(len(made.weight)), made.weight.requires_grad)
    made.register_load_state_dict_pre_hook(_load)
    return made


@torch.no_grad()
def _see(layer: Any, x: Tensor, y: Tensor, channel: int) -> None:
    if not layer.training:
        return
    others = tuple(axis for axis in range(x.dim()) if axis != x.dim() + channel)
    mean, var = plain.mean_var(x, others)
    values, apart = x.numel() // len(mean), mean - layer.running_mean
    layer.seen_mean.add_(apart, alpha=values)
    layer.seen_square.add_(var + apart.square(), alpha=values)
    layer.seen[0].add_(values)
    layer.seen[1].add_(y.numel() // len(layer.weight))


class Precondition(StepHooks):
    """Changes the gradients of every watched layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.layers = [module for module in model.modules() if isinstance(module, WatchedConv2d | WatchedLinear)]

    @torch.no_grad()
    def gradients(self) -> None:
        changed: set[int] = set()  # weights that several layers have in common count once
        for layer in self.layers:
            N = settle(layer)
            if layer.weight.grad is not None and id(layer.weight) not in changed:
                precondition(layer, N)
                changed.add(id(layer.weight))


def settle(layer: Any) -> Tensor:
    """Move μ and v by what was seen since the last time; the number of outputs on all ranks."""
    values, outputs = layer.seen.clone()
    there = values > 0
    count = values.clamp(min=torch.finfo(values.dtype).tiny)
    mean, square = layer.seen_mean / count, layer.seen_square / count  # around the running mean
    var = square if layer.way.around == "running" else (square - mean.square()).clamp(min=0)
    layer.num_batches_tracked.add_(there)
    share = torch.full_like(values, 1 - layer.way.decay)
    if layer.way.debias:
        share = torch.maximum(share, 1 / layer.num_batches_tracked.clamp(min=1).to(share.dtype))
    share = torch.where(there, share, 0.0)
    layer.running_mean.add_(share * mean)
    layer.running_var.lerp_(var.to(share.dtype), share)
    for buffer in (layer.seen, layer.seen_mean, layer.seen_square):
        buffer.zero_()
    return outputs * together_now()


def precondition(layer: Any, N: Tensor) -> None:
    """Change the gradients of a layer in place; N: its outputs in the step."""
    way, of_weight, of_bias = layer.way, layer.weight.grad, None if layer.bias is None else layer.bias.grad
    G = getattr(layer, "groups", 1)
    mean, var = layer.running_mean, layer.running_var
    used = (layer.num_batches_tracked > 0) & (var.max() >= way.eps2)
    v = var if of_bias is not None else var + mean.square()
    s2 = torch.where(used, v + way.eps1 * v.max() + way.eps2, 1.0)
    mean = torch.where(used, mean, 0.0)
    q2 = (layer.weight[0].numel() / N).clamp(min=1) if way.q_scale else torch.ones_like(N)
    q2 = torch.where(used & (N > 0), q2, 1.0)
    s2, mean = (value.view(G, 1, -1, 1) for value in (s2, mean))
    grad = of_weight.to(mean.dtype).reshape(G, len(of_weight) // G, s2.shape[2], -1)
    if of_bias is None:
        of_weight.copy_((grad / s2 / q2).view_as(of_weight))
        return
    b = of_bias.to(mean.dtype).view(G, -1, 1, 1)
    grad = (grad - b * mean) / s2
    b = b.flatten() - (grad * mean).sum((2, 3)).flatten()
    of_weight.copy_((grad / q2).view_as(of_weight))
    of_bias.copy_(b / q2)


def _load(layer: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a load: a plain layer's state has no moments and maybe no bias, so these stay as they are."""
    if any(prefix + key in state_dict for key in KEPT):
        return
    own = dict(layer.named_buffers(recurse=False)) | dict(_added(layer))
    state_dict.update(
        {prefix + key: own[key] for key in (*KEPT, *dict(_added(layer))) if prefix + key not in state_dict}
    )


def _added(layer: Any) -> Iterator[tuple[str, Tensor]]:
    if layer.way.add_bias and layer.bias is not None:
        yield "bias", layer.bias


register(
    Normalizer(
        name="bnp",
        unit=Bare,
        method="Batch Normalization Preconditioning",
        paper="Lange, Helfrich & Ye, JMLR 23(72), 2022, arXiv:2108.01110",
        mixes_samples=False,
        train_eval_differ=False,
        drop_in=False,
        layer=watched,
        hooks=Precondition,
    )
)
