"""Ranks that are processes do what virtual workers do: the same loss, gradients and buffers, for every method."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normbench import cell as cells
from normbench import norms, train
from normbench.cell import Cell
from normbench.data import Description, share
from normbench.errors import DataError
from normbench.evaluate import evaluate
from normbench.launch import meeting
from normbench.launch.forkserver import ForkServer
from normbench.optimize import optimizer
from normbench.ranks import ALONE, Ranks
from normbench.step import Step

CPU = torch.device("cpu")
HERE = Path(__file__).resolve()
COUNT, STEPS = 2, 5
DESCRIPTION = Description("made", tuple("0123456789"), 80, 10, "test", 8, 8, 3, False, "f")

# Options under which state that is kept from step to step enters the training forward at once.
OPTIONS: dict[str, dict[str, Any]] = {
    "brn": {"r_max": 3.0, "d_max": 5.0},
    "mabn": {"window": 2, "warmup_steps": 0, "clip_start": 2},
    "bcn": {"estimated": True},
    "bkn": {"propagate": "moments"},  # of the two that which draws nothing
    "online": {"alpha_fwd": 0.8, "alpha_bkw": 0.7},
    "cbn": {"window": 3, "burnin": 1},
    "mbn": {"memory": 2, "eta_warmup": 1},
    "ic": {"drop": 0.0},  # ranks draw apart
}
WAYS = [
    {"workers": 2},  # a worker on each rank
    {"workers": 4},  # two on each, in one forward
    {"workers": 6, "chunk": 2},  # three on each, in forwards of two and one
]
KEYS = [
    *({"norm": name, **way} for way in WAYS for name in norms.names()),
    {"norm": "bn", "workers": 2, "recipe": {"clip": 0.1}},
    {"norm": f"{HERE}:Plain", "workers": 4},
    {"norm": f"{HERE}:Backward", "workers": 4},
    {"norm": "bn", "workers": 4, "arch": f"{HERE}:Odd", "chunk": 1},
]
CASES = {" ".join(str(value).rsplit("/", 1)[-1] for value in keys.values()): keys for keys in KEYS}


class Plain(nn.BatchNorm2d):
    """A user's: it mixes pictures and knows nothing of workers, which are run one by one."""

    mixes_samples = True

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)


class Backward(Plain):
    """It keeps a statistic of its gradient, too."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.register_buffer("seen", torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if y.requires_grad:
            y.register_hook(self.look)
        return y

    def look(self, grad: Tensor) -> None:
        self.seen.lerp_(grad.abs().mean((0, 2, 3)), 0.1)


class Small(nn.Module):
    """Two sites."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.one, self.bn_one = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.two, self.bn_two = nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn_one(self.one(x)))
        x = torch.relu(self.bn_two(self.two(x)))
        return self.fc(x.mean((2, 3)))


