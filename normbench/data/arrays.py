"""A decoded data set: uint8 pictures and labels, their statistics, their fingerprint, their size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from normbench.errors import ConfigError
from normbench.options import DataOptions

# Pictures handled at a time where a temporary copy is made: keeps the peak near the size of the set itself.
CHUNK = 2048


@dataclass(frozen=True)
class Arrays:
    """A whole set in memory (or mapped from its cache).

    train_x, test_x: uint8 (N, C, H, W), C 1 or 3.  train_y, test_y: int64 (N,), labels from 0.
    mean, std: of the training pictures over N, H and W, per channel, on the scale 0..255.
    fingerprint: 16 hex digits over pixels, labels and class names.
    domains: see Description; then labels are class + classes · domain.
    """

    classes: tuple[str, ...]
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    domains: tuple[str, ...] = ()


def make(
    classes: tuple[str, ...],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    size: int | None = None,
    fingerprint: str | None = None,
) -> Arrays:
    """Arrays from (x, y) pairs: brought to ``size``, measured, and fingerprinted unless one is given."""
    train_x, test_x = (resized(np.ascontiguousarray(x, dtype=np.uint8), size) for x, _ in (train, test))
    train_y, test_y = (np.ascontiguousarray(y, dtype=np.int64) for _, y in (train, test))
    mean, std = statistics(train_x)
    mark = fingerprint or digest(classes, train_x, train_y, test_x, test_y)
    return Arrays(classes, train_x, train_y, test_x, test_y, mean, std, mark)


def refuse_stream(options: DataOptions) -> None:
    """Raise ConfigError if a set that comes in one piece is to be streamed."""
    if options.stream:
        raise ConfigError(
            f"data.stream: got true for {options.name}, which comes in one piece and is held in memory; "
            "expected false or nothing; leave it out"
        )


def chunks(x: np.ndarray) -> Iterator[np.ndarray]:
    """``x`` along its first axis, CHUNK at a time."""
    return (x[start : start + CHUNK] for start in range(0, len(x), CHUNK))


def statistics(x: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and (biased) standard deviation per channel of uint8 (N, C, H, W), from integer sums: exact on any machine.

    A constant channel gets standard deviation 1, so that it is centred and not divided by zero.
    """
    total, squares = np.zeros((2, x.shape[1]), dtype=np.int64)
    for part in chunks(x):
        total += part.sum(axis=(0, 2, 3), dtype=np.int64)
        squares += np.square(part, dtype=np.uint16).sum(axis=(0, 2, 3), dtype=np.int64)
    count = x.size // x.shape[1]
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0)
    std = np.where(variance > 0, np.sqrt(variance), 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def digest(classes: tuple[str, ...], *arrays: np.ndarray) -> str:
    """16 hex digits of SHA-256 over class names, shapes and content."""
    sha = hashlib.sha256(json.dumps([classes, [a.shape for a in arrays]]).encode())
    for array in arrays:
        for part in chunks(array):
            sha.update(part.tobytes())
    return sha.hexdigest()[:16]


def resized(x: np.ndarray, size: int | None) -> np.ndarray:
    """uint8 (N, C, H, W) brought to ``size`` × ``size``, see fit(); as it is where ``size`` is None."""
    if size is None or x.shape[2:] == (size, size):
        return x
    parts = [fit(torch.tensor(part).float(), size) for part in chunks(x)]
    return np.concatenate([part.round().clamp(0, 255).byte().numpy() for part in parts])


def fit(x: Tensor, size: int) -> Tensor:
    """Float (B, C, H, W) with its shorter side scaled to ``size``, then centre-cropped.

    Bilinear, antialiased when shrinking.
    """
    H, W = x.shape[2:]
    if H == W == size:
        return x
    height, width = scaled(H, W, size)
    x = F.interpolate(x, (height, width), mode="bilinear", antialias=min(H, W) > size)
    top, left = (height - size) // 2, (width - size) // 2
    return x[:, :, top : top + size, left : left + size]


def scaled(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after the shorter side is brought to ``size``."""
    shorter = min(height, width)
    return max(size, round(height * size / shorter)), max(size, round(width * size / shorter))
