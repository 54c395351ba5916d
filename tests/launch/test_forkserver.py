"""The fork server: imports, forks, tells how children ended, and computes nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from normbench.launch.forkserver import CALL, LATER, ForkServer, ServerError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")

CHILD = """
import os, signal, socket, sys, time

def main(order, talk):
    line = socket.socket(fileno=talk)
    line.send(f"{order[:9]} {os.getpid()} {os.getsid(0)}".encode())
    print("to the log")
    if order == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "raise":
        raise ValueError("a child that raises")
    if order == "wait":
        time.sleep(100)
    return 3
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForkServer]:
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.chdir(tmp_path)
    made = ForkServer("child:main", ())
    yield made
    made.kill()


def start(server: ForkServer, order: str, log: Path) -> tuple[int, str]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with log.open("ab") as file, ours, theirs:
        pid = server.fork(order, theirs.fileno(), file.fileno())
        ours.settimeout(30)
        return pid, ours.recv(1000).decode()


def ends(server: ForkServer, count: int = 1) -> dict[int, int]:
    found: dict[int, int] = {}
    until = time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < until
        found |= {pid: os.waitstatus_to_exitcode(status) for pid, status in server.ended()}
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(("order", "code"), [("return", 3), ("kill", -9), ("raise", 70)])
def test_a_child_gets_its_order_and_its_end_is_told(server: ForkServer, tmp_path: Path, order: str, code: int) -> None:
    pid, said = start(server, order, tmp_path / "log")
    assert said == f"{order} {pid} {pid}"  # a session of its own: no Ctrl-C reaches it
    assert ends(server) == {pid: code}
    assert ("a child that raises" in (tmp_path / "log").read_text()) == (order == "raise")


def test_many_children_at_once(server: ForkServer, tmp_path: Path) -> None:
    pids = [start(server, f"{k} " + "x" * 300_000 if k % 2 else "short", tmp_path / "log")[0] for k in range(2)]
    assert ends(server, 2) == dict.fromkeys(pids, 3)


def test_when_the_parent_goes_the_children_do(server: ForkServer, tmp_path: Path) -> None:
    pid, _ = start(server, "wait", tmp_path / "log")
    server.close()
    wait_for(lambda: gone(pid))


def test_when_the_server_is_killed_the_children_go_and_it_is_said(server: ForkServer, tmp_path: Path) -> None:
    pid, _ = start(server, "wait", tmp_path / "log")
    os.kill(server.process.pid, signal.SIGKILL)
    wait_for(lambda: gone(pid))
    with pytest.raises(ServerError):
        ends(server)


def test_what_it_imports_computes_nothing() -> None:
    """Importing starts no thread, of Python's or of OpenMP's, whose pool forks would hang on, and touches no GPU."""
    code = f"""
import importlib, os, threading
for name in {[CALL.partition(":")[0], *LATER]!r}:
    importlib.import_module(name)
import torch
assert threading.active_count() == 1, threading.enumerate()
assert not torch.cuda.is_initialized()
assert len(os.listdir("/proc/self/task")) == 1
torch.ones(2**20).sum()
assert len(os.listdir("/proc/self/task")) > 1, "a parallel region would have been seen"
"""
    env = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


def test_the_one_that_cells_come_from_has_one_thread(tmp_path: Path) -> None:
    server = ForkServer()
    try:
        with (tmp_path / "log").open("wb") as log:
            pid = server.fork("no order", log.fileno(), log.fileno())
        assert ends(server) == {pid: 70}
        assert "libtorch_cpu" in Path(f"/proc/{server.process.pid}/maps").read_text()
        assert len(os.listdir(f"/proc/{server.process.pid}/task")) == 1
    finally:
        server.kill()
