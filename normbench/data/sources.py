"""From a data set's options to its description and its open pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from normbench.data import digits, domains, folder, official, split, tuned, user
from normbench.data.arrays import Arrays, refuse_stream
from normbench.data.description import Description, Pictures
from normbench.data.listing import Listing, sha256
from normbench.data.memory import InMemory
from normbench.data.progress import Tick
from normbench.data.tree import Tree
from normbench.errors import ConfigError, DataError, UnknownName, one_line
from normbench.options import DataOptions
from normbench.targets import is_target

IMAGENET = "expected train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, as torchvision.datasets.ImageNet unpacks them"
# Sets of which a prepared copy can be made.
PREPARED = ("imagenet", "folder")
IMAGENET_TRAIN, IMAGENET_TEST, IMAGENET_CLASSES = 1_281_167, 50_000, 1_000


def names() -> list[str]:
    """The data sets that go by a name of their own."""
    return ["digits", *official.KNOWN, "imagenet", "folder", "domains"]


def describe(options: DataOptions, *, fetch: bool = True, progress: Tick | None = None) -> Description:
    """What training on ``options`` would see. Decodes the pictures into the cache if that has not been done.

    fetch: download what is missing, if ``options.download`` allows; ``False`` (planning) answers for published sets
    from what is published of them, without a fingerprint where that takes the pictures.
    Raises UnknownName, ConfigError, DataError.
    """
    if options.tune:
        _check_tune(options)
        plain, held = tuned.parts(options)
        return tuned.description(*(describe(part, fetch=fetch, progress=progress) for part in (plain, held)))
    found = find(options, fetch=fetch, verify=False, progress=progress)
    if found is None:
        return published(options)
    return found.description if isinstance(found, user.Own) else chosen(found, options)[0]


def open_pictures(
    options: DataOptions,
    *,
    size: int | None,
    device: torch.device | str,
    described: Description | None = None,
    progress: Tick | None = None,
) -> Pictures:
    """The pictures of ``options`` on ``device``, handed out at ``size`` × ``size`` (None: as stored).

    described: what describe() said of them before; DataError if they are not those any more.
    progress: called with the share decoded, in place of the bar. Raises UnknownName, ConfigError, DataError.
    """
    if options.tune:
        both = (open_pictures(part, size=size, device=device, progress=progress) for part in tuned.parts(options))
        pictures = tuned.Tuned(*both)
        same(pictures.description, described)
        return pictures
    check_decoder(options, torch.device(device))
    found = find(options, progress=progress)
    assert found is not None  # only a plan may leave the pictures where they are
    if isinstance(found, user.Own):
        same(found.description, described)
        return found.on(size, device)
    description, train_at, test_at = chosen(found, options)
    same(description, described)
    if isinstance(found, Arrays):
        return InMemory(
            found, description, train_at, test_at, pad=options.pad, flip=options.flip, size=size, device=device
        )
    from normbench.data.stream import Streamed  # torchvision, which sets in memory do without

    return Streamed(
        found,
        description,
        train_at,
        test_at,
        crop=options.size,
        size=size,
        loaders=options.loaders,
        decoder=options.decoder,
        device=device,
    )


def find(
    options: DataOptions, *, fetch: bool = True, verify: bool = True, progress: Tick | None = None
) -> Arrays | Listing | user.Own | None:
    """The source that ``options.name`` means; None for a published set that is not there, with ``fetch=False``."""
    name = options.name
    if is_target(name):
        return user.find(options)
    check(options)
    try:
        if name == "digits":
            refuse_stream(options)
            return digits.find(options.size)
        if name in official.KNOWN:
            return official.find(options, fetch=fetch, verify=verify, progress=progress)
        if name == "imagenet":
            return imagenet(options, fetch=fetch, verify=verify, progress=progress)
        if name == "domains":
            return domains.find(options, verify=verify, progress=progress)
        return folder.find(options, verify=verify, progress=progress)
    except OSError as error:  # a place that may not be looked at, or that goes away while it is
        raise DataError(
            f"{error.filename or name}: cannot be read ({error.strerror or one_line(error)}); expected the pictures "
            f"of {name}; change its permissions, put it back, or give data.root=…"
        ) from error


def check_decoder(options: DataOptions, device: torch.device) -> None:
    """Raise ConfigError if ``data.decoder`` cannot work beside ``device``."""
    if options.decoder == "cuda" and device.type != "cuda":
        there = "" if torch.cuda.is_available() else ", and this machine has no CUDA device"
        raise ConfigError(
            f"data.decoder=cuda with device={device}{there}: expected device=cuda, whose GPU decodes; take "
            "data.decoder=torchvision"
        )


def _check_tune(options: DataOptions) -> None:
    """Raise ConfigError where nothing can be held out."""
    if is_target(options.name) and isinstance(user.find(replace(options, tune=0.0)), user.Own):
        raise ConfigError(
            f"data.tune: got {options.tune}, but {options.name} hands out its own pictures; expected nothing; "
            "give (train_x, train_y, test_x, test_y) to have a share held out"
        )


def same(found: Description, before: Description | None) -> None:
    """Raise DataError if the pictures ``found`` are not those that were described ``before``.

    What could not be known then (a plan without the pictures) is not held against them; classes count by their number,
    since a plan may not know their names and the fingerprint covers them.
    """
    if before is None:
        return
    facts = [
        ("pictures to train on", found.train, before.train),
        ("pictures to evaluate on", found.test, before.test),
        ("evaluation split", found.split, before.split),
        ("classes", len(found.classes), len(before.classes)),
        ("height", found.height, before.height),
        ("width", found.width, before.width),
        ("channels", found.channels, before.channels),
        ("fingerprint of the content", found.fingerprint, before.fingerprint),
    ]
    changed = [f"{fact} {now} (was {then})" for fact, now, then in facts if then and now != then]
    if changed:
        raise DataError(
            f"{found.name}: the pictures have changed since they were described: found {', '.join(changed)}; expected "
            "the same ones all through; put them back, or start again and let them be described anew"
        )


def check(options: DataOptions) -> None:
    """Raise UnknownName or ConfigError for what no named set takes."""
    if options.name not in names():
        own = "A set of your own: data=folder data.root=…, or data=path/file.py:callable."
        raise UnknownName("data set", options.name, names(), own)
    if options.name == "digits" and options.root is not None:
        raise ConfigError(
            f"data.root: got {options.root!r}, but digits come with scikit-learn; expected nothing; "
            "data=folder data.root=… reads pictures of your own"
        )
    if options.held_out is not None and options.name != "domains":
        raise ConfigError(
            f"data.held_out: got {options.held_out!r}, but {options.name} has no domains; expected nothing; "
            "data=domains data.root=… reads pictures of several"
        )
    if options.prepared is not None and options.name not in PREPARED:
        raise ConfigError(
            f"data.prepared: got {options.prepared!r}, but {options.name} cannot be prepared; expected nothing; "
            f"it goes with data={' and data='.join(PREPARED)}"
        )
    if options.options:
        option = next(iter(options.options))
        raise ConfigError(
            f"data.options: got {option!r}, which {options.name} does not take; expected none (they are for "
            "file.py:callable); leave it out"
        )


def imagenet(options: DataOptions, *, fetch: bool, verify: bool, progress: Tick | None) -> Arrays | Listing | None:
    """ImageNet in torchvision's layout: streamed unless that is refused. It cannot be fetched."""
    root = folder.root_of(options)
    if not fetch and options.root is None and options.prepared is None and not root.exists():
        return None  # a plan can be made before the pictures are there; a place that was named must be
    if options.stream is None and (options.prepared is not None or not root.is_file()):
        options = replace(options, stream=True)
    return folder.find(options, splits=("val",), expected=IMAGENET, verify=verify, progress=progress)


