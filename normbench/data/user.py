"""A data set of the user's own: ``file.py:callable`` that gives arrays, or pictures that hand themselves out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normbench.data import arrays, share
from normbench.data.arrays import Arrays, fit, refuse_stream
from normbench.data.description import Description, Pictures
from normbench.data.picture import one_line
from normbench.errors import ConfigError, DataError, UnknownName
from normbench.options import DataOptions
from normbench.targets import load

KEYS = ("train_x", "train_y", "test_x", "test_y")
EXPECTED = "expected (train_x, train_y, test_x, test_y), a dict of these (and classes, if wanted), or a Pictures"


def find(options: DataOptions) -> Arrays | Own:
    """What the callable ``options.name`` gives for ``options.options``, checked.

    Arrays: x uint8 (N, C, H, W) or (N, H, W, C) with C 1 or 3, y whole numbers 0..K−1; NumPy or torch.
    """
    function, sha256 = load(options.name, "data set")
    check_call(function, options.options, options.name)
    try:
        found = function(**options.options)
    except (DataError, ConfigError):
        raise
    except Exception as error:
        raise DataError(
            f"{options.name}: raised {type(error).__name__} ({' '.join(str(error).split())}); {EXPECTED}"
        ) from error
    if options.prepared is not None:
        raise ConfigError(
            f"data.prepared: got {options.prepared!r}, but {options.name} chooses its own pictures; expected nothing"
        )
    if options.held_out is not None:
        raise ConfigError(
            f"data.held_out: got {options.held_out!r}, but {options.name} chooses its own pictures; expected nothing"
        )
    if isinstance(found, Mapping) or (isinstance(found, tuple | list) and len(found) == len(KEYS)):
        return checked(found, options)
    if isinstance(found, Pictures):
        return own(found, options, sha256 or "")
    raise DataError(f"{options.name}: gave {described(found)}; {EXPECTED}")


def check_call(function: Callable[..., Any], options: Mapping[str, Any], name: str) -> None:
    """Raise UnknownName for an option that ``function`` does not take, ConfigError for one that it lacks."""
    parameters = inspect.signature(function).parameters.values()
    takes = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for option in options:
            if option not in takes:
                raise UnknownName(f"option of {name}", option, takes)
    lacking = [p.name for p in parameters if p.name in takes and p.default is p.empty and p.name not in options]
    if lacking:
        raise ConfigError(f"{name}: needs {', '.join(lacking)}; expected data.options.{lacking[0]}=…")


def checked(found: Any, options: DataOptions) -> Arrays:
    """Arrays from what the user's callable gave. Raises DataError for what cannot be pictures or labels."""
    refuse_stream(options)
    name = options.name
    given = dict(found) if isinstance(found, Mapping) else dict(zip(KEYS, found, strict=True))
    lacking = [key for key in KEYS if key not in given]
    if lacking:
        raise DataError(f"{name}: gave {', '.join(map(str, given)) or 'an empty dict'}, not {lacking[0]}; {EXPECTED}")
    train = pair(given["train_x"], given["train_y"], "train", name)
    test = pair(given["test_x"], given["test_y"], "test", name)
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"{name}: train_x holds pictures of (C, H, W) = {train[0].shape[1:]}, test_x of {test[0].shape[1:]}; "
            "expected the same; resize one of them"
        )
    classes = named(given.get("classes"), train[1], test[1], name)
    return arrays.make(classes, train, test, size=options.size)


def pair(x: Any, y: Any, which: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, C, H, W) and int64 (N,)."""
    x, y = plain(x), plain(y)
    if x.dtype != np.uint8:
        raise DataError(f"{name}: {which}_x is {x.dtype}, expected uint8, 0 to 255; convert it in your callable")
    if x.ndim != 4 or not {1, 3} & {x.shape[1], x.shape[3]} or 0 in x.shape:
        raise DataError(
            f"{name}: {which}_x has shape {x.shape}, expected (N, C, H, W) or (N, H, W, C) with C 1 or 3 and nothing "
            "empty; add the missing axis"
        )
    if x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{name}: {which}_y is {y.dtype} {y.shape}, expected whole numbers (N,), one label a picture")
    if len(x) != len(y):
        raise DataError(f"{name}: {which}_x has {len(x)} pictures, {which}_y {len(y)} labels; expected as many")
    return x, y.astype(np.int64)


def plain(values: Any) -> np.ndarray:
    """A NumPy array of a torch tensor, an array or a list."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def named(classes: Any, train_y: np.ndarray, test_y: np.ndarray, name: str) -> tuple[str, ...]:
    """The classes: those given, else numbers. Every one must have training pictures, and every label be one of them."""
    trained = np.unique(train_y)
    names = tuple(map(str, range(len(trained)) if classes is None else classes))
    smallest, largest = min(trained[0], test_y.min()), max(trained[-1], test_y.max())
    if (smallest, largest, len(trained)) != (0, len(names) - 1, len(names)):
        raise DataError(
            f"{name}: labels go from {smallest} to {largest}, {len(trained)} of them trained on; expected 0 to "
            f"{len(names) - 1}, each with training pictures; number the classes from 0 without gaps"
        )
    return names


