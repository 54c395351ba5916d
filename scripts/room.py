"""What cells need beside what launch/room.py says of them: python scripts/room.py [key=value ...]

Runs three steps of every cell of a grid (below, or the one given), one at a time, and prints for each the memory that
its process had for itself (its peak without what it shares with the fork server), the estimate, their ratio, and the
maps alive at once that the peak comes to. ``shared`` is measured first: resident pages of a cell at work that others
have too.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from slots import PICTURES

from normbench import grid
from normbench.files import read_json
from normbench.launch import room
from normbench.preflight import Planned, Preflight
from normbench.records import Store

GRIDS = (
    ("arch=resnet8,resnet20", "norm=bn,gn,frn,nf,bnp,none,evonorm_s0,ic,dyt,cbn,mbn", "batch=2,32,128"),
    ("arch=resnet50,mobilenet_v2,densenet121,preresnet20,resnet18", "norm=bn,gn", "batch=2,32,128"),
    ("arch=resnet20,resnet50", "norm=bn", "batch=2", "data.options.test=512"),
)
ALWAYS = ("data=pictures.py:load", "steps=3")
COMMAND = (sys.executable, "-m", "normbench.sweep")


def shared_mib() -> float:
    """MiB that a small cell at work shares with the fork server: the second, which finds all imported that is."""
    words = ("norm=bn", "batch=2", "data=pictures.py:load", "steps=2600", "seed=0,1", "name=shared")
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found: Sequence[Path] = ()
    while not found and process.poll() is None:
        time.sleep(0.1)
        rows = [path for path in Path("runs/shared").glob("*-s1-*/rows.jsonl") if path.stat().st_size]
        found = [claim for path in rows for claim in path.parent.glob("running-*.json")]
    pages = Path(f"/proc/{read_json(found[0])['pid']}/smaps_rollup").read_text()
    process.terminate()
    process.wait()
    return sum(map(int, re.findall(r"^Shared_\w+:\s+(\d+)", pages, re.MULTILINE))) / 1024


def measured(item: Planned, folder: Path) -> float | None:
    """The peak of a cell's process in MiB; None where the cell failed."""
    peak = read_json(folder / item.cell_id / "result.json").get("peak_memory_mib")
    return None if peak is None else float(peak)


def main(given: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        Path("pictures.py").write_text(PICTURES.format(train=520))
        shared, ratios = shared_mib(), []
        print(f"shared {shared:.0f} MiB")
        for number, keys in enumerate([given] if given else GRIDS):
            words = [*keys, *ALWAYS, f"name=g{number}"]
            subprocess.run([*COMMAND, *words], stdout=subprocess.DEVNULL, check=False)
            for item in Preflight().plan(grid.read(words), Store("runs", f"g{number}")):
                peak, said = measured(item, Path("runs") / f"g{number}"), room.needed_mib(item)
                if peak is None:
                    continue
                own = peak - shared
                ratios.append(said / own)
                alive = (own - room.OWN - 3 * room.FLOAT * item.parameters / 2**20) * 2**20 / room.FLOAT / item.values
                print(
                    f"{item.label:32} own {own:6.0f} MiB  estimate {said:6.0f} MiB  ratio {said / own:.2f}  "
                    f"maps {alive:.2f}",
                    flush=True,
                )
        print(f"ratio {min(ratios):.2f}–{max(ratios):.2f}, median {statistics.median(ratios):.2f}, n={len(ratios)}")


if __name__ == "__main__":
    main(sys.argv[1:])
