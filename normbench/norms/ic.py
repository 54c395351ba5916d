"""Independent-Component layer (Chen, Chen, Shi, Hsieh, Liao & Zhang 2019, arXiv:1905.05928): norm and dropout, moved.

    u = γ (x − μ) / √(σ² + ε) + β
    y = u m / (1 − q)        m ~ Bernoulli(1 − q), for each value, or ``channelwise`` for each map
x, y: (N, C, H, W), the input of a convolution, C its input channels.  μ, σ²: (C,), over H, W and the ``batch`` images
of a worker; σ² biased.  γ, β: (C,).
Train: bn's statistics and a new mask at every call, drawn from torch's generator.  Eval: bn's running_mean and
running_var, no mask.  Works from N = 1, if H·W > 1.  With q = 0 equals torch.nn.BatchNorm2d: tests/norms/test_ic.py.
running_var is learned under the mask of the layer before, which raises its input's variance by up to 1/(1 − q), and is
used without it: little at q = 0.05, much at 0.5.

In a model the BatchNorms go, and units stand right before the convolutions they followed, under the same names, with
those convolutions' input channels (``wire``). The convolution of the image has none. What ends the network (a linear
layer on feature maps, or a convolution without a BatchNorm, with no convolution behind it) gets one more, called ``ic``
beside it: before the pooling, where there are maps. Squeeze-and-excitation gates and linear layers behind linear layers
have none. Branches that see one tensor have a unit each, with a mask each. By ``placement``, of the ReLUs:

- relu_ic_conv: a branch is (ReLU, unit, convolution) n times; the ReLU of a residual sum moves into the branch, so
  that shortcuts carry the bare sum. A projection in a shortcut is (unit, convolution) of that.
- ic_conv_relu: (unit, convolution, ReLU) n times, no ReLU on the sum.
- conv_relu_ic: (convolution, ReLU, unit) n times, no ReLU on the sum; units keep their BatchNorms' channels, the
  stem's too, and the end of the network has none.

Without residual sums the first two are the same. A network that is pre-activated already (its BatchNorms stand before
convolutions) has relu_ic_conv once norm and ReLU change places, and cannot have the others.

From the abstract and from what others wrote of the paper, whose body was not available: norm, then dropout, before each
weight layer, and the three placements of two-layer branches. Reconstructed: the bottlenecks, the shortcuts, the end,
InceptionV3's branches (a layer each is the paper's wording; one norm for all would be cheaper). q = 0.05 is that of
code by others. Ours: units start at γ = 1 and β = 0, so that the zero that the last norm of a residual branch may start
from is left off where the branch ends in a convolution (conv_relu_ic has it), for the weights are every
normalizer's; convolutions without bias stay so, since the β before them is one, but for the zeros at the border.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from normbench.errors import InputError
from normbench.norms import core, running
from normbench.norms.registry import Normalizer, register
from normbench.norms.wiring import ADDITIONS, Wiring

# Between feature maps and the linear layer that ends a network.
POOLING: tuple[Any, ...] = (
    *(nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.Flatten, nn.Dropout, nn.Dropout2d),
    *(torch.flatten, torch.mean, torch.squeeze, F.adaptive_avg_pool2d, F.avg_pool2d, F.dropout),
    *("flatten", "mean", "view", "reshape", "squeeze"),
)
IN_PLACE: dict[Any, Any] = {operator.iadd: operator.add, "add_": "add"}


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    batch: int | None = None,
    drop: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """The plain formula, as in training; mask: m, of x's shape or (N, C, 1, 1), None: of ones with ``drop`` 0."""
    u = []
    for worker in x.split(batch or len(x)):
        mu = worker.mean((0, 2, 3), keepdim=True)
        var = ((worker - mu) ** 2).mean((0, 2, 3), keepdim=True)
        u.append((worker - mu) / torch.sqrt(var + eps))
    y = weight[:, None, None] * torch.cat(u) + bias[:, None, None]
    return y if mask is None else y * mask / (1 - drop)