class Odd(Small):
    """One layer serves some batches only, one none at all, one is frozen; and there are constants among the buffers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.some, self.never, self.frozen = (nn.Linear(num_classes, num_classes) for _ in range(3))
        self.frozen.requires_grad_(False)
        self.register_buffer("mask", torch.tensor([0.1, 1 / 3, -torch.inf]))
        self.register_buffer("table", torch.arange(5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.frozen(super().forward(x))
        return sometimes(self.some, y, x)


@torch.fx.wrap
def sometimes(layer: nn.Linear, y: Tensor, x: Tensor) -> Tensor:
    return layer(y) if x[0, 0, 0, 0] > 0 else y


def make(norm: str, *, arch: str = f"{HERE}:Small", recipe: dict[str, Any] | None = None, **keys: Any) -> Cell:
    plain = {"name": "t", "epochs": 1, "base_lr": 0.05, "base_batch": 8, "schedule": "constant", "weight_decay": 0.1}
    config = {"arch": {"name": arch}, "data": {"name": "digits"}, "recipe": {**plain, **(recipe or {})}}
    return cells.make({**config, "norm": {"name": norm, **OPTIONS.get(norm, {})}, "batch": 2, **keys})


def steps(cell: Cell, ranks: Ranks) -> list[dict[str, Tensor]]:
    """What there is after each step, in float64, so that only mathematics can make a difference."""
    net = train.prepare(cell, DESCRIPTION, CPU).double().train()
    step = Step(cell, net, net, optimizer(net, cell.recipe, 0.1), CPU, ranks)
    generator, found = torch.Generator().manual_seed(0), []
    own = share.of_step(cell.images, ranks.rank, ranks.count)
    for _ in range(STEPS):
        x = torch.randn(cell.images, 3, 8, 8, generator=generator, dtype=torch.float64)
        y = torch.randint(10, (cell.images,), generator=generator)
        loss = step(x[own], y[own], 0.1)
        grads = {f"{key}.grad": p.grad.clone() for key, p in net.named_parameters() if p.grad is not None}
        found.append({"loss": loss, **grads, **{key: value.clone() for key, value in net.state_dict().items()}})
    return found


class Made:
    """Test pictures that depend on their number alone."""

    def __init__(self, count: int) -> None:
        self.count = count

    def test(self, batch: int, *, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        for part in share.of_batches(torch.arange(self.count).split(batch), rank, ranks):
            yield torch.nn.functional.one_hot(part % 7, 10) * 3.0, part % 10


def evaluated(count: int, ranks: Ranks, expected: int | None = None) -> dict[str, float]:
    pictures = Made(count).test(4, rank=ranks.rank, ranks=ranks.count)
    return evaluate(nn.Identity(), pictures, expected or count, reduce=ranks.total if ranks.count > 1 else None)


def miscounted(ranks: Ranks) -> str:
    with pytest.raises(DataError) as caught:
        evaluated(9, ranks, expected=8)
    return str(caught.value)


EVALUATIONS = (1, 3, 4, 5, 8, 10, 13)


def exchanged(ranks: Ranks) -> dict[str, Any]:
    one, two = torch.tensor([1.0, 2.0]) + ranks.rank, torch.tensor(4.0, dtype=torch.float64) * ranks.rank
    across = torch.arange(4.0).view(2, 2).t() + ranks.rank  # not contiguous
    ranks.add_up([one, two, across])
    return {
        "sum": [one, two, across],
        "total": ranks.total(torch.tensor(ranks.rank + 1.0)),
        "any": ranks.any([False, ranks.rank == 1, True], CPU),
        "everybodys": ranks.everybodys({"rank": ranks.rank}),
        "first": ranks.first([ranks.rank]),
    }


def main(text: str, talk: int) -> int:
    """One rank: what the fork server calls."""
    order = json.loads(text)
    torch.set_num_threads(1)
    with socket.socket(fileno=talk), meeting.joined(order["rank"], COUNT, order["place"], CPU) as ranks:
        found = {
            "steps": {name: steps(make(**keys), ranks) for name, keys in CASES.items()},
            "evaluations": [evaluated(count, ranks) for count in EVALUATIONS],
            "miscounted": miscounted(ranks),
            "exchanged": exchanged(ranks),
        }
    torch.save(found, order["out"])
    return 0


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two real ranks found, all cases in one meeting."""
    folder = tmp_path_factory.mktemp("a #place with? %41 signs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)]))
        server = ForkServer(f"{HERE.stem}:main", ())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        with (folder / "log").open("ab") as log, ours, theirs:
            for rank in range(COUNT):
                order = {"rank": rank, "place": str(folder / "meeting"), "out": str(folder / f"{rank}.pt")}
                server.fork(json.dumps(order), theirs.fileno(), log.fileno())
        codes: list[int] = []
        until = time.monotonic() + 120
        while len(codes) < COUNT and not any(codes) and time.monotonic() < until:
            codes += [status for _, status in server.ended()]
            time.sleep(0.02)
    finally:
        server.kill()
    assert codes == [0] * COUNT, (folder / "log").read_text()
    return [torch.load(folder / f"{rank}.pt") for rank in range(COUNT)]


@pytest.mark.parametrize("name", CASES)
def test_real_ranks_take_the_steps_of_virtual_workers(name: str, by_rank: list[dict[str, Any]]) -> None:
    virtual = steps(make(**CASES[name]), ALONE)
    for rank in range(COUNT):
        real = by_rank[rank]["steps"][name]
        assert len(real) == len(virtual) == STEPS
        for number, (ours, theirs) in enumerate(zip(real, virtual, strict=True)):
            assert ours.keys() == theirs.keys()
            for key in ours:
                torch.testing.assert_close(
                    ours[key], theirs[key], rtol=1e-9, atol=1e-11,
                    msg=lambda text, at=f"rank {rank}, step {number}, {key}": f"{at}: {text}",
                )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_all_ranks_hold_the_same_network_to_the_last_bit(name: str, by_rank: list[dict[str, Any]]) -> None:
    first, second = (found["steps"][name] for found in by_rank)
    for ours, theirs in zip(first, second, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_statistics_of_gradients_are_kept_where_workers_are_run_one_by_one() -> None:
    one, two = (steps(make(f"{HERE}:Backward", workers=2), ALONE)[at]["bn_one.seen"] for at in (0, 1))
    assert one.count_nonzero() == two.count_nonzero() == 8
    assert not torch.equal(one, two)


def test_the_cases_differ_where_workers_are_one_large_batch() -> None:
    """Or the agreement above would say little."""
    assert not torch.allclose(
        steps(make("bn", workers=2), ALONE)[0]["loss"], steps(make("bn", batch=4), ALONE)[0]["loss"]
    )


@pytest.mark.parametrize("at", range(len(EVALUATIONS)))
def test_every_test_picture_counts_once(at: int, by_rank: list[dict[str, Any]]) -> None:
    """Also where a batch is not full, and where a rank has none."""
    alone = evaluated(EVALUATIONS[at], ALONE)
    assert alone["eval_count"] == EVALUATIONS[at]
    assert by_rank[0]["evaluations"][at] == by_rank[1]["evaluations"][at] == pytest.approx(alone, rel=1e-12)


def test_pictures_are_counted_over_all_ranks_together(by_rank: list[dict[str, Any]]) -> None:
    for found in by_rank:
        assert "saw 9 pictures, expected each of 8 once" in found["miscounted"]


def test_what_ranks_tell_each_other(by_rank: list[dict[str, Any]]) -> None:
    for found in (each["exchanged"] for each in by_rank):
        one, two, across = found["sum"]
        assert (one.tolist(), two.item(), across.tolist()) == ([3, 5], 4, [[1, 5], [3, 7]])
        assert found["total"] == 3
        assert found["any"] == [False, True, True]
        assert found["everybodys"] == [{"rank": 0}, {"rank": 1}]
        assert found["first"] == [0]


def test_one_rank_alone_tells_itself_everything() -> None:
    found = exchanged(ALONE)
    assert found["sum"][0].tolist() == [1, 2]
    assert (found["total"], found["any"]) == (1, [False, False, True])
    assert (found["everybodys"], found["first"]) == ([{"rank": 0}], [0])
