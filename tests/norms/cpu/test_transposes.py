"""Changes of layout: to the bit, whatever the sizes are to the blocks that they are made in."""

from __future__ import annotations

import pytest
import torch

from normbench.norms.cpu import turned


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2, 16, 4, 4), (3, 5, 3, 7), (1, 33, 9, 13), (2, 100, 60, 61)], ids=str)
def test_there_and_back(shape: tuple[int, ...], dtype: torch.dtype, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
        maps = turned.maps(x)
        assert maps.is_contiguous()
        assert torch.equal(maps, x)
        back = turned.pixels(maps)
        assert back.stride() == x.stride()
        assert torch.equal(back, x)
    finally:
        torch.set_num_threads(before)
