"""launch=slurm: what needs no Slurm, quickly; the rest, marked slow, on a real one of one node (scripts/slurm.sh)."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from normbench import grid
from normbench.files import read_json
from normbench.launch import slurm

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "slurm.sh"
SHORT = ("data.limit=60", "epochs=1")
# Long enough to be disturbed in the middle: some seconds.
LONG = ("norm=bgn", "batch=2", "data.limit=200", "epochs=40", "deterministic=true")
TIMES = ("train_seconds", "images_per_s", "peak_memory_mib", "eval_seconds")

# Without Slurm.


def cells(**costs: float) -> tuple[dict[str, float], list[Any]]:
    """Of each a cell; those whose name starts with cpu are device=cpu."""
    items = [
        SimpleNamespace(cell_id=name, cell=SimpleNamespace(device="cpu" if name.startswith("cpu") else "auto"))
        for name in costs
    ]
    return costs, items


def asked(*arguments: Any) -> list[tuple[int, int, list[str]]]:
    return [
        (array.gpus, array.minutes, [item.cell_id for item in array.items]) for array in slurm.arrays(*arguments)
    ]  # fmt: skip


def test_cells_of_like_length_are_an_array_and_shorter_ones_get_less_time() -> None:
    costs, items = cells(a=1.0, b=100.0, c=30.0, d=24.0, e=6.0)
    assert asked(costs, items, 0, 320, None) == [(0, 320, ["b", "c"]), (0, 80, ["d"]), (0, 20, ["e", "a"])]
    assert asked(costs, items, 0, 30, None) == [(0, 30, ["b", "c", "d", "e", "a"])]


def test_a_limit_on_cells_side_by_side_holds_for_one_array() -> None:
    costs, items = cells(a=1.0, b=100.0)
    assert asked(costs, items, 0, 320, 2) == [(0, 320, ["b", "a"])]


def test_cells_on_cpus_get_no_gpu() -> None:
    costs, items = cells(cpu=1.0, gpu=1.0)
    assert asked(costs, items, 2, 60, None) == [(0, 60, ["cpu"]), (2, 60, ["gpu"])]


def test_no_array_is_longer_than_slurm_takes() -> None:
    costs, items = cells(**{f"c{number}": 1.0 for number in range(1001)})
    assert [len(names) for *_, names in asked(costs, items, 0, 60, None)] == [1000, 1]


def test_the_queue_is_read_as_squeue_prints_it(programs: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    programs(squeue='test -z "$SQUEUE_STATES" && printf "12_0\\n12_31\\n40\\n"')
    assert slurm.queue() == {"12_0", "12_31", "40"}
    programs(squeue="echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(slurm.QueueError, match="Unable to contact"):
        slurm.queue()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``programs(squeue="echo 12")``: such programs first on the PATH."""

    def put(**scripts: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        if not os.environ["PATH"].startswith(f"{folder}:"):
            monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return put


BAD = [
    (["launch=slurm"], "no sbatch or srun or squeue on the PATH"),
    (["launch=slurm", "slots=2"], "it is slurm.parallel that limits the cells"),
    (["launch=slurm", "slurm.parallel=0"], "slurm.parallel: got 0"),
    (["launch=slurm", "slurm.minutes=0"], "slurm.minutes: got 0"),
    (["launch=slurm", "slurm.gpus=-1"], "slurm.gpus: got -1"),
    (["launch=slurm", "slurm.minutes=null"], "slurm.minutes: got None, expected a whole number"),
    (["launch=slurm", "slurm.partition=a,b"], "cannot be swept"),
    (["slurm.partion=gpu"], "Did you mean 'slurm.partition'?"),
    (["slurm=gpu"], "unknown key 'slurm'"),
    (["slurm.sbatch=high"], "such as slurm.sbatch.qos=high"),
    (["launch=slrum"], "did you mean 'slurm'?"),
    (["detach=true"], "it needs launch=slurm"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "words"), BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_what_cannot_be_is_said_before_anything_runs(
    sweep: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    words: str,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert sweep("norm=bn", "batch=8", *argv) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_without_submitit_it_says_what_to_install(
    sweep: Callable[..., int],
    programs: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    programs(**dict.fromkeys(slurm.PROGRAMS, "exit 1"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert sweep("norm=bn", "batch=8", "launch=slurm") == 2
    assert "pip install 'normbench[slurm]'" in capsys.readouterr().err


def test_a_queue_that_does_not_answer_refuses_the_sweep(
    sweep: Callable[..., int], programs: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    programs(**dict.fromkeys(slurm.PROGRAMS, "echo 'no controller' >&2; exit 1"))
    assert sweep("norm=bn", "batch=8", *SHORT, "launch=slurm") == 2
    assert "the queue does not answer (no controller)" in capsys.readouterr().err


def test_what_sbatch_says_against_it_is_handed_on(
    sweep: Callable[..., int], programs: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    programs(srun="exit 0", squeue="exit 0", sbatch="echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    assert sweep("norm=bn", "batch=8", *SHORT, "launch=slurm", "slurm.partition=x") == 2
    assert "sbatch took no job: invalid partition specified: x" in capsys.readouterr().err


def test_the_keys_of_the_cluster_are_no_part_of_a_cell() -> None:
    plain = grid.read(["norm=bn", "batch=8"])
    given = grid.read(["norm=bn", "batch=8", "slurm.partition=gpu", "slurm.sbatch.qos=high", "slurm.sbatch.nice=5"])
    assert dataclasses.asdict(given.cells[0]) == dataclasses.asdict(plain.cells[0])
    assert given.settings["slurm.partition"] == "gpu"
    assert given.settings["slurm.sbatch"] == {"qos": "high", "nice": 5}
    assert plain.settings["slurm.sbatch"] == {}


# With Slurm.


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which a Slurm of one node answers. NORMBENCH_SLURM: where ``slurm.sh fetch`` put one."""
    folder = tmp_path_factory.mktemp("slurm")
    if "NORMBENCH_SLURM" in os.environ:
        (folder / "root").symlink_to(Path(os.environ["NORMBENCH_SLURM"]).resolve() / "root")
    started = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True)
    if started.returncode == 3:
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stderr
    words = subprocess.check_output(["bash", "-c", '. "$0"; env -0', folder / "env.sh"], text=True)
    found = dict(word.split("=", 1) for word in words.rstrip("\0").split("\0"))
    yield {key: found[key] for key in ("PATH", "SLURM_CONF", "LD_LIBRARY_PATH") if key in found}
    subprocess.run([SCRIPT, "stop", folder], check=True)


class Desk:
    """Where a person sits: starts sweeps in a folder, looks at what they leave, and has Slurm's commands."""

    def __init__(self, folder: Path, cluster: dict[str, str]) -> None:
        self.folder = folder
        self.env = {**os.environ, **cluster, "OMP_NUM_THREADS": "1"}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *argv: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "normbench.sweep", "launch=slurm", "name=t", *argv]
        process = subprocess.Popen(
            words, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )  # fmt: skip
        self.started.append(process)
        return process

    def sweep(self, *argv: str) -> tuple[int, str]:
        """Exit code and what was said."""
        return self.end(self.start(*argv))

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        said, _ = process.communicate(timeout=240)
        return process.returncode, said

    def slurm(self, *words: str) -> str:
        return subprocess.check_output(words, env=self.env, text=True)

    def queue(self) -> list[tuple[str, str]]:
        """Number and state of the jobs."""
        lines = self.slurm("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return [(line.split()[0], line.split()[1]) for line in lines]

    def kill(self, number: str) -> None:
        """SIGKILL to every process of a job at once, as when its machine is lost; scancel would ask them first."""
        words = {f"SLURM_ARRAY_JOB_ID={number.split('_')[0]}", f"SLURM_ARRAY_TASK_ID={number.split('_')[1]}"}
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if words <= set(path.read_bytes().decode(errors="replace").split("\0")):
                    os.kill(int(path.parent.name), signal.SIGKILL)

    def results(self) -> list[dict[str, str]]:
        with (self.folder / "runs" / "t" / "results.csv").open() as file:
            return list(csv.DictReader(file))

    def cell(self, name: str = "") -> Path:
        (found,) = self.folder.glob(f"runs/t/{name}*/config.yaml")
        return found.parent

    def under_way(self, name: str = "") -> bool:
        """Whether a cell has finished some epochs."""
        return any(len(path.read_text().splitlines()) > 2 for path in self.folder.glob(f"runs/t/{name}*/rows.jsonl"))


@pytest.fixture
def desk(tmp_path: Path, cluster: dict[str, str]) -> Iterator[Desk]:
    desk = Desk(tmp_path, cluster)
    yield desk
    for process in desk.started:
        process.kill()
        process.communicate()
    for number, _ in desk.queue():
        desk.slurm("scancel", "--signal=KILL", "--full", number)
    wait_for(lambda: not desk.queue())


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def attempts(cell: Path) -> int:
    return int(read_json(cell / "provenance.json")["attempt"])


@pytest.mark.slow
def test_cells_are_jobs_and_one_that_raises_is_a_row(desk: Desk) -> None:
    (desk.folder / "mine.py").write_text("""
from torch import nn

class Broken(nn.Module):
    def __init__(self, num_features):
        super().__init__()

    def forward(self, x):
        raise RuntimeError("this norm is broken")
""")
    code, said = desk.sweep("norm=bn,gn,mine.py:Broken", "batch=8", *SHORT)
    assert code == 1, said
    assert "submitted 3 cells as job array" in said
    found = {row["norm"]: row for row in desk.results()}
    assert {norm: row["status"] for norm, row in found.items()} == {
        "bn": "ok", "gn": "ok", "mine.py:Broken": "error",
    }  # fmt: skip
    assert "this norm is broken" in found["mine.py:Broken"]["reason"]
    assert float(found["bn"]["top1"]) > 0
    assert (desk.folder / "runs" / "t" / "plot.png").exists()
    code, said = desk.sweep("norm=bn,gn,mine.py:Broken", "batch=8", *SHORT)
    assert (code, "submitted" in said) == (1, False)


@pytest.mark.slow
def test_a_preempted_cell_goes_on_and_its_numbers_are_those_of_an_undisturbed_one(
    desk: Desk, sweep: Callable[..., int], tmp_path: Path
) -> None:
    process = desk.start(*LONG)
    wait_for(desk.under_way)
    ((number, _),) = desk.queue()
    desk.slurm("scancel", "--signal=USR2", number)
    wait_for(lambda: desk.queue() == [(number, "PENDING")])
    desk.slurm("scontrol", "update", f"JobId={number}", "StartTime=now")
    code, said = desk.end(process)
    assert code == 0, said
    assert attempts(desk.cell()) == 2
    assert read_json(desk.cell() / "provenance.json")["from_step"] > 0
    disturbed = desk.results()
    assert sweep(*LONG, "name=quiet") == 0
    with (tmp_path / "runs" / "quiet" / "results.csv").open() as file:
        quiet = list(csv.DictReader(file))
    assert [without_times(row) for row in disturbed] == [without_times(row) for row in quiet]


def without_times(row: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in row.items() if key not in TIMES}


@pytest.mark.slow
def test_a_killed_job_is_a_row_and_the_command_ends(desk: Desk) -> None:
    process = desk.start("norm=bn", "batch=2,32", "data.limit=200", "steps=3000")
    wait_for(lambda: desk.under_way("bn-b2-"))
    job = read_json(desk.folder / "runs" / "t" / slurm.FOLDER / f"{desk.cell('bn-b2-').name}.json")
    desk.kill(job["number"])
    code, said = desk.end(process)
    assert code == 1, said
    found = {row["batch"]: row for row in desk.results()}
    assert (found["2"]["status"], found["32"]["status"]) == ("killed", "ok")
    assert f"its Slurm job {job['number']} ended without a result" in found["2"]["reason"]
    assert int(found["2"]["epoch"]) > 2


@pytest.mark.slow
def test_a_cancelled_job_leaves_a_checkpoint_and_one_that_never_began_a_row(desk: Desk) -> None:
    grid = ("norm=bn", "batch=2", "seed=0,1", "data.limit=200", "steps=100000", "slurm.parallel=1")
    process = desk.start(*grid)
    wait_for(desk.under_way)
    desk.slurm("scancel", *{number.split("_")[0] for number, _ in desk.queue()})
    code, said = desk.end(process)
    assert code == 1, said
    assert sorted(row["status"] for row in desk.results()) == ["interrupted", "killed"]
    (interrupted,) = (row["cell_id"] for row in desk.results() if row["status"] == "interrupted")
    assert (desk.cell(interrupted) / "checkpoint.pt").exists()


@pytest.mark.slow
def test_who_detaches_collects_later_and_submitting_twice_runs_once(desk: Desk) -> None:
    grid = ("norm=bn,gn", "batch=8", *SHORT)
    code, said = desk.sweep(*grid, "detach=true")
    assert code == 0, said
    assert "2 submitted now" in said
    code, said = desk.sweep(*grid, "detach=true")
    assert code == 0, said
    assert "submitted now" not in said or "0 submitted now" in said
    wait_for(lambda: not desk.queue())
    code, said = desk.sweep(*grid, "detach=true")
    assert code == 0, said
    assert [row["status"] for row in desk.results()] == ["ok", "ok"]
    assert [attempts(desk.cell(row["cell_id"])) for row in desk.results()] == [1, 1]
    assert len(list((desk.folder / "runs" / "t" / slurm.FOLDER).glob("*_submission.sh"))) == 1


@pytest.mark.slow
def test_ctrl_c_leaves_the_jobs_and_the_same_command_watches_them_again(desk: Desk) -> None:
    process = desk.start(*LONG)
    wait_for(desk.under_way)
    process.send_signal(signal.SIGINT)
    code, said = desk.end(process)
    assert code == 130, said
    ((number, state),) = desk.queue()
    assert f"scancel {number}" in said
    assert state == "RUNNING"
    code, said = desk.sweep(*LONG)
    assert code == 0, said
    assert "submitted" not in said
    assert attempts(desk.cell()) == 1


@pytest.mark.slow
def test_ranks_share_a_job(desk: Desk) -> None:
    code, said = desk.sweep("norm=bn", "batch=8", "workers=2", "ranks=2", "slurm.cpus=2", *SHORT)
    assert code == 0, said
    assert read_json(desk.cell() / "provenance.json")["ranks"] == 2