class IndependentComponent(nn.Module):
    """Batch norm, then dropout: (N, C, H, W) → the same, then ``activation``, if it is made with one.

    ``batch`` is as in BatchNorm. ``placement`` says where ``wire`` puts it in a model, with the activation beside it.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None

    def __init__(
        self,
        num_features: int,
        drop: float = 0.05,
        channelwise: bool = False,
        placement: str = "relu_ic_conv",
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
        self.channelwise, self.placement, self.activation = channelwise, placement, activation
        self.dropout = (nn.Dropout2d if channelwise else nn.Dropout)(drop)
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        running.add(self, num_features, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(running.take_statistics)

    def forward(self, x: Tensor) -> Tensor:
        N, C, H, W = core.check_input(x, self.num_features, "ic")
        weight, bias, activation = core.affine(self)
        drops = self.dropout.training and self.drop > 0
        fused = None if drops else activation
        if self.training or self.running_mean is None:
            workers = core.workers(N, self.batch if self.training else None, "ic")
            track = running.variance(self, workers, running.unbiased(N // workers * H * W))
            y = core.standardize(x, workers, C, self.eps, weight, bias, fused, track=track)
        else:
            y = core.normalize(x, *running.evaluation(self, x), self.eps, weight, bias, fused)
        if not drops:
            return y
        y = self.dropout(y)
        return y if activation is None else activation(y)

    @property
    def drop(self) -> float:
        """The share of the values that is dropped."""
        return self.dropout.p

    def values_per_statistic(self, H: int, W: int, batch: int) -> int:
        """How many values stand behind one training statistic."""
        return batch * H * W

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, drop={self.drop}, channelwise={self.channelwise}, placement={self.placement}, "
            f"eps={self.eps}, momentum={self.momentum}, batch={self.batch}"
        )


def wire(wiring: Wiring) -> None:
    """Put the units, which stand where the BatchNorms stood, where ``placement`` wants them."""
    units: dict[str, Any] = dict(wiring.units)
    placement = next(iter(units.values())).placement
    activations = {name: unit.activation for name, unit in units.items() if unit.activation is not None}
    for unit in units.values():
        unit.activation = None
    for graph in wiring.graphs:
        for node in graph.nodes:  # what is added up, or the ReLU before it, is needed again
            if node.op in ("call_function", "call_method"):
                node.target = IN_PLACE.get(node.target, node.target)
    if _is_preactivated(wiring):
        if placement != "relu_ic_conv":
            raise InputError(
                f"ic: got placement={placement} for a network whose norms stand before its convolutions, "
                "expected relu_ic_conv, which it then has; take a post-activation network for the others"
            )
        _behind_the_activation(wiring, units, activations, keep=False)
        return
    for sum_ in wiring.sums:
        if placement == "relu_ic_conv":
            _replace_by_relu(sum_.node, sum_.node.all_input_nodes[0])
        else:
            sum_.node.replace_all_uses_with(sum_.node.all_input_nodes[0])
            sum_.graph.erase_node(sum_.node)
            activations[sum_.site] = nn.ReLU()
    if placement == "conv_relu_ic":
        _behind_the_activation(wiring, units, activations, keep=True)
        return
    if placement == "relu_ic_conv":
        for graph in wiring.graphs:
            _bare_shortcuts(graph, wiring)
    _before_the_convolution(wiring, units, activations)
    _before_the_end(wiring, next(iter(units)))


def _is_preactivated(wiring: Wiring) -> bool:
    """Whether more of the units feed a convolution than follow one."""
    calls = [node for _, node in _calls(wiring, wiring.units)]
    feed = {node.target for node in calls if any(_is_convolution(wiring, user) for user in node.users)}
    follow = {node.target for node in calls if _is_convolution(wiring, node.all_input_nodes[0])}
    return len(feed) > len(follow)


def _behind_the_activation(
    wiring: Wiring, units: dict[str, Any], activations: dict[str, nn.Module], keep: bool
) -> None:
    """Units stay, and the activation that followed one comes before it. ``keep``: with γ and β of the BatchNorm."""
    for name, old in units.items():
        unit = _fresh(wiring, name, old.num_features)
        if keep and unit.weight is not None:
            unit.load_state_dict({"weight": old.weight, "bias": old.bias}, strict=False)
    names = _add_activations(wiring, activations)
    for graph, node in _calls(wiring, units):
        if str(node.target) in names:
            with graph.inserting_before(node):
                before = graph.call_module(names[str(node.target)], (node.args[0],))
            node.args = (before, *node.args[1:])


def _before_the_convolution(wiring: Wiring, units: dict[str, Any], activations: dict[str, nn.Module]) -> None:
    """Every unit to the convolution that it followed, its activation behind that; none to one of the image.

    One that follows something else stays, behind its activation.
    """
    names = _add_activations(wiring, activations)
    behind = {node for graph in wiring.graphs for node in _reached(graph, wiring)}
    channels: dict[str, int] = {}
    for graph, node in _calls(wiring, units):
        name, x = str(node.target), node.all_input_nodes[0]
        if name not in wiring.convolutions:
            channels[name] = units[name].num_features
            with graph.inserting_after(node):
                call = graph.call_module(name, (node,))
            _replace_uses(node, call)
        elif x in behind:
            convolution: Any = wiring.module(x)
            channels[name] = convolution.in_channels
            with graph.inserting_before(x):
                call = graph.call_module(name, (x.all_input_nodes[0],))
            x.replace_input_with(x.all_input_nodes[0], call)
        if name in names:
            node.target = names[name]
        else:
            node.replace_all_uses_with(x)
            graph.erase_node(node)
    for name in units:
        if name in channels:
            _fresh(wiring, name, channels[name])
        else:
            wiring.drop(name)


def _before_the_end(wiring: Wiring, like: str) -> None:
    """One more unit before every layer that ends the network, as the site ``like``."""
    added: dict[str, str] = {}
    for graph in wiring.graphs:
        channels, feeds = _channels(graph, wiring), _feeding(graph, wiring)
        for node in list(graph.nodes):
            layer = wiring.module(node)
            if not isinstance(layer, nn.Linear | nn.Conv2d) or node in feeds:
                continue
            first, x = node, node.all_input_nodes[0]
            while isinstance(layer, nn.Linear) and _is_pooling(wiring, x):
                first, x = x, x.all_input_nodes[0]
            if channels.get(x) is None or str(x.target) in wiring.units:
                continue
            if (name := str(node.target)) not in added:
                owner = name.rpartition(".")[0]
                added[name] = wiring.add_unit(owner, "ic", like, channels[x])
                _without_activation(wiring.units[added[name]])
            with graph.inserting_before(first):
                call = graph.call_module(added[name], (x,))
            first.replace_input_with(x, call)


def _fresh(wiring: Wiring, name: str, num_features: int) -> Any:
    """A new unit in a site's place."""
    return _without_activation(wiring.remake(name, num_features))


