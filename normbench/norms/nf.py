"""Normalizer-free networks (Brock, De & Smith, ICLR 2021, arXiv:2101.08692; gradient clipping of NFNets, 2102.06171).

No statistics of maps. Instead, with γ, β (C,) the ``weight`` and ``bias`` of the unit at a site:

    convolution   Ŵ = (W − μ) / √max(n σ², 1e-4)         μ, σ² (biased) over the n = I·kh·kw weights of a filter
    site          y = c φ(γ x + β)                       c = 1 / std φ(z), z standard normal; no activation: c = 1
    block         u = x / √v on the branch               v: the variance that x is expected to have
                  y = s + α s₀ h                         h: the branch's end; s₀: ``skip_gain`` (), learned, from 0
    gradient      g ← g min(1, ``agc`` max(‖W‖, 1e-3) / max(‖g‖, 1e-6)), filter by filter (row by row of a matrix,
                  vectors and scalars whole), in all but the classifier; agc=None: not at all

x, y: (N, C, H, W).  W: (O, I, kh, kw); every convolution before a site, and every other one without a bias of its own,
which counts on a norm somewhere.  γ and β are the code's gain and bias of the convolution, applied after it instead of
in it: the same function.  No buffers; train and eval alike; works from N = 1; images do not mix.

A residual sum is found in the graph (residual.py). v starts at 1, is handed on by all else, and after a sum is v + α²,
or 1 + α² where the shortcut is not the block's input as it is (a transition): there the shortcut, too, starts from u.
In a pre-activation block u is the first unit's output divided by √v: φ(x) β, as the code has it. In a block whose sum
goes through a ReLU (the first ResNets), which the papers' nets are not, and this is our construction, x is the ReLU's
output: that ReLU gets its constant c after a transition with a convolution on the shortcut, and stays bare after any
other sum, where nearly all of its input is positive already and c would let the signal grow threefold a block. So with
skip_gain = 0 a block is the identity, or its shortcut. Expected variances hold there only roughly. A net without
residual sums (InceptionV3; nothing published covers it) has standardized weights and scaled activations alone.

``rules="bnn"``: as the code of "BNN − BN = ?" (Chen et al. 2021, arXiv:2104.08215) has it, which makes BN-free nets of
arch=reactnet18 and reactnet_a: Ŵ = (W − μ) / (√n (σ + 1e-5)), c = 1 everywhere, no s₀; v is 1 right after the block of
a transition, stays what it is over the first block of a stage (a container's number 0), and grows by α² at every other
sum. A convolution with binary weights makes them of Ŵ.

c is the code's for ReLU, SiLU and GELU (sampled there: ReLU's exact value is 1.71286), and an integral for all else; an
activation with parameters has that of their first values.  Not from the papers: γ and β also at sites that no
convolution precedes, and none at convolutions that no site follows; the classifier keeps its initialization; dropout
and stochastic depth are the architecture's; squeeze-and-excitation is not doubled. Where a BatchNorm starts at weight 0
(zero_init) so does γ. eps is taken and not used, so that any norm's place will do.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from normbench.norms import core, plain, residual, running
from normbench.norms.convolution import Reweighted, adopt, as_filters, as_maps
from normbench.norms.hooks import StepHooks
from normbench.norms.registry import Normalizer, is_unit, mark, register
from normbench.norms.residual import Residual
from normbench.norms.wiring import Wiring

FLOOR = 1e-4  # least n σ² that a filter is divided by
STD_EPS = 1e-5  # the other code's, added to σ
LEAST_NORM = 1e-3  # of a filter, for clipping
CONSTANTS: dict[type[nn.Module], float] = {
    nn.ReLU: 1.7139588594436646,
    nn.SiLU: 1.7881293296813965,
    nn.GELU: 1.7015043497085571,
}
HEADS = "_nf_heads"


def reference(x: Tensor, weight: Tensor, bias: Tensor, *, activation: nn.Module | None = None) -> Tensor:
    """The plain formula of a site."""
    y = weight[:, None, None] * x + bias[:, None, None]
    return y if activation is None else constant(activation, x.shape[1]) * activation(y)


def reference_weight(weight: Tensor, rules: str = "nf") -> Tensor:
    """The plain formula of a convolution's weights."""
    n = weight[0].numel()
    mu = weight.mean((1, 2, 3), keepdim=True)
    var = ((weight - mu) ** 2).mean((1, 2, 3), keepdim=True)
    if rules == "bnn":
        return n**-0.5 * (weight - mu) / (torch.sqrt(var) + STD_EPS)
    return (weight - mu) / torch.sqrt(torch.clamp(n * var, min=FLOOR))


