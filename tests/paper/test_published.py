"""The published numbers: each follows from what was printed, and names only what there is."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import yaml

from normbench import models, norms
from normbench.data.sources import names as data_sets
from normbench.paper import published
from normbench.paper.published import Entry, entries

COMPARABLE = [entry for entry in entries() if entry.top1]


def label(entry: Entry) -> str:
    return f"{entry.paper[:20]}-{entry.norm_printed}-{entry.batch_printed}-{entry.printed}"


def options_of(entry: Entry) -> dict[str, Any]:
    """``num_groups=32 layer_scaling=true`` as a constructor wants it."""
    return {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in entry.options.split())}


def test_there_are_as_many_as_were_collected() -> None:
    assert len(entries()) == 474
    assert len(COMPARABLE) == 348


def test_every_number_follows_from_the_printed_one_by_the_rule() -> None:
    for entry in entries():
        assert entry.top1 == published.top1_of(entry.task, entry.metric, entry.printed), entry
        assert entry.top1 == "" or 0 < entry.value < 100, entry
        float(entry.printed)


@pytest.mark.parametrize(
    ("metric", "printed", "top1"),
    [
        ("top1_acc", "76.096", "76.096"),
        ("top1_err", "34.7", "65.3"),
        ("top1_err", "8.00", "92.00"),
        ("top5_acc", "9", ""),
    ],
)
def test_the_rule(metric: str, printed: str, top1: str) -> None:
    assert published.top1_of("classification", metric, printed) == top1
    assert published.top1_of("detection", metric, printed) == ""


def test_what_is_not_comparable_says_so() -> None:
    assert all("not comparable" in entry.note for entry in entries() if not entry.top1)


def test_every_entry_says_where_it_was_read_and_how_sure_that_is() -> None:
    for entry in entries():
        assert entry.source, entry
        assert entry.confidence in ("high", "medium", "low"), entry
        assert "/work" not in entry.source + entry.note
        assert "shared" not in entry.source + entry.note


def test_names_are_ours() -> None:
    assert {entry.norm for entry in entries()} <= {"", *norms.names()}
    assert {entry.data for entry in entries()} <= {"", *data_sets()}
    assert {entry.arch for entry in entries()} <= {"", *models.names()}
    for name, options in {(entry.norm, entry.options) for entry in entries() if entry.options}:
        entry = next(e for e in entries() if (e.norm, e.options) == (name, options))
        norms.check_options(name, options_of(entry))


def test_batch_is_images_per_worker() -> None:
    for entry in entries():
        assert entry.batch_scope in ("", "per_gpu", "global"), entry
        if entry.batch_scope == "per_gpu":
            assert entry.batch == int(entry.batch_printed), entry
        elif entry.batch_printed and entry.batch and entry.workers:
            assert entry.batch * entry.workers == int(entry.batch_printed), entry


def test_no_place_of_a_table_is_taken_twice() -> None:
    places = Counter((entry.overlay, entry.line, entry.batch) for entry in entries() if entry.overlay)
    assert [place for place, count in places.items() if count > 1] == []
    assert all(entry.top1 and entry.batch for entry in entries() if entry.overlay)


@pytest.mark.parametrize(
    ("overlay", "line", "batch", "top1"),
    [
        ("bgn", "BGN", 2, 76.096), ("bgn", "BN", 2, 66.512), ("gn", "BN", 2, 65.3), ("gn", "GN", 2, 75.9),
        ("frn", "FRN+TLU", 2, 77.34), ("mabn", "MABN", 2, 76.33), ("sn", "SN, 1 GPU", 8, 75.9),
        ("bkn", "KN, ResNet-32", 2, 92.30), ("hysts", "BN, cosine", 8, 92.30), ("online-cifar100", "Online", 128, 68.6),
    ],
)  # fmt: skip
def test_numbers_that_were_read_by_hand(overlay: str, line: str, batch: int, top1: float) -> None:
    assert published.of(overlay)[line, batch].value == pytest.approx(top1)
