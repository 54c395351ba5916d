"""The machine a cell runs on: its device, its memory, its versions. Provenance, never part of a cell's id."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import platform
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normbench import __version__
from normbench.errors import ConfigError

# Values in a forward's maps below which a second thread brings little, and on a busy machine costs much.
SMALL = 2**20


def device(name: str) -> torch.device:
    """The device that ``device=name`` means here. Raises ConfigError if this machine has none such."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: got {name!r}, expected auto, cpu, cuda, cuda:<number> or mps") from None
    count = torch.cuda.device_count() if found.type == "cuda" else 0
    if found.type == "cuda" and (found.index or 0) >= count:
        raise ConfigError(
            f"device={name}: this machine has {count or 'no'} CUDA devices; take device=auto or device=cpu"
        )
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps: this machine has no Apple GPU; take device=auto or device=cpu")
    if found.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device: got {name!r}, expected auto, cpu, cuda, cuda:<number> or mps")
    return found


def check_compiler(where: torch.device) -> None:
    """Raise ConfigError unless torch.compile finds the compiler that it needs, on a GPU for what starts kernels."""
    wanted = ["cc", "gcc", "clang"] if where.type == "cuda" else ["g++", "clang++"]
    given = os.environ.get("CC" if where.type == "cuda" else "CXX")
    if not any(map(shutil.which, [given] if given else wanted)):
        raise ConfigError(
            f"compile=true: found none of {', '.join([given] if given else wanted)}, and torch.compile needs a "
            f"compiler; install one (Debian: apt install g++), name it in {'CC' if where.type == 'cuda' else 'CXX'}, "
            "or take compile=false"
        )


def provenance(where: torch.device, threads: int) -> dict[str, Any]:
    """Versions, device, threads, source revision. No host, user or path."""
    on_gpu = where.type == "cuda"
    return {
        "normbench": __version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "device": torch.cuda.get_device_name(where) if on_gpu else where.type,
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory": _kept or "the C library's own settings",
        "command": ["python", "-m", "normbench.sweep", *sys.argv[1:]],
    }


def threads_for(values: int) -> int:
    """Threads for a cell with so many values in the maps of one forward: one if sharing them out brings nothing.

    On two quiet cores a ResNet-8 step of 147,000 values took 7.3 ms with one thread and 7.2 ms with two, one of 590,000
    took 14.2 and 10.8 ms; but on a busy machine, where threads wait for each other, two made steps of this size up to
    40 times slower. OMP_NUM_THREADS, where it is set, is the user's word.
    """
    small = values < SMALL and "OMP_NUM_THREADS" not in os.environ
    return 1 if small else torch.get_num_threads()


def seed(number: int) -> None:
    """Seed every generator that a network, its normalizer or its pictures may draw from."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)


@contextlib.contextmanager
def numerics(deterministic: bool, values: int, exactly: int | None = None) -> Iterator[int]:
    """Deterministic algorithms and one thread, or this machine's own; yields the number of threads; put back after.

    values: in the maps of one forward, as ``threads_for`` wants it; exactly: so many threads instead. Deterministic
    runs have one thread because it is the only number every machine has: sums are split, and so rounded, by thread.
    """
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        torch.set_num_threads(1 if deterministic else exactly or threads_for(values))
        torch.backends.cudnn.benchmark = not deterministic
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark


_kept: str | None = None


@functools.cache
def keep_memory() -> str | None:
    """Let the C library keep freed memory for the next tensor, in this process from now on; what was set, or None.

    glibc gives a large tensor's memory back to the system after each use, and the system hands it out again page by
    page, cleared: most of the time of an elementwise operation. Two settings of mallopt(3) end that: nothing is mapped
    on its own (M_MMAP_MAX; the threshold for it, M_MMAP_THRESHOLD, ends at 32 MiB) and the heap is not trimmed
    (M_TRIM_THRESHOLD). Where the environment sets such (MALLOC_…) or the C library has none, all stays as it is.
    """
    global _kept
    mmap_max, trim_threshold = -4, -1
    if any(name.startswith("MALLOC_") for name in os.environ):
        return None
    try:
        mallopt = ctypes.CDLL(None).mallopt
        set_both = mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError, TypeError):
        return None
    _kept = "mallopt(M_MMAP_MAX=0, M_TRIM_THRESHOLD=2^31-1)" if set_both else None
    return _kept


def return_memory() -> None:
    """Give what is free of the process's memory back to the system, holes too.

    To be called where tensors of other sizes follow: glibc takes aligned memory from holes that are larger than what is
    asked for, so that each size but the smallest would find those of the sizes before it too small.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc's


def reset_peak_memory(where: torch.device) -> None:
    """Start counting the peak anew: the device allocator's on CUDA, the process's on Linux.

    A process's peak starts from what it holds, so what earlier cells left is given back to the system first.
    """
    return_memory()
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(where: torch.device) -> float:
    """Peak since the reset, in MiB: of tensors on CUDA, of the whole process (torch itself included) elsewhere."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / 2**20
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) / 1024
    import resource  # not on Windows

    scale = 2**20 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def out_of_memory(error: BaseException) -> bool:
    """Whether it says so: CUDA's own error, Python's, the CPU allocator's, or cuDNN's way of saying it."""
    words = str(error)
    cpu = "DefaultCPUAllocator" in words or "can't allocate memory" in words
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or cpu or "CUDNN_STATUS_ALLOC_FAILED" in words


@functools.cache  # of the code that runs, which a commit during the sweep does not change
def _revision() -> str | None:
    """The checkout's commit, with ``+`` if files differ from it; None when installed from a wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        run = {"cwd": root, "capture_output": True, "text": True, "timeout": 5, "check": True}
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **run).stdout.strip()  # type: ignore[call-overload]
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], **run).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if dirty else "")


@functools.cache
def _processor() -> str | None:
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        return found[1].strip() if found else None
    return platform.processor() or None
