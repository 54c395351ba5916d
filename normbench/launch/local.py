"""Cells one after another on this machine: each ends as a result, however it ends, and the grid goes on."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable
from typing import Any

import torch

from normbench import machine, norms, surgery
from normbench.data import Pictures
from normbench.display import Display
from normbench.errors import one_line
from normbench.preflight import Planned
from normbench.records import Store
from normbench.track import Tracker
from normbench.train import DivergedError, length, net_size, open_for, prepare, train

Result = dict[str, Any]


class Onlookers:
    """Hands every row of a cell to the store first, then to those who only look."""

    def __init__(self, cell_id: str, store: Store, display: Display, tracker: Tracker) -> None:
        self.cell_id, self.store, self.display, self.tracker = cell_id, store, display, tracker
        self.last: dict[str, Any] = {}

    def step(self, epoch: int, step: int, loss: float, images_per_s: float) -> None:
        self.display.step(epoch, step, loss, images_per_s)

    def row(self, row: dict[str, Any]) -> None:
        self.last = row
        self.store.append_row(self.cell_id, row)
        self.display.row(row)
        self.tracker.row(row)


class Local:
    """Runs cells in this process, keeping the pictures of the last data set at hand for the next cell."""

    def __init__(self, store: Store, display: Display, tracker: Tracker) -> None:
        self.store, self.display, self.tracker = store, display, tracker
        self.pictures: tuple[str, Pictures] | None = None

    def run(self, planned: Iterable[Planned]) -> None:
        """Run each cell to its result. KeyboardInterrupt closes the current one as ``interrupted`` and goes up.

        Cells whose process was killed come last: what killed it may kill this one too, and the others are done then.
        A cell that another process took or finished meanwhile is left to it.
        """
        machine.keep_memory()
        for item in sorted(planned, key=lambda item: item.status == "killed"):
            if self.store.status(item.cell_id) == item.status:
                self.run_cell(item)

    def run_cell(self, item: Planned) -> None:
        cell, device = item.cell, machine.device(item.cell.device)
        whole = length(cell, item.description)
        with machine.numerics(cell.deterministic, item.values) as threads:
            provenance = {**machine.provenance(device, threads), "kernels": norms.kernels(device)}
            if not self.store.begin(item.cell_id, cell.nested(), item.known, provenance):
                return
            self.display.begin(item.cell_id, item.label, whole.epochs, whole.per_epoch)
            self.tracker.begin({"cell_id": item.cell_id, "sweep": self.store.folder.name, **cell.flat()})
            onlookers = Onlookers(item.cell_id, self.store, self.display, self.tracker)
            try:
                result = {"status": "ok", "reason": "", **self._train(item, device, onlookers)}
            except KeyboardInterrupt as error:
                self._close(item, _failure(error, onlookers.last))
                raise
            except (Exception, SystemExit) as error:  # a user's code may call sys.exit: its cell's end, not the grid's
                result = _failure(error, onlookers.last)
            self._close(item, result)

    def _train(self, item: Planned, device: torch.device, onlookers: Onlookers) -> Result:
        pictures = self._open(item, device)
        net = prepare(item.cell, item.description, device)
        result = train(item.cell, net, pictures, device, onlookers)
        return result | site_summary(net)

    def _close(self, item: Planned, result: Result) -> None:
        result = {**result, **item.known, "ended": time.time()}
        self.store.finish(item.cell_id, result)
        self.store.write_results()
        self.display.finish(item.cell_id, item.label, result)
        self.tracker.finish(result)

    def _open(self, item: Planned, device: torch.device) -> Pictures:
        key = repr((item.cell.data, net_size(item.cell, item.description), device))
        if self.pictures is None or self.pictures[0] != key:
            self.pictures = None  # let go of the old ones before the new ones are read
            self.pictures = (key, open_for(item.cell, item.description, device))
        return self.pictures[1]


def skip(item: Planned, store: Store) -> None:
    """Record a cell that its normalizer cannot do, unless another process is just doing so."""
    if not store.begin(item.cell_id, item.cell.nested(), item.known, {}):
        return
    store.finish(item.cell_id, {"status": "skipped", "reason": item.skip, **item.known})


def site_summary(net: torch.nn.Module) -> Result:
    """Sites, effective groups (one number, or least-most) and parameters: what the report says of every cell."""
    rows = surgery.report(net).rows
    groups = sorted({row.num_groups for row in rows if row.num_groups})
    text = "-".join(str(number) for number in dict.fromkeys((groups[0], groups[-1]))) if groups else ""
    return {"sites": len(rows), "groups": text, "parameters": sum(parameter.numel() for parameter in net.parameters())}


def _failure(error: BaseException, last: dict[str, Any]) -> Result:
    """Status, reason, how far the cell came, and where it failed."""
    if isinstance(error, DivergedError):
        return {"status": "diverged", "reason": str(error), **error.reached}
    reached = {"epoch": last.get("epoch"), "step": last.get("step"), "last_loss": last.get("train_loss")}
    if isinstance(error, KeyboardInterrupt):
        return {"status": "interrupted", "reason": "stopped by Ctrl-C or a signal", **reached}
    status = "oom" if _out_of_memory(error) else "error"
    text = "".join(traceback.format_exception(error))
    return {
        "status": status,
        "reason": f"{type(error).__name__}: {one_line(error)}"[:500],
        **reached,
        "traceback": text,
    }


def _out_of_memory(error: BaseException) -> bool:
    """CUDA's own error, Python's, the CPU allocator's, and cuDNN's way of saying it."""
    words = str(error)
    cpu = "DefaultCPUAllocator" in words or "can't allocate memory" in words
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or cpu or "CUDNN_STATUS_ALLOC_FAILED" in words
