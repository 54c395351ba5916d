"""track=wandb in a running sweep: names the cells that moved to a process of its own, mirror.py, and waits for nothing.

Whatever goes wrong there (no package, no account, no network, an error of theirs) is told once, in one line; tracking
is then off and the sweep goes on. What is told is read from the store, so nothing is lost: ``push`` completes it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normbench.track import Note
from normbench.track.mirror import GAVE_UP, LATER, LONGEST

# Seconds beyond those in which the process ends itself.
GRACE = 5.0


class Live:
    """The Tracker of a sweep. folder: the sweep's; command: what is started."""

    def __init__(self, folder: Path, note: Note) -> None:
        self.folder, self.note = folder, note
        self._process: subprocess.Popen[bytes] | None = None
        self._over = False  # tracking, for the rest of the sweep
        self._heard = b""
        self.command = [sys.executable, "-m", "normbench.track.mirror", str(folder)]

    def begin(self, cell: Mapping[str, Any]) -> None:
        self._tell(str(cell["cell_id"]))

    def row(self, cell_id: str, row: Mapping[str, Any]) -> None:
        self._tell(cell_id)

    def finish(self, cell_id: str, result: Mapping[str, Any]) -> None:
        self._tell(cell_id)

    def close(self) -> None:
        """Let the process end, within ``LONGEST`` seconds, and far fewer where W&B does not answer."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            with contextlib.suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
            until = time.monotonic() + (0.0 if self._over else LONGEST + GRACE)
            while self._listen(process, until - time.monotonic()):
                pass
        finally:  # after Ctrl-C too
            self._end(process)

    def _tell(self, cell_id: str) -> None:
        """Name a cell to the process, and pass on what it said meanwhile."""
        if self._over:
            return
        try:
            process = self._process = self._process or self._start()
            os.write(process.stdin.fileno(), f"{cell_id}\n".encode())  # type: ignore[union-attr]
        except BlockingIOError:
            self._stop("its process does not keep up")
            return
        except BrokenPipeError:  # it gave up, and said why
            pass
        except OSError as error:
            self._stop(f"its process cannot be started ({error})")
            return
        while self._listen(process, 0.0):
            pass

    def _start(self) -> subprocess.Popen[bytes]:
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        # In a session of its own: Ctrl-C is for the sweep, and there is no terminal to ask at.
        process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=nothing, start_new_session=True)
        os.set_blocking(process.stdin.fileno(), False)  # type: ignore[union-attr]
        return process

    def _listen(self, process: subprocess.Popen[bytes], seconds: float) -> bool:
        """Pass on what the process says within so many seconds; False when there is no more now, or will be."""
        stream = process.stdout.fileno()  # type: ignore[union-attr]
        if not select.select([stream], [], [], max(0.0, seconds))[0]:
            return False
        heard = os.read(stream, 65536)
        *lines, self._heard = (self._heard + heard).split(b"\n")
        for line in lines:
            self.note(line.decode(errors="replace"))
        if not heard and not self._over:
            self._over = True
            code = process.wait()
            if code not in (0, GAVE_UP):  # without a word
                self._stop(f"its process ended with exit code {code}")
        return bool(heard)

    def _stop(self, why: str) -> None:
        self._over = True
        self.note(f"W&B: {why}; tracking is off from here on, the sweep goes on, {LATER.format(self.folder)}")

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
