"""syncbn: the statistics of all workers of a step, between real ranks of one machine too, against one process."""

from __future__ import annotations

import copy
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from norm_cases import C, gradients, make, pictures
from norm_cases import Case as Of
from torch import Tensor, distributed, nn
from torch.multiprocessing import start_processes

from normbench import norms
from normbench.errors import LostRankError

STEPS = 3
# How many of six pictures each rank has.
SPLITS = {"equal": (3, 3), "of three": (1, 3, 2)}
OPTIONS: dict[str, dict[str, Any]] = {"plain": {}, "average": {"momentum": None}, "bare": {"affine": False}}


def picked(split: str, rank: int, step: int) -> Tensor:
    return pictures(6, C, 4, 3, seed=step).split(SPLITS[split])[rank]


def found(unit: Any, parts: list[Tensor], slopes: list[Tensor]) -> dict[str, Tensor]:
    """y, the gradients of a sum over all pictures, and what is kept, of one process that has ``parts``."""
    x = torch.cat(parts).requires_grad_()
    y = unit(x)
    inputs = (x, *unit.parameters())
    grads = torch.autograd.grad((y * torch.cat(slopes)).sum(), inputs)
    names = ("x.grad", *(f"{name}.grad" for name, _ in unit.named_parameters()))
    return {"y": y.detach(), **dict(zip(names, grads, strict=True)), **copy.deepcopy(unit.state_dict())}


def unit_of(kind: str, name: str = "syncbn") -> Any:
    unit = norms.build(name, C, activation=nn.ReLU(), dtype=torch.float64, **OPTIONS[kind])
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter += torch.linspace(-1, 1, C)
    return unit


def slope(x: Tensor, step: int) -> Tensor:
    return (x * (step + 1)).sin()


def as_rank(rank: int, split: str, folder: str) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    place = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=len(SPLITS[split]))
    results: dict[str, Any] = {}
    for kind in OPTIONS:
        unit = unit_of(kind)
        parts = (picked(split, rank, step) for step in range(STEPS))
        results[kind] = [found(unit, [x], [slope(x, step)]) for step, x in enumerate(parts)]
        results[f"{kind} evaluated"] = unit.eval()(pictures(2 + rank, C, 3, 3))
    if split == "equal":
        x = picked(split, rank, 0).clone().requires_grad_()
        y = make(Of("syncbn")).train()(x)
        (g,) = torch.autograd.grad((y * slope(x.detach(), 0)).sum(), x, create_graph=True)
        results["second"] = torch.autograd.grad(g.square().sum(), x)[0]
        half = norms.build("syncbn", C)(x.detach().bfloat16())
        results["half"] = half.dtype == torch.bfloat16
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.barrier()
    if split == "equal" and rank == 0:  # the other went away
        try:
            make(Of("syncbn"))(pictures(2, C, 3, 3))
        except LostRankError as error:
            torch.save(str(error), f"{folder}/lost.pt")
        return
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each rank of each split found."""
    results: dict[str, Any] = {}
    started = []
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "normbench.norms"])
    for split, shares in SPLITS.items():
        folder = tmp_path_factory.mktemp("ranks")
        arguments = (split, str(folder)), len(shares), False
        started.append((split, folder, start_processes(as_rank, *arguments, start_method="forkserver")))
    for split, folder, context in started:
        while not context.join(timeout=60):
            pass
        results[split] = [torch.load(folder / f"{rank}.pt") for rank in range(len(SPLITS[split]))]
        if split == "equal":
            results["lost"] = torch.load(Path(folder) / "lost.pt")
    return results


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", OPTIONS)
def test_ranks_give_what_one_process_gives_and_what_bn_gives(kind: str, split: str, by_rank: dict[str, Any]) -> None:
    for name in ("syncbn", "bn"):
        unit = unit_of(kind, name)
        for step in range(STEPS):
            parts = [picked(split, rank, step) for rank in range(len(SPLITS[split]))]
            expected = found(unit, parts, [slope(x, step) for x in parts])
            got = [each[kind][step] for each in by_rank[split]]
            for key in expected:
                if key in ("y", "x.grad"):
                    ours = torch.cat([each[key] for each in got])
                elif key.endswith(".grad"):
                    ours = torch.stack([each[key] for each in got]).sum(0)
                else:
                    ours = got[0][key]
                    assert all(torch.equal(each[key], ours) for each in got), "all ranks keep the same"
                torch.testing.assert_close(ours, expected[key], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("split", SPLITS)
def test_evaluation_exchanges_nothing_and_is_bns(split: str, by_rank: dict[str, Any]) -> None:
    """Every rank has another number of pictures."""
    for rank, each in enumerate(by_rank[split]):
        bn = unit_of("plain", "bn").eval()
        bn.load_state_dict({k: v for k, v in each["plain"][-1].items() if k in bn.state_dict()})
        assert torch.equal(each["plain evaluated"], bn(pictures(2 + rank, C, 3, 3)))


def test_ranks_can_differentiate_twice(by_rank: dict[str, Any]) -> None:
    """Of the sum over both ranks of the squares of the gradients."""
    x = pictures(6, C, 4, 3, seed=0).requires_grad_()
    y = make(Of("bn"))(x)
    (g,) = torch.autograd.grad((y * slope(x.detach(), 0)).sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad(g.square().sum(), x)
    ours = torch.cat([each["second"] for each in by_rank["equal"]])
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    assert all(each["half"] for each in by_rank["equal"])


def test_a_rank_that_went_away_is_told_as_such(by_rank: dict[str, Any]) -> None:
    assert "an exchange between the ranks failed" in by_rank["lost"]


@pytest.mark.parametrize("batch", [1, 2, 3, 6, None])
def test_virtual_workers_are_one_large_batch(batch: int | None) -> None:
    ours, bn = make(Of("syncbn"), batch=batch, activation=nn.ReLU()), nn.BatchNorm2d(C, dtype=torch.float64)
    bn.load_state_dict(ours.state_dict())
    x = pictures(6, C, 4, 3).requires_grad_()
    y, expected = ours(x), bn(x).relu()
    assert torch.allclose(y, expected, rtol=0, atol=1e-12)
    theirs = gradients(expected, x, *bn.parameters())
    for g, h in zip(gradients(y, x, *ours.parameters()), theirs, strict=True):
        assert torch.allclose(g, h, rtol=1e-10, atol=1e-9)
    for key, value in ours.state_dict().items():
        assert torch.allclose(value, bn.state_dict()[key], rtol=0, atol=1e-12)
    assert torch.allclose(ours.eval()(x), bn.eval()(x).relu(), rtol=0, atol=1e-12)


def test_its_row_says_that_workers_are_not_run_apart() -> None:
    assert [name for name in norms.names() if norms.get(name).joins_workers] == ["syncbn"]