def _without_activation(unit: Any) -> Any:
    unit.activation = None  # which is a step of its own in the graph
    return unit


def _replace_uses(node: fx.Node, other: fx.Node) -> None:
    """Let ``other``, which uses ``node``, be used in its place by all others."""
    node.replace_all_uses_with(other, delete_user_cb=lambda user: user is not other)


def _bare_shortcuts(graph: fx.Graph, wiring: Wiring) -> None:
    """Let shortcuts carry the sum before them without its ReLU.

    Of two operands that come from one sum's ReLU, with no other's between, the shortcut has fewer convolutions.
    """
    relus = (node for node in graph.nodes if node.target is torch.relu)
    sums = {node: node.all_input_nodes[0] for node in relus if node.all_input_nodes[0].target in ADDITIONS}
    for node in list(graph.nodes):
        operands = node.all_input_nodes
        if node.op == "call_module" or node.target not in ADDITIONS or len(operands) != 2:
            continue
        ways = [_way(operand, sums.keys()) for operand in operands]
        counts = [sum(_is_convolution(wiring, step) for step in way) for way in ways]
        if counts[0] == counts[1]:
            continue
        branch, shortcut = sorted(ways, key=lambda way: -counts[ways.index(way)])
        bare = operands[ways.index(shortcut)]
        for relu, addition in sums.items():
            users = set(relu.users)
            if branch & users:
                for step in (shortcut - branch) & users | ({node} if bare is relu else set()):
                    step.replace_input_with(relu, addition)


