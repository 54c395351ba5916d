"""Picture files → arrays: decoding on all cores, and stacking what was decoded into one tensor a split."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from normbench.data import arrays
from normbench.data.arrays import Arrays
from normbench.data.picture import pixels
from normbench.data.tree import Tree
from normbench.errors import DataError

T = TypeVar("T")
R = TypeVar("R")

# Pictures a thread decodes at a time: enough that handing them over costs nothing beside it.
BLOCK = 64

# A picture to be: its name, and its bytes or where they are.
Source = tuple[str, bytes | Path]


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def content(data: bytes | Path, name: str) -> bytes:
    """The bytes of a picture file. Raises DataError if it cannot be read."""
    if isinstance(data, bytes):
        return data
    try:
        return data.read_bytes()
    except OSError as error:
        raise DataError(
            f"{data}: cannot be read ({error.strerror}); expected the picture {name}; fetch or copy it again"
        ) from error


def decoded(sources: Iterable[Source], size: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """(name, uint8 (H, W) or (H, W, 3)) of every source, in order. Raises DataError naming one that is damaged."""

    def decode(source: Source) -> tuple[str, np.ndarray]:
        name, data = source
        return name, pixels(content(data, name), name, size)

    return in_order(decode, sources, cores())


def in_order(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """``work(item)`` of every item, in order; Pillow works without Python's lock, so threads do.

    No more items are taken than keep the threads at work.
    """

    def block(part: list[T]) -> list[R]:
        return [work(item) for item in part]

    items, waiting = iter(items), deque[Future[list[R]]]()
    pool = ThreadPoolExecutor(threads)
    try:
        while part := list(islice(items, BLOCK)):
            waiting.append(pool.submit(block, part))
            if len(waiting) > 2 * threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:  # after an error or Ctrl-C nobody waits for what nobody wants
        pool.shutdown(cancel_futures=True)


def stacked(found: dict[str, np.ndarray], tree: Tree, where: str) -> Arrays:
    """The arrays of ``tree`` from its decoded pictures, which are let go one by one: the peak stays near one copy.

    One channel if every picture is grey, else three. Raises DataError if their sizes differ.
    """
    names = [*tree.train, *tree.test]
    H, W = found[names[0]].shape[:2]
    for name in names:
        if found[name].shape[:2] != (H, W):
            h, w = found[name].shape[:2]
            raise DataError(
                f"{where}: pictures differ in size ({names[0]} is {W}×{H}, {name} is {w}×{h}); expected one size; "
                "data.size=64 brings them all to 64×64, or data.stream=true reads them at the net's size"
            )
    channels = 1 if all(found[name].ndim == 2 for name in names) else 3

    def stack(part: tuple[str, ...]) -> np.ndarray:
        out = np.empty((len(part), channels, H, W), dtype=np.uint8)
        for i, name in enumerate(part):
            picture = found.pop(name)
            out[i] = picture if picture.ndim == 2 else picture.transpose(2, 0, 1)
        return out

    return arrays.make(tree.classes, (stack(tree.train), tree.train_y), (stack(tree.test), tree.test_y))
