"""Writes cells into their W&B runs, each row once, however often it is asked to.

W&B tells a resumed run at which step it goes on, and rows of earlier steps are not sent again. The step is the epoch,
counted from 0, so that the next step and the number of rows are the same: W&B takes the one or the other for it. A run
is never started over: what becomes of rows that are sent again under the same id is nowhere promised.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from normbench import records
from normbench.track import fragments
from normbench.track.cell import Content, project

INIT_SECONDS = 30  # W&B's own 90 would hold up whoever waits on a machine without a network
FINISH_SECONDS = 60  # for sending what is left of a cell; without a limit it waits for days
MIRROR = "mirror"  # the key in a run's summary for what it holds, as in fragments.record


class Runs:
    """The runs of one sweep's cells. Several may be open at once. Methods raise whatever W&B raises.

    folder: the sweep's; open: the runs that are; offline: known once W&B was asked for anything; url: of the project;
    moved: when something last went well (time.monotonic), waiting: whether W&B was asked and has not answered yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open: dict[str, _Open] = {}
        self.offline: bool | None = None
        self.url = ""
        self.moved, self.waiting = time.monotonic(), False
        self._wandb: Any = None

    def show(self, content: Content, *, end: bool = False) -> str:
        """Bring the cell's run up to what the store has; end it where the cell has ended, or where ``end`` says so.

        Returns ``sent``, ``unchanged``, or ``stale``: sent, but for rows of epochs of which the run has others, from an
        earlier attempt at the cell.
        """
        run = self.open.get(content.id)
        if run is None:
            run = self._start(content)
            if run is None:
                return "unchanged"
            self.open[content.id] = run
        run.log(content)
        if end or content.status != "running":
            del self.open[content.id]
            run.finish(content)
            if self.offline:
                fragments.note(self.folder, content)
        self.moved = time.monotonic()
        return "stale" if run.stale else "sent"

    def digests(self, contents: Sequence[Content]) -> dict[str, str]:
        """Of those runs that W&B has, what it was given last, by their ids; asks for all at once. Offline: empty."""
        wandb = self._package()
        if self.offline or not contents:
            return {}
        with _quiet():
            api = wandb.Api(timeout=INIT_SECONDS)
            where = f"{os.environ.get('WANDB_ENTITY') or api.default_entity}/{project()}"
            filters = {"group": {"$in": sorted({content.group for content in contents})}}
            try:
                found = list(api.runs(where, filters=filters, per_page=200, lazy=False))
            except ValueError as error:  # of a project that is not there yet
                if "could not find project" not in str(error).lower():
                    raise
                found = []
        return {run.id: str(_held(run).get("digest", "")) for run in found}

    def _start(self, content: Content) -> _Open | None:
        """The cell's run, open; None if W&B has the cell as it is."""
        self._package()
        if not self.offline:
            run = self._init(content, resume="allow")
            self.url = self.url or str(run.project_url or "")
            held = _held(run)
            if held.get("digest") == content.digest:
                run.finish(exit_code=content.exit_code)
                return None
            count = max(int(run.starting_step), int(held.get("epochs") or 0))
            stale = bool(held) and held.get("curves") != content.curves(int(held.get("epochs") or 0))
            return _Open(content.cell_id, run, count, stale)
        digest, count, curves = fragments.written(self.folder, content)
        if digest == content.digest:
            return None
        fragments.make_room(self.folder, content)
        stale = count > 0 and curves != content.curves(count)
        return _Open(content.cell_id, self._init(content), count, stale)

    def _package(self) -> Any:
        if self._wandb is None:
            self._wandb = importlib.import_module("wandb")
            with _quiet():
                mode = self._wandb.setup().settings.mode
            if mode == "disabled":
                raise RuntimeError("WANDB_MODE is disabled; take online or offline")
            self.offline = mode in ("offline", "dryrun")
            self.moved = time.monotonic()
        return self._wandb

    def _init(self, content: Content, **more: Any) -> Any:
        settings = self._wandb.Settings(
            console="off",  # theirs would take stdout away from the live display
            silent=True,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
            reinit="create_new",  # else a second cell would be written into the run of the first
            program="normbench",  # not a path of this machine
            disable_git=True,
            disable_code=True,
            x_disable_machine_info=True,  # what matters of the machine is in the store's provenance
            x_save_requirements=False,
        )
        place = fragments.base(self.folder)
        place.mkdir(parents=True, exist_ok=True)
        self.waiting = not self.offline
        with _quiet():
            run = self._wandb.init(
                project=project(), group=content.group, job_type="cell", name=content.name, id=content.id,
                tags=content.tags, config=content.config, dir=str(place), settings=settings, **more,
            )  # fmt: skip
        self.waiting, self.moved = False, time.monotonic()
        for name in ("epoch", "train/*", "val/*"):
            run.define_metric(name, **({} if name == "epoch" else {"step_metric": "epoch"}))
        return run


class _Open:
    """A run that is open. count: the last epoch it has; stale: whether they are another attempt's."""

    def __init__(self, cell_id: str, run: Any, count: int, stale: bool = False) -> None:
        self.cell_id, self.run, self.count, self.stale = cell_id, run, count, stale
        self.status = ""

    def log(self, content: Content) -> None:
        for row in content.rows:
            if row["epoch"] > self.count:
                self.run.log(row, step=row["epoch"] - 1, commit=True)
                self.count = row["epoch"]
        if content.status != self.status:
            self.status = content.status
            self.run.tags = content.tags
            self.run.summary["status"] = content.status

    def finish(self, content: Content) -> None:
        summary = self.run.summary
        for key in [*records.METRICS, "step_time_ms"]:
            if key not in content.summary and key in summary.keys():  # what an earlier end left  # noqa: SIM118
                del summary[key]
        summary.update({**content.summary, MIRROR: fragments.record(content)})
        self.run.finish(exit_code=content.exit_code)


def _held(run: Any) -> dict[str, Any]:
    """What a resumed run was given last; empty for a new one."""
    found = run.summary.get(MIRROR)
    return dict(found) if found else {}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without an API key W&B asks for one and waits, if it finds a terminal to ask at; so it finds none.

    What it would say beside its exception is held back too: we say it, in one line.
    """
    keyboard, sys.stdin = sys.stdin, io.StringIO()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        sys.stdin = keyboard


def reason(error: BaseException) -> str:
    """What went wrong, on one line."""
    if isinstance(error, ImportError):
        return f"the package cannot be imported ({error})"
    lines = str(error).strip().splitlines() or ["no reason given"]
    hint = " (WANDB_MODE=offline needs no account)" if "api key" in lines[0].lower() else ""
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}{hint}"
