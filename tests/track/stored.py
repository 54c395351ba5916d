"""Cells for the tests of tracking, put into a store as a sweep leaves them."""

from __future__ import annotations

import json
import os

from normbench.records import Store

FLAT = {
    "arch": "resnet8", "arch.stem": "auto", "data": "digits", "data.root": "/home/me/data", "norm": "bgn",
    "norm.num_groups": 16, "recipe": "quick", "recipe.base_lr": 0.1, "batch": 8, "workers": 4, "seed": 0, "epochs": 2,
    "steps": None, "lr": 0.1, "amp": "none", "device": "auto",
}  # fmt: skip
RESULT = {
    "status": "ok", "reason": "", "top1": 92.0, "top5": 99.5, "loss": 0.25, "batch_top1": 91.0, "precise_top1": 91.5,
    "train_top1": 99.0, "gap": 7.0, "eval_flips": 3, "train_loss": 0.5, "train_seconds": 1.5, "images_per_s": 64.0,
    "peak_memory_mib": 100.0, "epoch": 2, "step": 20, "last_loss": 0.4, "split": "test", "sites": 9, "groups": "16",
    "parameters": 75290, "weights": "0123",
}  # fmt: skip


def row(epoch, **more):
    """The row of an epoch."""
    return {
        "epoch": epoch, "step": 10 * epoch, "lr": 0.1 / epoch, "train_loss": 1.0 / epoch, "top1": 90.0 + epoch,
        "top5": None, "loss": 0.5 / epoch, "images_per_s": 63.0, "train_seconds": 0.7 * epoch, **more,
    }  # fmt: skip


def begin(root, name="bgn-b8-s0-01", *, sweep="first", rows=2, changed=("norm.num_groups",), **config):
    """A cell at work, in this process, with so many rows; returns its attempt."""
    store = Store(root, sweep)
    store.create()
    flat = {**FLAT, **config}
    begun = store.begin(name, {"norm": flat["norm"]}, {"config": flat, "changed": list(changed)})
    assert begun is not None
    begun.keep_rows(0)
    for epoch in range(1, rows + 1):
        begun.append_row(row(epoch))
    return begun


def end(begun, status="ok", **more):
    """End it: with the measurements of RESULT if ``ok``; ``killed``: its process is gone without a result."""
    claimed = begun.folder / f"running-{begun.number}.json"
    known = json.loads(claimed.read_text())
    if status == "killed":
        claimed.write_text(json.dumps({**known, "pid": 2**30, "born": "0"}))
        return begun.folder
    kept = RESULT if status == "ok" else {"reason": f"it was {status}", "epoch": 2, "step": 17, "last_loss": 9.5}
    told = {key: known[key] for key in ("config", "changed")}
    begun.finish({**kept, "status": status, **more, **told})
    return begun.folder


def put(root, name="bgn-b8-s0-01", status="ok", **more):
    """A cell that ended so; its folder."""
    return end(begin(root, name, **more), status)


def environment(home, **more):
    """Nobody's account, no files of anybody's; the test helpers can be imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB") and key != "NETRC"}
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.path.dirname(os.path.dirname(here)), kept.get("PYTHONPATH", "")])
    own = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "XDG_CONFIG_HOME": str(home), "PYTHONPATH": path}
    return {**kept, **own, **more}
