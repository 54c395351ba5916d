"""Normalizers that installed packages bring, under the entry-point group ``normbench.norms``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import normbench
from normbench import norms, targets
from normbench.errors import ConfigError
from normbench.norms import listing

SOURCE = """
from torch import nn

class Halved(nn.Module):
    mixes_samples = False
    train_eval_differ = False

    def __init__(self, num_features, factor=0.5):
        super().__init__()
        self.factor = factor
        self.weight = nn.Parameter(nn.init.ones_(__import__("torch").empty(num_features)))

    def forward(self, x):
        return x * self.factor * self.weight[:, None, None]

    def wire(self):  # a method that means something of its own
        raise AssertionError
"""
POINTS = "[normbench.norms]\nhalved = halving.layers:Halved\nbn = halving.layers:Halved\ngone = halving.layers:Gone\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed distribution, as pip leaves one."""
    site = tmp_path / "site"
    (site / "halving").mkdir(parents=True)
    (site / "halving" / "__init__.py").touch()
    (site / "halving" / "layers.py").write_text(SOURCE)
    info = site / "halving-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: halving\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    targets.installed.cache_clear()
    yield site
    targets.installed.cache_clear()


@pytest.mark.usefixtures("package")
def test_it_goes_by_its_name_and_ours_keep_theirs() -> None:
    assert norms.names()[-2:] == ["halved", "gone"]
    assert norms.get("bn").unit.__module__ == "normbench.norms.bn"
    row = norms.get("halved")
    assert (row.method, row.mixes_samples, row.wire, row.users) == ("Halved", False, None, True)
    assert torch.equal(norms.build("halved", 3, factor=2.0)(torch.ones(1, 3, 2, 2)), torch.full((1, 3, 2, 2), 2.0))
    model = normbench.apply(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "halved")
    assert type(model.get_submodule("1")).__name__ == "Halved"


@pytest.mark.usefixtures("package")
def test_one_that_cannot_be_had_is_said_so() -> None:
    with pytest.raises(ConfigError, match="Gone"):
        norms.get("gone")
    line = next(line for line in listing.table().splitlines() if line.startswith("gone"))
    assert "'Gone'" in line


def test_a_sweep_takes_it_and_its_file_is_part_of_the_id(
    package: Path, sweep: Callable[..., int], results: Callable[..., list[dict[str, str]]]
) -> None:
    assert sweep("norm=bn,halved", "batch=8", "steps=4", "name=p", "recipe.clip=1") == 0
    rows = {row["norm"]: row for row in results("p")}
    assert rows["halved"]["status"] == "ok"
    row = norms.get("halved")
    assert row.source_hash is not None
    assert len(row.source_hash) == 64
