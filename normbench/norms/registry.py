"""The one table of normalizers, and ``build``, which makes the unit that stands at a site."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from normbench import targets
from normbench.errors import ConfigError, NormbenchError, UnknownName, one_line
from normbench.norms.normalizer import Normalizer
from normbench.norms.options import is_count

MARK = "_normbench_name"
OPTIONS = "_normbench_options"
# What a user's class may say of itself by an attribute of that name and kind: see Normalizer. A class may well have
# a method called ``wire`` that means something else; a static one is meant.
TRAITS: dict[str, type] = {
    **dict.fromkeys(("mixes_samples", "train_eval_differ", "own_activation", "own_eps", "drop_in"), bool),
    **dict.fromkeys(("every_convolution", "joins_workers", "own_gradient"), bool),
    **dict.fromkeys(("held_constant", "keeps_statistics", "moves_units"), bool),
    **dict.fromkeys(("sum_activation", "hooks"), type),
    **dict.fromkeys(("convolution", "layer", "wire", "around"), staticmethod),
    "least_batch": int,
    "no_graph": str,
}
UNSAID = 'it does not say that its step can be recorded (no_graph = "" says so)'
AFFINE = ("weight", "bias")
ACTIVATIONS = ("activation", "site_activation")

_rows: dict[str, Normalizer] = {}


def register(row: Normalizer) -> None:
    """Add a row; raises ConfigError if its name is taken, since a silent overwrite would change a result."""
    if row.name in _rows:
        taken = _rows[row.name].unit.__qualname__
        raise ConfigError(f"normalizer {row.name!r}: the name is taken by {taken}; register it under another one")
    _rows[row.name] = row


def names() -> list[str]:
    """The registered names: no normalization, the classics, what came after, then what installed packages bring."""
    return [*ours(), *(name for name in targets.installed() if name not in _rows)]


def ours() -> list[str]:
    """The names of the methods that are part of normbench."""
    return list(_rows)


def get(name: str, options: Mapping[str, Any] | None = None) -> Normalizer:
    """The row of a registered name, or of a user's class: ``path/to/file.py:Class`` or ``package.module:Class``.

    Names of ours go before those that installed packages bring. ``options``: what the method is given; what some rows
    say depends on it. Raises UnknownName for a name that is neither, ConfigError for a class that cannot be used.
    """
    if name in _rows:
        row = _rows[name]
        return row if row.settle is None else row.settle(options or {})
    if targets.is_target(str(name)):
        return _users(name, name)
    if name in targets.installed():
        return _users(name, targets.installed()[name])
    raise UnknownName("normalizer", str(name), names(), "Your own: path/to/file.py:Class or package.module:Class.")


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise UnknownName for an option that ``name`` has not, ConfigError for a value that it cannot take."""
    row = get(name, options)
    for option in options:
        if option not in row.options and not row.takes_any:
            raise UnknownName(f"option of {name}", str(option), row.options)
    if row.check is not None:
        row.check(options, name)


def build(
    name: str, num_features: int, *, activation: nn.Module | None = None, batch: int | None = None, **options: Any
) -> nn.Module:
    """The unit that stands where a BatchNorm2d of ``num_features`` channels stood.

    ``activation``: the module that followed; the unit applies it, or its own in its place. ``batch``: how many
    consecutive images share statistics; None: all. ``options``: the method's, and torch's ``device`` and ``dtype``.
    Raises UnknownName and ConfigError as ``get`` and ``check_options`` do, InputError for options that do not fit the
    site.
    """
    factory: dict[str, Any] = {key: options.pop(key) for key in ("device", "dtype") if key in options}
    row = get(name, options)
    check_options(name, options)
    _check_count("num_features", num_features)
    if not (activation is None or isinstance(activation, nn.Module)):
        raise ConfigError(f"activation: got {activation!r}, expected a module such as torch.nn.ReLU(), or None")
    if batch is not None:
        _check_count("batch", batch)
    given: dict[str, Any] = {"activation": activation, "batch": batch, **factory}
    taken = {key: value for key, value in given.items() if key in row.parameters}
    own = {key: value for key, value in options.items() if key not in row.row_options}
    unit = _construct(row, num_features, {**taken, **own})
    if not factory.keys() <= taken.keys():
        unit.to(**factory)
    if activation is not None and "activation" not in taken:
        unit.add_module("site_activation", activation)
        unit.register_forward_hook(_apply_site_activation)
    if row.settle is not None:
        setattr(unit, OPTIONS, dict(options))
    return mark(unit, name)


