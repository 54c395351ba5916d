"""Make the units, and the model with them in it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normbench import norms
from normbench.errors import InputError
from normbench.norms import Normalizer, Wiring, running
from normbench.norms.convolution import Reweighted, prepares
from normbench.surgery import sums
from normbench.surgery.forward import Forward, Rewritten
from normbench.surgery.report import KEY, Left, Record, Replaced, keep
from normbench.surgery.shapes import site_shapes
from normbench.surgery.sites import Found, Site, activation, find, is_batchnorm
from normbench.surgery.trace import Traced, Untraceable, trace
from normbench.surgery.tree import check_forwards, graft


@dataclass(frozen=True)
class Choice:
    """The method that takes the sites, and what the caller gave for it. maps: (H, W) of each site, where asked for."""

    row: Normalizer
    batch: int | None
    options: Mapping[str, Any]
    maps: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def apply(
    model: nn.Module,
    name: str,
    *,
    batch: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    **options: Any,
) -> nn.Module:
    """A new model with the same forward and the normalizer ``name`` in place of every BatchNorm2d.

    A unit takes its BatchNorm's place and name, and the activation after it where the method applies that itself; a
    residual sum too, with the ReLU behind it, where the unit takes a residual (``forward(x, residual=None)``). eps,
    momentum, affine, the weights, device, dtype and mode carry over, unless the method or ``options`` say otherwise;
    running statistics where they mean the same. What is not replaced is shared with ``model``, which is left as it was.
    No random number is drawn. ``batch``: consecutive images that share statistics (None: all). ``input_shape``: (C, H,
    W) of the pictures; units whose buffers depend on the size of the maps then have them before the first forward.

    The model is traced by torch.fx: hooks on its containers and a ``train`` of its own are written into the graph or
    lost. One that cannot be traced keeps its own forward, and takes methods that can stand in a BatchNorm's place.

    The weights that are not replaced are the given model's own: training the result trains them. To compare normalizers
    from the same start, give each a ``copy.deepcopy(model)``.

    Raises UnknownName or ConfigError for the normalizer and its options; InputError for a model without BatchNorm2d, or
    one that cannot be traced where the method needs that.
    """
    norms.check_options(name, options)
    _check_any(model)
    choice = Choice(norms.get(name, options), batch, options)
    if input_shape is not None and choice.row.takes_size and "size" not in options:
        maps = {site: shape[1:] for site, shape in site_shapes(model, input_shape).items()}
        choice = replace(choice, maps=maps)
    try:
        traced = trace(model)
    except Untraceable as why:
        _check_drop_in(choice.row, model, why)
        return _exchange(model, choice)
    if traced.fixed and choice.row.drop_in:
        return _exchange(model, choice)  # its own forward takes any value of its parameters
    return _rewrite(model, traced, choice)


def find_sites(model: nn.Module) -> list[Site]:
    """Every BatchNorm2d that the forward calls. InputError if there is none. The model is left as it was."""
    _check_any(model)
    try:
        traced = trace(model)
    except Untraceable:
        return _plain_sites(model)
    modules = dict(traced.root.named_modules())
    return find(traced.graphs, modules).sites(modules)


def check_traceable(model: nn.Module, name: str) -> None:
    """Raise InputError if ``apply(model, name)`` would, for want of the graph that the method needs."""
    row = norms.get(name)
    _check_any(model)
    if not row.drop_in:
        try:
            trace(model)
        except Untraceable as why:
            _check_drop_in(row, model, why)


def _rewrite(model: nn.Module, traced: Traced, choice: Choice) -> nn.Module:
    modules = dict(traced.root.named_modules())
    found = find(traced.graphs, modules)
    sites, row = found.sites(modules), choice.row
    if not sites:
        raise InputError("the model's forward calls none of its BatchNorm2d; apply it to the part that does")
    if row.takes_activation:
        _take_activations(found, sites)
    taken = sums.find_taken(found, modules) if sums.takes_sums(row) else {}
    behind = {site: same[0].activation for site, same in taken.items()}
    whole = [replace(site, activation=behind.get(site.name, site.activation)) for site in sites]
    units = _units(whole, modules, choice, fused=row.takes_activation)
    sums.take(taken)
    owners = {modules[sum_.owner] for sum_ in found.sums} if row.sum_activation else set()
    if row.wire is not None:  # it may add a module anywhere
        owners |= {module for module in modules.values() if next(module.children(), None) is not None}
    convolutions = _convolutions(traced.graphs, sites, modules, row, units)
    replaced = {modules[name]: unit for name, unit in units.items()} | convolutions
    if row.layer is not None:
        unit = units[sites[0].name]
        replaced |= {m: row.layer(m, unit) for m in modules.values() if type(m) in (nn.Conv2d, nn.Linear)}
    tree = graft(traced.root, replaced, owners)
    before = {site.name: site.convolution for site in sites if site.convolution is not None}
    left = _left(model, units)
    by_name = {site.name: site for site in sites}

    def make(name: str, num_features: int) -> nn.Module:
        return _unit(
            replace(by_name[name], num_features=num_features), modules[name], choice, row.takes_activation, False
        )

    kept_sums = () if row.sum_activation else tuple(found.sums)
    wiring = Wiring(tree, traced.graphs, units, before, partial(activation, modules=modules), kept_sums, make)
    placed = _place_sums(found, wiring, modules, row) if row.sum_activation else ()
    if row.wire is not None:
        row.wire(wiring)
    result = Rewritten(tree, Forward.of(traced.train), Forward.of(traced.eval), row.around)
    if wiring.added:
        result.register_load_state_dict_pre_hook(_keep_added)
    records = _records(whole, wiring.changed)
    return keep(result, Record(row.name, True, records, placed, left, tuple(wiring.added), tuple(taken)))


def _exchange(model: nn.Module, choice: Choice) -> nn.Module:
    """Without a graph: the units alone, in copies of their containers, and the model's own forward."""
    modules, sites = dict(model.named_modules()), _plain_sites(model)
    check_forwards(model, {modules[site.name] for site in sites})
    units = _units(sites, modules, choice, fused=False)
    result = graft(model, {modules[name]: unit for name, unit in units.items()})
    return keep(result, Record(choice.row.name, False, _records(sites), (), _left(model, units)))


