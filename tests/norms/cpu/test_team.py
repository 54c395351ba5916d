"""Threads: torch's own OpenMP team, a pool where there is none, several callers at once, and a forked child."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from normbench import norms
from normbench.norms.cpu import plan, team

SHAPE = (2, 5, 120, 120)  # enough values for two threads, in columns too few to give each its own


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def trained(seed: int, shape: tuple[int, ...] = SHAPE, last: bool = False) -> list[Tensor]:
    """What a step of batch norm gives: y, the gradients, the running statistics."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x = (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()
    unit = norms.build("bn", shape[1], activation=nn.ReLU())
    y = unit(x)
    (y * torch.linspace(-1, 2, y.numel()).view(y.shape)).sum().backward()
    return [y.detach(), x.grad, unit.weight.grad, unit.bias.grad, unit.running_mean, unit.running_var]


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="torch's wheels for Linux have GCC's runtime")
def test_on_linux_kernels_run_in_torchs_own_threads() -> None:
    assert team._parallel() is not team._in_a_pool


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("threads", [2, 3])
def test_a_pool_of_threads_gives_the_same_bits(threads: int, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(threads)
    expected, runs = trained(0, last=last), list[int]()

    def in_a_pool(kernel: team.Kernel, block: int, threads: int) -> None:
        runs.append(threads)
        team._in_a_pool(kernel, block, threads)

    monkeypatch.setattr(team, "_parallel", lambda: in_a_pool)
    assert_same(trained(0, last=last), expected)
    assert set(runs) == {threads}


def test_an_error_of_the_runtime_leads_to_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_path: str) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(team.ctypes, "CDLL", missing)
    assert team._parallel.__wrapped__() is team._in_a_pool


@pytest.mark.parametrize(
    ("values", "threads", "expected"),
    [(1, 4, 1), (2**16 - 1, 4, 1), (2**16, 4, 2), (2**17, 4, 4), (2**20, 4, 4), (2**20, 1, 1)],
)
def test_small_maps_have_one_thread_and_no_map_more_than_torch_has(values: int, threads: int, expected: int) -> None:
    torch.set_num_threads(threads)
    assert team.threads_for(values) == expected


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_a_few_large_groups_are_shared_out_in_phases_and_many_whole(
    last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways are taken here, so what is said of threads is said of both."""
    torch.set_num_threads(2)
    x = torch.randn(SHAPE)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    use = plan.Use(gated=False, corrected=False, fixed=False, by_channel=False)
    few, many = (plan.plan_for(x, plan.Shape(rows, 5, 1e-5, True, 0.0, 6.0), use) for rows in (1, 2))
    assert len(few.forth.steps) > 1
    assert len(many.forth.steps) == 1
    ways = (few.forth, many.forth, few.back, many.back)
    assert max(step.threads for way in ways for step in way.steps) == 2


@pytest.mark.parametrize("torch_threads", [1, 2])
def test_several_python_threads_at_once_each_get_their_own_results(torch_threads: int) -> None:
    """Each has a block of arguments of its own."""
    torch.set_num_threads(torch_threads)
    shapes = [(2, 5, 120, 120), (4, 6, 5, 3), (8, 16, 16, 16), (3, 7, 30, 30)]
    expected = [trained(seed, shape, last=bool(seed % 2)) for seed, shape in enumerate(shapes)]
    found: list[list[list[Tensor]]] = [[] for _ in shapes]
    start = threading.Barrier(len(shapes))

    def work(seed: int) -> None:
        torch.set_num_threads(torch_threads)
        start.wait()
        found[seed].extend(trained(seed, shapes[seed], last=bool(seed % 2)) for _ in range(10))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(len(shapes))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for results, right in zip(found, expected, strict=True):
        assert len(results) == 10
        for result in results:
            assert_same(result, right)


FORK = """
import os, torch
from normbench import norms

def both(threads, used):
    # A process that has run a kernel, or none, forks, and so both run one.
    torch.set_num_threads(threads)
    x = torch.randn(2, 5, 120, 120, generator=torch.Generator().manual_seed(0))
    if used:  # in one thread, so that no team is there that a fork would lose
        norms.build("bn", 5)(x[:1, :, :9, :9]).sum().backward()
    child = os.fork()
    y = norms.build("bn", 5)(x)
    y.sum().backward()
    right = abs(y.detach().square().mean().item() - 1) < 1e-3
    os._exit(0 if right and (child == 0 or os.waitpid(child, 0)[1] == 0) else 3)

for threads, used in ((1, True), (2, False), (2, True)):
    parent = os.fork()  # of a process that has only imported
    if not parent:
        both(threads, used)
    print(threads, used, os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_child_runs_kernels_and_so_does_its_parent() -> None:
    """As the workers of a data loader are forked."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1 True 0", "2 False 0", "2 True 0"], done.stderr
