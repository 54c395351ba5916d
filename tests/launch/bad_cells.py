"""Sweeps as commands and their rows, and norms that end badly, for the tests of how cells end."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

Sweep = Callable[..., int]
Rows = list[dict[str, str]]
Results = Callable[..., Rows]

SHORT = ("data.limit=60", "epochs=1")
BAD = """
import ctypes, os, resource, signal, time
from pathlib import Path
import torch
from torch import nn

class Base(nn.Module):
    mixes_samples = False

    def __init__(self, num_features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.seen = 0

    def forward(self, x):
        self.seen += 1
        if self.training and self.seen > 5:
            x = self.bad(x)
        return x * self.weight[:, None, None]

class Segfault(Base):
    def bad(self, x):
        ctypes.string_at(0)

class Hungry(Base):
    def bad(self, x):
        if "NO_LIMIT" not in os.environ:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, -1))
        kept = []
        while True:
            kept.append(torch.ones(2**24))

class Endless(Base):
    def bad(self, x):
        while True:
            time.sleep(1)

class Raises(Base):
    def bad(self, x):
        raise RuntimeError("this norm is broken")

class Nan(Base):
    def bad(self, x):
        return x * float("nan")

class Exits(Base):
    def bad(self, x):
        os._exit(3)

class Killed(Base):
    def bad(self, x):
        os.kill(os.getpid(), signal.SIGKILL)

class KillsTheServer(Base):
    def bad(self, x):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(100)

class SpoilsThePictures(Base):
    def bad(self, x):
        for path in Path("pictures").rglob("*.png"):
            path.unlink()
        return x
"""


def by_norm(rows: Rows) -> dict[str, dict[str, str]]:
    return {row["norm"].rsplit(":")[-1]: row for row in rows}


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def command(folder: Path, *argv: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "normbench.sweep", *argv]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read(folder: Path) -> Rows:
    with (folder / "runs" / "t" / "results.csv").open() as file:
        return list(csv.DictReader(file))
