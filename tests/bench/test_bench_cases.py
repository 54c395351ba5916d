"""The shapes that units are measured on."""

from __future__ import annotations

import torch

from normbench.bench import cases
from normbench.bench.cases import Case, Shape
from normbench.bench.command import Settings


def test_resnet50_has_its_53_sites_as_the_runner_builds_it() -> None:
    small, large = cases.site_counts("resnet50@32"), cases.site_counts("resnet50")
    assert sum(small.values()) == sum(large.values()) == 53
    # The stem of small pictures keeps their size; the published one halves it twice.
    assert small[Shape(64, 32, 32, True)] == 7
    assert (large[Shape(64, 112, 112, True)], large[Shape(64, 56, 56, True)]) == (1, 6)
    # The last norm of a block, and of a shortcut, has a sum and no activation behind it.
    assert large[Shape(2048, 7, 7, False)] == 4
    assert sum(count for shape, count in large.items() if not shape.activation) == 16 + 4


def test_inception_comes_at_its_own_size() -> None:
    counts = cases.site_counts("inception_v3")
    assert sum(counts.values()) == 96
    assert Shape(32, 149, 149, True) in counts
    assert all(shape.activation for shape in counts)


def test_a_shape_that_two_networks_have_is_one_case() -> None:
    shape = Shape(16, 4, 4, True)
    found = cases.cases(Settings(batch=(2, 8)), {"a": {shape: 3}, "b": {shape: 5}})
    assert len(found) == 2 * 2 * 2
    assert all(case.sites == {"a": 3, "b": 5} for case in found)
    assert [case.N for case in found[:4]] == [2, 2, 2, 2]


def test_quick_takes_a_few_from_small_to_large() -> None:
    shapes = [Shape(2**k, 4, 4, True) for k in range(2, 9)]
    assert cases.spread(shapes) == [shapes[0], shapes[3], shapes[6]]
    assert cases.spread(shapes[:1]) == shapes[:1]


def test_bytes_and_what_does_not_fit() -> None:
    small, large = (Case(Shape(64, 32, 32, True), N, "contiguous", "bfloat16", {"a": 1}) for N in (8, 32))
    assert small.bytes == 2**20
    assert cases.needed_mib(small) == cases.ALIVE
    assert cases.fitting([small, large], 2 * cases.ALIVE) == ([small], [large])


def test_the_limit_is_never_more_than_there_is() -> None:
    cpu = torch.device("cpu")
    free = cases.free_mib(cpu)
    assert cases.limit_mib(1.0, cpu) == 1.0
    assert cases.limit_mib(1e12, cpu) <= max(free, 1e12)
    assert cases.limit_mib(None, cpu) <= cases.CPU_LIMIT_MIB