class NormalizerFree(nn.Module):
    """Scale and shift each channel, then the ``activation`` times its constant: (N, C, H, W) → the same.

    ``alpha``, ``agc`` and ``rules`` are the network's, and the same in all its units.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        alpha: float = 0.2,
        agc: float | None = None,
        rules: str = "nf",
        eps: float = 1e-5,
        affine: bool = True,
        *,
        activation: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        self.alpha, self.agc, self.rules = alpha, agc, rules
        self.activation = activation
        self.constant = 1.0 if activation is None or rules == "bnn" else constant(activation, num_features)
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(running.leave_statistics_out)

    def forward(self, x: Tensor) -> Tensor:
        core.check_input(x, self.num_features, "nf")
        weight, bias, activation = core.affine(self)
        if weight is not None and bias is not None and type(activation) is nn.ReLU:
            # c φ(z) = φ(c z): on C values, not on a map.
            return core.scale_shift(x, weight * self.constant, bias * self.constant, activation)
        x = x if self.affine else x.clone()  # what works in place behind it must not reach its input
        y = core.scale_shift(x, weight, bias, activation)
        return y if self.constant == 1 else y * self.constant

    def extra_repr(self) -> str:
        return f"{self.num_features}, constant={self.constant:.4g}, alpha={self.alpha}, agc={self.agc}"


def constant(activation: nn.Module, num_features: int) -> float:
    """1 / std φ(z) of a standard normal z; 1 where φ is constant. One number, over all channels."""
    if type(activation) in CONSTANTS:
        return CONSTANTS[type(activation)]
    # The trapezoidal rule, where the tails beyond 10 hold 1e-23 of the mass.
    C = num_features if any(True for _ in activation.parameters()) else 1
    z = torch.linspace(-10, 10, 2001, dtype=torch.float64, device="cpu")
    density = torch.exp(-z.square() / 2)
    density /= density.sum()
    with torch.no_grad():
        y = copy.deepcopy(activation).to("cpu", torch.float64).eval()(z[:, None, None, None].repeat(1, C, 1, 1))
        y = y.flatten(1)
        mean = density @ y
        std = math.sqrt(float((density @ (y - mean).square()).mean()))
    return 1 / std if std > 1e-6 else 1.0  # or a constant, whose rounding is no variance


class ScaledStdConv2d(Reweighted):
    """A Conv2d whose filters have mean 0 and norm 1."""

    rules: Any = "nf"

    def reweigh(self, weight: Tensor) -> Tensor:
        n = weight[0].numel()
        if self.rules == "nf" and core.kernels_here(maps := as_maps(weight)):
            # In a quarter of the time, where no filter is at the floor.
            gain = maps.new_full((len(weight),), n**-0.5)
            y, moments = core.measured(maps, 1, len(weight), 0.0, gain, None)
            if n * moments.var.min() > FLOOR:
                return as_filters(y, weight)
        mean, var = plain.mean_var(weight, (1, 2, 3), keepdim=True)
        if self.rules == "bnn":
            std = torch.sqrt(var.clamp(min=torch.finfo(var.dtype).tiny))  # a root has no slope at 0
            scale = n**-0.5 / (std + STD_EPS)
        else:
            scale = torch.rsqrt((n * var).clamp(min=FLOOR))
        return ((weight - mean) * scale).to(weight.dtype)


def _convolution(convolution: nn.Conv2d, unit: nn.Module | None) -> nn.Module:
    if unit is None and convolution.bias is not None:
        return convolution
    return adopt(ScaledStdConv2d, convolution)


class ResidualSum(nn.Module):
    """s + α skip_gain h, (N, C, H, W) each; skip_gain () is learned, from 0."""

    def __init__(self, alpha: float, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.alpha = alpha
        self.skip_gain = nn.Parameter(torch.zeros((), device=device, dtype=dtype))

    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        return torch.addcmul(shortcut, branch, self.skip_gain.to(branch.dtype), value=self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


def _wire(wiring: Wiring) -> None:
    sums: dict[str, str] = {}  # a block that is called twice has one
    for graph in wiring.graphs:
        residuals = residual.find(graph, wiring)
        _Rewiring(graph, wiring, sums).run(residuals, variances(graph, residuals, wiring))
    for module in wiring.tree.modules():
        if isinstance(module, ScaledStdConv2d):
            module.rules = next(iter(wiring.units.values())).rules
    heads = dict.fromkeys(name for graph in wiring.graphs for name in _heads(graph, wiring))
    setattr(wiring.tree, HEADS, tuple(heads))


def variances(graph: fx.Graph, residuals: Iterable[Residual], wiring: Wiring) -> dict[fx.Node, float]:
    """The variance that each node's map is expected to have: the mean of what goes into it, but for residual sums."""
    at = {r.node: r for r in residuals}
    found: dict[fx.Node, float] = {}
    for node in graph.nodes:
        inputs = [found[other] for other in node.all_input_nodes if other.op != "get_attr"]
        found[node] = sum(inputs) / len(inputs) if inputs else 1.0
        if (r := at.get(node)) is not None:
            found[node] = _after(r, found[r.fork], at.values(), wiring.units[r.unit])
    return found


