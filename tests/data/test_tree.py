"""Names of files become classes and splits, or one line that says what is wrong with them."""

from __future__ import annotations

import pytest
from data_files import one_line

from normbench.data.tree import arrange
from normbench.errors import DataError

GOOD = ["train/b/2.png", "train/b/1.png", "train/a/1.png", "test/a/1.png", "test/b/9.png"]


@pytest.mark.parametrize("top", ["", "set/"])
def test_pictures_are_ordered_by_class_and_name(top):
    tree = arrange([top + name for name in GOOD], [], "set")
    assert tree.classes == ("a", "b")
    assert tree.train == tuple(top + name for name in ("train/a/1.png", "train/b/1.png", "train/b/2.png"))
    assert tree.train_y.tolist() == [0, 1, 1]
    assert tree.test_y.tolist() == [0, 1]


def test_classes_sort_as_folders_not_as_paths():
    tree = arrange([f"{split}/{label}/1.png" for split in ("train", "test") for label in ("a", "a-b")], [], "set")
    assert tree.classes == ("a", "a-b")
    assert tree.train == ("train/a/1.png", "train/a-b/1.png")


def test_pictures_may_lie_deeper_in_their_class():
    tree = arrange(["train/a/x/y/1.png", "test/a/1.png"], ["train/a/x/y"], "set")
    assert (tree.classes, tree.train) == (("a",), ("train/a/x/y/1.png",))


def test_what_is_no_picture_or_hidden_is_passed_over():
    strays = ["README.md", "train/list.txt", "train/b/.DS_Store", "train/.cache/1.png", "__MACOSX/train/c/._1.png"]
    assert arrange([*GOOD, *strays], ["train/.cache"], "set").train == arrange(GOOD, [], "set").train


def test_test_comes_before_val_and_val_alone_will_do():
    both = [*GOOD, "val/a/1.png", "val/b/1.png"]
    assert arrange(both, [], "set").test == ("test/a/1.png", "test/b/9.png")
    assert arrange([name for name in both if not name.startswith("test")], [], "set").test[0] == "val/a/1.png"


BAD = {
    "nothing": ([], [], "set: holds no picture; expected train/<class>/<picture>"),
    "no pictures": (["train/a/1.txt", "test/a/1.txt"], [], "set: holds no picture"),
    "no train": (["test/a/1.png"], [], r"no train/ folder \(found: test\)"),
    "misspelt train": (["Train/a/1.png", "test/a/1.png"], [], "is 'Train' meant to be 'train'"),
    "no test": (["train/a/1.png"], [], "no test/ or val/ folder beside train/"),
    "two tops": (["x/train/a/1.png", "y/train/a/1.png"], [], r"stands below several folders \(x, y\)"),
    "too deep": (["x/y/train/a/1.png"], [], r"no train/ folder \(found: x\)"),
    "no class": ([*GOOD, "train/1.png"], [], "train/1.png lies in no class folder"),
    "empty class": (GOOD, ["train/c", "test/c"], "class 'c' has no pictures in train/"),
    "empty test class": ([*GOOD, "train/c/1.png"], ["test/c"], "class 'c' has no pictures in test/"),
    "only in train": ([*GOOD, "train/c/1.png"], [], "c in train/ but not in test/; .*same class folders in both"),
    "only in test": ([*GOOD, "test/c/1.png"], [], "c in test/ but not in train/"),
    "misspelt class": (
        ["train/apple/1.png", "test/aple/1.png"],
        [],
        r"apple in train/ but not in test/ \(which has 'aple'\)",
    ),
    "many": ([*GOOD, *(f"train/x{i}/1.png" for i in range(9))], [], "x0, x1, x2, x3, x4 and 4 more in train/"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_trees_are_one_line(case):
    files, folders, message = BAD[case]
    with pytest.raises(DataError, match=message) as error:
        arrange(files, folders, "set")
    one_line(error.value)