def chosen(found: Arrays | Listing, options: DataOptions) -> tuple[Description, np.ndarray, np.ndarray]:
    """The description, and the positions trained and evaluated on."""
    set_: Arrays | Tree
    if isinstance(found, Arrays):
        set_, train_y, test_y = found, found.train_y, found.test_y
        C, H, W = found.train_x.shape[1:]
        shape: tuple[int, int | None, int | None] = (C, H, W)
    else:
        set_, train_y, test_y = found.tree, found.tree.train_y, found.tree.test_y
        shape = (3, options.size, options.size)
    train_at, test_at = split.choose(train_y, test_y, valid=options.valid, limit=options.limit, name=options.name)
    streamed, evaluated = isinstance(found, Listing), "valid" if options.valid else options.held_out or "test"
    C, H, W = shape
    fingerprint = seen_as(found, options.decoder) if isinstance(found, Listing) else found.fingerprint
    description = Description(
        options.name, set_.classes, len(train_at), len(test_at), evaluated, H, W, C, streamed, fingerprint,
        domains=set_.domains,
    )  # fmt: skip
    return description, train_at, test_at


def seen_as(listing: Listing, decoder: str) -> str:
    """The fingerprint of streamed pictures, by ``decoder``: what the network sees follows from both.

    Pillow's is that of the files alone, as it was when there was no other decoder: what was recorded then stands.
    """
    return listing.fingerprint if decoder == "pillow" else sha256(f"{listing.fingerprint} {decoder}")[:16]


def published(options: DataOptions) -> Description:
    """The description of a published set that is not there, from its known counts."""
    if options.name == "imagenet":
        counts = [IMAGENET_TRAIN // IMAGENET_CLASSES] * IMAGENET_CLASSES  # even: the true ones are 732 to 1,300
        counts[0] += IMAGENET_TRAIN - sum(counts)
        test, side, fingerprint = IMAGENET_TEST, options.size, ""
    else:
        known = official.KNOWN[options.name]
        counts, test, side = list(known.train), known.test, options.size or known.side
        fingerprint = official.checksum(options.name)
    train_y, test_y = np.repeat(np.arange(len(counts)), counts), np.zeros(test, dtype=np.int64)
    train_at, test_at = split.choose(train_y, test_y, valid=options.valid, limit=options.limit, name=options.name)
    return Description(
        name=options.name,
        classes=tuple(map(str, range(len(counts)))),
        train=len(train_at),
        test=len(test_at),
        split="valid" if options.valid else "test",
        height=side,
        width=side,
        channels=3,
        streamed=bool(options.stream) or (options.name == "imagenet" and options.stream is None),
        fingerprint=fingerprint,
    )