def own(found: Pictures, options: DataOptions, fingerprint: str) -> Own:
    """Pictures that hand themselves out, if nothing was asked of them that only arrays can give."""
    for key in ("limit", "valid", "tune", "size", "pad", "flip", "stream"):
        if getattr(options, key):
            raise ConfigError(
                f"data.{key}: got {getattr(options, key)}, but {options.name} hands out its own pictures; expected "
                "nothing; do it there, or give (train_x, train_y, test_x, test_y)"
            )
    description = found.description
    if not isinstance(description, Description):
        raise DataError(
            f"{options.name}: its description is {described(description)}; expected a normbench.data.Description"
        )
    if not description.fingerprint:
        description = replace(description, fingerprint=fingerprint[:16])
    return Own(found, description)


class Own:
    """A user's Pictures, brought to the device and the net's size.

    Theirs may be as plain as ``train(*, seed, epoch, batch)`` and ``test(batch)``: what they then hand out beyond what
    was asked for (steps before ``start``, other ranks' pictures) is passed over here.
    """

    def __init__(
        self,
        pictures: Pictures,
        description: Description,
        size: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.pictures, self.description, self.num_classes = pictures, description, pictures.num_classes
        self.size, self.device = size, torch.device(device)

    def on(self, size: int | None, device: torch.device | str) -> Own:
        """The same, handed out on ``device`` at ``size``."""
        return Own(self.pictures, self.description, size, device)

    def train_steps(self, batch: int) -> int:
        """Batches in one epoch."""
        return self.pictures.train_steps(batch)

    def train(
        self, *, seed: int, epoch: int, batch: int, start: int = 0, rank: int = 0, ranks: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Pictures.train``. Raises DataError for a step that has another number of pictures."""
        function, part = self.pictures.train, share.of_step(batch, rank, ranks)
        skips, shares = takes(function, "start"), takes(function, "rank", "ranks")
        asked = {"start": start} if skips else {}
        asked |= {"rank": rank, "ranks": ranks} if shares else {}
        expected = batch // ranks if shares else batch
        steps = self.read(function(seed=seed, epoch=epoch, batch=batch, **asked))
        for x, y in islice(steps, 0 if skips else start, None):
            if not len(x) == len(y) == expected:
                raise DataError(
                    f"{self.description.name}: gave {len(x)} pictures and {len(y)} labels for a step, expected "
                    f"{expected}; whole steps only, in train() of your own pictures"
                )
            yield self.moved(x, y) if shares else self.moved(x[part], y[part])

    def test(self, batch: int, *, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Pictures.test``."""
        share.check_rank(rank, ranks)
        if takes(self.pictures.test, "rank", "ranks"):
            batches = self.read(self.pictures.test(batch, rank=rank, ranks=ranks))
        else:
            batches = islice(self.read(self.pictures.test(batch)), rank, None, ranks)
        for x, y in batches:
            yield self.moved(x, y)

    def read(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """``batches``, with a file that is gone as a DataError."""
        try:
            yield from batches
        except OSError as error:
            raise DataError(
                f"{self.description.name}: its pictures cannot be read ({type(error).__name__}: {one_line(error)}); "
                "expected them to stay where they were; put them back"
            ) from error

    def moved(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(x, y) where and as the net wants them."""
        x, y = (part.to(self.device, non_blocking=True) for part in (x, y))
        return x if self.size is None else fit(x, self.size), y


def takes(function: Callable[..., Any], *names: str) -> bool:
    """Does ``function`` take all of the keywords ``names``?"""
    parameters = inspect.signature(function).parameters
    return all(name in parameters for name in names) or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def described(found: Any) -> str:
    """A few words on what ``found`` is."""
    length = f" of {len(found)}" if hasattr(found, "__len__") else ""
    return f"{type(found).__name__}{length}"
