"""Cells as jobs of a Slurm cluster: job arrays by submitit, followed in the store. Nothing here needs torch on loading.

    runs/<name>/.slurm/<job>_0_log.out      what a job said
                      <cell>.json           the cell's job, and how far the tracker was told of it
                      the rest              submitit's

The store says what happened to a cell. The queue is asked only which jobs are gone: one that went without a word is
recorded for it, so nothing waits for ever. This process can go and come back; a cell that is submitted twice runs once.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pickle
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbench import attempt, records
from normbench.errors import ConfigError, StoreError, one_line
from normbench.files import read_json, write_json
from normbench.launch import ends
from normbench.launch.errand import UNFINISHED, Errand
from normbench.records import Store

if TYPE_CHECKING:
    from normbench.display import Display
    from normbench.preflight import Planned
    from normbench.track import Tracker

FOLDER = ".slurm"
PROGRAMS = ("sbatch", "srun", "squeue")
# Seconds between two looks at the store, and between two questions to the queue; a job that it does not name is asked
# for once more, soon, before it counts as gone.
LOOK, ASK, ASK_AGAIN = 0.5, 10.0, 2.0
# Looking may take this share of the time.
SHARE = 0.2
# A cell is of the class of those that are at most so many times shorter than the class's limit allows.
SPAN = 4
LEAST_MINUTES = 20  # of which submitit counts 10 as too late to be a preemption
# Slurm's own default allows numbers up to 1000 in an array.
LONGEST_ARRAY = 1000
# Seconds before the time limit at which a job is told, to write its checkpoint; how often it may go on after that.
NOTICE, MOST_REQUEUES = 120, 1000


def check(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for what launch=slurm has no meaning for, and where there is no Slurm or no submitit."""
    if settings["slots"] != 1:
        raise ConfigError(f"slots={settings['slots']}: with launch=slurm it is slurm.parallel that limits the cells")
    for key in ("slurm.minutes", "slurm.cpus", "slurm.parallel", "slurm.memory"):
        if settings[key] is not None and not settings[key] > 0:
            raise ConfigError(f"{key}: got {settings[key]}, expected more than 0")
    if settings["slurm.gpus"] < 0:
        raise ConfigError(f"slurm.gpus: got {settings['slurm.gpus']}, expected 0 or more")
    if settings["plan"]:
        return
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"launch=slurm: no {' or '.join(missing)} on the PATH; run it where jobs are submitted, on a login node, "
            "or take launch=local"
        )
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError("launch=slurm: the package submitit is missing; pip install 'normbench[slurm]'")
    try:
        queue()
    except QueueError as error:
        raise ConfigError(f"launch=slurm: the queue does not answer ({error}); is this a login node?") from None


@dataclass
class Job:
    """The job of a cell. after: attempts made at the cell before it; told, closed: the last epoch, and the end, that
    the tracker was told.
    """

    number: str
    after: int
    told: int = 0
    closed: bool = False

    @classmethod
    def read(cls, path: Path) -> Job | None:
        found = read_json(path)
        return cls(**found) if found else None


@dataclass(frozen=True)
class Array:
    """Cells that ask Slurm for the same: GPUs and minutes."""

    gpus: int
    minutes: int
    items: Sequence[Planned]


def arrays(
    costs: Mapping[str, float], items: Iterable[Planned], gpus: int, minutes: int, parallel: int | None
) -> Iterator[Array]:
    """The cells as job arrays, the longest first. costs: of each cell, by its id, in any unit.

    The longest cell gets all the minutes, those that are so many times shorter get less: short jobs find their place
    sooner, and one that needs longer is queued again and goes on. ``parallel`` counts within an array, so with it
    there is one, or one for each kind of device.
    """
    longest = max(costs.values())
    found: dict[tuple[int, int], list[Planned]] = {}
    for item in sorted(items, key=lambda item: costs[item.cell_id], reverse=True):
        limit = minutes
        needed = minutes * costs[item.cell_id] / longest
        while parallel is None and limit // SPAN >= max(LEAST_MINUTES, needed):
            limit //= SPAN
        found.setdefault((0 if item.cell.device == "cpu" else gpus, limit), []).append(item)
    for (own, limit), cells in found.items():
        for start in range(0, len(cells), LONGEST_ARRAY):
            yield Array(own, limit, cells[start : start + LONGEST_ARRAY])


