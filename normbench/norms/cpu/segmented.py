"""Normalization by segments of images on CPU: one call forward and one backward.

The kernels: segments.py for maps that lie one after another, stretches.py for pixels that do.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normbench.norms.call import Parts
from normbench.norms.cpu import compiler, team
from normbench.norms.cpu.blocks import (
    COLUMNS,
    FINISH,
    FINISHED,
    GROUP,
    MAPS,
    SEGMENTS,
    SEGMENTS_FIXED,
    SETTLE,
    SPREAD,
    TRACK,
)
from normbench.norms.cpu.plan import DTYPES, PIECE, SPAN, WHOLE, Step, Way, lies_by_pixel, run, scratch, way


class Shape(NamedTuple):
    """How many rows of images and segments of an image; ε; the activation's lowest and highest value."""

    rows: int
    groups: int
    eps: float
    low: float
    high: float


class Plan(NamedTuple):
    """What is the same for all calls with tensors of one shape and layout."""

    forth: Way
    tracked: Way  # forth, and then the running statistics
    back: Way
    no_dx: Way
    sums: int  # float64 numbers for what pieces find
    tables: tuple[Tensor, ...]  # whose addresses the kernels have


def forward(
    x: Tensor,
    shape: Shape,
    parts: Parts,
    given: tuple[Tensor, Tensor] | None,
    _: bool,
    track: Any = None,
) -> tuple[Tensor, Tensor]:
    """y, and what the backward needs beside x (N, C, H, W): μ, σ² and 1/√(σ² + ε), (3, rows, groups).

    given: μ and σ², where they are not x's own. track: the buffers to move, what ``cpu.tracked`` gave.
    """
    plan = _plan_for(x, shape, given is not None)
    y, work = torch.empty_like(x), x.new_empty(3, shape.rows, shape.groups, dtype=torch.float64)
    if given is not None:
        work[0], work[1] = given
    tensors = (x, y, None, None, parts.weight, parts.bias, work, scratch(plan.sums), None)
    if track is None:
        _run(plan.forth, (*tensors, None, None, None), shape)
    else:
        _run(plan.tracked, (*tensors, *track.buffers), shape, track.share)
        torch.autograd.graph.increment_version(track.buffers)
    return y, work


def backward(
    dy: Tensor, x: Tensor, shape: Shape, parts: Parts, saved: Tensor, fixed: bool, wants_x: bool, *_: Any
) -> tuple[Tensor | None, list[Tensor], None]:
    """The gradients of x, and of those of γ and β that there are; dy must lie in memory as x does."""
    plan, dx = _plan_for(x, shape, fixed), torch.empty_like(x) if wants_x else None
    grads = x.new_empty(2, x.shape[1])
    tensors = (x, None, dy, dx, parts.weight, parts.bias, saved, scratch(plan.sums), grads, None, None, None)
    _run(plan.back if wants_x else plan.no_dx, tensors, shape)
    return dx, [grad for grad, part in zip(grads, parts[:2], strict=True) if part is not None], None


def moments(saved: Tensor, _: Shape) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, (rows, groups) each, after a ``forward``."""
    return saved[0], saved[1]


def _run(way: Way, tensors: tuple[Tensor | None, ...], shape: Shape, share: float = 0.0) -> None:
    places = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    run(way, SEGMENTS.pack(*places, shape.eps, shape.low, shape.high, share))


def _plan_for(x: Tensor, shape: Shape, fixed: bool) -> Plan:
    N, C, H, W = x.shape
    sizes = N, C, H * W, shape.rows, shape.groups
    return _plan(*sizes, fixed, lies_by_pixel(x), DTYPES[x.dtype], torch.get_num_threads())


@functools.lru_cache(maxsize=256)
def _plan(N: int, C: int, S: int, R: int, G: int, fixed: bool, by_pixel: bool, dtype: str, _: int) -> Plan:
    values, begins = N * C * S, first_features(C * S, G)
    threads = team.threads_for(values)
    tables: tuple[Tensor, ...]

    def step(phase: int, pieces: int, alone: bool = False) -> Step:
        if threads == 1 or alone:
            return Step(phase, pieces, pieces, 1)
        return Step(phase, pieces, max(1, min(PIECE * pieces // values, pieces // (4 * threads))), threads)

    if by_pixel:
        name, (edges, group) = "stretches", stretches(C, S, G, max(1, SPAN // C))
        span = max(1, min(N // R, SPAN // (C * S)))
        T, blocks = len(group), -(-(N // R) // span)
        pieces, more, tables = (
            R * blocks * T,
            (T, span, blocks, edges.data_ptr(), group.data_ptr()),
            (begins, edges, group),
        )
        whole = threads == 1 or 4 * threads <= R or R % threads == 0
        if not whole and values < WHOLE:
            threads, whole = 1, True
        sums, few = 2 * pieces * C + 2 * R * G + 5 * R * T * C, pieces * C < PIECE
        columns, settle, maps = step(COLUMNS, pieces), step(SETTLE, R, few), step(MAPS, pieces)
        finish = step(FINISH, -(-C // FINISHED), few)
        forth = [settle, maps] if fixed else [columns, settle, maps]
        no_dx = [step(SPREAD, R * T, few), columns, finish]
        back = no_dx if fixed else [*no_dx[:-1], settle, maps, finish]
        if whole:
            forth = [step(GROUP, R)]
            back = no_dx = [*forth, finish]
    else:
        name, more, tables = "segments", (0,) * 5, (begins,)
        sums = 2 * R * (C + G)
        forth = [step(GROUP, R * G)]
        back = no_dx = [*forth, step(FINISH, -(-C // FINISHED), True)]
    block = SEGMENTS_FIXED.pack(C, S, R, G, N // R, fixed, begins.data_ptr(), *more)
    forward, backward = (compiler.kernel(name, f"{name}_{way}", dtype) for way in ("forward", "backward"))
    return Plan(
        forth=way(forward, forth, block),
        tracked=way(forward, [*forth, Step(TRACK, 1, 1, 1)], block),
        back=way(backward, back, block),
        no_dx=way(backward, no_dx, block),
        sums=sums,
        tables=tables,
    )


def first_features(D: int, G: int) -> Tensor:
    """The first of D features in each of G groups, and D, (G + 1,), int64: group(d) = (d·G)//D."""
    return -(-torch.arange(G + 1, device="cpu") * D // G)


def stretches(C: int, S: int, G: int, most: int) -> tuple[Tensor, Tensor]:
    """The first pixels of the stretches of a map, and S, (T + 1,); and in each the channels' groups, (T, C); int64.

    Within a stretch, of ``most`` pixels or fewer, no channel's group changes.
    """
    cuts = [first_features(C * S, G)[:-1] % S, torch.arange(0, S, most, device="cpu"), torch.tensor([S], device="cpu")]
    edges = torch.cat(cuts).unique()
    return edges, (torch.arange(C, device="cpu") * S + edges[:-1, None]) * G // (C * S)
