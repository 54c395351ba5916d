"""W&B as a mirror of the store: what it is told, and that nothing of it stops a sweep."""

import importlib.util
import json
import os
import pty
import subprocess
import sys
import types

import pytest

from normbench import track
from normbench.errors import UnknownName

CELL = {
    "cell_id": "bgn-b8-s0-0123456789", "sweep": "first", "norm": "bgn", "norm.num_groups": 16, "batch": 8, "workers": 4,
    "seed": 0, "arch": "resnet8", "arch.stem": "auto", "data": "digits", "recipe": "quick", "recipe.base_lr": 0.1,
    "epochs": 2, "steps": None, "lr": 0.1, "amp": "none", "device": "auto",
}  # fmt: skip
ROW = {"epoch": 1, "step": 10, "lr": 0.1, "train_loss": 0.5, "top1": 91.0, "top5": None, "loss": 0.3}
OK = {"status": "ok", "reason": "", "top1": 92.0, "train_seconds": 1.5, "config": {"not": "sent"}}


class FakeRun:
    """Notes what it is told; raises where it is told to."""

    url, offline = "https://wandb.test/run", False

    def __init__(self, fail=None):
        self.fail, self.said, self.summary = fail, [], self

    def __getattr__(self, name):
        def say(*values, **named):
            if name == self.fail:
                raise RuntimeError(f"{name} is broken\nand more")
            self.said.append((name, values, named))

        return say


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package; ``wandb.fail`` names the call that raises, ``wandb.error`` what ``init`` raises."""
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    fake = types.ModuleType("wandb")
    fake.runs, fake.inits, fake.fail, fake.error = [], [], None, None
    fake.Settings = lambda **settings: settings

    def init(**arguments):
        fake.inits.append(arguments)
        if fake.error:
            raise fake.error
        fake.runs.append(FakeRun(fake.fail))
        return fake.runs[-1]

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def follow(tracker, result=OK):
    tracker.begin(CELL)
    tracker.row(CELL["cell_id"], ROW)
    tracker.finish(CELL["cell_id"], result)


def told(run):
    """What a run was told, without the definitions of its metrics."""
    return [(name, values, named) for name, values, named in run.said if name != "define_metric"]


@pytest.mark.parametrize("kind", [None, "none", "off"])
def test_off_does_nothing_and_imports_nothing(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = track.make(kind, note=pytest.fail)
    follow(tracker)
    tracker.close()


def test_unknown_kind():
    with pytest.raises(UnknownName, match=r"unknown tracker 'wandbb'. Did you mean 'wandb'?"):
        track.make("wandbb")


def test_a_cell_is_a_run_laid_out_for_grouping(wandb, tmp_path):
    follow(track.make("wandb", folder=tmp_path, note=print))
    (asked,) = wandb.inits
    assert asked["project"] == "normbench"
    assert asked["group"] == "first/digits-resnet8"
    assert asked["job_type"] == "cell"
    assert asked["name"] == "bgn-b8-s0"
    assert asked["resume"] == "allow"
    assert asked["dir"] == str(tmp_path)
    assert asked["config"] == {
        "sweep": "first", "cell_id": CELL["cell_id"], "norm": "bgn", "batch": 8, "workers": 4, "global_batch": 32,
        "seed": 0, "arch": "resnet8", "data": "digits", "recipe": "quick", "epochs": 2, "steps": None, "lr": 0.1,
        "amp": "none",
        "cfg": {"norm": {"num_groups": 16}, "arch": {"stem": "auto"}, "recipe": {"base_lr": 0.1}, "device": "auto"},
    }  # fmt: skip


def test_the_id_is_stable_and_a_cells_own():
    ids = [track.describe({**CELL, **change})["id"] for change in ({}, {}, {"cell_id": "other"}, {"sweep": "other"})]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert all(one.startswith("nb") and one.isalnum() for one in ids)


def test_a_users_folders_are_not_in_names():
    asked = track.describe({**CELL, "norm": "/home/me/my.py:Norm", "arch": "/home/me/net.py:net"})
    assert asked["name"] == "my.py:Norm-b8-s0"
    assert asked["group"] == "first/digits-net.py:net"


def test_rows_and_summary(wandb):
    follow(track.make("wandb", note=print), {**OK, "status": "diverged", "top1": None})
    assert told(wandb.runs[0]) == [
        ("log", ({"epoch": 1, "step": 10, "train/lr": 0.1, "train/loss": 0.5, "val/top1": 91.0, "val/loss": 0.3},), {}),
        ("update", ({"status": "diverged", "reason": "", "train_seconds": 1.5},), {}),
        ("finish", (), {"exit_code": 1}),
    ]


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("skipped", 0), ("oom", 1), ("interrupted", 1)])
def test_exit_code(wandb, status, code):
    follow(track.make("wandb", note=print), {"status": status})
    assert wandb.runs[0].said[-1] == ("finish", (), {"exit_code": code})


def test_close_ends_a_run_left_open(wandb):
    tracker = track.make("wandb", note=print)
    tracker.begin(CELL)
    tracker.close()
    tracker.close()
    assert [name for name, *_ in wandb.runs[0].said].count("finish") == 1


def test_several_cells_are_open_at_once(wandb):
    tracker = track.make("wandb", note=print)
    for name in ("a", "b", "c"):
        tracker.begin({**CELL, "cell_id": name})
    tracker.row("b", {"epoch": 1})
    tracker.row("a", {"epoch": 7})
    tracker.finish("a", {"status": "ok"})
    tracker.row("b", {"epoch": 2})
    tracker.finish("b", {"status": "oom"})
    tracker.close()
    assert [asked["settings"]["reinit"] for asked in wandb.inits] == ["create_new"] * 3
    assert len({asked["id"] for asked in wandb.inits}) == 3
    a, b, c = map(told, wandb.runs)
    assert a == [
        ("log", ({"epoch": 7},), {}), ("update", ({"status": "ok"},), {}), ("finish", (), {"exit_code": 0}),
    ]  # fmt: skip
    assert b == [
        ("log", ({"epoch": 1},), {}), ("log", ({"epoch": 2},), {}),
        ("update", ({"status": "oom"},), {}), ("finish", (), {"exit_code": 1}),
    ]  # fmt: skip
    assert c == [("update", ({"status": "interrupted"},), {}), ("finish", (), {"exit_code": 1})]


def test_a_cell_begun_again_while_its_run_is_open_goes_on_in_it(wandb):
    tracker = track.make("wandb", note=print)
    tracker.begin(CELL)
    follow(tracker)
    assert len(wandb.inits) == 1
    assert [name for name, *_ in told(wandb.runs[0])] == ["log", "update", "finish"]


def test_a_cell_that_goes_on_after_its_end_is_the_same_run(wandb):
    tracker = track.make("wandb", note=print)
    follow(tracker, {"status": "killed"})
    follow(tracker)
    assert [(asked["id"], asked["resume"]) for asked in wandb.inits] == [(wandb.inits[0]["id"], "allow")] * 2


def test_what_is_said_of_a_cell_that_is_not_open_is_nothing(wandb):
    tracker = track.make("wandb", note=pytest.fail)
    tracker.row("skipped", ROW)
    tracker.finish("skipped", {"status": "skipped"})
    tracker.close()
    assert wandb.inits == []


@pytest.mark.parametrize("several", [True, False])
def test_a_package_that_keeps_one_run_open_is_not_given_two(wandb, several):
    """Before 0.19.10 the second cell would be logged into the run of the first."""

    class Settings(dict):
        model_fields = dict.fromkeys(("console", "silent", "init_timeout"), "") | {
            "reinit": "'default' | 'create_new'" if several else "bool"
        }

    wandb.Settings, notes = Settings, []
    tracker = track.make("wandb", note=notes.append)
    follow(tracker)
    follow(tracker)
    assert len(wandb.inits) == 2, "one after another they are fine"
    assert all(set(asked["settings"]) <= set(Settings.model_fields) for asked in wandb.inits)
    assert all(("reinit" in asked["settings"]) == several for asked in wandb.inits)
    for name in ("a", "b"):
        tracker.begin({**CELL, "cell_id": name})
    assert len(wandb.inits) == (4 if several else 3)
    assert len([note for note in notes if "one run open at a time; from 0.19.10 on" in note]) == (not several)


def test_a_failure_of_one_cell_ends_the_tracking_of_all(wandb):
    notes = []
    tracker = track.make("wandb", note=notes.append)
    for name in ("a", "b"):
        tracker.begin({**CELL, "cell_id": name})
    wandb.runs[0].fail = "log"
    tracker.row("a", ROW)
    tracker.row("b", ROW)
    tracker.close()
    assert len([note for note in notes if "tracking is off" in note]) == 1
    assert told(wandb.runs[1]) == []


def test_environment_wins(wandb, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    follow(track.make("wandb", folder=tmp_path, note=print))
    assert wandb.inits[0]["project"] == "mine"
    assert "dir" not in wandb.inits[0]


@pytest.mark.parametrize("fail", ["define_metric", "log", "update", "finish"])
def test_any_failure_is_told_once_and_ends_tracking(wandb, fail):
    wandb.fail, notes = fail, []
    tracker = track.make("wandb", note=notes.append)
    for _ in range(3):
        follow(tracker)
    tracker.close()
    failures = [note for note in notes if "tracking is off" in note]
    assert failures == [
        f"W&B: RuntimeError: {fail} is broken; tracking is off from here on, the sweep goes on, the store has it all"
    ]
    assert len(wandb.inits) == 1


@pytest.mark.parametrize("error", [RuntimeError("no\nnetwork"), SystemExit(1), TimeoutError(), OSError(28, "full")])
def test_a_failing_start_is_told_once(wandb, error):
    wandb.error, notes = error, []
    tracker = track.make("wandb", note=notes.append)
    for _ in range(3):
        follow(tracker)
    assert len(notes) == 1
    assert "\n" not in notes[0]


def test_ctrl_c_gets_through(wandb):
    wandb.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        track.make("wandb", note=print).begin(CELL)


def test_absent_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    notes = []
    tracker = track.make("wandb", note=notes.append)
    follow(tracker)
    follow(tracker)
    assert len(notes) == 1
    assert "cannot be imported" in notes[0]


def test_the_note_can_be_redirected_later(wandb):
    wandb.error, notes = RuntimeError("no"), []
    tracker = track.make("wandb", note=pytest.fail)
    tracker.note = notes.append
    follow(tracker)
    assert len(notes) == 1


def test_import_is_light():
    code = "import sys, normbench.track; assert not {'torch', 'pandas', 'wandb'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- The real package

real = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
SCRIPT = """
import sys
from normbench import track
from test_track import CELL, OK, ROW
tracker = track.make("wandb", folder=sys.argv[1], note=print)
one = CELL["cell_id"]
tracker.begin(CELL); tracker.begin({**CELL, "cell_id": "other", "seed": 1})
tracker.row(one, ROW); tracker.row("other", {**ROW, "top1": 50.0}); tracker.row(one, {**ROW, "epoch": 2})
tracker.finish("other", {"status": "oom", "reason": "too large"})
tracker.begin({**CELL, "cell_id": "left", "seed": 2}); tracker.finish(one, OK)
tracker.close()
"""


def environment(home, **more):
    """Nobody's account, no files of anybody's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB") and key != "NETRC"}
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.path.dirname(here), kept.get("PYTHONPATH", "")])
    own = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "XDG_CONFIG_HOME": str(home), "PYTHONPATH": path}
    return {**kept, **own, **more}