def _after(r: Residual, v: float, residuals: Iterable[Residual], unit: Any) -> float:
    if unit.rules == "nf":
        return (v if r.identity else 1.0) + unit.alpha**2
    if r.last and any(other.block == r.block and not other.identity for other in residuals):
        return 1.0
    return v if r.block.rpartition(".")[2] == "0" else v + unit.alpha**2


class _Rewiring:
    """The edits of one graph. ``sums``: the ResidualSum of every branch, by its last site, that both graphs call."""

    def __init__(self, graph: fx.Graph, wiring: Wiring, sums: dict[str, str]) -> None:
        self.graph, self.wiring, self.sums = graph, wiring, sums
        self.now: dict[fx.Node, fx.Node] = {}  # what stands for a node that was replaced
        self.scaled: dict[tuple[fx.Node, float], fx.Node] = {}

    def run(self, residuals: Iterable[Residual], v: dict[fx.Node, float]) -> None:
        """``residuals`` in the order of the graph, ``v`` by its nodes as they were."""
        for r in residuals:
            self._start(r, 1 / math.sqrt(v[r.fork]))
            self._sum(r, self.wiring.units[r.unit])

    def _start(self, r: Residual, beta: float) -> None:
        """Let the branch, and a shortcut that is not the block's input as it is, start from that times β."""
        point, starts = self._current(r.fork), [self._current(start) for start in r.starts]
        if len(starts) == 1 and residual.is_site(starts[0], self.wiring):  # a pre-activation block
            point, starts = starts[0], list(starts[0].users)
        if beta == 1:
            return
        u = self._times(point, beta)
        for start in starts:
            if start is not u:
                start.replace_input_with(point, u)

    def _sum(self, r: Residual, unit: Any) -> None:
        shortcut, branch = r.node.args[1 - r.at], r.node.args[r.at]
        with self.graph.inserting_before(r.node):
            if unit.rules == "bnn":
                new = self.graph.call_function(torch.add, (shortcut, branch), {"alpha": unit.alpha})
            else:
                new = self.graph.call_module(self._module(r, unit), (shortcut, branch))
        r.node.replace_all_uses_with(new)
        self.graph.erase_node(r.node)
        self.now[r.node] = new
        for node in list(new.users):
            if r.projected and unit.rules == "nf" and (activation := self.wiring.activation(node)) is not None:
                self._scale(node, constant(activation, unit.num_features))

    def _scale(self, node: fx.Node, factor: float) -> None:
        users = list(node.users)
        self.now[node] = scaled = self._times(node, factor)
        for user in users:
            user.replace_input_with(node, scaled)

    def _module(self, r: Residual, unit: Any) -> str:
        if r.unit not in self.sums:
            like = next(p for p in self.wiring.tree.parameters() if p.is_floating_point())
            made = ResidualSum(unit.alpha, device=like.device, dtype=like.dtype).train(unit.training)
            self.sums[r.unit] = self.wiring.add(r.block, mark(made, "nf"), "residual_sum")
        return self.sums[r.unit]

    def _times(self, node: fx.Node, factor: float) -> fx.Node:
        if (node, factor) not in self.scaled:
            with self.graph.inserting_after(node):
                self.scaled[node, factor] = self.graph.call_function(operator.mul, (node, factor))
        return self.scaled[node, factor]

    def _current(self, node: fx.Node) -> fx.Node:
        while node in self.now:
            node = self.now[node]
        return node


