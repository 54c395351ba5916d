"""What each mode of the command can be told: its keys with their defaults, help lines and rules. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from normbench.bench.values import (
    auto_or,
    choice,
    chosen,
    count,
    count_or_zero,
    counts,
    flag,
    key,
    names,
    number,
    optional,
    text,
)  # fmt: skip
from normbench.errors import ConfigError
from normbench.options import AUTO

FORMATS = ("contiguous", "channels_last")
DTYPES = ("float32", "bfloat16")
DEVICE = "auto, cpu, cuda, cuda:<number>, mps"
THREADS = "of a CPU; none: torch's own number"
NORMS = "normalizers by name, or file.py:Class; all: every registered one"
OUT = "the folder that files are left in"


@dataclass(frozen=True)
class Settings:
    """Units, or with ``arch`` whole training steps: what is measured, and how long."""

    word: ClassVar[str] = ""
    about: ClassVar[str] = "forward + backward of every normalizer with its activation, beside nn.BatchNorm2d + ReLU"
    quick_values: ClassVar[Mapping[str, Any]] = {
        "shapes": ("resnet50@32",),
        "batch": (2, 8),
        "dtype": ("float32",),
        "seconds": 0.1,
    }

    norm: tuple[str, ...] = key(("all",), names, NORMS)
    shapes: tuple[str, ...] = key(
        ("resnet50@32", "resnet50@224", "inception_v3"),
        names,
        "networks whose site shapes are taken, @ the side of their pictures",
    )
    arch: tuple[str, ...] = key((), names, "networks for whole training steps, in place of shapes")
    size: int = key(32, count, "with arch: the side of its pictures")
    batch: tuple[int, ...] = key((2, 8, 32, 128), counts, "images in a batch")
    memory_format: tuple[str, ...] = key(FORMATS, chosen(*FORMATS), "layout of pictures and maps")
    dtype: tuple[str, ...] = key(
        DTYPES, chosen(*DTYPES), "of pictures and maps; parameters stay float32 (arch: autocast)"
    )
    device: str = key("auto", text, DEVICE)
    threads: int | None = key(None, optional(count), THREADS)
    rounds: int = key(5, count, "least rounds of a shape (three do after 5 × seconds)")
    seconds: float = key(0.3, number, "least time of all rounds of a shape together")
    limit_mib: float | None = key(
        None,
        optional(number),
        "leave out shapes that need more; none: half of what is free,",
        "and on a CPU at most 2048",
    )
    peers: bool = key(True, flag, "also others' layers: torch's, and timm's where it is installed")
    quick: bool = key(False, flag, "a few small shapes and rounds, to see that it works")
    out: str = key("bench", text, OUT)

    @staticmethod
    def check(given: Mapping[str, Any]) -> None:
        """Raise ConfigError for keys of units with ``arch``, or of whole steps without it."""
        if given.get("arch"):
            for name in ("shapes", "limit_mib", "peers"):
                if name in given:
                    raise ConfigError(
                        f"{name}: does not go with arch=…, which measures whole training steps; leave one out"
                    )
        elif "size" in given:
            raise ConfigError("size: goes with arch=… only; a network's shapes take theirs behind @, as in resnet50@32")


@dataclass(frozen=True)
class StepSettings:
    """Training images per second: a sweep's loop beside the plain one."""

    word: ClassVar[str] = "step"
    about: ClassVar[str] = "training images per second of a sweep's loop, beside the plain loop of most people"
    quick_values: ClassVar[Mapping[str, Any]] = {"arch": "resnet8", "batch": (2, 8), "rounds": 3, "seconds": 1.0}

    arch: str = key("resnet20", text, "the network")
    data: str | None = key(
        None, optional(text), "pictures, as a sweep's data=…; none: noise of CIFAR-10's shape, 8,192 of 3×32×32"
    )
    root: str | None = key(None, optional(text), "with data: the folder they are in; none: data/<data> here")
    norm: tuple[str, ...] = key(("bn",), names, NORMS)
    batch: tuple[int, ...] = key((2, 8, 32, 128), counts, "images that share statistics")
    workers: int = key(
        1,
        count,
        "such groups in one step: the untouched network and the plain loop",
        "get batch × workers images at once",
    )
    device: str = key("auto", text, DEVICE)
    threads: int | str | None = key(
        AUTO,
        auto_or(optional(count)),
        "of our loop on a CPU; auto: as a sweep's threads=auto; none: by its size",
    )
    memory_format: str = key(
        AUTO, choice(AUTO, *FORMATS), "layout in our loop, auto: as a sweep's; the plain loop has torch's default"
    )
    amp: bool = key(False, flag, "autocast to bfloat16, in both loops")
    loaders: int = key(2, count_or_zero, "processes that prepare the plain loop's pictures; 0: none but its own")
    rounds: int = key(9, count, "least rounds of a batch (three do after 5 × seconds)")
    seconds: float = key(10.0, number, "least time of all rounds of a batch together")
    quick: bool = key(False, flag, "a small network, two batches, few rounds, to see that it works")
    out: str = key("bench", text, OUT)

    @staticmethod
    def check(given: Mapping[str, Any]) -> None:
        """Raise ConfigError for a place of pictures that none are taken from."""
        if given.get("root") is not None and given.get("data") is None:
            raise ConfigError("root: goes with data=… only, such as data=folder root=pictures; leave it out")


@dataclass(frozen=True)
class FitSettings:
    """The largest batch that fits, of each normalizer."""

    word: ClassVar[str] = "fit"
    about: ClassVar[str] = "the largest batch that each normalizer can train at in a given memory"
    quick_values: ClassVar[Mapping[str, Any]] = {"arch": "resnet8", "norm": ("bn", "gn"), "most": 16, "workers": 4}

    arch: str = key("resnet20", text, "the network")
    size: int = key(32, count, "the side of its pictures")
    norm: tuple[str, ...] = key(("bn", "gn", "bgn", "frn"), names, NORMS)
    device: str = key("auto", text, DEVICE)
    threads: int | None = key(None, optional(count), THREADS)
    memory_format: str = key("contiguous", choice(*FORMATS), "layout of pictures and maps")
    amp: bool = key(False, flag, "autocast to bfloat16")
    limit_mib: float | None = key(
        None,
        optional(number),
        "what a process may take at its peak; none: half of what is free,",
        "on a GPU all of that",
    )
    workers: int = key(8, count, "groups of a batch in one step, for the columns with workers")
    chunk: int = key(1, count, "of them in one forward, for the columns with chunk")
    most: int | None = key(None, optional(count), "images of one forward at most; none: 256 on a CPU, 65536 on a GPU")
    quick: bool = key(False, flag, "a small network, two normalizers, small batches, to see that it works")
    out: str = key("bench", text, OUT)

    @staticmethod
    def check(given: Mapping[str, Any]) -> None:
        """Raise ConfigError for a chunk of more workers than there are."""
        workers, chunk = (given.get(name, getattr(FitSettings, name)) for name in ("workers", "chunk"))
        if chunk > workers:
            raise ConfigError(f"chunk: got {chunk}, expected at most workers={workers}, of which it is a part")


MODES: dict[str, type[Settings] | type[StepSettings] | type[FitSettings]] = {
    mode.word: mode for mode in (Settings, StepSettings, FitSettings)
}