def _plain_sites(model: nn.Module) -> list[Site]:
    return [Site(name, m.num_features) for name, m in model.named_modules() if is_batchnorm(m)]


def _units(sites: list[Site], modules: Mapping[str, nn.Module], choice: Choice, fused: bool) -> dict[str, nn.Module]:
    """The unit of every site, by name. Parameters that BatchNorms have in common are the units' in common too."""
    units: dict[str, nn.Module] = {}
    first: dict[nn.Parameter, nn.Parameter] = {}
    for site in sites:
        bn = modules[site.name]
        unit = units[site.name] = _unit(site, bn, choice, fused)
        for name, parameter in bn.named_parameters(recurse=False):
            if isinstance(mine := getattr(unit, name, None), nn.Parameter):
                setattr(unit, name, first.setdefault(parameter, mine))
    return units


def _unit(site: Site, bn: nn.Module, choice: Choice, fused: bool, carry: bool = True) -> nn.Module:
    """The unit for a site, in the place and mode of its BatchNorm and, with ``carry``, in its state."""
    row = choice.row
    carried = {key: value for key, value in _settings(bn, row).items() if key not in choice.options}
    if site.name in choice.maps:
        carried["size"] = choice.maps[site.name]
    try:
        unit = norms.build(
            row.name, site.num_features, activation=site.activation if fused else None,
            batch=choice.batch if row.takes_batch else None, **carried, **choice.options,
        )  # fmt: skip
    except InputError as error:
        raise InputError(f"site {site.name} ({site.num_features} channels): {error}") from None
    _like(unit, bn)
    if carry:
        _carry(bn, unit, row)
    # One whose statistics are others than a BatchNorm's trains by them, and keeps them.
    own = row.keeps_statistics or "eval_stats" in row.options
    if bn.running_mean is None and hasattr(unit, "running_var") and not own:
        running.untrack(unit)
    return unit.train(bn.training)