def mark(unit: nn.Module, name: str) -> nn.Module:
    """Note on a module that it is a unit of the normalizer ``name``; copies and pickles keep the note."""
    setattr(unit, MARK, name)
    return unit


def is_unit(module: nn.Module) -> bool:
    """Whether ``build`` made the module, a user's class included (or it is a TLU, which may stand alone)."""
    return hasattr(module, MARK)


def unit_name(model: nn.Module) -> str | None:
    """The name of the normalizer whose units ``model`` holds, None if it holds none."""
    return next((str(getattr(module, MARK)) for module in model.modules() if is_unit(module)), None)


def unit_row(model: nn.Module) -> Normalizer | None:
    """The row of the normalizer whose units ``model`` holds, as it holds under their options; None if it holds none."""
    unit = next(filter(is_unit, model.modules()), None)
    return None if unit is None else get(str(getattr(unit, MARK)), getattr(unit, OPTIONS, None))


def affine_parameters(unit: nn.Module) -> list[nn.Parameter]:
    """γ and β of a unit."""
    return [parameter for name, parameter in _own_parameters(unit) if name.rpartition(".")[2] in AFFINE]


def extra_parameters(unit: nn.Module) -> list[nn.Parameter]:
    """What a unit learns beside γ and β: thresholds, a learned ε. Its activation's parameters are neither."""
    return [parameter for name, parameter in _own_parameters(unit) if name.rpartition(".")[2] not in AFFINE]


def _own_parameters(unit: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return (item for item in unit.named_parameters() if item[0].partition(".")[0] not in ACTIVATIONS)


def _check_count(what: str, value: Any) -> None:
    if not is_count(value):
        raise ConfigError(f"{what}: got {value!r}, expected a whole number, 1 or more")


def _apply_site_activation(unit: nn.Module, _inputs: Any, y: Tensor) -> Tensor:
    activation: nn.Module = unit.get_submodule("site_activation")
    return activation(y)


def _construct(row: Normalizer, num_features: int, arguments: dict[str, Any]) -> nn.Module:
    try:
        inspect.signature(row.unit).bind(num_features, **arguments)
    except TypeError as error:
        raise ConfigError(f"normalizer {row.name}: {row.unit.__name__}: {error}; give it as an option") from None
    try:
        return row.unit(num_features, **arguments)
    except NormbenchError:
        raise
    except Exception as error:
        if not row.users:
            raise
        said = f"{type(error).__name__}: {one_line(error)}{targets.line_of(error, row.unit)}"
        raise ConfigError(f"normalizer {row.name}: making {row.unit.__name__}({num_features}) raised {said}") from error


def _static(found: type, trait: str) -> Any:
    return inspect.getattr_static(found, trait, None)


def _users(name: str, target: str) -> Normalizer:
    """The row of a user's class: its traits are class attributes, and where it has none the careful value."""
    found, sha256 = targets.load(target, "normalizer")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(f"normalizer {target!r}: got {found!r}, expected a subclass of torch.nn.Module")
    traits = {trait: getattr(found, trait) for trait, kind in TRAITS.items() if isinstance(_static(found, trait), kind)}
    row = Normalizer(
        name=name,
        unit=found,
        method=found.__name__,
        paper=getattr(found, "paper", ""),
        source_hash=sha256,
        users=True,
        check=None,
        **{"mixes_samples": True, "train_eval_differ": True, "no_graph": UNSAID, **traits},
    )
    if "num_features" not in row.parameters and not row.takes_any:
        raise ConfigError(
            f"normalizer {target!r}: {found.__name__}({', '.join(row.parameters)}) does not take num_features; "
            "begin its constructor with def __init__(self, num_features, …)"
        )
    return row
