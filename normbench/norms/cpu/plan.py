"""How a call is cut into pieces of work, and which kernels do them.

At small shapes the time goes to Python, so what depends on shapes alone is worked out once and kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from normbench.norms.call import Shape, ceiling
from normbench.norms.cpu import compiler, team
from normbench.norms.cpu.blocks import (
    COLUMNS,
    FINISH,
    FINISHED,
    FIXED,
    GROUP,
    MAPS,
    MERGE,
    RUN,
    SETTLE,
    SPREAD,
    TILE,
    TRACK,
)
from normbench.norms.cpu.ways import DTYPES, PIECE, Step, Way, way
from normbench.norms.plain import first_features

# Values below which threads do not pay if they must wait for each other in every phase.
WHOLE = 2**17
# Values of a span of pixels.
SPAN = 2**16
# Where maps are taken by lanes (small.py): values of a map at most, and for each further image of a row; images of a
# row at least, where several channels share statistics; values at most, where statistics are given.
LANES, LANES_PER_IMAGE, LANES_SHARED, LANES_GIVEN = 100, 6, 16, 36
# Where groups are segments and channels_last goes by stretches: so many stretches of a map at most, or more, of so many
# pixels on the average; else maps are made of pixels first (scripts/stretches.py).
STRETCHES, LENGTH = 16, 32
# Images of a piece of work where a map is one pixel: so many terms are summed in the maps' own type.
IMAGES = 16
# Plans that are kept.
MOST = 4096
NO_SEGMENTS = (0,) * 4


class Use(NamedTuple):
    """What a call has beside its shape: a gate, a renormalization; statistics given; columns' moments wanted; running
    statistics to move."""

    gated: bool
    corrected: bool
    fixed: bool
    by_channel: bool
    tracked: bool = False


class Plan(NamedTuple):
    """What is the same for all calls with tensors of one shape and layout."""

    forth: Way
    back: Way
    no_dx: Way
    work: int  # float64 numbers to allocate: for μ … coefficients
    sums: int  # for sums and the coefficients of dx
    split: int  # for the parts of sums
    columns: int  # where the moments of columns are in work
    coefficients: int  # K × C
    per_column: float  # 1 / values of a column
    lone: bool = False  # whether groups are of one value, of which nothing is kept
    tables: tuple[Tensor, ...] = ()  # whose addresses the kernels have
    turned: bool = False  # whether kernels take a copy of x with its maps one after another, and give such a y


plans: dict[Any, Plan] = {}


def plan_for(x: Tensor, shape: Shape, use: tuple[bool, ...]) -> Plan:
    """The plan for a tensor like x; ``use``: what Use holds."""
    rows, groups, _, *rest = shape  # eps may be another at every call
    key = (x.shape, x.stride(), x.dtype, rows, groups, *rest, use, torch.get_num_threads())
    plan = plans.get(key)
    if plan is None:
        if len(plans) >= MOST:
            plans.clear()
        asked = Use(*use)
        plan = plans[key] = _plan(x, shape, asked)
    return plan


def _plan(x: Tensor, shape: Shape, use: Use) -> Plan:
    if shape.cut:
        return _segments(x, shape, use)
    return _rows(x, shape) if goes_by_rows(x, shape, use) else _columns(x, shape, use)


def lies_by_pixel(x: Tensor) -> bool:
    """Whether the channels of a pixel are neighbours in memory; maps of one pixel are taken so too."""
    return x.is_contiguous(memory_format=torch.channels_last) and (not x.is_contiguous() or x.shape[2:].numel() == 1)


def _columns(x: Tensor, shape: Shape, use: Use) -> Plan:
    """The plan for groups of whole channels."""
    N, C, H, W = x.shape
    R, G, _, centered, low, high, _ = shape
    S, values, pixels = H * W, x.numel(), lies_by_pixel(x)
    K = N if use.gated else R
    small = not pixels and goes_by_lanes(S, N // K, G == C or use.fixed, use.fixed)
    groups = R if pixels else R * G
    threads, whole = _shared(values, groups)
    run, at_once = N // K * S, max(1, min(RUN, TILE // S))
    span = min(run, max(1, SPAN // C))
    spans = -(-run // span)

    def step(phase: int, pieces: int, alone: bool = False) -> Step:
        if threads == 1 or alone:
            return Step(phase, pieces, pieces, 1)
        chunk = max(1, min(PIECE * pieces // values, pieces // (4 * threads)))
        if small and pieces == K * C:  # whole runs of channels, as far as there is one for each thread
            chunk = min(-(-chunk // at_once) * at_once, -(-pieces // threads))
        return Step(phase, pieces, chunk, threads)

    few = K * C < PIECE
    measure = [step(COLUMNS, K * spans), step(MERGE, K * -(-C // TILE), few)] if pixels else [step(COLUMNS, K * C)]
    settle = step(SETTLE, groups, True)
    maps = step(MAPS, K * spans if pixels else K * C if small else N * C)
    finish = step(FINISH, -(-C // FINISHED), few)
    forth = [*([] if use.fixed and not use.gated else measure), settle, maps]
    back = [*measure, settle, maps, finish]
    if use.fixed and not use.gated:  # dx is written with the sums
        back = [*measure, finish]
    if whole:
        forth, back = [step(GROUP, groups)], [step(GROUP, groups), finish]
    kept = use.by_channel or use.gated or pixels or G < C or not whole
    columns = (5 if use.corrected else 3) * R * G
    coefficients = columns + 2 * K * C * kept
    extents = (N, C, S, R, G, K, N // K, K // R, 0 if C % G else C // G)
    per = (1 / S, K / (N * S), 0.0 if C % G else R * G / values)
    places = (columns, kept, coefficients)
    fixed = FIXED.pack(*extents, centered, use.fixed, span, spans, *places, low, ceiling(high), *per, *NO_SEGMENTS)
    layout, dtype = "pixels" if pixels else "small" if small else "planes", DTYPES[x.dtype]
    if use.tracked:
        forth.append(Step(TRACK, 1, 1, 1))
    three = -(-3 * K * C * x.element_size() // 8)
    forward, backward = (compiler.kernel(layout, f"{layout}_{name}", dtype) for name in ("forward", "backward"))
    return Plan(
        forth=way(forward, forth, fixed),
        back=way(backward, back, fixed),
        no_dx=way(backward, [step for step in back if step is not maps], fixed),
        work=coefficients + three,
        sums=3 * K * C + three,
        split=3 * K * spans * C if pixels and not whole else 0,
        columns=columns,
        coefficients=K * C,
        per_column=per[1],
    )


def _shared(values: int, groups: int) -> tuple[int, bool]:
    """By how many threads, and whether each does groups from first to last."""
    threads = team.threads_for(values)
    whole = threads == 1 or groups >= 4 * threads or groups % threads == 0
    return (1, True) if not whole and values < WHOLE else (threads, whole)


def goes_by_lanes(S: int, images: int, own: bool, given: bool = False) -> bool:
    """Whether small maps are taken several channels at a time: what this costs a channel, a row's images make up for.

    own: no channels share statistics. given: these are not x's own. Measured by scripts/small_maps.py.
    """
    most = min(LANES_GIVEN if given else LANES, LANES_PER_IMAGE * (images - 1))
    return images >= (2 if own else LANES_SHARED) and most >= S


def goes_by_rows(x: Tensor, shape: Shape, use: Use) -> bool:
    """Whether maps are of one pixel, statistics of one image and even groups, and nothing is asked beside (rows.py)."""
    N, C, H, W = x.shape
    return H * W == 1 and shape.rows == N and C % shape.groups == 0 and not any(use)


def _rows(x: Tensor, shape: Shape) -> Plan:
    """The plan for maps of one pixel, which keeps the statistics of groups alone, and none of groups of one value."""
    N, C, *_ = x.shape
    _, G, _, centered, low, high, _ = shape
    spans, threads = -(-N // IMAGES), team.threads_for(x.numel())
    chunk = max(1, min(PIECE // (IMAGES * C), spans // (4 * threads)))
    group = Step(GROUP, spans, spans if threads == 1 else chunk, threads)
    finish = Step(FINISH, -(-C // FINISHED), -(-C // FINISHED), 1)
    extents = (N, C, 1, N, G, N, 1, 1, C // G)
    places, per = (0, False, 0), (1.0, 1.0, G / C)
    fixed = FIXED.pack(*extents, centered, False, IMAGES, spans, *places, low, ceiling(high), *per, *NO_SEGMENTS)
    forward, backward = (compiler.kernel("rows", f"rows_{name}", DTYPES[x.dtype]) for name in ("forward", "backward"))
    back = way(backward, [group, finish], fixed)
    return Plan(
        forth=way(forward, [group], fixed),
        back=back,
        no_dx=back,
        work=3 * N * G,
        sums=2 * N * G if C // G > TILE else 0,
        split=3 * spans * C,
        columns=0,
        coefficients=0,
        per_column=1.0,
        lone=G == C,
    )


def _segments(x: Tensor, shape: Shape, use: Use) -> Plan:
    """The plan for groups that are segments of images (segments.py, stretches.py)."""
    (N, C, H, W), (R, G, _, centered, low, high, _) = x.shape, shape
    S, values, finish, by_pixel = H * W, x.numel(), -(-C // FINISHED), lies_by_pixel(x)
    begins = first_features(C * S, G, torch.device("cpu"))
    by_stretch = by_pixel and goes_by_stretches(begins, S)
    threads, whole = _shared(values, R) if by_stretch else (team.threads_for(values), True)

    def step(phase: int, pieces: int, alone: bool = False) -> Step:
        if threads == 1 or alone:
            return Step(phase, pieces, pieces, 1)
        return Step(phase, pieces, max(1, min(PIECE * pieces // values, pieces // (4 * threads))), threads)

    tables: tuple[Tensor, ...]
    if by_stretch:
        layout, span = "stretches", max(1, min(N // R, SPAN // (C * S)))
        edges, group = stretches(begins, C, S, max(1, SPAN // C))
        T, spans, tables = len(group), -(-(N // R) // span), (begins, edges, group)
        pieces, places = R * spans * T, (T, begins.data_ptr(), edges.data_ptr(), group.data_ptr())
        split = 2 * pieces * C + 2 * R * G + -(-5 * R * T * C * x.element_size() // 8)
        groups, few = R, pieces * C < PIECE  # the algebra of few is done sooner than threads are called
        measure = [step(COLUMNS, pieces), *([step(MERGE, R * T, few)] if spans > 1 else [])]
        settle, maps = step(SETTLE, R, few), step(MAPS, pieces)
        last = step(FINISH, finish, few)
        forth = [settle, maps] if use.fixed else [*measure, settle, maps]
        no_dx = [step(SPREAD, R * T, few), *measure, last]
        back = no_dx if use.fixed else [step(SPREAD, R * T, few), *measure, settle, maps, last]
    else:
        layout, span, spans, tables, split = "segments", 0, 0, (begins,), 2 * R * (C + G)
        groups, places = R * G, (0, begins.data_ptr(), 0, 0)
    if whole:
        forth = [step(GROUP, groups)]
        back = no_dx = [step(GROUP, groups), step(FINISH, finish, True)]
    if use.tracked:
        forth = [*forth, Step(TRACK, 1, 1, 1)]
    extents, per = (N, C, S, R, G, R, N // R, 1, 0), (1 / S, R / (N * S), 0.0)
    fixed = FIXED.pack(*extents, centered, use.fixed, span, spans, 0, False, 0, low, ceiling(high), *per, *places)
    dtype = DTYPES[x.dtype]
    forward, backward = (compiler.kernel(layout, f"{layout}_{name}", dtype) for name in ("forward", "backward"))
    return Plan(
        forth=way(forward, forth, fixed),
        back=way(backward, back, fixed),
        no_dx=way(backward, no_dx, fixed),
        work=3 * R * G,
        sums=0,
        split=split,
        columns=0,
        coefficients=0,
        per_column=per[1],
        tables=tables,
        turned=by_pixel and not by_stretch,
    )


def goes_by_stretches(begins: Tensor, S: int) -> bool:
    """Whether channels_last is gone over by stretches: where these are few, or long. begins: ``first_features``."""
    T = len((begins % S).unique())
    return T <= STRETCHES or T * LENGTH <= S


def stretches(begins: Tensor, C: int, S: int, most: int) -> tuple[Tensor, Tensor]:
    """The first pixels of the stretches of a map, and S, (T + 1,); and in each the channels' groups, (T, C); int64.

    Within a stretch, of ``most`` pixels or fewer, no channel's group changes. begins: ``first_features``.
    """
    cpu = torch.device("cpu")
    edges = torch.cat([begins % S, torch.tensor([*range(0, S, most), S], device=cpu)]).unique()
    firsts = torch.arange(C, device=cpu) * S + edges[:-1, None]
    return edges, torch.searchsorted(begins, firsts, right=True) - 1
