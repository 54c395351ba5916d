"""What was replaced in a model, read from the model itself."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import nn

from normbench.errors import InputError

KEY = "_normbench_record"


@dataclass(frozen=True)
class Replaced:
    """A site as it was: name, channels, name of the convolution before it, the activation after it or its sum."""

    name: str
    num_features: int
    convolution: str | None
    activation: str | None


@dataclass(frozen=True)
class Left:
    """A BatchNorm that stayed."""

    name: str
    kind: str
    why: str


@dataclass(frozen=True)
class Record:
    """What ``apply`` writes on a model it made: plain values, which copies and pickles of the model keep.

    added: the names of all modules that the model given has nothing like, those after sums included. taken: the sites
    whose units add the residual before the activation.
    """

    norm: str
    traced: bool
    sites: tuple[Replaced, ...]
    sums: tuple[str, ...]
    left: tuple[Left, ...]
    added: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()


@dataclass(frozen=True)
class SiteRow:
    """A site as it is. num_groups: the groups its unit has (None: the method has none, or they are not chosen yet)."""

    name: str
    num_features: int
    convolution: str | None
    activation: str | None
    unit: str
    num_groups: int | None
    parameters: int


@dataclass(frozen=True)
class Report:
    """What ``apply`` made of a model.

    ``rows``: one for each site. ``sums``: activations after residual sums and their parameters. ``taken``: sites whose
    units add the residual themselves, before the activation. ``left``: what stayed. ``traced``: False if units were
    exchanged without a graph, so that convolutions and activations are not known.
    ``str()`` gives a table.
    """

    norm: str
    traced: bool
    rows: tuple[SiteRow, ...]
    sums: dict[str, int]
    left: tuple[Left, ...]
    taken: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Parameters of all units together."""
        return sum(row.parameters for row in self.rows) + sum(self.sums.values())

    def __str__(self) -> str:
        header = ("site", "C", "convolution", "activation", "unit", "groups", "parameters")
        cells = [[_cell(getattr(row, f.name)) for f in fields(SiteRow)] for row in self.rows]
        return "\n".join([*_table([list(header), *cells]), "", *self._totals()])

    def _totals(self) -> list[str]:
        sums = f", {len(self.sums)} activations after residual sums" if self.sums else ""
        sums += f", {len(self.taken)} of them with a residual sum" if self.taken else ""
        lines = [f"{self.norm}: {len(self.rows)} sites{sums}, {self.parameters:,} parameters"]
        if not self.traced:
            lines.append("not traced: units were exchanged one by one, and activations stay where they were")
        return lines + [f"left alone: {item.name} ({item.kind}): {item.why}" for item in self.left]


def keep(model: nn.Module, record: Record) -> nn.Module:
    """Write the record on the model."""
    setattr(model, KEY, record)
    return model


def report(model: nn.Module) -> Report:
    """The sites of a model that ``apply`` made, wrapped or not. Raises InputError for any other.

    Groups and parameters are read from the units as they are now.
    """
    made = next((module for module in model.modules() if KEY in vars(module)), None)
    if made is None:
        raise InputError(f"{type(model).__name__} is not of normbench's making; normbench.apply(model, name) makes one")
    record: Record = vars(made)[KEY]
    sums = {name: _parameters(made.get_submodule(name)) for name in record.sums}
    rows = tuple(_row(made, record.norm, site) for site in record.sites)
    return Report(record.norm, record.traced, rows, sums, record.left, record.taken)


def _row(model: nn.Module, norm: str, site: Replaced) -> SiteRow:
    unit = model.get_submodule(site.name)
    groups = getattr(unit, "num_groups", None)
    return SiteRow(**vars(site), unit=norm, num_groups=groups, parameters=_parameters(unit))


def _parameters(unit: nn.Module) -> int:
    return sum(parameter.numel() for parameter in unit.parameters())


def _cell(value: object) -> str:
    return "–" if value is None else str(value)


def _table(lines: list[list[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