def _way(node: fx.Node, ends: Collection[fx.Node]) -> set[fx.Node]:
    """``node`` and what it is made from, up to one of ``ends``."""
    way: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        step = waiting.pop()
        if step not in ends and step not in way:
            way.add(step)
            waiting.extend(step.all_input_nodes)
    return way


def _replace_by_relu(node: fx.Node, x: fx.Node) -> None:
    """A ReLU that does not work in place, for what it works on is needed."""
    with node.graph.inserting_before(node):
        relu = node.graph.call_function(torch.relu, (x,))
    node.replace_all_uses_with(relu)
    node.graph.erase_node(node)


def _add_activations(wiring: Wiring, activations: dict[str, nn.Module]) -> dict[str, str]:
    """The activations as modules beside their sites: names by site."""
    return {name: wiring.add(name.rpartition(".")[0], module, "act") for name, module in activations.items()}


def _calls(wiring: Wiring, names: Any) -> list[tuple[fx.Graph, fx.Node]]:
    calls = ((graph, node) for graph in wiring.graphs for node in graph.nodes)
    return [(graph, node) for graph, node in calls if node.op == "call_module" and str(node.target) in names]


def _reached(graph: fx.Graph, wiring: Wiring) -> set[fx.Node]:
    """The nodes that some convolution comes before."""
    return _flow(graph.nodes, wiring, lambda node: node.all_input_nodes)


def _feeding(graph: fx.Graph, wiring: Wiring) -> set[fx.Node]:
    """The nodes that some convolution comes after."""
    return _flow(reversed(graph.nodes), wiring, lambda node: list(node.users))


def _flow(nodes: Any, wiring: Wiring, neighbours: Callable[[fx.Node], list[fx.Node]]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in nodes:
        if any(other in found or _is_convolution(wiring, other) for other in neighbours(node)):
            found.add(node)
    return found


def _channels(graph: fx.Graph, wiring: Wiring) -> dict[fx.Node, int]:
    """Of every node that is a map, as far as its maker says."""
    found: dict[fx.Node, int] = {}
    for node in graph.nodes:
        layer: Any = wiring.module(node)
        inputs = [found[x] for x in node.all_input_nodes if x in found]
        if isinstance(layer, nn.Conv2d):
            found[node] = layer.out_channels
        elif isinstance(layer, nn.Linear):
            continue
        elif inputs:
            found[node] = sum(inputs) if node.target in (torch.cat, torch.concat) else max(inputs)
    return found


def _is_convolution(wiring: Wiring, node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(wiring.module(node), nn.Conv2d)


def _is_pooling(wiring: Wiring, node: fx.Node) -> bool:
    module = wiring.module(node)
    return (node.target if module is None else type(module)) in POOLING


register(
    Normalizer(
        name="ic",
        unit=IndependentComponent,
        method="Independent-Component layer: batch norm and dropout before weight layers",
        paper="Chen, Chen, Shi, Hsieh, Liao & Zhang 2019, arXiv:1905.05928",
        mixes_samples=True,
        train_eval_differ=True,
        drop_in=False,
        wire=wire,
        moves_units=True,
    )
)
