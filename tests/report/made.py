"""Made-up entries of a table, and a sweep whose cells have a past."""

import json

from normbench.report import frame
from normbench.report.frame import Spot

NORMS = [
    "none", "bn", "ln", "in", "gn", "pn", "bgn", "frn", "brn", "gbn", "batch_group", "iebn", "proxy", "ic", "cbn",
    "mbn", "bkn", "bne", "bnp", "nf", "ws", "sn", "evonorm_b0", "evonorm_s0", "mabn", "rms", "bcn", "rbn", "online",
    "dyt", "syncbn",
]  # fmt: skip
BATCHES = tuple(2**k for k in range(1, 9))
LONG = [f"my_own_normalizers.py:Whitening{k} limit=200 num_groups=16" for k in range(3)]
TOLD = ["throughout: workers 8, recipe adamw, steps 5, data.limit 200", "gn: num_groups 4, eps 0.001"]


def spots(norms=("bn", "gn", "bgn"), batches=(2, 8, 32), blocks=("",), low=90.0):
    """Two seeds each, whose mean grows with the place in the list and the batch."""
    top = (98.0 - low) / len(norms)
    return [Spot(block, norm, batch, (low + top * k + batch / 1000, low + top * k + 0.5), {})
            for block in blocks for k, norm in enumerate(norms) for batch in batches]  # fmt: skip


def lived(folder, top1=lambda epoch, seed: 90.0 + epoch + seed, epochs=6, failed_after=3, machine=None):
    """Write rows.jsonl and provenance.json of every cell of a sweep; ``machine(cell's config)`` → what differs."""
    for path in sorted(folder.glob("*/result.json")):
        result = json.loads(path.read_text())
        seed, last = result["config"]["seed"], epochs if result["status"] == "ok" else failed_after
        rows = [{"epoch": e, "top1": top1(e, seed), "train_loss": 2.0 / e} for e in range(1, last + 1)]
        (path.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        about = {"device": "cpu", "processor": "Some Processor", "cores": 4, "threads": 1, "torch": "2.9"}
        about |= machine(result["config"]) if machine else {}
        (path.parent / "provenance.json").write_text(json.dumps(about))
    return folder


def table(folder):
    """The frame and the spots of a sweep."""
    cells = frame.read(folder)
    return cells, frame.spots(cells)
