"""Forward and backward of every unit on every case, with the baseline and a copy of the input in the same rounds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from normbench import machine
from normbench.bench.cases import DTYPE, FORMAT, Case, Shape
from normbench.bench.contestants import Contestant, Place
from normbench.bench.measure import SAMPLE, Call, Rule, Samples, race
from normbench.bench.memory import kept_mib, state_mib
from normbench.bench.results import Row, measures
from normbench.bench.statistics import COPY
from normbench.train import tell_steps

# Of each contestant, by its label: the row's columns on memory.
Memory = dict[str, dict[str, float]]
# Two small cases by whose times the length of a run is foretold: what a call costs, and what a value costs.
TRIAL = (Shape(64, 4, 4, True), 2), (Shape(64, 28, 28, True), 8)
WARM_UP = 2  # calls of each contestant before the rounds, about


def measure(case: Case, contestants: Sequence[Contestant], device: torch.device, rule: Rule) -> list[Row]:
    """A row per contestant, and one for the copy, for every network that has the shape."""
    able = [contestant for contestant in contestants if contestant.least_batch <= case.N]
    memory: Memory = {}
    samples = race(calls(case, able, device, memory), device, rule)
    machine.return_memory()
    rows: list[Row] = []
    for network, sites in case.sites.items():
        for contestant in contestants:
            if contestant in able:
                found = measures(contestant.label, samples) | memory.get(contestant.label, {})
            else:
                found = {"status": "skipped", "reason": f"it trains from batch {contestant.least_batch}"}
            rows.append(_row(contestant.label, contestant.kind, case, network, sites, found))
        rows.append(_row(COPY, "copy", case, network, sites, measures(COPY, samples)))
    return rows


def left_out(cases: Iterable[Case], contestants: Sequence[Contestant], reason: str) -> Iterator[Row]:
    """The rows of cases that are not measured."""
    for case, contestant in itertools.product(cases, contestants):
        for network, sites in case.sites.items():
            skipped = {"status": "skipped", "reason": reason}
            yield _row(contestant.label, contestant.kind, case, network, sites, skipped)


def _row(name: str, kind: str, case: Case, network: str, sites: int, found: Mapping[str, object]) -> Row:
    shape = case.shape
    return Row(
        name, kind, network, case.N, shape.C, shape.H, shape.W, shape.activation, sites,
        case.memory_format, case.dtype, case.bytes / 2**20, **found,  # type: ignore[arg-type]
    )  # fmt: skip


def calls(
    case: Case, contestants: Sequence[Contestant], device: torch.device, memory: Memory | None = None
) -> dict[str, Callable[[], Call]]:
    """What is raced: everyone on the same input and gradient of the output. ``memory`` takes what each needs."""
    shape, dtype = case.shape, DTYPE[case.dtype]
    generator = torch.Generator(device).manual_seed(0)

    def maps() -> torch.Tensor:
        made = torch.randn(case.N, shape.C, shape.H, shape.W, device=device, generator=generator)
        return made.to(dtype).contiguous(memory_format=FORMAT[case.memory_format])

    x, grad = maps().requires_grad_(), maps()
    place = Place(case.N, shape.C, shape.H, shape.W, shape.activation, dtype)
    found = {one.label: _unit_call(one, place, x, grad, memory) for one in contestants}
    return {**found, COPY: lambda: _copy_call(x)}


def _unit_call(
    contestant: Contestant, place: Place, x: torch.Tensor, grad: torch.Tensor, memory: Memory | None
) -> Callable[[], Call]:
    def make() -> Call:
        unit: nn.Module = contestant.make(place).to(x.device).train()
        tell_steps(unit, 1)  # no burn-in, no warm-up: what it costs in most of a run
        if memory is not None:
            kept = kept_mib(lambda: unit(x), unit)
            memory[contestant.label] = {"kept_mib": kept, "state_mib": state_mib(unit)}
        inputs = (x, *(parameter for parameter in unit.parameters() if parameter.requires_grad))
        return Call(lambda: unit(x), lambda y: torch.autograd.grad(y, inputs, grad, allow_unused=True))

    return make


def _copy_call(x: torch.Tensor) -> Call:
    source = x.detach()
    target = torch.empty_like(source)
    return Call(lambda: target.copy_(source))


class Forecast:
    """How long cases will take, from a trial of everyone on two small ones; their kernels are compiled meanwhile."""

    def __init__(self, contestants: Sequence[Contestant], device: torch.device, rule: Rule) -> None:
        self.contestants, self.device, self.rule = contestants, device, rule
        self._trials: dict[tuple[str, str], list[tuple[float, float]]] = {}

    def seconds(self, case: Case) -> float:
        """Of all rounds of a case."""
        kind = (case.memory_format, case.dtype)
        if kind not in self._trials:
            self._trials[kind] = self._trial(*kind)
        values = case.N * case.shape.values
        times = [max(call, value * values) for call, value in self._trials[kind]]
        turn, rounds = sum(max(SAMPLE, time) for time in times), 0
        while not self.rule.enough(rounds, rounds * turn):
            rounds += 1
        return rounds * turn + WARM_UP * sum(times)

    def _trial(self, memory_format: str, dtype: str) -> list[tuple[float, float]]:
        """Of each contestant the seconds of a small call, and of a value in a larger one."""
        small, large = (
            race(
                calls(Case(shape, N, memory_format, dtype, {}), self.contestants, self.device), self.device, Rule(1, 0)
            )
            for shape, N in TRIAL
        )
        values = TRIAL[1][0].values * TRIAL[1][1]
        return [
            (_first(small[name]), _first(large[name]) / values)
            for name in small
            if not (small[name].reason or large[name].reason)
        ]


def _first(samples: Samples) -> float:
    return samples.seconds[0]
