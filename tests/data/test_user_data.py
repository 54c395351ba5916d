"""A data set of the user's own: arrays or pictures from a callable, checked before anything runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_files import noise, one_line

from normbench.data import describe, open_pictures
from normbench.data.user import checked
from normbench.errors import ConfigError, DataError, UnknownName
from normbench.options import DataOptions

SET = """
import numpy as np

def arrays(train=8, *, layout="NCHW"):
    x = np.arange(train * 3 * 4 * 4, dtype=np.uint64).astype(np.uint8).reshape(train, 3, 4, 4)
    if layout == "NHWC":
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    y = np.arange(train) % 2
    return x, y, x[:4], y[:4]

def needs(much):
    return arrays()

def anything(**options):
    return dict(zip(("train_x", "train_y", "test_x", "test_y"), arrays(), strict=True), classes=list(options))

def breaks():
    raise OSError("no disk")

def number():
    return 3
"""

PICTURES = """
import torch
from normbench.data import Description

class Own:
    num_classes = 2

    def __init__(self, fingerprint=""):
        self.description = Description("own", ("a", "b"), 4, 2, "test", 6, 6, 3, False, fingerprint)

    def train(self, *, seed, epoch, batch):
        for _ in range(self.train_steps(batch)):
            yield torch.full((batch, 3, 6, 6), float(seed)), torch.zeros(batch, dtype=torch.int64)

    def train_steps(self, batch):
        return 4 // batch

    def test(self, batch):
        yield torch.zeros(2, 3, 6, 6), torch.tensor([0, 1])

def vague():
    own = Own()
    own.description = {}
    return own
"""


@pytest.fixture
def name(tmp_path):
    def named(attribute, source=SET):
        (tmp_path / "mine.py").write_text(source)
        return f"{tmp_path / 'mine.py'}:{attribute}"

    return named


def test_arrays_are_taken_as_they_are(name):
    pictures = open_pictures(DataOptions(name("arrays"), options={"train": 10}), size=None, device="cpu")
    about = pictures.description
    assert (about.classes, about.train, about.test) == (("0", "1"), 10, 4)
    assert (about.height, about.width, about.channels, about.streamed) == (4, 4, 3, False)
    assert sum(len(y) for _, y in pictures.train(seed=0, epoch=0, batch=5)) == 10


def test_both_layouts_are_the_same_set(name):
    last = describe(DataOptions(name("arrays"), options={"layout": "NHWC"}))
    assert last == describe(DataOptions(name("arrays")))


def test_limit_valid_and_size_work_as_for_any_set(name):
    about = describe(DataOptions(name("arrays"), valid=0.5, limit=2, size=2))
    assert (about.train, about.test, about.split, about.height) == (2, 2, "valid", 2)


def test_a_dict_may_name_the_classes(name):
    assert describe(DataOptions(name("anything"), options={"ant": 1, "bee": 2})).classes == ("ant", "bee")


def test_options_are_checked_against_the_signature(name):
    with pytest.raises(UnknownName, match=r"unknown option of .*mine.py:arrays 'trian'. Did you mean 'train'"):
        describe(DataOptions(name("arrays"), options={"trian": 3}))
    with pytest.raises(ConfigError, match=r"mine.py:needs: needs much; expected data.options.much="):
        describe(DataOptions(name("needs")))


@pytest.mark.parametrize(
    ("attribute", "message"),
    [("breaks", r"raised OSError \(no disk\)"), ("number", "gave int; expected .train_x, train_y, test_x, test_y")],
)
def test_a_callable_that_fails_is_one_line(name, attribute, message):
    with pytest.raises(DataError, match=message) as error:
        describe(DataOptions(name(attribute)))
    one_line(error.value)


def test_it_comes_in_one_piece(name):
    with pytest.raises(ConfigError, match=r"data.stream: got true"):
        describe(DataOptions(name("arrays"), stream=True))


X, Y = noise(0, (6, 3, 4, 4)), np.arange(6) % 2
BAD = {
    "floats": ((X / 255, Y, X, Y), "train_x is float64, expected uint8"),
    "no channels": ((X[:, 0], Y, X, Y), r"train_x has shape \(6, 4, 4\), expected \(N, C, H, W\)"),
    "two channels": ((X[:, :2], Y, X, Y), r"with C 1 or 3"),
    "empty": ((X, Y, X[:0], Y[:0]), r"test_x has shape \(0, 3, 4, 4\)"),
    "too few labels": ((X, Y[:5], X, Y), "train_x has 6 pictures, train_y 5 labels"),
    "one-hot labels": ((X, np.eye(2, dtype=int)[Y], X, Y), r"train_y is int64 \(6, 2\), expected whole numbers"),
    "float labels": ((X, Y, X, Y * 1.0), r"test_y is float64"),
    "labels from 1": ((X, Y + 1, X, Y + 1), "labels go from 1 to 2, 2 of them trained on; expected 0 to 1"),
    "negative": ((X, Y - 1, X, Y), "labels go from -1 to 1"),
    "a gap": ((X, Y * 2, X, Y * 2), "labels go from 0 to 2, 2 of them trained on"),
    "untrained class": ((X, Y, X, Y * 2), "labels go from 0 to 2, 2 of them"),
    "other size": ((X, Y, X[..., :3], Y), r"\(3, 4, 4\), test_x of \(3, 4, 3\)"),
    "key missing": ({"train_x": X, "train_y": Y, "test_x": X}, "gave train_x, train_y, test_x, not test_y"),
    "too few classes": (
        {"train_x": X, "train_y": Y, "test_x": X, "test_y": Y, "classes": ["a"]},
        "expected 0 to 0, each with training pictures",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_arrays_that_cannot_be_are_one_line(case):
    found, message = BAD[case]
    with pytest.raises(DataError, match=message) as error:
        checked(found, DataOptions("f.py:g"))
    one_line(error.value)


def test_torch_tensors_are_taken_too():
    found = checked((torch.from_numpy(X), torch.from_numpy(Y), X, Y), DataOptions("f.py:g"))
    np.testing.assert_array_equal(found.train_x, X)


def test_pictures_that_hand_themselves_out(name):
    pictures = open_pictures(DataOptions(name("Own", PICTURES)), size=3, device="cpu")
    assert len(pictures.description.fingerprint) == 16
    assert (pictures.num_classes, pictures.train_steps(2)) == (2, 2)
    batches = list(pictures.train(seed=7, epoch=0, batch=2))
    assert [x.shape for x, _ in batches] == [(2, 3, 3, 3)] * 2
    assert batches[0][0].eq(7).all()
    assert next(pictures.test(2))[1].tolist() == [0, 1]


def test_their_own_fingerprint_is_kept(name):
    assert describe(DataOptions(name("Own", PICTURES), options={"fingerprint": "abc"})).fingerprint == "abc"


@pytest.mark.parametrize("option", [{"limit": 3}, {"valid": 0.5}, {"pad": 1}, {"flip": True}, {"size": 4}])
def test_what_only_arrays_can_give_is_refused(name, option):
    with pytest.raises(ConfigError, match=f"data.{next(iter(option))}: got .*hands out its own pictures") as error:
        describe(DataOptions(name("Own", PICTURES), **option))
    one_line(error.value)


def test_a_description_that_is_none_is_one_line(name):
    with pytest.raises(DataError, match=r"its description is dict of 0; expected a normbench.data.Description"):
        describe(DataOptions(name("vague", PICTURES)))
