"""A run's state on disk: written whole or not at all, known by its digest, and read without running anything in it."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normbench.attempt import writing
from normbench.errors import NormbenchError
from normbench.files import write_atomically

VERSION = 1
# A checkpoint is due once the run has gone on for so many times what the last one took, and at the end of an epoch
# for fewer; and not more often than every so many seconds in the middle of one.
WITHIN, AT_END, SECONDS = 50, 15, 20.0


class CheckpointError(NormbenchError):
    """A checkpoint that is damaged, of another version or another network, or not of plain values and tensors."""


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state``: tensors, numbers, strings, None, in dicts, lists and tuples. The file before stands until then.

    Raises StoreError where it cannot be written.
    """
    content = io.BytesIO()
    torch.save({"version": VERSION, "digest": digest(state), "state": dict(state)}, content)
    with writing(path.parent):
        write_atomically(path, content.getvalue())


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The state in a file, None if there is none.

    Raises CheckpointError for what ``save`` has not left so, OSError and MemoryError for what may pass.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # each kind of damage has an error of its own, and a pickle that wants to run code too
        raise CheckpointError(f"{path.name} cannot be read and is not gone on from ({type(error).__name__})") from None
    if not isinstance(found, dict) or found.get("version") != VERSION or not isinstance(found.get("state"), dict):
        raise CheckpointError(f"{path.name} is of another version than {VERSION} and is not gone on from")
    state: dict[str, Any] = found["state"]
    if digest(state) != found.get("digest"):
        raise CheckpointError(f"{path.name} is damaged (its digest does not fit) and is not gone on from")
    return state


def digest(value: Any) -> str:
    """SHA-256 of all that is in ``value``: types, shapes, bytes; floats to the last bit."""
    found = hashlib.sha256()
    for piece in _pieces(value):
        found.update(piece)
    return found.hexdigest()


def _pieces(value: Any) -> Iterable[Any]:
    if isinstance(value, Tensor):
        dense = value.detach().cpu().contiguous()
        yield f"{dense.dtype} {tuple(dense.shape)} ".encode()
        yield dense.reshape(-1).view(torch.uint8).numpy()
    elif isinstance(value, Mapping):
        yield f"dict {len(value)} ".encode()
        for key, item in value.items():
            yield from _pieces(key)
            yield from _pieces(item)
    elif isinstance(value, list | tuple):
        yield f"list {len(value)} ".encode()
        for item in value:
            yield from _pieces(item)
    elif isinstance(value, float):
        yield struct.pack("<d", value)
    else:
        yield f"{type(value).__name__} {value!r} ".encode()


def draws(device: torch.device) -> dict[str, Any]:
    """Where every generator that a run may draw from stands."""
    _, words, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": [torch.from_numpy(np.asarray(words).astype(np.int64)), *rest],
    }


def set_draws(found: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators back where ``draws`` found them."""
    torch.set_rng_state(found["torch"])
    if device.type == "cuda" and found["cuda"] is not None:
        torch.cuda.set_rng_state(found["cuda"], device)
    version, words, gauss = found["python"]
    random.setstate((version, tuple(words), gauss))
    words, *rest = found["numpy"]
    np.random.set_state(("MT19937", words.numpy().astype(np.uint32), *rest))


class Clock:
    """When the next checkpoint is due: so seldom that they cost little, so often that little is lost."""

    def __init__(self) -> None:
        self.cost, self.last = 0.02, time.monotonic()

    def due(self, at_end: bool) -> bool:
        """Whether it is time; ``at_end`` of an epoch it is sooner."""
        since = time.monotonic() - self.last
        return since >= (AT_END * self.cost if at_end else max(WITHIN * self.cost, SECONDS))

    def saved(self, began: float) -> None:
        """One was written, begun at ``began`` of ``time.monotonic``."""
        self.last = time.monotonic()
        self.cost = self.last - began
