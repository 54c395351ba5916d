"""Maps, and memory, for the tests of what keeps and writes them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from norm_cases import C, pictures
from torch import Tensor

from normbench.norms import repeated


@pytest.fixture(autouse=True)
def _no_call_is_like_one_before() -> Iterator[None]:
    """Whether a test's first call goes the long way depends on no other test."""
    repeated.readies.clear()
    yield
    repeated.readies.clear()


@pytest.fixture
def maps() -> Tensor:
    """Maps that are large beside all that is small."""
    return pictures(8, C, 32, 32, dtype=torch.float32)


@pytest.fixture
def unwritten() -> Iterator[None]:
    """Memory that nobody has written yet holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
