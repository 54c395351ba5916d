"""Whole training steps of a network with each normalizer, beside the same network untouched."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normbench import models, norms, surgery
from normbench.bench.cases import CLASSES, DTYPE, FORMAT, ITEM_BYTES
from normbench.bench.contestants import Contestant
from normbench.bench.measure import Call, Rule, race
from normbench.bench.memory import kept_mib, state_mib
from normbench.bench.results import Row, measures
from normbench.bench.settings import Settings
from normbench.bench.statistics import BASELINE
from normbench.options import ArchOptions
from normbench.step import classification_loss
from normbench.train import tell_steps


@dataclass(frozen=True)
class Network:
    """A network and how it is trained. side: of the pictures that reach it."""

    name: str
    side: int
    plain: nn.Module
    N: int
    memory_format: str
    dtype: str

    @property
    def label(self) -> str:
        return f"{self.name}@{self.side}"

    @property
    def sites(self) -> int:
        return sum(isinstance(module, nn.BatchNorm2d) for module in self.plain.modules())


def check(settings: Settings) -> None:
    """Raise UnknownName or ConfigError for a network that cannot be built for such pictures."""
    for name in settings.arch:
        models.resolve(ArchOptions(name), picture_size=settings.size)


def networks(settings: Settings) -> Iterator[Network]:
    """Every network at every batch, layout and dtype; built, as the runner builds it, once each."""
    for name in settings.arch:
        options = ArchOptions(name)
        side = models.resolve(options, picture_size=settings.size).size or settings.size
        torch.manual_seed(0)
        plain = models.build(options, num_classes=CLASSES, picture_size=settings.size)
        for N, dtype, memory_format in itertools.product(settings.batch, settings.dtype, settings.memory_format):
            yield Network(name, side, plain, N, memory_format, dtype)


def measure(network: Network, contestants: Sequence[Contestant], device: torch.device, rule: Rule) -> list[Row]:
    """A row per contestant; the untouched network is the baseline."""
    finite: dict[str, bool] = {}
    memory: dict[str, dict[str, float]] = {}
    makers = {one.label: _maker(network, one, device, finite, memory) for one in contestants if _able(one, network)}
    samples = race(makers, device, rule)
    rows = []
    for one in contestants:
        if one.label in samples:
            found = measures(one.label, samples) | memory.get(one.label, {})
        else:
            found = {"status": "skipped", "reason": f"it trains from batch {one.least_batch}"}
        if found.get("status", "ok") == "ok" and not finite[one.label]:
            found["reason"] = "the loss is not finite; the time is told all the same"
        rows.append(_row(one, network, found))
    return rows


def _able(one: Contestant, network: Network) -> bool:
    return one.least_batch <= network.N


def _row(one: Contestant, network: Network, found: dict[str, Any]) -> Row:
    mib = network.N * 3 * network.side**2 * ITEM_BYTES[network.dtype] / 2**20
    return Row(
        one.label, one.kind, network.label, network.N, 3, network.side, network.side, True, network.sites,
        network.memory_format, network.dtype, mib, **found,
    )  # fmt: skip


def _maker(
    network: Network,
    one: Contestant,
    device: torch.device,
    finite: dict[str, bool],
    memory: dict[str, dict[str, float]],
) -> Callable[[], Call]:
    """A step that leaves the weights as they are: with lr 0 all rounds do the same work on the same numbers."""

    def make() -> Call:
        plain = copy.deepcopy(network.plain)
        if one.label == BASELINE:
            net = plain
        else:
            net = surgery.apply(plain, one.norm, batch=network.N, input_shape=(3, network.side, network.side))
        layout = FORMAT[network.memory_format]
        net = net.to(device).to(memory_format=layout).train()
        tell_steps(net, 1)  # no burn-in, no warm-up: what a step costs in most of a run
        generator = torch.Generator(device).manual_seed(0)
        x = torch.randn(network.N, 3, network.side, network.side, device=device, generator=generator)
        x = x.contiguous(memory_format=layout)
        y = torch.randint(CLASSES, (network.N,), device=device, generator=generator)
        update = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
        hooks = norms.step_hooks(net)

        def again() -> None:
            with torch.no_grad(), _precision(network.dtype, device):
                net(x)

        def forward() -> Tensor:
            update.zero_grad(set_to_none=True)
            with _precision(network.dtype, device):
                return classification_loss(net(x), y, 0.0)

        def backward(loss: Tensor) -> None:
            loss.backward()
            hooks.gradients()
            update.step()
            hooks.updated(again)

        with torch.random.fork_rng(devices=[]):
            backward(loss := forward())
            memory[one.label] = {"kept_mib": kept_mib(forward, net), "state_mib": state_mib(net)}
        finite[one.label] = bool(loss.detach().isfinite())
        return Call(forward, backward)

    return make


def _precision(dtype: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPE[dtype])
