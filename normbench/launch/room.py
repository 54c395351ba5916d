"""Whether the cells that run side by side find room in memory: estimated before the first one starts.

It refuses what surely fails and nothing else: a cell that runs out of memory is a result, a sweep that is refused
wrongly is none. So it counts only the cells that start together, and takes the share SURELY of the estimate.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from normbench import memory
from normbench.errors import ConfigError
from normbench.launch.places import Places
from normbench.preflight import Planned
from normbench.step import Step
from normbench.targets import is_target

# MiB of a process on a CPU that it shares with no other: what is imported is the fork server's, and counts once.
OWN = 40
# Bytes of a value. Maps of a site alive at once in training (before and behind the norm, and some of what goes back
# through it), in training what a compiler may have joined, and largest maps in evaluation, where none is kept.
FLOAT, ALIVE, ALIVE_COMPILED, ALIVE_TESTED = 4, 2.5, 1, 4
# Of the weights. In training: they, their gradients and the optimizer's momentum, of which AdamW has two. Before it, in
# the rehearsal, which all cells that start together do at the same time, as much again on disk's way and back: nine
# copies by the code; twelve ResNet-50s of batch 128 on 8×8 pictures had about 7.4 each when the system ended them.
COPIES = {"sgd": 3, "adamw": 4}
REHEARSED = {"sgd": 7, "adamw": 9}
# The share of the estimate that is needed for certain.
SURELY = 0.8
# What a process of its own says of the GPUs: to ask is to take some of their memory.
ASK = "import json, torch; print(json.dumps([torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]))"


def needed_mib(item: Planned, ranks: int = 1) -> float:
    """About how many MiB each process of a cell needs for itself: OWN, the maps of a step or of an evaluation batch,
    the weights, and the pictures where they are held in memory (but a user's own may hold none, and count as none).

    On a CPU, the grids of `python scripts/room.py` run in parts, 7 networks at 32 px, 11 normalizers, batches 2, 32 and
    128: the estimate was 0.43 to 1.10 of what a cell had for itself in training, 40 MiB to 6 GiB; the rehearsal counts
    since, where it takes more. It is low where a method keeps more maps than bn does
    or small tensors add up, and high for ResNet-50 and DenseNet-121 at batch 128, with 2.25 to 2.5 maps alive: times
    SURELY it was never more than 0.88. Where evaluation decides (ResNet-20 and -50 at batch 2) it was 0.70
    and 0.64. No GPU has been measured: tensors alone are counted there.
    """
    cell = item.cell
    at_once = cell.batch * Step.workers_at_once(cell)
    values = item.values / at_once * min(at_once, cell.images / ranks)
    alive = ALIVE_COMPILED if cell.compile else ALIVE
    trained = alive * values * (FLOAT if cell.amp == "none" else FLOAT / 2)
    tested = ALIVE_TESTED * min(cell.data.eval_batch, item.description.test) * item.widest * FLOAT
    copies, rehearsed = (some[cell.recipe.optimizer] for some in (COPIES, REHEARSED))
    weight = item.parameters * FLOAT
    most = max(max(trained, tested) + copies * weight, rehearsed * weight)
    return OWN + (most + _pictures(item)) / 2**20


def _pictures(item: Planned) -> int:
    """Bytes of the pictures that each process keeps, the training ones with their border."""
    found, pad = item.description, 2 * item.cell.data.pad
    if found.streamed or is_target(found.name) or not (found.height and found.width):
        return 0
    return found.channels * (
        (found.train + found.tune) * (found.height + pad) * (found.width + pad)
        + found.test * found.height * found.width
    )


def check(queue: Sequence[Planned], slots: int, ranks: int) -> str | None:
    """Raise ConfigError if the cells at the head of ``queue``, which start together, surely do not fit; a warning where
    larger ones further back may not, if they come to run together.
    """
    if slots == 1 or len(queue) < 2:
        return None
    places = Places(slots, ranks)
    head, warning = queue[:slots], None
    for where, free in _free(places, head).items():
        needs = [_on(where, item, slot, places) for slot, item in enumerate(head)]
        if SURELY * sum(needs) > free:
            raise ConfigError(_refusal(where, free, head, needs))
        if where is None:
            most = sorted((_on(None, item, 0, places) for item in queue), reverse=True)[:slots]
            warning = _warning(most, free) if sum(most) > free else None
    return warning


def _on(where: str | None, item: Planned, slot: int, places: Places) -> float:
    """MiB that a cell in a slot needs on a GPU, or (None) of the machine's memory. How much a process on a GPU takes
    beside it is not known here: it counts as nothing.
    """
    gpus = places.gpus_of(slot, item.cell.device)
    if where is None:
        return 0.0 if gpus else places.ranks * needed_mib(item, places.ranks)
    return gpus.count(where) * (needed_mib(item, places.ranks) - OWN)


def _free(places: Places, head: Sequence[Planned]) -> dict[str | None, float]:
    """MiB that are free: of the machine (None), and on every GPU that several of the cells share."""
    used = [gpu for slot, item in enumerate(head) for gpu in places.gpus_of(slot, item.cell.device)]
    free: dict[str | None, float] = {None: memory.free_mib()}
    if len(set(used)) < len(used):
        try:
            done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, timeout=120, check=True)
            found = json.loads(done.stdout)
        except (OSError, subprocess.SubprocessError, ValueError):  # the cells will say what is wrong with the GPUs
            found = []
        free |= {gpu: bytes_ / 2**20 for gpu, bytes_ in zip(places.gpus, found, strict=False) if used.count(gpu) > 1}
    return free


def _refusal(where: str | None, free: float, head: Sequence[Planned], needs: Sequence[float]) -> str:
    place = "here, within the limits of this machine and its control groups" if where is None else f"on GPU {where}"
    largest = max(range(len(needs)), key=needs.__getitem__)
    return (
        f"slots={len(head)}: the {len(head)} cells that start together need about {_gib(sum(needs))} beside what they "
        f"share, the largest of them, {head[largest].label}, {_gib(needs[largest])}, and {_gib(free)} is free {place}; "
        f"take slots={_fitting(needs, free)}"
    )


def _warning(most: Sequence[float], free: float) -> str:
    return (
        f"slots={len(most)}: should the {len(most)} largest cells come to run together, they need about "
        f"{_gib(sum(most))}, and {_gib(free)} is free; what runs out of memory ends as oom; "
        f"slots={_fitting(most, free)} has room for them"
    )


def _fitting(needs: Sequence[float], free: float) -> int:
    """How many of the cells fit, the first ones of them, at the least one: alone it may try."""
    return max([1, *(count for count in range(1, len(needs)) if sum(needs[:count]) <= free)])


def _gib(mib: float) -> str:
    return f"{mib / 1024:.1f} GiB"