def _convolutions(
    graphs: Iterable[fx.Graph],
    sites: list[Site],
    modules: Mapping[str, nn.Module],
    row: Normalizer,
    units: Mapping[str, nn.Module],
) -> dict[nn.Module, nn.Module]:
    """What the method puts in place of the convolutions. Parametrized ones stay as they are, and subclasses too, unless
    they say what they make of a weight and the method's goes on with that.
    """
    if row.convolution is None:
        return {}
    found: dict[nn.Module, nn.Module | None] = {}
    if row.every_convolution:
        called = (node for graph in graphs for node in graph.nodes if node.op == "call_module")
        found = {modules[str(node.target)]: None for node in called}
    found |= {modules[site.convolution]: units[site.name] for site in sites if site.convolution is not None}
    made: dict[nn.Module, nn.Module] = {}
    for conv, unit in found.items():
        if type(conv) is nn.Conv2d or (isinstance(conv, nn.Conv2d) and prepares(conv)):
            new = row.convolution(conv, unit)
            if isinstance(new, Reweighted) or not prepares(conv):
                made[conv] = new
    return made


def _settings(bn: Any, row: Normalizer) -> dict[str, Any]:
    """What a BatchNorm was made with, as far as the unit takes it and has no mind of its own."""
    settings = {"momentum": bn.momentum, "affine": bn.affine, "track_running_stats": bn.track_running_stats}
    if not row.own_eps:
        settings["eps"] = bn.eps
    if bn.running_mean is None:
        settings["eval_stats"] = "batch"
    elif not bn.track_running_stats:
        settings["momentum"] = 0.0  # statistics that stand still
    return {key: value for key, value in settings.items() if key in row.options}


def _like(module: nn.Module, bn: nn.Module) -> None:
    """To the device and dtype of the BatchNorm; one without parameters and statistics is nowhere."""
    tensor = next((t for t in (*bn.parameters(), *bn.buffers()) if t.is_floating_point()), None)
    if tensor is not None:
        module.to(device=tensor.device, dtype=tensor.dtype)


def _carry(bn: nn.Module, unit: nn.Module, row: Normalizer) -> None:
    """Weights, and what else a BatchNorm's state dict has that means the same in the unit.

    Our units know that themselves. A user's are given weight and bias where the shapes agree, and the statistics if the
    class says that they are a BatchNorm's (``batchnorm_statistics = True``).
    """
    own = unit.state_dict()
    state = {key: value for key, value in bn.state_dict().items() if key in own}
    if "running_mean" not in own and "running_var" not in own:
        state.pop("num_batches_tracked", None)  # a count of nothing
    if row.users:
        keys = running.BATCHNORM_KEYS if getattr(unit, "batchnorm_statistics", False) else ("weight", "bias")
        state = {k: v for k, v in state.items() if k in keys and own[k].shape == v.shape}
    with warnings.catch_warnings():
        # Which statistics cannot be taken is a matter for whoever loads a checkpoint; here it is the point.
        warnings.simplefilter("ignore")
        unit.load_state_dict(state, strict=False)
    for name, parameter in bn.named_parameters():
        if isinstance(mine := getattr(unit, name, None), nn.Parameter):
            mine.requires_grad_(parameter.requires_grad)


def _take_activations(found: Found, sites: list[Site]) -> None:
    """Take the activations that the units apply out of the graphs."""
    for site in sites:
        for use in found.uses[site.name] if site.activation is not None else ():
            assert use.after is not None  # all uses agree
            use.after.replace_all_uses_with(use.node)
            use.graph.erase_node(use.after)


