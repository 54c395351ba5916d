"""The share of an image's own moments in evaluation, chosen after training on pictures held out for it.

Inference example weighing: Summers & Dinneen, ICLR 2020, arXiv:1906.03548. Its grid of shares was not seen. Ours has an
image's share in its training statistics, 1/B, half of it (which matches the spread of the means better) and their
neighbours; small shares beside, for large B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from normbench import norms

OF_ONE_IMAGE = (0.25, 0.5, 1.0, 2.0)
SMALL = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


def shares(batch: int) -> list[float]:
    """What is tried where ``batch`` images share statistics: 0, parts of 1/batch and a few fixed ones, rising."""
    return sorted({0.0, *SMALL, *(min(1.0, part / batch) for part in OF_ONE_IMAGE)})


def sharing(net: nn.Module, batch: int) -> int:
    """How many images share training statistics: a ghost's where the units have such, else a worker's."""
    units: Iterable[Any] = filter(norms.is_unit, net.modules())
    return min([batch, *(unit.ghost_size for unit in units if hasattr(unit, "ghost_size"))])


def choose(net: nn.Module, batch: int, measure: Callable[[], dict[str, float]]) -> float:
    """The share of the highest top-1; of several, of the lowest loss, then the smallest. ``net`` is left at it.

    measure: evaluates ``net`` as it is, on pictures that are neither trained nor tested on. A net without units that
    keep running moments is not measured: 0.
    """
    if not norms.set_example_weight(net, 0.0):
        return 0.0
    found = []
    for share in shares(sharing(net, batch)):
        norms.set_example_weight(net, share)
        scores = measure()
        found.append((-scores["top1"], scores["loss"], share))
    best = min(found)[-1]
    norms.set_example_weight(net, best)
    return best
