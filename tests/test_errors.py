"""What is said of a mistyped word."""

from __future__ import annotations

import pytest

from normbench import norms
from normbench.errors import nearest


@pytest.mark.parametrize(
    ("got", "meant"),
    [("bng", "bgn"), ("frm", "frn"), ("BN", "bn"), ("gnb", "gbn"), ("zzz", None)],
)
def test_the_choice_that_was_meant(got: str, meant: str | None) -> None:
    assert nearest(got, norms.names()) == meant
