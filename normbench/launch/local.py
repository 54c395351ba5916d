"""Cells on this machine, each in a process of its own, so many side by side: each ends as a result, however it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from normbench import attempt, claim
from normbench.choices import Choice, Question
from normbench.display import Display
from normbench.errors import StoreError
from normbench.files import read_json, shorten
from normbench.launch import child, ends, forkserver
from normbench.launch.choosing import Answer, Choosing
from normbench.launch.forkserver import ForkServer, ServerError
from normbench.launch.order import Order
from normbench.launch.places import Places
from normbench.launch.running import Running
from normbench.preflight import Planned
from normbench.records import Store
from normbench.track import Tracker
from normbench.train import length

# Seconds between two looks at clocks and signals while nothing happens.
TICK = 0.2
# What ends a sweep politely: Ctrl-C, a system's or a cluster's word, a terminal that was closed.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# results.csv is made again when so many times the seconds have gone by that making it took.
SELDOM = 10
# Bytes of a log that are left when a cell starts again.
LOG = 2**20
STOPPING = "stopping after checkpoints; Ctrl-C again stops at once"

# What a step costs beside its maps, as so many values in them: it decides only which cell starts first.
OVERHEAD = 500_000


class Local:
    """Runs cells in child processes of the fork server: ``slots`` at a time, each of ``ranks`` processes.

    timeout: seconds that a cell may take in this session; None: as long as it wants. threads: of each process; auto:
    measured; None: by the cell's size, at most its share of the cores.
    """

    def __init__(
        self,
        store: Store,
        display: Display,
        tracker: Tracker,
        slots: int = 1,
        ranks: int = 1,
        timeout: float | None = None,
        threads: str | None = None,
    ) -> None:
        self.store, self.display, self.tracker = store, display, tracker
        self.slots, self.ranks, self.timeout = slots, ranks, timeout
        self.places = Places(slots, ranks)
        self.choosing = Choosing(store.sweep, self.places, threads, display.note, self._measure)
        self.server: ForkServer | None = None  # where the cells that run came from
        self._ends: list[tuple[int, int]] = []
        self.running: list[Running] = []
        self.asked = self._passed = 0  # how often to stop, and as often the cells were told
        self.too_large: dict[str, int] = {}  # family → the smallest number of images that ran out of memory
        self._csv_due, self._csv_dirty = 0.0, False

    def run(self, planned: Iterable[Planned], standing: Iterable[Planned] = ()) -> None:
        """Run each cell to its result. Stopped, it raises KeyboardInterrupt when every cell at work has ended.

        standing: other cells of the grid: where one ran out of memory, larger ones are skipped.
        A cell that another process took or finished meanwhile is left to it; one whose process died is taken over.
        Raises StoreError when the store cannot be written any more.
        """
        queue = in_turn(planned, self.slots)
        elsewhere = []  # what other processes are at
        for item in standing:
            self._remember(item, item.status)
            if item.status == "running":
                elsewhere.append(item)
        with self._stoppable():
            try:
                for item in queue:  # before any runs: what is measured wants the machine for itself
                    if self.choosing.of(item) is None:
                        break
                if self.asked:
                    queue.clear()
                while queue or self.running:
                    while queue and len(self.running) < self.slots and not self.asked:
                        self._start(queue.pop(0))
                    self._wait()
                    self._pass_on()
                    for done in [cell for cell in self.running if not cell.pids]:
                        self.running.remove(done)
                        if not self._close(done):
                            elsewhere.append(done.item)
                    if self.asked:
                        queue.clear()
                    elif not queue and elsewhere:
                        queue, elsewhere = self._orphans(elsewhere)
            finally:
                self._end_all()
        if self.asked:
            raise KeyboardInterrupt

    def _start(self, item: Planned) -> None:
        skip = self._too_large(item)
        if skip:
            record_skip(dataclasses.replace(item, skip=skip), self.store)
            result = {"status": "skipped", "reason": skip}
            self.display.finish(item.cell_id, item.label, result)
            self.tracker.finish(item.cell_id, result)
            return
        chosen = self.choosing.of(item)
        if chosen is None:  # stopped meanwhile
            return
        folder = self.store.cell(item.cell_id)
        with attempt.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            shorten(folder / "log.txt", LOG)
            log = (folder / "log.txt").open("ab")
        slot = min(set(range(self.slots)) - {cell.slot for cell in self.running})
        order = dataclasses.replace(
            self._order(item, slot),
            known={**item.known, **chosen.record},
            exactly=chosen.threads,
            chosen=chosen.values,
            meeting=os.path.join(tempfile.mkdtemp(prefix="normbench-"), "meeting") if self.ranks > 1 else "",
        )
        cell = Running(item, slot, order, folder / "log.txt")
        whole = length(item.cell, item.description)
        self.display.begin(item.cell_id, item.label, whole.epochs, whole.per_epoch)
        self.running.append(cell)
        with log, os.fdopen(cell.child_end, "wb") as line:
            for rank in range(self.ranks):
                text = dataclasses.replace(order, rank=rank).text()
                try:
                    cell.pids[self._fork(text, line.fileno(), log.fileno())] = rank
                except ServerError:
                    raise
                except OSError as error:  # no room for another process
                    cell.why = {"status": "error", "reason": str(error)}
                    cell.codes.append((rank, 1))
                    cell.kill()
                    break
        cell.first = next(iter(cell.pids), 0)

    def _order(self, item: Planned, slot: int) -> Order:
        return Order(
            folder=str(self.store.folder.resolve()),
            cell_id=item.cell_id,
            config=item.cell.nested(),
            known=item.known,
            after=item.attempts,
            values=item.values,
            threads=self.places.threads,
            loaders=self.places.loaders,
            ranks=self.ranks,
            env={**os.environ, **self.places.environment(slot, item.cell.device)},
        )

    def _measure(self, item: Planned, question: Question, threads: int | None) -> Choice | None:
        """A question answered by a process of its own; None if it was stopped."""
        order = dataclasses.replace(self._order(item, 0), question=question.plain(), exactly=threads)
        answer = Answer(order, self._fork)
        while not self.asked and not answer.ready(TICK):
            self.display.refresh()
        if self.asked:
            answer.kill()
            return None
        choice, complaint = answer.read(question)
        if complaint:
            self.display.note(complaint)
        return choice

    def _fork(self, order: str, line: int, log: int) -> int:
        """A process on ``order``. A server that has just gone away gets one successor."""
        self.server = self.server or forkserver.shared()
        try:
            return self.server.fork(order, line, log)
        except ServerError:
            self._ends += self._ended()  # those that went with it
            self.server = forkserver.shared()
            return self.server.fork(order, line, log)

    def _wait(self) -> None:
        """Until something happens, or the next tick: messages shown, ends noted, time kept."""
        server = [] if self.server is None else [self.server.fileno()]
        select.select([*server, *(cell.talk for cell in self.running)], [], [], TICK)
        for cell in self.running:
            for message in cell.messages():
                self._hear(cell, message)
        for pid, status in self._ended():
            for cell in self.running:
                if pid in cell.pids:
                    rank = cell.pids.pop(pid)
                    cell.codes.append((rank, status))
                    if cell.pids and (status or rank == 0):  # the other ranks wait for one that will not come
                        cell.kill()
        for cell in self.running:
            if self.timeout is not None and cell.why is None and time.monotonic() - cell.began > self.timeout:
                cell.why = {"status": "timeout", "reason": f"not done within cell_timeout={self.timeout:g} seconds"}
                cell.kill()
        self.display.refresh()
        if self._csv_dirty and time.monotonic() >= self._csv_due:
            self._write_results()

    def _ended(self) -> list[tuple[int, int]]:
        """Process number and wait status of what has ended since the last call."""
        ended, self._ends = self._ends, []
        if self.server is None:
            return ended
        try:
            return ended + self.server.ended()
        except ServerError:  # with it all its children go; the next cell gets another server
            self.server = None
            for cell in self.running:
                cell.kill()
            return [(pid, signal.SIGKILL) for cell in self.running for pid in cell.pids]

    def _hear(self, cell: Running, message: dict[str, Any]) -> None:
        item = cell.item
        if "step" in message:
            epoch, step, loss, _ = message["step"]
            done = (epoch - 1) * length(item.cell, item.description).per_epoch + step
            cell.reached = {"epoch": epoch, "step": done, "last_loss": loss}
            self.display.step(item.cell_id, *message["step"])
        elif "row" in message:
            cell.reached = ends.reached(message["row"])
            self.display.row(item.cell_id, message["row"])
            self.tracker.row(item.cell_id, message["row"])
        elif "began" in message:
            cell.attempt = message["began"]
            self.tracker.begin({"cell_id": item.cell_id, "sweep": self.store.folder.name, **item.cell.flat()})
        elif "resumed" in message:
            self.display.note(f"{item.label} goes on from step {message['resumed']}")
        elif "failed" in message:
            cell.why = cell.why or message["failed"]
        elif "store" in message:
            cell.store_error = message["store"]

    def _close(self, cell: Running) -> bool:
        """Every process of the cell has ended: its result, from the store or from how they ended. False: not ours."""
        for message in cell.messages():
            self._hear(cell, message)
        code = os.waitstatus_to_exitcode(cell.codes[0][1])
        if code == child.STORE and cell.store_error:
            cell.close()
            raise StoreError(cell.store_error)
        # A user's code may end with any number: that it means something here must show in the store too.
        taken = code == child.TAKEN and self._claimed(cell) is None
        result = None if taken else self._result(cell)
        cell.close(ours=result is not None)
        if result is None:
            self.display.release(cell.item.cell_id)
            return False
        self._remember(cell.item, result["status"])
        self.display.finish(cell.item.cell_id, cell.item.label, result)
        self.tracker.finish(cell.item.cell_id, result)
        self._csv_dirty = True
        return True

    def _result(self, cell: Running) -> dict[str, Any] | None:
        """What the child wrote, else what its end says; None if another process has the cell."""
        folder = self.store.cell(cell.item.cell_id)
        number = cell.attempt or self._claimed(cell)
        if number is not None and attempt.ended(folder) == number:
            return read_json(folder / "result.json")
        result = {**self._end(cell), **cell.order.known, "ended": time.time()}
        if number is None:  # it died before it could claim the cell
            mine = self.store.begin(cell.item.cell_id, cell.order.config, cell.order.known, after=cell.order.after)
            if mine is None:
                return None
            mine.finish(result)
        elif not attempt.close(folder, number, result):
            return None
        return read_json(folder / "result.json") or result  # a finished training may have been saved from it

    def _claimed(self, cell: Running) -> int | None:
        """The attempt that the cell's process claimed, if it did and could not tell."""
        number, path = claim.newest(self.store.cell(cell.item.cell_id))
        theirs = {} if path is None else read_json(path)
        return number if (theirs.get("pid"), theirs.get("host")) == (cell.first, claim.process()["host"]) else None

    def _end(self, cell: Running) -> dict[str, Any]:
        """How a cell ended whose processes left no result."""
        reached = cell.reached
        if cell.why is not None:
            return {**reached, **cell.why}
        if self.asked:
            return {"status": "interrupted", "reason": "stopped by Ctrl-C or a signal", **reached}
        failed = next((status for _, status in cell.codes if status), 0)
        return {**ends.of_process(failed, ends.memory_kills() > cell.memory_kills, cell.words()), **reached}

    def _orphans(self, elsewhere: list[Planned]) -> tuple[list[Planned], list[Planned]]:
        """Cells that another process took and died over: to be run; and the others."""
        fresh = [
            dataclasses.replace(
                item, status=self.store.status(item.cell_id), attempts=self.store.attempts(item.cell_id)
            )
            for item in elsewhere
        ]
        return [item for item in fresh if item.status == "killed"], [i for i in fresh if i.status == "running"]

    def _remember(self, item: Planned, status: str) -> None:
        if status == "oom":
            family = _family(item)
            self.too_large[family] = min(_at_once(item), self.too_large.get(family, _at_once(item)))

    def _too_large(self, item: Planned) -> str | None:
        """Why a cell has no chance: one of the same family with fewer images ran out of memory."""
        least = self.too_large.get(_family(item))
        if least is None or _at_once(item) <= least:
            return None
        return f"{least} images at once ran out of memory in another cell of the same configuration"

    def _write_results(self) -> None:
        began = time.monotonic()
        try:
            self.store.write_results()
            self._csv_dirty = False
        except StoreError:  # it can be made again at any time: no reason to stop cells
            began -= 1.0
        now = time.monotonic()
        self._csv_due = now + SELDOM * (now - began)

    def _end_all(self) -> None:
        """Kill what still runs: nothing of a sweep outlives it."""
        for cell in self.running:
            cell.kill()
        until = time.monotonic() + 10
        while any(cell.pids for cell in self.running) and time.monotonic() < until:
            for pid, _ in self._ended():
                for cell in self.running:
                    cell.pids.pop(pid, None)
            time.sleep(0.01)
        for cell in self.running:
            cell.close()
        self.running = []

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Hear STOPS: the first ends each cell after a checkpoint, the second at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heard = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup's word
        before = {number: signal.signal(number, self._ask) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        self.asked += 1

    def _pass_on(self) -> None:
        """Tell the cells what was asked of this process."""
        if self.asked == self._passed:
            return
        if not self._passed:
            self.display.stopping(STOPPING)
        self._passed = self.asked
        for cell in self.running:
            if self.asked == 1:
                cell.ask()
            else:
                cell.kill()


def record_skip(item: Planned, store: Store) -> None:
    """Record a cell that cannot be done, unless it is recorded, or another process was at the cell meanwhile."""
    before = read_json(store.cell(item.cell_id) / "result.json")
    if (before.get("status"), before.get("reason")) == (item.skip_as, item.skip):
        return
    found = store.begin(item.cell_id, item.cell.nested(), item.known, after=item.attempts)
    if found is not None:
        found.finish({"status": item.skip_as, "reason": item.skip, **item.known})


def in_turn(planned: Iterable[Planned], slots: int) -> list[Planned]:
    """The cells as they are started: side by side the longest first, so that none is left over at the end."""
    return sorted(planned, key=cost, reverse=True) if slots > 1 else list(planned)


def cost(item: Planned) -> float:
    """About how long a cell takes, in a unit of its own."""
    return length(item.cell, item.description).total * (OVERHEAD + item.values)


def _at_once(item: Planned) -> int:
    """Images in one forward."""
    return item.cell.batch * (item.cell.chunk or item.cell.workers)


def _family(item: Planned) -> str:
    """Cells that differ in nothing but how many images they have at once, and the draws."""
    flat = item.cell.flat()
    return repr([(key, value) for key, value in flat.items() if key not in ("batch", "workers", "chunk", "lr", "seed")])
