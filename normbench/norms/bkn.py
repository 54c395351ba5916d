"""Batch Kalman Normalization (Wang, Peng, Luo, Wang & Lin 2018, arXiv:1802.03133; Kalman Normalization, NeurIPS 2018).

    m = (1 − q) m⁻ + q z                                     m⁻, V⁻: predicted;  z, S: measured in x, S biased
    V = (1 − q) V⁻ + q S + q (1 − q) (z − m⁻)²               moments of the mixture (1 − q) N(m⁻, V⁻) + q N(z, S)
    y = γ (x − m) / √(V + ε) + β
x, y: (N, C, H, W).  γ, β: (C,).  m, V, m⁻, V⁻, z, S: (workers, C), each over H, W and the ``batch`` images of a worker.
(z, S) alone, without a prediction and wherever the mean over channels of V⁻/S is ``gate_ratio`` or more. q is ``gain``;
None: n / (n + 18) for n images of a worker.
Train: alone (``unit(x)``) it is BatchNorm. In a model, ``unit(x, law)`` takes what is known of x and gives, behind y,
what is known of x and of y now; the training graph carries that from norm to norm (``wire``), below.
Eval: running_mean, running_var (C,), moved by ``momentum`` (torch's sense) towards the mean over the workers of m and
V, S unbiased in it, so that q = 1 is BatchNorm; the graph carries nothing. Works from N = 1, if H·W > 1.

What is carried (Law) is a normal distribution for each worker and channel, alike at all pixels, and the activation on
it. ``prior="code"``: N(m, V), which is of x, not of y, as in the released code; ``consistent``: N(β, γ²), what enters
the activation.
    activation      ``propagate="sample"``: one map of draws for each worker, of the true size, fresh in every step;
                    what follows works on the map. ``moments``: mean and variance, of a ReLU in closed form, of others
                    from draws
    convolution     of the map, with the same weights, then mean and variance over its pixels; moments: in closed form,
                    Σ_c r_c Σ w and Σ_c v_c Σ w², which knows no borders
    sum             means and variances added, as of independent terms; a trunk keeps its own, it does not become m, V
    concatenation   concatenated
    max pooling     on the map, drawn for it if need be
    mean pooling, dropout, slices of H and W    kept as it is
    zero padding    of channels with (0, 0)
All else starts anew: gates, shuffles, products, a sum with a term that nothing is known of. A tensor that nothing was
known of is known once a norm has measured it. A unit's ``predicted`` says whether it is given a prediction.

From the released code (CIFAR): the filter, its gate, the map of draws, gradients that flow along it (not with
``detach_prior``), the sum and the padding, gains of 0.1 for batches of 2 and 0.95 for 128. A recollection, not here:
the paper's learned transition, process noise and gain. Ours: the gain between, ``consistent``, ``moments``, the
unbiased S and the mean over workers in the running statistics (there: the first one's), a trunk that is known by its
first norm, and all of the carrying beyond chains, sums and padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from normbench.norms import core, plain, population, running
from normbench.norms.registry import Normalizer, register
from normbench.norms.wiring import Wiring

# Of the batch at which measurement and prediction weigh the same: 0.1 for 2 images, 0.88 for 128.
HALF_GAIN = 18
LEAST_VAR = 1e-12  # below it a channel is a constant, and the gradient of its deviation 0


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    prior: tuple[Tensor, Tensor] | None = None,
    gain: float = 1.0,
    gate_ratio: float = 100.0,
    eps: float = 1e-5,
    batch: int | None = None,
) -> Tensor:
    """The plain formula, as in training; prior: m⁻ and V⁻, (workers, C) each."""
    y = []
    for i, worker in enumerate(x.split(batch or len(x))):
        z = worker.mean((0, 2, 3))
        S = ((worker - z[:, None, None]) ** 2).mean((0, 2, 3))
        m, V = z, S
        if prior is not None and (prior[1][i] / S).mean() < gate_ratio:
            m = (1 - gain) * prior[0][i] + gain * z
            V = (1 - gain) * prior[1][i] + gain * S + gain * (1 - gain) * (z - prior[0][i]) ** 2
        y.append((worker - m[:, None, None]) / torch.sqrt(V + eps)[:, None, None])
    return weight[:, None, None] * torch.cat(y) + bias[:, None, None]


class Law(NamedTuple):
    """What is known of a tensor (N, C, H, W), for each of R workers: activation(N(mean, var)), or maps drawn from that.

    mean, var: (R, C) each. maps: (R, C, H, W), in place of the three. sample, detach: how it is carried.
    """

    mean: Tensor
    var: Tensor
    activation: nn.Module | None = None
    maps: Tensor | None = None
    sample: bool = True
    detach: bool = False

    def of(self, mean: Tensor, var: Tensor) -> Law:
        """A normal distribution, carried likewise."""
        if self.detach:
            mean, var = mean.detach(), var.detach()
        return Law(mean, var, None, None, self.sample, self.detach)


class BatchKalmanNorm(nn.Module):
    """Normalize by a blend of the batch's moments and predicted ones: (N, C, H, W) → the same, then ``activation``.

    ``unit(x)`` is y. ``unit(x, law)``, of a Law or None: y, the law of x and that of y. ``batch`` is as in BatchNorm.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    predicted = False

    def __init__(
        self,
        num_features: int,
        gain: float | None = None,
        prior: str = "code",
        propagate: str = "sample",
        detach_prior: bool = False,
        gate_ratio: float = 100.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        activation: nn.Module | None = None,
        batch: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum, self.batch = num_features, eps, momentum, batch
        self.gain, self.prior, self.propagate = gain, prior, propagate
        self.detach_prior, self.gate_ratio = detach_prior, gate_ratio
        self.activation = activation
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        running.add(self, num_features, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(running.take_statistics)

    def forward(self, x: Tensor, *given: Law | None) -> Any:
        N, C, H, W = core.check_input(x, self.num_features, "bkn")
        affine = core.affine(self)
        if not self.training and self.running_mean is not None:
            mean, var = running.statistics(self)
            own, within = running.evaluation(self, x)
            y = core.normalize(x, own, within, self.eps, *affine)
            each = (N // (self.batch or N) or 1, C)
            return (y, *self._laws(mean.expand(each), var.expand(each))) if given else y
        workers = core.workers(N, self.batch if self.training else None, "bkn")
        unbiased = running.unbiased(N // workers * H * W)
        if not given:
            track = running.variance(self, workers, unbiased)
            return core.standardize(x, workers, C, self.eps, *affine, track=track)
        z, S = plain.pool(*plain.moments(x), workers, C)
        mean, var, of_measured = z, S, torch.ones_like(z[:, :1])
        if given[0] is not None and self.training:
            mean, var, of_measured = self.filter(z, S, *moments(given[0], x), images=N // workers)
        y = core.normalize(x, mean, var, self.eps, *affine)
        kept = (var + of_measured * (unbiased - 1) * S).detach()
        population.met(self, z, S)  # what was measured, as without a prediction
        with population.paused():
            running.update(self, mean.detach(), kept, 1.0)
        return (y, *self._laws(mean, var))

    def filter(self, z: Tensor, S: Tensor, mean: Tensor, var: Tensor, images: int) -> tuple[Tensor, Tensor, Tensor]:
        """m and V, (workers, C) each, by what was measured and what was predicted; the share of S, (workers, 1)."""
        q = images / (images + HALF_GAIN) if self.gain is None else self.gain
        if self.detach_prior:
            mean, var = mean.detach(), var.detach()
        var = var.clamp(min=0)
        with torch.no_grad():
            ratio = var / S.clamp(min=torch.finfo(S.dtype).tiny)
            trusted = ratio.mean(1, keepdim=True) < self.gate_ratio  # not where it is not a number, either
        mean, var = (torch.where(trusted, value, own) for value, own in ((mean, z), (var, S)))
        m = (1 - q) * mean + q * z
        V = (1 - q) * var + q * S + q * (1 - q) * (z - mean).square()
        return m, V, torch.where(trusted, q, 1.0).to(S.dtype)

    def _laws(self, mean: Tensor, var: Tensor) -> tuple[Law, Law]:
        """Of x, and of y."""
        if self.detach_prior:
            mean, var = mean.detach(), var.detach()
        of_x = Law(mean, var, None, None, self.propagate == "sample", self.detach_prior)
        if self.prior == "consistent":
            shift = torch.zeros_like(mean) if self.bias is None else self.bias.to(mean.dtype).expand_as(mean)
            scale = torch.ones_like(var) if self.weight is None else self.weight.to(var.dtype).expand_as(var)
            return of_x, of_x.of(shift, scale.square())._replace(activation=self.activation)
        return of_x, of_x._replace(activation=self.activation)

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one measured statistic."""
        return batch * H * W

    def extra_repr(self) -> str:
        way = f"prior={self.prior}, propagate={self.propagate}, predicted={self.predicted}"
        return f"{self.num_features}, gain={self.gain}, {way}, eps={self.eps}, batch={self.batch}"


# The steps that graphs carry laws by. ``x`` and the like: the tensor that a law is of, for its size and dtype.


def maps_of(law: Law, x: Tensor) -> Tensor:
    """Maps drawn from the law, (R, C, H, W)."""
    if law.maps is not None:
        return law.maps
    H, W = x.shape[2:]
    std = torch.sqrt(law.var.clamp(min=LEAST_VAR))[..., None, None]
    noise = torch.randn(*law.mean.shape, H, W, dtype=std.dtype, device=std.device)
    values = torch.addcmul(law.mean[..., None, None], noise, std)
    return (values if law.activation is None else law.activation(values)).to(x.dtype)


def drawn(law: Law, x: Tensor) -> Law:
    """With its maps, if they are what is carried: all that follows takes the same draws."""
    return law._replace(maps=maps_of(law, x)) if law.sample else law


def moments(law: Law, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance, (R, C) each."""
    if law.maps is None and law.activation is None:
        return law.mean, law.var
    if law.maps is None and type(law.activation) is nn.ReLU:
        return rectified(law.mean, law.var)
    maps = maps_of(law, x)
    mean, var = plain.mean_var(maps, (2, 3))
    return mean.to(law.mean.dtype), var.to(law.mean.dtype)


def rectified(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of max(N(mean, var), 0)."""
    s = torch.sqrt(var.clamp(min=LEAST_VAR))
    k = mean / s
    above, density = torch.special.ndtr(k), torch.exp(-k.square() / 2) / math.sqrt(2 * math.pi)
    first = mean * above + s * density
    second = (mean.square() + s.square()) * above + mean * s * density
    return first, (second - first.square()).clamp(min=0)


def convolved(law: Law, x: Tensor, conv: nn.Conv2d) -> Law:
    """Behind a convolution, by its own weights."""
    if law.sample:
        mean, var = plain.mean_var(conv(maps_of(law, x)), (2, 3))
        return law.of(mean.to(law.mean.dtype), var.to(law.mean.dtype))
    mean, var = (value.unflatten(1, (conv.groups, -1)) for value in moments(law, x))
    with torch.autocast(x.device.type, enabled=False):
        weight = conv.weight.to(mean.dtype).unflatten(0, (conv.groups, -1))
        mean = torch.einsum("rgc,goc->rgo", mean, weight.sum((3, 4))).flatten(1)
        var = torch.einsum("rgc,goc->rgo", var, weight.square().sum((3, 4))).flatten(1)
    return law.of(mean if conv.bias is None else mean + conv.bias.to(mean.dtype), var)


def added(a: Law, b: Law, x: Tensor, y: Tensor) -> Law:
    """Of a sum of independent terms."""
    (mean, var), (more, apart) = moments(a, x), moments(b, y)
    return a.of(mean + more, var + apart)


def bent(law: Law, x: Tensor, activation: nn.Module) -> Law:
    """Behind an activation."""
    if law.maps is not None:
        return law._replace(maps=activation(law.maps))
    return (law if law.activation is None else law.of(*moments(law, x)))._replace(activation=activation)


def joined(laws: list[Law], tensors: list[Tensor]) -> Law:
    """Concatenated channels."""
    first = laws[0]
    if all(law.maps is None and repr(law.activation) == repr(first.activation) for law in laws):
        mean, var = torch.cat([law.mean for law in laws], 1), torch.cat([law.var for law in laws], 1)
        return first._replace(mean=mean, var=var)
    pairs = list(zip(laws, tensors, strict=True))
    if first.sample:
        return first._replace(maps=torch.cat([maps_of(law, x) for law, x in pairs], 1))
    mean, var = (torch.cat(values, 1) for values in zip(*(moments(law, x) for law, x in pairs), strict=True))
    return first.of(mean, var)


def seen(law: Law, maps: Tensor) -> Law:
    """By maps that were worked on."""
    if law.sample:
        return law._replace(maps=maps)
    mean, var = plain.mean_var(maps, (2, 3))
    return law.of(mean.to(law.mean.dtype), var.to(law.mean.dtype))


def kept(law: Law, y: Tensor) -> Law:
    """As it is, on the smaller map of ``y``: all pixels are alike."""
    H, W = y.shape[2:]
    return law if law.maps is None else law._replace(maps=law.maps[:, :, :H, :W])


def padded(law: Law, x: Tensor, pad: tuple[int, ...]) -> Law:
    """With channels of zeros, and in maps of draws pixels of zeros."""
    if law.maps is not None:
        return law._replace(maps=F.pad(law.maps, pad))
    mean, var = (F.pad(value, pad[4:6]) for value in moments(law, x))
    return law.of(mean, var)


ADD, CAT, PAD = ("add", "add_", "iadd"), ("cat", "concat", "concatenate"), ("pad",)
MAX_POOLS = ("max_pool2d", "adaptive_max_pool2d", "MaxPool2d", "AdaptiveMaxPool2d")
KEPT = (
    *("avg_pool2d", "adaptive_avg_pool2d", "AvgPool2d", "AdaptiveAvgPool2d"),
    *("dropout", "dropout2d", "feature_dropout", "Dropout", "Dropout2d", "StochasticDepth", "DropPath"),
    *("contiguous", "clone", "Identity"),
)


class _Carrier:
    """Adds to a training graph what carries laws along. ``laws``: of the nodes whose tensors something is known of."""

    def __init__(self, wiring: Wiring, graph: fx.Graph) -> None:
        self.wiring, self.graph = wiring, graph
        self.laws: dict[fx.Node, fx.Node] = {}
        self.made: list[fx.Node] = []
        self.activations: dict[str, str] = {}

    def go(self) -> None:
        for node in list(self.graph.nodes):
            with self.graph.inserting_before(node.next):
                if str(node.target) in self.wiring.units:
                    self.units(node)
                elif (law := self.follow(node)) is not None:
                    self.laws[node] = law
        for node in reversed(self.made):
            if not node.users:
                self.graph.erase_node(node)

    def units(self, node: fx.Node) -> None:
        """Let a unit take what is known of its input, and take what it says of both."""
        (x,) = node.all_input_nodes
        call = self.graph.call_module(str(node.target), (x, self.laws.get(x)))
        y, of_x, of_y = (self.graph.call_function(getitem, (call, i)) for i in range(3))
        self.made += [of_x, of_y]
        node.replace_all_uses_with(y)
        self.graph.erase_node(node)
        unit = self.wiring.units[str(node.target)]
        assert isinstance(unit, BatchKalmanNorm)
        unit.predicted = unit.predicted or x in self.laws
        self.laws.setdefault(x, of_x)
        self.laws[y] = of_y

    def follow(self, node: fx.Node) -> fx.Node | None:
        """The law of what any other node gives; None where nothing is known."""
        module = self.wiring.module(node)
        name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
        inputs = node.all_input_nodes
        if not inputs or any(x not in self.laws for x in inputs):
            return None
        x, *others = inputs
        law = self.laws[x]
        if isinstance(module, nn.Conv2d):
            law = self.laws[x] = self.call(drawn, law, x)
            return self.call(convolved, law, x, self.attribute(str(node.target)))
        if name in ADD and len(inputs) == 2 and not node.kwargs:
            return self.call(added, law, self.laws[others[0]], x, others[0])
        if name in CAT and _dim(node) in (1, -3):
            return self.call(joined, [self.laws[i] for i in inputs], inputs)
        if others:
            return None
        if name in MAX_POOLS:
            law = self.laws[x] = self.call(drawn, law, x)
            maps = self.call(maps_of, law, x)
            again = self.graph.node_copy(node, lambda _: maps)
            self.made.append(again)
            return self.call(seen, law, again)
        if name in KEPT or (name == "getitem" and _cuts_pixels(node.args[1])):
            return self.call(kept, law, node)
        if name in PAD and (pad := _zeros(node)) is not None:
            return self.call(padded, law, x, pad)
        activation = self.wiring.activation(node)
        return None if activation is None else self.call(bent, law, x, self.attribute(self.activation(activation)))

    def call(self, step: Callable[..., Any], *args: Any) -> fx.Node:
        made = self.graph.call_function(step, args)
        self.made.append(made)
        return made

    def attribute(self, name: str) -> fx.Node:
        made = self.graph.get_attr(name)
        self.made.append(made)
        return made

    def activation(self, module: nn.Module) -> str:
        """The name of one module for all activations alike, which the model has; it must not work in place."""
        key = repr(module)
        if key not in self.activations:
            self.activations[key] = self.wiring.add("", module, type(module).__name__.lower())
        return self.activations[key]


def getitem(values: Any, i: int) -> Any:
    """values[i], told from the model's own indexing."""
    return values[i]


def _dim(node: fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))


def _cuts_pixels(index: Any) -> bool:
    """Whether an index leaves all images and channels: x[:, :, ::2, ::2]."""
    whole = slice(None)
    return (
        isinstance(index, tuple)
        and len(index) == 4
        and index[:2] == (whole, whole)
        and all(isinstance(part, slice) for part in index)
    )


def _zeros(node: fx.Node) -> tuple[int, ...] | None:
    """The six numbers of a padding with zeros of H, W and channels."""
    names = ("input", "pad", "mode", "value")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    pad = tuple(given["pad"])
    plain_zeros = given.get("mode", "constant") == "constant" and not given.get("value")
    if not plain_zeros or len(pad) > 6 or len(pad) % 2 or not all(isinstance(side, int) for side in pad):
        return None
    return pad + (0,) * (6 - len(pad))


def wire(wiring: Wiring) -> None:
    """Carry laws through the graph of training; that of evaluation stays as it is."""
    _Carrier(wiring, wiring.graphs[0]).go()


register(
    Normalizer(
        name="bkn",
        unit=BatchKalmanNorm,
        method="Batch Kalman Normalization",
        paper="Wang, Peng, Luo, Wang & Lin 2018, arXiv:1802.03133",
        mixes_samples=True,
        train_eval_differ=True,
        drop_in=False,
        wire=wire,
    )
)
