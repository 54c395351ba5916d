"""Pictures of several domains: a folder of class-per-folder sets that have their classes in common.

A label of a training picture is class + classes · domain, domains counted from 0 by their names, so that every reader
and every choice of pictures (stratified by label) takes both along; the training step takes them apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from normbench.data import archive, arrays, folder
from normbench.data.arrays import Arrays
from normbench.data.listing import Listing, sha256
from normbench.data.prepared import is_copy
from normbench.data.progress import Tick
from normbench.data.tree import Tree
from normbench.errors import DataError, UnknownName
from normbench.options import DataOptions

EXPECTED = "expected <domain>/train/<class>/<picture> and <domain>/test/ (or val/), or archives of these"


def find(options: DataOptions, *, verify: bool = True, progress: Tick | None = None) -> Arrays | Listing:
    """The pictures of all domains below ``options.root``, in memory, or listed where one is to be streamed.

    Without ``held_out`` all train/ are trained on and all test/ are evaluated on; with it, all pictures of that domain
    are evaluated on, and the train/ of the others are trained on. Raises DataError and UnknownName.
    """
    root = folder.root_of(options)
    places = _places(root)
    if options.held_out is not None and options.held_out not in places:
        raise UnknownName("domain for data.held_out", options.held_out, places)
    domains = tuple(name for name in places if name != options.held_out)
    if not domains:
        raise DataError(f"{root}: {options.held_out} is its only domain; expected others to train on; {EXPECTED}")

    def parts(stream: bool | None) -> dict[str, Arrays | Listing]:
        found: dict[str, Arrays | Listing] = {}
        for i, (name, place) in enumerate(places.items()):
            tick = None if progress is None else (lambda share, i=i: progress((i + share) / len(places)))
            own = replace(options, root=str(place), stream=stream)
            if is_copy(place):
                raise DataError(f"{place}: is a prepared copy; expected the domain's own pictures; {EXPECTED}")
            found[name] = folder.find(own, verify=verify, progress=tick)
        return found

    found = parts(options.stream)
    if any(isinstance(part, Listing) for part in found.values()):
        found = parts(True)
    _check_classes(found, root)
    mark = [options.held_out, {name: part.fingerprint for name, part in found.items()}]
    fingerprint = sha256(json.dumps(mark))[:16]
    in_memory = {name: part for name, part in found.items() if isinstance(part, Arrays)}
    if in_memory:
        return _joined(in_memory, domains, root, fingerprint)
    return _listed(
        {name: part for name, part in found.items() if isinstance(part, Listing)}, domains, root, fingerprint
    )


def _places(root: Path) -> dict[str, Path]:
    """Where each domain is, by its name."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder (looked in {Path.cwd()}); {EXPECTED}; give data.root=…")
    places: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        suffix = next((end for end in archive.SUFFIXES if path.name.lower().endswith(end)), "")
        if path.name.startswith(".") or not (path.is_dir() or suffix):
            continue
        name = path.name if path.is_dir() else path.name[: -len(suffix)]
        if name in places:
            raise DataError(f"{root}: {path.name} and {places[name].name} are both domain {name!r}; take one out")
        places[name] = path
    if "train" in places or not places:
        hint = "; data=folder reads pictures of a single one" if places else ""
        raise DataError(f"{root}: holds no domains; {EXPECTED}{hint}")
    return places


def _check_classes(found: dict[str, Arrays | Listing], root: Path) -> None:
    """Raise DataError unless all domains have the same classes."""
    (first, part), *others = found.items()
    expected = _classes(part)
    for name, other in others:
        odd = sorted(set(_classes(other)) ^ set(expected))
        if odd:
            raise DataError(
                f"{root}: class {odd[0]!r} is in one of the domains {first} and {name} only; expected the same class "
                "folders in all; rename, add or take out"
            )


def _classes(part: Arrays | Listing) -> tuple[str, ...]:
    return part.classes if isinstance(part, Arrays) else part.tree.classes


def _joined(found: dict[str, Arrays], domains: Sequence[str], root: Path, fingerprint: str) -> Arrays:
    shapes = {name: part.train_x.shape[2:] for name, part in found.items()}
    if len(set(shapes.values())) > 1:
        sizes = ", ".join(f"{name} {W}×{H}" for name, (H, W) in shapes.items())
        raise DataError(f"{root}: domains differ in size ({sizes}); expected one; data.size=28 brings all to 28×28")
    channels = max(part.train_x.shape[1] for part in found.values())
    classes = next(iter(found.values())).classes

    def stack(of: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        """Pictures and labels of (domain, split)."""
        own = [getattr(found[name], f"{split}_x") for name, split in of]
        x = [np.broadcast_to(part, (len(part), channels, *part.shape[2:])) for part in own]
        return np.concatenate(x), _labels(found, of, domains, len(classes))

    train, test = (stack(of) for of in _splits(tuple(found), domains))
    return replace(arrays.make(classes, train, test, fingerprint=fingerprint), domains=tuple(domains))


def _listed(found: dict[str, Listing], domains: Sequence[str], root: Path, fingerprint: str) -> Listing:
    classes = next(iter(found.values())).tree.classes
    names: list[list[str]] = []
    labels: list[np.ndarray] = []
    for of in _splits(tuple(found), domains):
        names.append([f"{found[name].root}/{file}" for name, split in of for file in getattr(found[name].tree, split)])
        labels.append(_labels({name: part.tree for name, part in found.items()}, of, domains, len(classes)))
    tree = Tree(classes, tuple(names[0]), labels[0], tuple(names[1]), labels[1], tuple(domains))
    sizes = {f"{part.root}/{file}": size for part in found.values() for file, size in part.sizes.items()}
    return Listing(Path(), tree, sizes, "", fingerprint)


def _labels(
    found: Mapping[str, Arrays | Tree], of: Sequence[tuple[str, str]], domains: Sequence[str], classes: int
) -> np.ndarray:
    """class + classes · domain of every picture of (domain, split); a held-out domain counts as the first."""
    place = {name: d for d, name in enumerate(domains)}
    return np.concatenate([getattr(found[name], f"{split}_y") + classes * place.get(name, 0) for name, split in of])


def _splits(names: Sequence[str], domains: Sequence[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What is trained on and what is evaluated on, as (domain, split of it)."""
    train = [(name, "train") for name in domains]
    held_out = [name for name in names if name not in domains]
    test = [(name, split) for name in held_out for split in ("train", "test")] or [(name, "test") for name in domains]
    return train, test
