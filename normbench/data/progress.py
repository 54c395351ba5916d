"""What a person sees while pictures are decoded: a bar on a terminal, one plain line elsewhere if it takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Takes the share done, 0 to 1.
Tick = Callable[[float], None]

# Seconds of silence before the plain line.
PATIENCE = 2.0


@contextmanager
def shown(what: str, progress: Tick | None = None) -> Iterator[Tick]:
    """Yield the function to call with the share done; a caller's own ``progress`` takes the place of ours."""
    if progress is not None:
        yield progress
    elif sys.stderr.isatty():
        with bar(what) as tick:
            yield tick
    else:
        yield plain(what)


@contextmanager
def bar(what: str) -> Iterator[Tick]:
    """A bar that goes away when it is done."""
    from rich.console import Console  # 50 ms that the usual case, a cache that is there, does not pay
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=1.0)
        yield lambda done: progress.update(task, completed=done)


def plain(what: str) -> Tick:
    """Says ``what`` once, when PATIENCE seconds have passed."""
    start, said = time.monotonic(), False

    def tick(done: float) -> None:
        nonlocal said
        if not said and time.monotonic() - start > PATIENCE:
            said = True
            print(f"{what} …", file=sys.stderr, flush=True)

    return tick
