"""A process that has imported everything and done nothing: each cell starts as a fork of it, in milliseconds.

It must never compute: one parallel region before a fork, and OpenMP hangs in the children. Orders come down a socket
with the ends of the child's own lines: where it talks to, and its log. What became of a child is sent back. When the
other end goes away, server and children do.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

# What a fork calls; its module is imported before the first one.
CALL = "normbench.launch.child:main"
# What many cells want too: imported while no order waits, so that no cell pays for it again.
LATER = ("llvmlite.binding", "normbench.norms.cpu", "normbench.norms.operators", "torchvision")
PR_SET_PDEATHSIG = 1


class ServerError(OSError):
    """The fork server has gone away."""


class ForkServer:
    """The parent's side. Not for several threads."""

    def __init__(self, call: str = CALL, later: tuple[str, ...] = LATER) -> None:
        self.socket, theirs = socket.socketpair()
        words = [sys.executable, "-m", "normbench.launch.forkserver", str(theirs.fileno()), call, *later]
        env = {"OPENBLAS_NUM_THREADS": "1", **os.environ}  # NumPy's import starts that library's threads
        with theirs:
            # A session of its own: a Ctrl-C at the terminal is the parent's to deal with.
            self.process = subprocess.Popen(
                words, pass_fds=[theirs.fileno()], start_new_session=True, stdin=subprocess.DEVNULL, env=env
            )
        self._ends: list[tuple[int, int]] = []
        self.gone = False

    def fork(self, order: str, talk: int, log: int) -> int:
        """Start a child on ``order``; its process number. talk, log: file descriptors it gets.

        Raises ServerError, and OSError where the system has no room for another process.
        """
        try:
            _send(self.socket, order, [talk, log])
        except OSError:
            raise self._lost() from None
        while "ended" in (message := self._receive()):  # ends of other children may come first
            self._ends.append((message["ended"], message["status"]))
        if "error" in message:
            raise OSError(message["error"])
        return int(message["pid"])

    def fileno(self) -> int:
        """For select: readable when a child has ended."""
        return self.socket.fileno()

    def ended(self) -> list[tuple[int, int]]:
        """Process number and wait status of the children that have ended since the last call. Raises ServerError."""
        while select.select([self.socket], [], [], 0)[0]:
            message = self._receive()
            self._ends.append((message["ended"], message["status"]))
        found, self._ends = self._ends, []
        return found

    def _receive(self) -> dict[str, Any]:
        try:
            text, _ = _receive(self.socket)
        except OSError:
            text = ""
        if not text:
            raise self._lost()
        message: dict[str, Any] = json.loads(text)
        return message

    def _lost(self) -> ServerError:
        self.gone = True
        return ServerError("the process that starts cells has gone away")

    def close(self) -> None:
        """End the server, and with it every child, when it has done importing."""
        self.socket.close()
        self.process.wait()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.close()


_shared: ForkServer | None = None


def shared() -> ForkServer:
    """The server of this process, started when it is first wanted or has gone away. It ends with this process.

    What it imports takes seconds: ask for it before it is needed.
    """
    global _shared
    if _shared is None or _shared.gone or _shared.process.poll() is not None:
        _shared = ForkServer()
        atexit.register(_shared.kill)
    return _shared


def _send(line: socket.socket, text: str, fds: Sequence[int] = ()) -> None:
    data = text.encode()
    data = len(data).to_bytes(8, "big") + data
    sent = socket.send_fds(line, [data], fds) if fds else 0
    line.sendall(data[sent:])


def _receive(line: socket.socket) -> tuple[str, list[int]]:
    """A message and the descriptors that came with it; an empty one when the other end is closed."""
    data = b""
    fds: list[int] = []
    while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:8], "big"):
        wanted = 8 - len(data) if len(data) < 8 else 8 + int.from_bytes(data[:8], "big") - len(data)
        part, more, _, _ = socket.recv_fds(line, wanted, 2)
        if not part:
            return "", fds
        data, fds = data + part, fds + more
    return data[8:].decode(), fds


def _serve(line: socket.socket, child: Callable[[str, int], int], later: list[str], children: set[int]) -> None:
    """Fork for each order, tell what became of each child, until the other end is closed. children: that live."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    server = os.getpid()
    while True:
        ready, _, _ = select.select([line.fileno(), read_end], [], [], 0 if later else None)
        if not ready:
            with contextlib.suppress(Exception):  # the cell that needs it will say so
                importlib.import_module(later.pop(0))
        if read_end in ready:
            os.read(read_end, 4096)
            with contextlib.suppress(ChildProcessError):
                while (found := os.waitpid(-1, os.WNOHANG))[0]:
                    children.discard(found[0])
                    _send(line, json.dumps({"ended": found[0], "status": found[1]}))
        if line.fileno() in ready:
            order, fds = _receive(line)
            if not order:
                return
            gc.freeze()  # the children share these pages: their collector has no business in them
            try:
                pid = os.fork()
            except OSError as error:
                told: dict[str, Any] = {"error": f"no process can be started for a cell: {error.strerror}"}
            else:
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    for fd in (line.fileno(), read_end, write_end):
                        os.close(fd)
                    _become(child, server, order, *fds)
                children.add(pid)
                told = {"pid": pid}
            for fd in fds:
                os.close(fd)
            _send(line, json.dumps(told))


def _become(child: Callable[[str, int], int], server: int, order: str, talk: int, log: int) -> NoReturn:
    """In the fork: a process of its own, whose output is the log, and that does not outlive the server."""
    code = 70
    try:
        os.setsid()
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:  # it died before that was said
            os._exit(code)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")  # if the machine runs out of memory, a cell goes before the sweep
        nothing = os.open(os.devnull, os.O_RDONLY)
        for fd, standard in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(fd, standard)
        code = child(order, talk)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def end(pid: int, number: signal.Signals) -> None:
    """Send a signal to a child and all that it started, also before it has a session of its own."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def main(fd: str, call: str, *later: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the parent decides what they mean
        signal.signal(number, signal.SIG_IGN)
    line = socket.socket(fileno=int(fd))
    module, _, function = call.partition(":")
    child = getattr(importlib.import_module(module), function)
    children: set[int] = set()
    try:
        _serve(line, child, list(later), children)
    except (BrokenPipeError, ConnectionResetError):  # the other end went away
        pass
    finally:
        for pid in children:
            end(pid, signal.SIGKILL)
    os._exit(0)  # nothing to tidy up, and some libraries tidy up noisily


if __name__ == "__main__":
    main(*sys.argv[1:])
