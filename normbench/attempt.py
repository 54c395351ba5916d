"""One attempt at a cell, by the process that holds its claim: its rows, its provenance, its result."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from normbench import claim
from normbench.errors import LostCellError, StoreError
from normbench.files import plain, read_json, sweep_up, truncate_to_lines, write_atomically, write_json

SCHEMA = 1
# Which pictures a trained network gets right.
CORRECT = "correct.npy"
# What a finished training came to, while its network is still being evaluated; and how often that may be begun.
TRAINED, TIMES = "trained.json", 2
# States of a cell that is still to be run, or to go on; ends that are failures, and stand until rerun asks for them.
UNFINISHED = ("new", "running", "killed", "interrupted")
FAILURES = ("diverged", "oom", "timeout", "error")
# After these a cell is not gone on with, and a checkpoint would be of no use.
FINAL = ("ok", "diverged", "skipped")


class Attempt:
    """An attempt that this process began. Its methods raise StoreError if the store cannot be written."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number

    def keep_rows(self, count: int) -> bool:
        """Keep so many rows of the attempts before this one and no others; False if there are not so many."""
        with writing(self.folder):
            return truncate_to_lines(self.folder / "rows.jsonl", count)

    def append_row(self, row: Mapping[str, Any]) -> None:
        """Add the line of one epoch: all of it, or nothing where the disk is full."""
        self.check_held()
        line = (json.dumps(plain(row)) + "\n").encode()
        with writing(self.folder), (self.folder / "rows.jsonl").open("ab", buffering=0) as file:
            before = file.tell()
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(before)
                raise

    def keep_correct(self, content: bytes) -> None:
        """Which pictures the trained network gets right (records/correct.py)."""
        self.check_held()
        with writing(self.folder):
            write_atomically(self.folder / CORRECT, content)

    def keep_trained(self, result: Mapping[str, Any]) -> bool:
        """Keep what the training came to while the network is evaluated in other ways, which may end the process.

        False if that was begun ``TIMES`` times already, and never came to its end.
        """
        self.check_held()
        path = self.folder / TRAINED
        before = read_json(path).get("times")
        times = 1 + (before if isinstance(before, int) else 0)
        with writing(self.folder):
            write_json(path, {"attempt": self.number, "times": times, "result": result})
        return times <= TIMES

    def write_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Versions, device, threads, and which attempt it was."""
        with writing(self.folder):
            write_json(self.folder / "provenance.json", {"attempt": self.number, **provenance})

    def finish(self, result: Mapping[str, Any]) -> None:
        """Close the attempt with its result: ``status``, ``reason``, metrics, ``config`` (flat), ``changed`` (keys)."""
        close(self.folder, self.number, result)

    def check_held(self) -> None:
        """Raise LostCellError if the cell is no longer this attempt's: another machine took it over for dead."""
        if claim.newest(self.folder)[0] != self.number:
            raise LostCellError(f"{self.folder.name}: another process took the cell over, or its folder is gone")

    def settle_rows(self) -> None:
        """Have the rows on disk before something that counts on them."""
        with writing(self.folder), (self.folder / "rows.jsonl").open("rb") as file:
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Give signs of life from a thread while the block runs."""
        path, over = self.folder / claim.NAME.format(self.number), threading.Event()

        def beat() -> None:
            while not over.wait(claim.BEAT):
                claim.beat(path)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def begin(
    folder: Path, config: Mapping[str, Any], known: Mapping[str, Any], *, after: int | None = None
) -> Attempt | None:
    """Open the attempt after number ``after`` (None: after the last); None if another process did or is at it.

    config: nested, as a person reads it; known: the ``config`` (flat) and ``changed`` that the result will repeat, so
    that a cell that is killed still has its row. Rows and a checkpoint of earlier attempts stay for now.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        last, path = claim.newest(folder)
        if path is not None and claim.alive(path):
            return None
        number = (max(last, ended(folder)) if after is None else after) + 1
        text = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
        first = not (folder / "config.yaml").exists()
        if first:  # before the claim: whatever is claimed has its row
            write_atomically(folder / "config.yaml", text)
        path = claim.take(folder, number, {"since": time.time(), **known})
        if path is None:
            return None
        if ended(folder) >= number:  # it was done, and its claims gone, before this one was made
            path.unlink(missing_ok=True)
            return None
        sweep_up(folder)
        (folder / "result.json").unlink(missing_ok=True)
        (folder / CORRECT).unlink(missing_ok=True)
        if not first:  # where things lie may be another by now
            write_atomically(folder / "config.yaml", text)
        (folder / "rows.jsonl").touch()
    return Attempt(folder, number)


def close(folder: Path, number: int, result: Mapping[str, Any]) -> bool:
    """Write the result of attempt ``number``, which this process holds or saw die; False if somebody came further."""
    if claim.newest(folder)[0] != number:
        return False
    result = _rescued(folder, number, result)
    with writing(folder):
        write_json(folder / "result.json", {"schema": SCHEMA, "cell_id": folder.name, "attempt": number, **result})
        if result.get("status") in FINAL:
            for name in ("checkpoint.pt", "checkpoint.bad", TRAINED):
                (folder / name).unlink(missing_ok=True)
        (folder / claim.NAME.format(number)).unlink(missing_ok=True)
    return True


def _rescued(folder: Path, number: int, result: Mapping[str, Any]) -> Mapping[str, Any]:
    """An attempt that failed only after its training is ok; one that was killed or stopped goes on later."""
    kept = read_json(folder / TRAINED)
    if result.get("status") not in ("timeout", "oom", "error") or kept.get("attempt") != number:
        return result
    why = f"only the ordinary evaluation was done: {result['status']}: {result.get('reason', '')}"
    return {**result, **kept.get("result", {}), "status": "ok", "reason": why}


def ended(folder: Path) -> int:
    """Number of the attempt whose result lies in a cell's folder, 0 if there is none."""
    number = read_json(folder / "result.json").get("attempt")
    if number is None and (folder / "result.json").exists():  # damaged, or from before results had a number
        number = read_json(folder / "provenance.json").get("attempt", 1)
    return number if isinstance(number, int) else 0


def last(folder: Path) -> int:
    """Number of the last attempt at a cell, 0 if there was none."""
    return max(claim.newest(folder)[0], ended(folder))


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What stands in the way of writing is a StoreError, whoever meets it."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not folder.exists():
            raise LostCellError(f"{os.fspath(folder)!r} was deleted while its cell was at work") from None
        raise StoreError(f"cannot write {os.fspath(folder)!r}: {error.strerror or error}") from None
