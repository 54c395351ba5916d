"""track=wandb in a running sweep: whatever W&B or the network does, the sweep neither fails nor waits."""

import contextlib
import os
import pty
import socket
import subprocess
import sys
import time

import pytest
from stored import begin, end, environment, row
from wandb_server import KEY, Server

from normbench import track
from normbench.track import live

# The mirror as it is, but with a patience of its own.
MIRROR = """
import os, pathlib, sys
from normbench.track import mirror
mirror.SILENT, mirror.IDLE, mirror.LONGEST = {}, 60.0, 60.0
os._exit(mirror.main(pathlib.Path(sys.argv[1]), sys.stdin))
"""
HASTY, PATIENT = MIRROR.format(0.5), MIRROR.format(60.0)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Nobody's account."""
    for key, value in environment(tmp_path / "home").items():
        monkeypatch.setenv(key, value)
    for key in [key for key in os.environ if key.startswith("WANDB") or key == "NETRC"]:
        monkeypatch.delenv(key)
    (tmp_path / "home").mkdir()
    return tmp_path


def tracker(home, notes, code=PATIENT):
    made = track.make("wandb", folder=home / "first", note=notes.append)
    made.command = [sys.executable, "-c", code, str(home / "first")]
    return made


@contextlib.contextmanager
def dead(kind):
    """The address of a server that takes every connection and never answers, or that takes none."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        if kind == "mute":
            server.listen(64)
        else:
            server.close()
        yield f"http://127.0.0.1:{port}"


def follow(tracked, home):
    """Two cells, one after the other; how long the longest call took, and how long the end."""
    took = []

    def timed(method, *content):
        began = time.monotonic()
        method(*content)
        took.append(time.monotonic() - began)

    for name in ("a", "b"):
        begun = begin(home, name, rows=0)
        timed(tracked.begin, {"cell_id": name})
        for epoch in (1, 2):
            begun.append_row(row(epoch))
            timed(tracked.row, name, row(epoch))
        end(begun)
        timed(tracked.finish, name, {})
    longest = max(took)
    timed(tracked.close)
    return longest, took[-1]


@pytest.mark.parametrize("kind", ["mute", pytest.param("refusing", marks=pytest.mark.slow)])
def test_a_dead_network_costs_nothing_but_moments_at_the_end(home, monkeypatch, kind):
    with dead(kind) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        notes = []
        call, close = follow(tracker(home, notes, HASTY), home)
    assert call < 5.0, "a process is started, and no more"
    assert close < 30.0, "W&B's own start, and half a second"
    assert len(notes) == 1, notes
    assert f"python -m normbench.track push {home / 'first'}" in notes[0]


def test_a_whole_sweep_in_a_mirror(home, monkeypatch):
    with Server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        notes = []
        follow(tracker(home, notes), home)
    assert notes == [f"W&B: {server.url}/me/normbench"]
    assert sorted(len(run["history"]) for run in server.runs.values()) == [2, 2]
    assert {run["summary"]["status"] for run in server.runs.values()} == {"ok"}


@pytest.mark.slow
def test_what_is_left_open_is_ended_as_the_store_has_it(home, monkeypatch):
    """Stopped from outside: the cell that was at work is one that is at work, until a push says more."""
    with Server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        tracked = tracker(home, [])
        begun = begin(home, "a", rows=1)
        tracked.begin({"cell_id": "a"})
        end(begun, "interrupted")
        tracked.close()
        tracked.close()
    (run,) = server.runs.values()
    assert (run["summary"]["status"], run["tags"], run["exit"]) == ("interrupted", ["status:interrupted"], 1)


def test_without_an_account_nobody_is_asked(home):
    """At a terminal, where W&B would ask and wait."""
    terminal, keyboard = pty.openpty()
    code = (
        "from test_track_live import *; import pathlib; home = pathlib.Path(sys.argv[1]); notes = [];"
        "follow(tracker(home, notes), home); print(*notes, sep='\\n')"
    )
    try:
        told = subprocess.run(
            [sys.executable, "-c", code, str(home)], cwd=home, stdin=keyboard, stdout=subprocess.PIPE, stderr=keyboard,
            text=True, timeout=120, check=True,
        )  # fmt: skip
    finally:
        os.close(terminal)
        os.close(keyboard)
    assert told.stdout.count("\n") == 1
    assert "WANDB_MODE=offline needs no account" in told.stdout


@pytest.mark.parametrize(
    ("code", "note"),
    [
        ("import sys; sys.modules['wandb'] = None" + PATIENT, "the package cannot be imported"),
        ("import os; os.abort()", "its process ended with exit code -6"),
        ("import sys; sys.exit(3)", "its process ended with exit code 3"),
    ],
)
def test_a_process_that_fails_is_told_once(home, code, note):
    notes = []
    follow(tracker(home, notes, code), home)
    assert len(notes) == 1
    assert note in notes[0]
    assert "the sweep goes on" in notes[0]


def test_a_process_that_cannot_be_started(home):
    notes = []
    tracked = tracker(home, notes)
    tracked.command = [str(home / "nothing")]
    follow(tracked, home)
    assert len(notes) == 1
    assert "cannot be started" in notes[0]


def test_a_process_that_does_not_read_is_given_up(home):
    notes = []
    tracked = tracker(home, notes, "import time; time.sleep(60)")
    for _ in range(20_000):
        tracked.row("a cell", {})
    began = time.monotonic()
    tracked.close()
    assert time.monotonic() - began < 5
    assert len(notes) == 1
    assert "does not keep up" in notes[0]


def test_a_process_that_does_not_end_is_ended(home, monkeypatch):
    monkeypatch.setattr(live, "LONGEST", 0.2)
    monkeypatch.setattr(live, "GRACE", 0.2)
    tracked = tracker(home, [], "import sys, time; sys.stdin.read(); time.sleep(60)")
    tracked.begin({"cell_id": "a"})
    process = tracked._process
    began = time.monotonic()
    tracked.close()
    assert time.monotonic() - began < 5
    assert process.returncode == -9


def test_the_note_can_be_redirected_later(home):
    notes = []
    tracked = track.make("wandb", folder=home / "first", note=pytest.fail)
    tracked.command = [str(home / "nothing")]
    tracked.note = notes.append
    tracked.begin({"cell_id": "a"})
    assert len(notes) == 1


@pytest.mark.slow
def test_a_whole_sweep_on_a_dead_network(home):
    """Its exit code and its results are those of a sweep without W&B; its time is that and a few seconds."""
    words = [sys.executable, "-m", "normbench.sweep", "norm=bn", "batch=8", "epochs=1", "data.limit=100", "name=first"]

    def run(runs, *more, **env):
        began = time.monotonic()
        done = subprocess.run(
            [*words, f"runs={runs}", *more], cwd=home, env={**os.environ, **env}, capture_output=True, text=True,
            timeout=300, check=True,
        )  # fmt: skip
        said = done.stdout + done.stderr
        return time.monotonic() - began, said.count("W&B: "), (home / runs / "first" / "table.csv").read_bytes()

    without, said, table = run("plain")
    assert said == 0
    for kind in ("mute", "refusing"):
        with dead(kind) as url:
            took, said, mirrored = run(kind, "track=wandb", WANDB_BASE_URL=url, WANDB_API_KEY=KEY)
        assert said == 1
        assert mirrored == table
        assert took < 1.5 * without + 20