def queue() -> set[str]:
    """The numbers of this user's jobs that wait, run or end: ``12``, or ``12_3`` of an array. Raises QueueError."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    words = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i"]
    try:
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise QueueError(one_line(error)) from None
    if done.returncode:
        raise QueueError(
            " ".join(done.stderr.strip().splitlines()[-1:]) or f"squeue ended with exit code {done.returncode}"
        )
    return set(done.stdout.split())


class QueueError(RuntimeError):
    """The queue does not answer."""


class Slurm:
    """Submits cells and follows them. settings: the sweep's; left: how many cells are in the queue after ``run``."""

    def __init__(self, store: Store, display: Display, tracker: Tracker, settings: Mapping[str, Any]) -> None:
        self.store, self.display, self.tracker, self.settings = store, display, tracker, settings
        self.folder = store.folder.resolve() / FOLDER
        self.jobs: dict[str, Job] = {}
        self.left = 0
        self._begun: dict[str, int] = {}  # cells that are shown as running, and the last epoch shown

    def run(self, planned: Iterable[Planned], standing: Iterable[Planned] = ()) -> None:
        """Submit the cells that have no job yet; unless ``detach`` is set, follow those that have, until all are done.

        standing: the other cells of the grid: of these, the ones at work in a job are followed too, and those that
        ended unseen are reported to the tracker. Raises ConfigError when Slurm takes no jobs, KeyboardInterrupt when
        stopped: the jobs go on.
        """
        planned, standing = list(planned), list(standing)
        try:
            there = queue()
        except QueueError as error:
            raise ConfigError(f"launch=slurm: the queue does not answer ({error}); try again when it does") from None
        for item in (*planned, *standing):
            job = Job.read(self._path(item))
            if job is not None:
                self.jobs[item.cell_id] = job
        queued = [item for item in (*planned, *standing) if self._number(item) in there]
        for item in standing:
            if item not in queued:
                self._mirror(item)
        fresh = [item for item in planned if item not in queued]
        for item in fresh:
            if item.cell_id in self.jobs and item.status == "new":
                self.display.note(f"{item.label}: {self._lost(item)[1]}; it is submitted again")
        watched = {item.cell_id: item for item in (*queued, *fresh)}
        self.left = len(watched)
        try:
            self._submit(fresh)
            if self.settings["detach"]:
                self._say_how_it_stands(queued, fresh)
            else:
                self._follow(watched)
        except KeyboardInterrupt:
            numbers = sorted({self.jobs[key].number.partition("_")[0] for key in watched if key in self.jobs})
            self.display.note(
                f"the jobs go on without being watched: the same command watches them again, "
                f"scancel {' '.join(numbers)} ends them"
            )
            raise

    def _path(self, item: Planned) -> Path:
        return self.folder / f"{item.cell_id}.json"

    def _number(self, item: Planned) -> str | None:
        return self.jobs[item.cell_id].number if item.cell_id in self.jobs else None

    def _say_how_it_stands(self, queued: Sequence[Planned], fresh: Sequence[Planned]) -> None:
        running = sum(self.store.status(item.cell_id) == "running" for item in queued)
        if self.left:
            self.display.note(
                f"{len(fresh)} submitted now, {running} running, {len(queued) - running} in the queue from before; "
                "the same command says how they stand and collects them, without detach it waits for them"
            )

    # Submitting.

    def _submit(self, items: Sequence[Planned]) -> None:
        if not items:
            return
        from normbench.launch.local import cost  # torch

        gpus, minutes, parallel = (self.settings[f"slurm.{key}"] for key in ("gpus", "minutes", "parallel"))
        for array in arrays({item.cell_id: cost(item) for item in items}, items, gpus, minutes, parallel):
            try:
                numbers = self._submit_array(array)
            except OSError as error:
                raise StoreError(f"cannot write {str(self.folder)!r}: {error.strerror or error}") from None
            except Exception as error:  # submitit's and sbatch's, of many kinds
                raise ConfigError(f"launch=slurm: sbatch took no job: {_sbatchs_words(error)}") from None
            for item, number in zip(array.items, numbers, strict=True):
                self.jobs[item.cell_id] = Job(number, item.attempts)
                self._write(item)
            count, job = len(array.items), numbers[0].partition("_")[0]
            some = f"{count} cells as job array" if count > 1 else "1 cell as job"
            self.display.note(f"submitted {some} {job}, {array.minutes} minutes at a time")

    def _submit_array(self, array: Array) -> list[str]:
        """Numbers of the jobs, in the order of the cells."""
        import submitit

        own = {key.removeprefix("slurm."): value for key, value in self.settings.items() if key.startswith("slurm.")}
        wanted = {
            "job_name": f"normbench-{self.store.sweep.name}",
            "partition": own["partition"],
            "account": own["account"],
            "time": array.minutes,
            "ntasks_per_node": 1,
            "cpus_per_task": own["cpus"],
            "gpus_per_node": array.gpus or None,
            "mem": None if own["memory"] is None else f"{round(own['memory'] * 1024)}M",
            "array_parallelism": own["parallel"] or LONGEST_ARRAY,
            "setup": own["setup"] and [own["setup"]],
            "signal_delay_s": min(NOTICE, 30 * array.minutes),
            "stderr_to_stdout": True,
            "additional_parameters": own["sbatch"] or None,
        }
        executor = submitit.SlurmExecutor(self.folder, max_num_timeout=MOST_REQUEUES)
        executor.update_parameters(**{key: value for key, value in wanted.items() if value is not None})
        ranks, timeout, threads = (self.settings[key] for key in ("ranks", "cell_timeout", "threads"))
        with executor.batch():
            errands = [Errand(self.folder.parent, pickle.dumps(item), ranks, timeout, threads) for item in array.items]
            jobs = [executor.submit(errand) for errand in errands]
        return [job.job_id for job in jobs]

    def _write(self, item: Planned) -> None:
        with attempt.writing(self.folder):
            write_json(self._path(item), dataclasses.asdict(self.jobs[item.cell_id]))

    # Following.

    def _follow(self, watched: dict[str, Planned]) -> None:
        """Until every cell has its result, or its job has gone."""
        self.display.stopping("Ctrl-C stops the watching, not the jobs")
        missing: set[str] = set()  # jobs that the queue did not name when it was last asked
        gone: set[str] = set()
        ask, quiet, written = time.monotonic() + ASK, False, 0.0
        while watched:
            began = time.monotonic()
            if began >= ask:
                try:
                    unnamed = {self.jobs[key].number for key in watched} - queue()
                    gone, missing, quiet = unnamed & missing, unnamed, False
                except QueueError as error:
                    if not quiet:
                        self.display.note(f"the queue does not answer ({error}); the store is watched meanwhile")
                    quiet = True
                ask = time.monotonic() + (ASK_AGAIN if missing - gone else ASK)
            done = [item for item in watched.values() if self._look(item, self.jobs[item.cell_id].number in gone)]
            for item in done:
                del watched[item.cell_id]
            self.left = len(watched)
            if done and began >= written:
                self.store.write_results()
                written = began + 10 * (time.monotonic() - began)
            self.display.refresh()
            if watched:
                time.sleep(max(LOOK, (time.monotonic() - began) * (1 / SHARE - 1)))

    def _look(self, item: Planned, gone: bool) -> bool:
        """Show what is new of a cell; True if nothing more will come."""
        folder, job = self.store.cell(item.cell_id), self.jobs[item.cell_id]
        status = self.store.status(item.cell_id)
        if attempt.last(folder) <= job.after:
            if gone:
                self._finish(item, self._close_lost(item))
            return gone
        self._show(item)
        if status == "running" or (status in UNFINISHED and not gone):
            return False
        self._show(item)  # rows that came while the result did
        self._finish(item, self._result(item))
        return True

    def _show(self, item: Planned) -> None:
        """Its epochs that were not shown, or not told to the tracker."""
        from normbench.train import length  # torch

        job = self.jobs[item.cell_id]
        if item.cell_id not in self._begun:
            whole = length(item.cell, item.description)
            self.display.begin(item.cell_id, item.label, whole.epochs, whole.per_epoch)
            self.tracker.begin({"cell_id": item.cell_id, "sweep": self.store.folder.name, **item.cell.flat()})
            self._begun[item.cell_id] = 0
        for row in records.epochs(self.store.cell(item.cell_id)):
            epoch = int(row.get("epoch") or 0)
            if epoch > self._begun[item.cell_id]:
                self.display.row(item.cell_id, row)
                self._begun[item.cell_id] = epoch
            if epoch > job.told:
                self.tracker.row(item.cell_id, row)
                job.told = epoch
                self._write(item)

    def _result(self, item: Planned) -> dict[str, Any]:
        """What the cell's folder holds, or what is put there for a cell whose job died over it."""
        folder = self.store.cell(item.cell_id)
        number = attempt.last(folder)
        if attempt.ended(folder) != number:
            status, reason = self._lost(item)
            reached = ends.reached((records.epochs(folder) or [{}])[-1])
            attempt.close(
                folder, number, {"status": status, "reason": reason, **reached, **item.known, "ended": time.time()}
            )
        return read_json(folder / "result.json")

    def _close_lost(self, item: Planned) -> dict[str, Any]:
        """The end of a cell whose job went before it began with it. An earlier result stands."""
        status, reason = self._lost(item)
        result = {"status": status, "reason": reason, **item.known, "ended": time.time()}
        if not attempt.ended(self.store.cell(item.cell_id)):
            begun = self.store.begin(item.cell_id, item.cell.nested(), item.known)
            if begun is not None:
                begun.finish(result)
        return result

    def _lost(self, item: Planned) -> tuple[str, str]:
        """Status and reason of a cell whose job is gone without a result, by the job's last words."""
        number = self.jobs[item.cell_id].number
        log = self.folder / f"{number}_0_log.out"
        try:
            lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            lines = []
        words = next((line for line in reversed(lines) if "error" in line), lines[-1] if lines else "")
        told = f"; its last words: {words[:200]}" if words else ""
        status = "oom" if re.search("oom.?kill", words, re.IGNORECASE) else "killed"
        return status, f"its Slurm job {number} ended without a result{told}"

    def _finish(self, item: Planned, result: Mapping[str, Any]) -> None:
        self.display.finish(item.cell_id, item.label, result)
        self.tracker.finish(item.cell_id, result)
        self.jobs[item.cell_id].closed = True
        self._write(item)

    def _mirror(self, item: Planned) -> None:
        """Tell the tracker, and the person, of a cell whose job ended while nobody watched."""
        job = self.jobs.get(item.cell_id)
        if job is None or job.closed or attempt.ended(self.store.cell(item.cell_id)) <= job.after:
            return
        self._show(item)
        self._finish(item, self._result(item))


def _sbatchs_words(error: Exception) -> str:
    """The line in which sbatch says why; submitit hands on its whole output."""
    said = [line for line in str(error).splitlines() if "sbatch: error" in line]
    return " ".join(line.removeprefix("sbatch: error: ").strip() for line in said) or one_line(error)
