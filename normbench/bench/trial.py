"""One try of ``fit``: real training steps at a batch, and the memory they took at their peak.

On a CPU in a process of its own, forked from a server that has imported torch and done nothing else, so that the
peak is this try's alone: all that the process ever held, torch itself included, as a sweep's peak_memory_mib counts it.
On a GPU in this process, which gives all memory back between tries: the tensors' peak.
"""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import torch

from normbench import machine
from normbench.bench import ours
from normbench.bench.ours import Checked
from normbench.errors import one_line

KERNELS = "normbench.norms.cpu"  # imported before the fork too, so that every try has them, and soon
COMPILER = "numba"  # which only a process that compiles imports
STEPS = 3  # the optimizer has its state from the second on; the third finds the memory that these leave
# A process that takes so many times the limit is not let go on: a machine must not swap for a try.
GUARD, ITS_OWN = 1.5, 4096  # MiB that libraries and threads reserve and never touch


@dataclass(frozen=True)
class Try:
    """What is tried. untouched: the network with its nn.BatchNorm2d. folder, environment: where a user's file is."""

    checked: Checked
    untouched: bool
    threads: int | None
    limit_mib: float
    folder: str = field(default_factory=os.getcwd)
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))


class FailedTry(RuntimeError):
    """A try that ended by something else than its memory."""


def peak_mib(asked: Try, device: torch.device) -> float:
    """The peak in MiB; infinite if memory ran out. Raises FailedTry."""
    return _here(asked, device) if device.type == "cuda" else _in_child(asked, device)


def _steps(asked: Try, device: torch.device) -> None:
    checked = asked.checked
    net = ours.untouched(checked, device) if asked.untouched else ours.network(checked, device)
    trainer = ours.Trainer(checked, net, device)
    side = checked.description.height or 0
    x = torch.randn(checked.cell.images, 3, side, side, device=device)
    y = torch.randint(len(checked.description.classes), (checked.cell.images,), device=device)
    for _ in range(STEPS):
        trainer.train((x, y))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _here(asked: Try, device: torch.device) -> float:
    total = torch.cuda.get_device_properties(device).total_memory / 2**20
    torch.cuda.set_per_process_memory_fraction(min(1.0, asked.limit_mib / total), device)
    _emptied(device)
    try:
        with machine.numerics(False, asked.checked.values):
            _steps(asked, device)
        return machine.peak_memory_mib(device)
    except Exception as error:
        if not machine.out_of_memory(error):
            raise FailedTry(f"{type(error).__name__}: {one_line(error)}"[:300]) from None
        return math.inf
    finally:
        _emptied(device)


def _emptied(device: torch.device) -> None:
    machine.reset_peak_memory(device)  # collects what is no longer used
    torch.cuda.empty_cache()


def _in_child(asked: Try, device: torch.device) -> float:
    peak, compiled = _tried(asked, device)
    return _tried(asked, device)[0] if compiled else peak


def _tried(asked: Try, device: torch.device) -> tuple[float, bool]:
    """The peak of a child, and whether that compiled kernels, which takes more memory than small steps do."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, KERNELS])
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(asked, device, send), daemon=True)
    child.start()
    send.close()
    try:
        peak, failed, compiled = receive.recv()
    except EOFError:  # it died
        child.join()
        if child.exitcode != -signal.SIGKILL:  # which is how the system ends one that takes too much
            raise FailedTry(f"the process of this try ended with exit code {child.exitcode}") from None
        peak, failed, compiled = math.inf, "", False
    finally:
        receive.close()
        child.kill()
        child.join()
    if failed:
        raise FailedTry(failed)
    return float(peak), bool(compiled)


def _child(asked: Try, device: torch.device, send: Connection) -> None:
    """The peak of these steps, or what they failed by, to the parent."""
    os.chdir(asked.folder)
    os.environ.update(asked.environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends this process
    machine.keep_memory()
    _guard(asked.limit_mib)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    try:
        with machine.numerics(False, asked.checked.values):
            _steps(asked, device)
    except Exception as error:
        failed = "" if machine.out_of_memory(error) else f"{type(error).__name__}: {one_line(error)}"[:300]
        send.send((math.inf, failed, COMPILER in sys.modules))
        return
    gc.collect()
    send.send((machine.peak_memory_mib(device), "", COMPILER in sys.modules))


def _guard(limit_mib: float) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError, AttributeError):
        import resource  # not on Windows

        most = int((GUARD * limit_mib + ITS_OWN) * 2**20)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