def _heads(graph: fx.Graph, wiring: Wiring) -> Iterator[str]:
    """The names of the classifiers: the last layers with weights before the output that no site follows."""
    waiting = [node for node in graph.nodes if node.op == "output"]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if isinstance(wiring.module(node), nn.Linear | nn.Conv2d):
            yield str(node.target)
        elif not residual.is_site(node, wiring):
            new = [other for other in node.all_input_nodes if other not in seen]
            seen.update(new)
            waiting += new


class AdaptiveClipping(StepHooks):
    """Adaptive gradient clipping of all parameters but the classifier's, where ``agc`` is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        found = (getattr(m, "agc", None) for m in model.modules() if is_unit(m))
        self.clipping: float | None = next((agc for agc in found if agc is not None), None)
        left = {id(p) for head in _classifiers(model) for p in head.parameters()}
        self.parameters = [p for p in model.parameters() if id(p) not in left]

    def gradients(self) -> None:
        """Shorten the gradients that are too long beside their weights."""
        if self.clipping is not None:
            clip(self.parameters, self.clipping)


def _classifiers(model: nn.Module) -> Sequence[nn.Module]:
    """As the graph had them; of a network that was put together by hand the last fully connected layer."""
    for module in model.modules():
        if (heads := vars(module).get(HEADS)) is not None:
            return [module.get_submodule(head) for head in heads]
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], clipping: float) -> None:
    """Scale down, in place, every unit's gradient that is longer than ``clipping`` times its weights.

    A unit: a filter, a row of a matrix, a whole vector or scalar. One that is not scaled keeps its gradient to the bit.
    """
    for parameter in parameters:
        if (grad := parameter.grad) is not None:
            limit, length = clipping * _length(parameter).clamp(min=LEAST_NORM), _length(grad)
            factor = torch.where(length > limit, limit / length.clamp(min=1e-6), 1.0)
            grad.mul_(factor.to(grad.dtype))


def _length(tensor: Tensor) -> Tensor:
    dims = tuple(range(1, tensor.dim())) or None
    dtype = plain.at_least_float32(tensor.dtype)
    return torch.linalg.vector_norm(tensor, dim=dims, keepdim=dims is not None, dtype=dtype)


register(
    Normalizer(
        name="nf",
        unit=NormalizerFree,
        method="no normalization: standardized weights, scaled activations and residual branches",
        paper="Brock, De & Smith, ICLR 2021, arXiv:2101.08692",
        mixes_samples=False,
        train_eval_differ=False,
        own_activation=True,
        drop_in=False,
        convolution=_convolution,
        every_convolution=True,
        wire=_wire,
        hooks=AdaptiveClipping,
    )
)
