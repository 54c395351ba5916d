"""Names of files → a class-per-folder data set: which pictures are trained on, which tested on, and of what class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from normbench.data.picture import is_picture
from normbench.errors import DataError, nearest

EXPECTED = "expected train/<class>/<picture> and test/<class>/<picture> (or val/)"
SPLITS = ("test", "val")


@dataclass(frozen=True)
class Tree:
    """Pictures of a set by name, relative to the folder that holds train/; sorted by class, then by name.

    train, test: names.  train_y, test_y: int64 labels, the place of the class in ``classes``.
    domains: see Description; then labels are class + classes · domain.
    """

    classes: tuple[str, ...]
    train: tuple[str, ...]
    train_y: np.ndarray
    test: tuple[str, ...]
    test_y: np.ndarray
    domains: tuple[str, ...] = ()


def base(names: Iterable[str], where: str, expected: str = EXPECTED) -> str:
    """What stands before train/ in ``names``: nothing, or one top folder with its slash."""
    names = list(names)
    if any(name == "train" or name.startswith("train/") for name in names):
        return ""
    parts = [name.split("/") for name in names]
    tops = sorted({part[0] for part in parts if len(part) > 1 and part[1] == "train"})
    if len(tops) == 1:
        return f"{tops[0]}/"
    if tops:
        raise DataError(f"{where}: train/ stands below several folders ({some(tops)}); expected one; name one of them")
    found = some(sorted({part[0] for part in parts if part[0]}))
    near = nearest("train", {part[0] for part in parts} - {*SPLITS})
    hint = f"; is {near!r} meant to be 'train'?" if near else ""
    raise DataError(f"{where}: no train/ folder (found: {found or 'nothing'}); {expected}{hint}")


def arrange(
    files: Iterable[str],
    folders: Iterable[str],
    where: str,
    splits: Sequence[str] = SPLITS,
    expected: str = EXPECTED,
) -> Tree:
    """The tree that ``files`` and ``folders`` make; evaluation is on the first of ``splits`` that is there.

    files, folders: paths with "/" below ``where`` (a folder or an archive, for the messages). What is no picture by
    its suffix, or hidden, is passed over. Raises DataError for a missing split, a class without pictures, a class in
    one split only, and pictures outside any class.
    """
    files, folders = list(files), [folder.rstrip("/") for folder in folders]
    if not any(is_picture(name) for name in files):
        raise DataError(f"{where}: holds no picture; {expected}; data.root=… names the folder or archive")
    top = base([*files, *folders], where, expected)
    grouped = group(files, folders, top)
    evaluated = next((split for split in splits if split in grouped), None)
    if evaluated is None:
        wanted = " or ".join(f"{split}/" for split in splits)
        raise DataError(f"{where}: no {wanted} folder beside {top}train/; {expected}; add the pictures to evaluate on")
    classes = agreed(grouped["train"], grouped[evaluated], evaluated, where, expected)
    train, train_y = ordered(grouped["train"], classes)
    test, test_y = ordered(grouped[evaluated], classes)
    return Tree(classes, train, train_y, test, test_y)


def group(files: Iterable[str], folders: Iterable[str], top: str) -> dict[str, dict[str, list[str]]]:
    """split → class → picture names, classes without pictures included."""
    grouped: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        split, inside, rest = folder.removeprefix(top).partition("/")
        if folder.startswith(top) and inside and not rest.startswith("."):
            grouped[split][rest.partition("/")[0]]  # makes the class known, with or without pictures
    for name in files:
        split, _, rest = name.removeprefix(top).partition("/")
        if name.startswith(top) and is_picture(rest):
            label, below, _ = rest.partition("/")
            grouped[split][label if below else ""].append(name)
    return grouped


def agreed(
    train: dict[str, list[str]], test: dict[str, list[str]], evaluated: str, where: str, expected: str
) -> tuple[str, ...]:
    """The classes, sorted, if both splits have the same ones and every one has pictures."""
    for split, classes in (("train", train), (evaluated, test)):
        for label, names in sorted(classes.items()):
            if not label:
                raise DataError(f"{where}: {names[0]} lies in no class folder; {expected}; move it into its class")
            if not names:
                raise DataError(
                    f"{where}: class {label!r} has no pictures in {split}/; expected one or more; "
                    "add some or take its folder out"
                )
    for ours, theirs, here, there in ((train, test, "train", evaluated), (test, train, evaluated, "train")):
        alone = sorted(set(ours) - set(theirs))
        if alone:
            near = nearest(alone[0], set(theirs) - set(ours))
            hint = f" (which has {near!r})" if near else ""
            raise DataError(
                f"{where}: {some(alone)} in {here}/ but not in {there}/{hint}; "
                "expected the same class folders in both; rename, add or take out"
            )
    return tuple(sorted(train))


def ordered(grouped: dict[str, list[str]], classes: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    """All names, by class and then by name, and their labels."""
    names = [sorted(grouped[label]) for label in classes]
    labels = np.repeat(np.arange(len(classes)), [len(part) for part in names])
    return tuple(name for part in names for name in part), labels


def some(words: Sequence[str], most: int = 5) -> str:
    """The first few of ``words``, and how many more there are."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more
