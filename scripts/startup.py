"""Seconds from the command to the first training step, beside importing torch and torchvision: interleaved, medians.

    python scripts/startup.py [rounds]

The step is the first line of a sweep that trains one step on 20 digits and evaluates on 20, so it is an upper bound.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

SWEEP = ["-m", "normbench.sweep", "norm=bgn", "batch=8", "steps=1", "data.limit=20"]


def until_first_line(words: list[str], cwd: str) -> float:
    """Seconds until the command prints something, or ends without a word."""
    begun = time.perf_counter()
    with subprocess.Popen([sys.executable, *words], cwd=cwd, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds = time.perf_counter() - begun
        process.communicate()
    return seconds


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    imports, steps = [], []
    for _ in range(rounds):
        imports.append(until_first_line(["-c", "import torch, torchvision"], "."))
        with tempfile.TemporaryDirectory() as folder:
            steps.append(until_first_line(SWEEP, folder))
    for what, seconds in (("import torch, torchvision", imports), ("first training step", steps)):
        spread = f"{min(seconds):.2f}–{max(seconds):.2f}"
        print(f"{what:26} {statistics.median(seconds):.2f} s  ({spread}, n={rounds})")
    print(f"{'ratio of the medians':26} {statistics.median(steps) / statistics.median(imports):.2f}")


if __name__ == "__main__":
    main()
