"""How a cell ended, from what is left of its process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from normbench.launch import ends
from normbench.meter import DivergedError


def status(code: str) -> int:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", f"import os; {code}"], os.environ)
    return os.waitpid(pid, 0)[1]


@pytest.mark.parametrize(
    ("code", "memory", "found", "words"),
    [
        ("os.kill(os.getpid(), 9)", False, "killed", "was killed (SIGKILL)"),
        ("os.kill(os.getpid(), 9)", True, "oom", "ran out of memory"),
        ("os.kill(os.getpid(), 15)", True, "killed", "was killed (SIGTERM)"),
        ("os.kill(os.getpid(), 11)", False, "killed", "a segmentation fault (SIGSEGV) at pkg/mine.py:7"),
        ("os.kill(os.getpid(), 40)", False, "killed", "was killed (signal 40)"),
        ("os._exit(3)", False, "error", "exit code 3 and no result; its last words: that was it"),
        ("os._exit(0)", False, "error", "exit code 0 and no result"),
    ],
)
def test_a_process_that_left_no_result(code: str, memory: bool, found: str, words: str) -> None:
    log = 'x\nCurrent thread (most recent call first):\n  File "/a/pkg/mine.py", line 7 in f\n that was it\n\n'
    end = ends.of_process(status(code), memory, log)
    assert end["status"] == found
    assert words in end["reason"]


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (DivergedError("the training loss is nan", {"epoch": 2, "step": 7, "last_loss": 0.5}), "diverged"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (MemoryError(), "oom"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "oom"),
        (RuntimeError("it is\nbroken"), "error"),
        (SystemExit(3), "error"),
    ],
)
def test_an_exception(error: BaseException, found: str) -> None:
    end = ends.of_exception(error, {"epoch": 1, "step": 4, "train_loss": 0.25})
    assert end["status"] == found
    assert "\n" not in end["reason"]
    assert (end["epoch"], end["step"], end["last_loss"]) == ((2, 7, 0.5) if found == "diverged" else (1, 4, 0.25))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts them")
def test_the_kernels_count_can_be_read() -> None:
    told = next(line for line in Path("/proc/vmstat").read_text().splitlines() if line.startswith("oom_kill "))
    assert ends.memory_kills() >= int(told.split()[1])
