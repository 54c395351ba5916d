"""A cell in its own process: from the order to the result in the store, or to an end that the parent sees."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from normbench import checkpoint, choices, machine, norms, steptime, surgery
from normbench.attempt import Attempt
from normbench.cell import Cell
from normbench.checkpoint import CheckpointError, Clock
from normbench.data import describe
from normbench.errors import DataError, LostCellError, StoreError
from normbench.launch import ends, meeting
from normbench.launch.order import Order
from normbench.meter import EndedError
from normbench.preflight import identify
from normbench.ranks import LostRankError, Ranks
from normbench.records import correct
from normbench.rehearse import rehearse
from normbench.train import open_for, prepare, train

# Seconds at least between two lines to the parent about steps, and that a child waits at its end for one to go through.
TELL, PATIENCE = 0.1, 2.0
# Exit codes: the result, if there is one, is in the store; the cell was another's; the store cannot be written.
DONE, TAKEN, STORE = 0, 75, 74
# and: a rank other than 0 failed, and has told the parent.
FAILED = 70
# Seconds that a rank waits for the parent to end it when another one is lost, and that rank 0 has to record an error
# of its own before that of another rank ends the cell: mostly it is the same one.
LOST, HEAD_START = 30.0, 0.5


def main(text: str, talk: int) -> int:
    """Run the cell of an order; the exit code. talk: a pipe for what the parent shows meanwhile."""
    order = Order.read(text)
    os.environ.clear()
    os.environ.update(order.env)
    os.chdir(order.cwd)
    sys.path[:], sys.argv = order.path, list(order.argv)
    faulthandler.enable()
    parent = Parent(talk)
    try:
        return _attempt(order, parent) if order.question is None else _answer(order, parent)
    except LostCellError as error:
        print(error, file=sys.stderr)
        return TAKEN
    except StoreError as error:
        parent.tell(store=str(error)[:1000])
        return STORE
    finally:
        parent.close()


class Parent:
    """The line to the parent, a pipe. Steps that do not go through at once are left out; what must arrive waits."""

    def __init__(self, fd: int) -> None:
        self.fd, self.due = fd, 0.0
        self.waiting: list[bytes] = []
        os.set_blocking(fd, False)

    def tell(self, **message: Any) -> None:
        """Something that must arrive, in the end."""
        self.waiting.append(_line(message))
        self._send()

    def step(self, epoch: int, step: int, loss: float, images_per_s: float) -> None:
        if (now := time.monotonic()) >= self.due:
            self.due = now + TELL
            self._send()
            if not self.waiting:
                with contextlib.suppress(OSError):
                    os.write(self.fd, _line({"step": [epoch, step, loss, images_per_s]}))

    def close(self) -> None:
        """Wait a little for what has not gone through."""
        until = time.monotonic() + PATIENCE
        while self.waiting and time.monotonic() < until:
            self._send()
            time.sleep(0.01)

    def _send(self) -> None:
        with contextlib.suppress(OSError):  # full, or nobody reads it any more
            while self.waiting:
                os.write(self.fd, self.waiting[0])
                self.waiting.pop(0)


def _line(message: dict[str, Any]) -> bytes:
    """At most as long as a pipe takes at once, whole or not at all, whoever else writes."""
    return json.dumps(message).encode()[: select.PIPE_BUF - 1] + b"\n"


class Onlookers:
    """Hands every row of a cell to the store first, then to the parent."""

    def __init__(self, attempt: Attempt | None, parent: Parent) -> None:
        self.attempt, self.parent = attempt, parent
        self.last: dict[str, Any] = {}

    def step(self, epoch: int, step: int, loss: float, images_per_s: float) -> None:
        if self.attempt is not None:
            self.parent.step(epoch, step, loss, images_per_s)

    def row(self, row: dict[str, Any]) -> None:
        self.last = row
        if self.attempt is not None:
            self.attempt.append_row(row)
            self.parent.tell(row=row)

    def right(self, right: np.ndarray) -> None:
        if self.attempt is not None:
            self.attempt.keep_correct(correct.packed(right))


class Keeper:
    """Writes checkpoints when they are due, unless the cell has been taken over; hears the signal to stop."""

    def __init__(self, attempt: Attempt | None, chosen: Mapping[str, str]) -> None:
        self.attempt, self.chosen, self.clock = attempt, dict(chosen), Clock()
        self.stop = False
        signal.signal(signal.SIGTERM, self._asked)

    def _asked(self, *_: object) -> None:
        self.stop = True

    def due(self, at_end: bool) -> bool:
        return self.attempt is not None and self.clock.due(at_end)

    def save(self, state: dict[str, Any]) -> None:
        if self.attempt is None:
            return
        began = time.monotonic()
        self.attempt.check_held()
        self.attempt.settle_rows()
        checkpoint.save(
            self.attempt.folder / "checkpoint.pt", {"cell": self.attempt.folder.name, "chosen": self.chosen, **state}
        )
        self.clock.saved(began)

    def trained(self, result: dict[str, Any]) -> bool:
        return self.attempt is None or self.attempt.keep_trained(result)


def _answer(order: Order, parent: Parent) -> int:
    """Measure what was asked for, and tell it."""
    machine.keep_memory()
    cell = order.cell
    description = describe(cell.data, fetch=False)
    question = choices.Question.read(order.question or {})
    if order.threads is not None:
        torch.set_num_threads(order.threads)
    with machine.numerics(cell.deterministic, order.values, order.exactly):
        choice, complaint = steptime.answer(cell, description, question, order.ranks)
    parent.tell(choice=dataclasses.asdict(choice), complaint=complaint)
    return DONE


def _attempt(order: Order, parent: Parent) -> int:
    """Claim the cell (as rank 0), run it, close it."""
    attempt = None
    if order.rank == 0:
        attempt = order.store.begin(order.cell_id, order.config, order.known, after=order.after)
        if attempt is None:
            return TAKEN
        parent.tell(began=attempt.number)
    keeper = Keeper(attempt, chosen(order))
    with attempt.beating() if attempt else contextlib.nullcontext():
        onlookers = Onlookers(attempt, parent)
        try:
            result = {"status": "ok", "reason": "", **_run(order, attempt, keeper, onlookers)}
        except StoreError:
            raise
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # a user's code may call sys.exit
            if attempt is None and isinstance(error, EndedError):  # it ends so on all ranks, and rank 0 records it
                return DONE
            if isinstance(error, LostRankError):  # the parent sees how that one ended, and then ends this one
                time.sleep(LOST)
            result = ends.of_exception(error, onlookers.last)
            print(result.get("traceback", result["reason"]), file=sys.stderr, flush=True)
            if attempt is None:
                told = {key: result[key] for key in ("status", "epoch", "step", "last_loss")}
                parent.tell(failed={**told, "reason": f"rank {order.rank}: {result['reason']}"})
                time.sleep(HEAD_START)
                return FAILED
        if attempt is not None:
            attempt.finish({**result, **order.known, "ended": time.time()})
    return DONE


def _run(order: Order, attempt: Attempt | None, keeper: Keeper, onlookers: Onlookers) -> dict[str, Any]:
    cell = _here(order.cell, order)
    device = machine.device(cell.device)
    if order.ranks > 1 and device.type == "cuda":
        device = torch.device("cuda", order.rank)
    machine.keep_memory()
    if order.threads is not None:
        torch.set_num_threads(order.threads)
    numerics = machine.numerics(cell.deterministic, order.values, order.exactly)
    with numerics as threads, _joined(order, device) as ranks:
        state = ranks.first(_resume(attempt, chosen(order)))
        if attempt is not None:
            from_step = 0 if state is None else state["done"]
            if from_step:
                onlookers.parent.tell(resumed=from_step)
            kernels = norms.kernels(device)
            where = {"ranks": order.ranks, "kernels": kernels, "from_step": from_step}
            if "choices" in order.known:
                where["choices"] = order.known["choices"]
            attempt.write_provenance(machine.provenance(device, threads) | where)
        description = describe(cell.data, fetch=False)
        if identify(order.cell, description)[0] != order.cell_id:
            raise DataError(
                f"the pictures of data={cell.data.name}, or a file of the user's own, have changed since the sweep was "
                "planned; put them back, or start the sweep again: it makes a new cell of the new pictures"
            )
        pictures = open_for(cell, description, device)
        while True:
            net = prepare(cell, description, device)
            try:
                if state is None:
                    rehearse(cell, net, pictures, device, ranks)
                else:
                    onlookers.last = state["row"]
                result = train(cell, net, pictures, device, onlookers, keeper, state, ranks)
            except CheckpointError as error:
                if state is None:
                    raise
                state = None
                _set_aside(attempt, error)
            else:
                return result | site_summary(net) | {"weights": checkpoint.digest(net.state_dict())[:16]}


def _here(cell: Cell, order: Order) -> Cell:
    """The cell with what this machine and its neighbours decide of it; its id stays."""
    loaders = order.loaders if cell.data.loaders is None else cell.data.loaders
    return dataclasses.replace(
        choices.resolved(cell, order.chosen), data=dataclasses.replace(cell.data, loaders=loaders)
    )


def chosen(order: Order) -> dict[str, str]:
    """What was chosen for the cell and is not in its id: a checkpoint of anything else is not gone on from."""
    cell = order.cell
    return {**order.chosen, **({"lr": repr(cell.lr)} if cell.tune is not None else {})}


@contextlib.contextmanager
def _joined(order: Order, device: torch.device) -> Iterator[Ranks]:
    """The ranks of the cell, met."""
    if order.ranks == 1:
        yield Ranks()
        return
    with meeting.joined(order.rank, order.ranks, order.meeting, device) as ranks:
        yield ranks


def _resume(attempt: Attempt | None, chosen: Mapping[str, str]) -> dict[str, Any] | None:
    """The state to go on from. What cannot be used is set aside, and the cell starts from its beginning."""
    if attempt is None:
        return None
    path = attempt.folder / "checkpoint.pt"
    try:
        state = checkpoint.load(path)
        if state is not None and state.get("cell") != attempt.folder.name:
            raise CheckpointError(f"{path.name} is another cell's and is not gone on from")
        if state is not None and (before := state.get("chosen", {})) != dict(chosen):  # the sweep's choices were lost
            raise CheckpointError(f"{path.name} is of {before}, not of {dict(chosen)}, and is not gone on from")
        if not attempt.keep_rows(0 if state is None else state["meter"]["epoch"] - 1):
            raise CheckpointError(f"{path.name} is of more epochs than rows.jsonl and is not gone on from")
    except CheckpointError as error:
        _set_aside(attempt, error)
        return None
    except OSError as error:  # it may be back
        raise StoreError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    return state


def _set_aside(attempt: Attempt | None, error: CheckpointError) -> None:
    print(f"{error}; the cell starts from its beginning", file=sys.stderr, flush=True)
    if attempt is not None:
        attempt.keep_rows(0)
        with contextlib.suppress(OSError):
            (attempt.folder / "checkpoint.pt").replace(attempt.folder / "checkpoint.bad")


def site_summary(net: torch.nn.Module) -> dict[str, Any]:
    """Sites, effective groups (one number, or least-most) and parameters: what the report says of every cell."""
    rows = surgery.report(net).rows
    groups = sorted({row.num_groups for row in rows if row.num_groups})
    text = "-".join(str(number) for number in dict.fromkeys((groups[0], groups[-1]))) if groups else ""
    return {"sites": len(rows), "groups": text, "parameters": sum(parameter.numel() for parameter in net.parameters())}
