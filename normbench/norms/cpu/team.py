"""The threads that kernels run on: torch's own, so that no second set of threads competes for the cores.

A kernel takes its pieces of work from a counter that all threads share, so one that is held up holds up nobody, and
each piece is computed in one way whoever takes it: results do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from normbench.norms.cpu.compiler import Kernel

# Values below which a second thread costs more than it brings: torch's own grain (at::internal::GRAIN_SIZE).
GRAIN = 2**15


def threads_for(values: int) -> int:
    """Threads for so many values: up to ``torch.get_num_threads()``."""
    return 1 if values < 2 * GRAIN else min(torch.get_num_threads(), values // GRAIN)


def run(kernel: Kernel, block: int, threads: int) -> None:
    """Call ``kernel`` on the arguments at address ``block`` in so many threads at once."""
    if threads == 1:
        kernel.call(block)
    else:
        _parallel()(kernel, block, threads)


@functools.cache
def _parallel() -> Callable[[Kernel, int, int], None]:
    """torch's OpenMP runtime, by the entry that GCC's compiled parallel regions call; else threads of our own."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        region = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return _in_a_pool
    region.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    region.restype = None
    return lambda kernel, block, threads: region(kernel.address, block, threads, 0)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="normbench")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


def _in_a_pool(kernel: Kernel, block: int, threads: int) -> None:
    """Where torch has another runtime. The kernels let go of the interpreter's lock."""
    others = [_pool(threads - 1).submit(kernel.call, block) for _ in range(threads - 1)]
    kernel.call(block)
    for other in others:
        other.result()