def _place_sums(found: Found, wiring: Wiring, modules: Mapping[str, nn.Module], row: Normalizer) -> tuple[str, ...]:
    """Put the method's activation in place of the ReLU of every sum, in the module that adds. The names they got.

    One for each branch: both graphs, and every call of a block that is called twice, share it.
    """
    placed: dict[tuple[str, str], str] = {}
    for sum_ in found.sums:
        key = (sum_.owner, sum_.site)
        if key not in placed:
            unit = _sum_unit(modules[sum_.site], row)
            placed[key] = wiring.add(sum_.owner, unit, type(unit).__name__.lower())
        sums.join(sum_.node, placed[key], wiring.units)
    return tuple(placed.values())


def _keep_added(
    model: nn.Module, state_dict: dict[str, Any], prefix: str, _metadata: Any, _strict: bool, *_lists: Any
) -> None:
    """Before a load: a BatchNorm model's state has nothing for what was added to the model, so theirs stays.

    That parameters were kept is said by the units (running.leave_out).
    """
    record: Record = vars(model)[KEY]
    own = {f"{name}.{key}": v for name in record.added for key, v in model.get_submodule(name).state_dict().items()}
    plain = any(f"{prefix}{site.name}.running_mean" in state_dict for site in record.sites)
    if plain and not any(prefix + key in state_dict for key in own):
        state_dict.update({prefix + key: value for key, value in own.items()})


def _sum_unit(bn: Any, row: Normalizer) -> nn.Module:
    assert row.sum_activation is not None
    unit = row.sum_activation(bn.num_features)
    _like(unit, bn)
    return unit.train(bn.training)


def _records(sites: list[Site], changed: Mapping[str, int | None] = MappingProxyType({})) -> tuple[Replaced, ...]:
    """The sites, and what ``changed``: the channels of a unit that was moved or added, None where it is gone."""
    records = {}
    for site in sites:
        activation = None if site.activation is None else repr(site.activation)
        records[site.name] = Replaced(site.name, site.num_features, site.convolution, activation)
    for name, C in changed.items():
        if C is None:
            del records[name]
        else:
            records[name] = replace(records.get(name, Replaced(name, C, None, None)), num_features=C)
    return tuple(records.values())


def _left(model: nn.Module, units: Mapping[str, nn.Module] = MappingProxyType({})) -> tuple[Left, ...]:
    """The BatchNorms that stay, and why."""
    others = ((n, m) for n, m in model.named_modules() if isinstance(m, _BatchNorm) and n not in units)
    return tuple(Left(name, type(module).__name__, _why_left(module)) for name, module in others)


def _why_left(module: nn.Module) -> str:
    if not isinstance(module, nn.BatchNorm2d):
        return "not a BatchNorm2d"
    return "the forward does not call it" if is_batchnorm(module) else "its class has a forward of its own"


def _check_any(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"got {model!r}, expected a torch.nn.Module, such as torchvision.models.resnet50()")
    if isinstance(model, nn.BatchNorm2d):
        raise InputError("got a BatchNorm2d, expected a model with some in it; normbench.build(…) makes a single unit")
    if any(is_batchnorm(module) for module in model.modules()):
        return
    left = "; ".join(sorted({f"{item.kind}: {item.why}" for item in _left(model)}))
    there = f" ({left})" if left else ""
    raise InputError(f"{type(model).__name__} has no nn.BatchNorm2d to replace{there}; give a model that has some")


def _check_drop_in(row: Normalizer, model: nn.Module, why: Untraceable) -> None:
    """Raise InputError if the method needs the graph that could not be had."""
    if row.drop_in:
        return
    graph = [name for name in norms.ours() if not norms.get(name).drop_in]
    drop_in = [name for name in norms.ours() if name not in graph]
    raise InputError(
        f"{row.name} needs the graph of the model, as {', '.join(graph)} do, and torch.fx cannot trace "
        f"{type(model).__name__}: {why}; move what depends on values into a module without a BatchNorm, "
        f"or take a normalizer that needs no graph: {', '.join(drop_in)}"
    )
