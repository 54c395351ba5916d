"""What several test files share: a store of one's own, the command line in this process, a clean cache."""

from __future__ import annotations

import csv
import gc
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from normbench.files import cache_folder

if TYPE_CHECKING:
    import torch

# On two cores shared with others, threads that wait for each other cost more than they bring; children inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """Trainings call the collector, which would go over all collected tests each time: a second and more."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Names for as many folders as there are tests; ``mktemp`` reads all names there are before each."""
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _own_cache(_caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves decoded pictures in the user's cache. Compiled kernels are taken and kept there."""
    kernels = cache_folder() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    own = next(_caches)
    own.mkdir()
    (own / "kernels").symlink_to(kernels)
    monkeypatch.setenv("NORMBENCH_CACHE", str(own))


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``sweep("norm=bn", "batch=2")`` → exit code, in an empty folder with its own runs/."""
    from normbench.sweep import main

    monkeypatch.chdir(tmp_path)
    return lambda *argv: main(list(argv))


@pytest.fixture
def results(tmp_path: Path) -> Callable[..., list[dict[str, str]]]:
    """``results("name")`` → the rows of runs/name/results.csv."""

    def read(name: str = "resnet8-digits") -> list[dict[str, str]]:
        with (tmp_path / "runs" / name / "results.csv").open() as file:
            return list(csv.DictReader(file))

    return read


@pytest.fixture(scope="module")
def family() -> Iterator[Callable[[str], torch.nn.Module]]:
    """torchvision's nets, made once; what is done to them must leave them as they are."""
    import torch
    import torchvision

    made: dict[str, torch.nn.Module] = {}

    def make(name: str) -> torch.nn.Module:
        if name not in made:
            arguments = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
            torch.manual_seed(0)
            made[name] = torchvision.models.get_model(name, weights=None, num_classes=10, **arguments)
        return made[name]

    yield make
    made.clear()
