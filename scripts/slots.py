"""Images per second of all cells together, one slot against several: python scripts/slots.py [options] [key=value ...]

    python scripts/slots.py                                  # slots 1 and 2, ResNet-20 on 32-px pictures at batch 2
    python scripts/slots.py --slots 1,2,4 --rounds 5 arch=resnet8 data=digits batch=8

Each figure is of a real sweep in a process of its own, of as many cells as slots, alike but for the seed. A cell's
speed is the median over its epochs (``images_per_s`` in rows.jsonl, evaluation left out) but for the first and the
last, in which another may not be at work yet or any more. The cells' speeds are added up. The numbers of slots take
turns, in another order every round, after one round that is not counted: kernels are compiled in it, and files come
into memory. Beside them stands ``plain``: as many processes that train the untouched network in a bare loop of one
thread, which is what this machine gives to so many at once.

Give OMP_NUM_THREADS or GOMP_SPINCOUNT in the environment to see what they do; a terminal's display is not drawn here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PICTURES = """
import numpy as np

def load(side=32, train={train}, test=16):
    draw = np.random.default_rng(0)
    x = draw.integers(0, 255, (train + test, side, side, 3), dtype=np.uint8)
    y = np.arange(train + test) % 10
    return x[:train], y[:train], x[train:], y[train:]
"""
PLAIN = """
import sys, time, torch
from torch import nn
from normbench import machine, models
from normbench.options import ArchOptions

arch, side, batch, seconds = sys.argv[1], *map(int, sys.argv[2:])
machine.keep_memory()
torch.set_num_threads(1)
net = models.build(ArchOptions(arch), num_classes=10, picture_size=side).train()
x, y = torch.randn(batch, 3, side, side), torch.randint(10, (batch,))
update = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9, nesterov=True)

def step():
    update.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(net(x), y).backward()
    update.step()

for _ in range(10):
    step()
print("ready", flush=True)
sys.stdin.readline()
done, begun = 0, time.perf_counter()
while time.perf_counter() - begun < seconds:
    step()
    done += 1
print(batch * done / (time.perf_counter() - begun))
"""
DEFAULTS = ("arch=resnet20", "norm=bn", "batch=2", "data=pictures.py:load", "recipe=quick")


def sweep(slots: int, words: Sequence[str], folder: Path) -> float:
    """Images/s of ``slots`` cells side by side."""
    name = f"s{slots}-{len(list(folder.glob('runs/*')))}"
    line = [sys.executable, "-m", "normbench.sweep", *words, f"slots={slots}", f"seed=range({slots})", f"name={name}"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the sweep failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return sum(map(_speed, folder.glob(f"runs/{name}/*/rows.jsonl")))


def _speed(rows: Path) -> float:
    """A cell's images/s: the median of its epochs without the first and the last."""
    found = [json.loads(line)["images_per_s"] for line in rows.read_text().splitlines()]
    return statistics.median(found[1:-1])


def plain(count: int, arch: str, side: int, batch: int, seconds: int) -> float:
    """Images/s of so many bare loops side by side."""
    words = [sys.executable, "-c", PLAIN, arch, str(side), str(batch), str(seconds)]
    all_ = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    for process in all_:
        assert process.stdout is not None
        process.stdout.readline()
    return sum(float(process.communicate("go\n")[0]) for process in all_)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", default="1,2", help="the first is what the others are compared to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=200, help="of an epoch, where they are the synthetic ones")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--no-plain", action="store_true", help="leave out what the machine gives to bare loops")
    parser.add_argument("words", nargs="*", help="keys of the cells, over: " + " ".join(DEFAULTS))
    given = parser.parse_args(argv)
    counts = [int(number) for number in given.slots.split(",")]
    keys = dict(word.split("=", 1) for word in (*DEFAULTS, f"epochs={given.epochs}", *given.words))
    words = [f"{key}={value}" for key, value in keys.items()]
    kinds = {"slots": lambda count: sweep(count, words, folder)}
    if not given.no_plain:
        kinds["plain"] = lambda count: plain(count, keys["arch"], side, int(keys["batch"]), 4)
    found: dict[tuple[str, int], list[float]] = {(kind, count): [] for kind in kinds for count in counts}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "pictures.py").write_text(PICTURES.format(train=given.pictures))
        side = 8 if keys["data"] == "digits" else 32
        for number in range(given.rounds + 1):
            for kind, count in random.sample(list(found), len(found)):
                speed = kinds[kind](count)
                if number:  # the first round is a warm-up
                    found[kind, count].append(speed)
    shown = [f"{key} {os.environ.get(key, 'not set')}" for key in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")]
    print(" ".join(words), *shown, f"{os.cpu_count()} cores", sep=", ")
    for (kind, count), speeds in found.items():
        base = found[kind, counts[0]]
        paired = statistics.median(own / first for own, first in zip(speeds, base, strict=True))
        ratio = statistics.median(speeds) / statistics.median(base)
        print(
            f"{kind} {count:2}  {statistics.median(speeds):7.0f} images/s ({min(speeds):.0f}–{max(speeds):.0f}, "
            f"n={len(speeds)})  ratio of medians {ratio:.2f}, of the same round {paired:.2f}"
        )


if __name__ == "__main__":
    main()