@real
def test_offline_for_real(tmp_path):
    folder, home, cwd = (tmp_path / name for name in ("runs", "home", "cwd"))
    for made in (folder, home, cwd):
        made.mkdir()
    env = environment(home, WANDB_MODE="offline")
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    told = subprocess.run(command, cwd=cwd, env=env, check=True, capture_output=True, text=True, timeout=60)
    assert told.stdout == f"W&B: offline; to send it:  wandb sync {folder}/wandb/offline-run-*\n"
    assert told.stderr == ""
    assert list(cwd.iterdir()) == []
    ids = [track.describe({**CELL, "cell_id": name})["id"] for name in (CELL["cell_id"], "other", "left")]
    files = [list(folder.glob(f"wandb/offline-run-*/run-{one}.wandb")) for one in ids]
    assert [len(found) for found in files] == [1, 1, 1]
    first, other, left = (read_back(found[0], env) for found in files)
    run = first["run"][0]
    assert (run["run_group"], run["job_type"], run["display_name"]) == ("first/digits-resnet8", "cell", "bgn-b8-s0")
    assert run["config"]["update"]["norm"] == "bgn"
    assert [row["item"]["val/top1"] for row in first["history"]] == [91.0, 91.0]
    assert [row["item"]["epoch"] for row in first["history"]] == [1, 2]
    assert [row["item"]["val/top1"] for row in other["history"]] == [50.0]
    assert "history" not in left
    assert {"status": "interrupted"} in [summary.get("update") for summary in left["summary"]]
    assert [records["exit"][0].get("exit_code", 0) for records in (first, other, left)] == [0, 1, 1]


def read_back(file, env):
    """The records of an offline run, by type."""
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    read = subprocess.run(inspect, env=env, capture_output=True, text=True, timeout=60)
    if read.returncode:
        pytest.skip("this wandb cannot read an offline run back (it can from 0.29 on)")
    records = {}
    for record in map(json.loads, read.stdout.splitlines()):
        records.setdefault(record["type"], []).append(record.get(record["type"]))
    return records


@real
def test_without_an_account_nobody_is_asked(tmp_path):
    """At a terminal, where W&B would ask and wait."""
    terminal, keyboard = pty.openpty()
    try:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
        told = subprocess.run(
            command, cwd=tmp_path, env=environment(tmp_path), stdin=keyboard, stdout=subprocess.PIPE, stderr=keyboard,
            text=True, timeout=60, check=True,
        )  # fmt: skip
    finally:
        os.close(terminal)
        os.close(keyboard)
    assert told.stdout.count("\n") == 1
    assert "WANDB_MODE=offline needs no account" in told.stdout
