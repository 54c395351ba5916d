"""Epochs resumed in the middle, and shared out among ranks: bit for bit those of one process that began at 0."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from data_files import pack, write_tree

from normbench.data import Description, open_pictures, packs, share, stream
from normbench.errors import ConfigError, DataError
from normbench.options import DataOptions

SIDE = 16
OWN = """
import torch
from normbench.data import Description

LABELS = torch.arange(26) % 3
X = torch.randn(26, 3, 6, 6, generator=torch.Generator().manual_seed(0))

def arrays():
    x, y = (X.abs() * 60).clamp(0, 255).byte(), LABELS
    return x[:19], y[:19], x[19:], y[19:]

class Plain:
    "As plain as a reader may be: whole epochs, whole steps."
    num_classes = 3
    description = Description("own", ("a", "b", "c"), 19, 7, "test", 6, 6, 3, False, "f")

    def __init__(self):
        self.given = []

    def train_steps(self, batch):
        return 19 // batch

    def train(self, *, seed, epoch, batch):
        order = torch.randperm(19, generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for i in range(19 // batch):
            at = order[i * batch : (i + 1) * batch]
            yield X[at], LABELS[at]

    def test(self, batch):
        yield from zip(X[19:].split(batch), LABELS[19:].split(batch))

class Full(Plain):
    "One that shares itself out."
    def train(self, *, seed, epoch, batch, start=0, rank=0, ranks=1):
        each = batch // ranks
        for x, y in list(super().train(seed=seed, epoch=epoch, batch=batch))[start:]:
            self.given.append(each)
            yield x[rank * each : (rank + 1) * each], y[rank * each : (rank + 1) * each]

    def test(self, batch, *, rank=0, ranks=1):
        yield from list(super().test(batch))[rank::ranks]

class Resumes(Plain):
    "One that only knows where to start."
    def train(self, *, seed, epoch, batch, start=0):
        yield from list(super().train(seed=seed, epoch=epoch, batch=batch))[start:]

class Short(Plain):
    def train(self, *, seed, epoch, batch):
        yield X[: batch - 1], LABELS[: batch - 1]

class Gone(Plain):
    def train(self, *, seed, epoch, batch):
        yield X[:batch], LABELS[:batch]
        open("/nowhere/picture.png")

    def test(self, batch):
        yield X[:1], LABELS[:1]
        open("/nowhere/picture.png")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a set of every kind that has files."""
    root = tmp_path_factory.mktemp("share")
    write_tree(root / "tree", train=7, test=3)
    pack(root / "tree", "zip")
    write_tree(root / "stream", train=7, test=3, shape=(24, 20, 3), splits=("train", "val"), suffix="JPEG")
    (root / "own.py").write_text(OWN)
    return root


def kinds(root: Path) -> dict[str, tuple[DataOptions, int | None]]:
    """Options and the net's size."""
    tree, streamed = str(root / "tree"), str(root / "stream")
    augmented = {"pad": 2, "flip": True}
    return {
        "digits": (DataOptions("digits", limit=37), None),
        "digits augmented": (DataOptions("digits", limit=37, pad=1, flip=True), None),
        "folder": (DataOptions("folder", root=tree), None),
        "folder augmented": (DataOptions("folder", root=tree, **augmented), None),
        "folder, held out": (DataOptions("folder", root=tree, valid=0.3, **augmented), None),
        "folder, larger": (DataOptions("folder", root=tree, **augmented), 11),
        "folder, smaller": (DataOptions("folder", root=tree, **augmented), 5),
        "archive": (DataOptions("folder", root=f"{tree}.zip", **augmented), None),
        "streamed": (DataOptions("imagenet", root=streamed, loaders=0), SIDE),
        "streamed by two": (DataOptions("imagenet", root=streamed, loaders=2), SIDE),
        "streamed, held out": (DataOptions("imagenet", root=streamed, loaders=0, valid=0.3), SIDE),
        "streamed, other size": (DataOptions("imagenet", root=streamed, loaders=0, size=20), 13),
        "streamed folder": (DataOptions("folder", root=tree, stream=True, loaders=0), None),
        "own arrays": (DataOptions(f"{root / 'own.py'}:arrays"), None),
        "own arrays augmented": (DataOptions(f"{root / 'own.py'}:arrays", **augmented), 4),
        "own plain": (DataOptions(f"{root / 'own.py'}:Plain"), None),
        "own full": (DataOptions(f"{root / 'own.py'}:Full"), 5),
        "own resumes": (DataOptions(f"{root / 'own.py'}:Resumes"), None),
    }


KINDS = tuple(kinds(Path()))


@pytest.fixture(scope="module", params=KINDS)
def pictures(place, request, tmp_path_factory):
    options, size = kinds(place)[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return open_pictures(options, size=size, device="cpu")


def equal(ours, theirs) -> bool:
    """Are these batches the same, bit for bit?"""
    return len(ours) == len(theirs) and all(
        torch.equal(x.view(torch.int32), other_x.view(torch.int32)) and torch.equal(y, other_y)
        for (x, y), (other_x, other_y) in zip(ours, theirs, strict=True)
    )


def joined(parts):
    """Batches of several ranks, each step's put together again."""
    return [tuple(torch.cat(both) for both in zip(*step, strict=True)) for step in zip(*parts, strict=True)]


@pytest.mark.parametrize("epoch", [0, 3])
def test_an_epoch_goes_on_where_it_was_left(pictures, epoch):
    whole = list(pictures.train(seed=5, epoch=epoch, batch=4))
    assert len(whole) == pictures.train_steps(4) >= 3
    for start in (0, 1, 2, len(whole) - 1, len(whole)):
        assert equal(list(pictures.train(seed=5, epoch=epoch, batch=4, start=start)), whole[start:])


@pytest.mark.parametrize(("batch", "ranks"), [(4, 1), (4, 2), (4, 4), (6, 3)])
@pytest.mark.parametrize("start", [0, 1])
def test_the_ranks_together_have_what_one_process_has(pictures, batch, ranks, start):
    whole = list(pictures.train(seed=1, epoch=2, batch=batch))
    parts = [
        list(pictures.train(seed=1, epoch=2, batch=batch, start=start, rank=rank, ranks=ranks)) for rank in range(ranks)
    ]
    assert all(len(x) == len(y) == batch // ranks for part in parts for x, y in part)
    assert equal(joined(parts), whole[start:])


@pytest.mark.parametrize("batch", [1, 2, 3, 50])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_every_evaluation_batch_is_one_ranks(pictures, batch, ranks):
    whole = list(pictures.test(batch))
    parts = [list(pictures.test(batch, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert sum(len(y) for part in parts for _, y in part) == pictures.description.test
    for rank, part in enumerate(parts):
        assert equal(part, whole[rank::ranks])


def test_a_batch_that_the_ranks_do_not_divide_is_refused(pictures):
    message = "ranks: got 4 for 6 images a step, expected a divisor of 6.*take 3 ranks, or 8 images a step"
    with pytest.raises(ConfigError, match=message):
        list(pictures.train(seed=0, epoch=0, batch=6, ranks=4))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rank": 2, "ranks": 2}, "rank: got 2 of 2 ranks, expected 0 to 1"),
        ({"rank": -1, "ranks": 2}, "rank: got -1 of 2"),
        ({"start": 4}, "start: got step 4, expected 0 to 3, the steps of an epoch of x at 6 images"),
        ({"start": -1}, "start: got step -1"),
        ({"batch": 21}, "batch: got 21 images a step, expected 1 to 20"),
        ({"ranks": 5}, "take 3 ranks, or 10 images a step"),
        ({"ranks": 7}, "take 6 ranks, or 7 images a step"),
    ],
)
def test_what_cannot_be_shared_out(asked, message):
    about = Description("x", ("a",), 20, 1, "test", 1, 1, 1, False, "")
    with pytest.raises(ConfigError, match=message):
        share.of_epoch(about, **{"batch": 6, "start": 0, "rank": 0, "ranks": 1, **asked})


def test_a_rank_that_does_not_exist_evaluates_nothing(pictures):
    with pytest.raises(ConfigError, match="rank: got 3 of 3 ranks, expected 0 to 2"):
        list(pictures.test(2, rank=3, ranks=3))


@pytest.mark.parametrize("loaders", [0, 2])
@pytest.mark.parametrize(
    "asked", [{"start": 3}, {"rank": 1, "ranks": 2}, {"start": 2, "rank": 0, "ranks": 2}], ids=["start", "rank", "both"]
)
def test_what_is_left_out_is_not_read(tmp_path, monkeypatch, loaders, asked):
    root = write_tree(tmp_path / "set", train=7, test=3, shape=(24, 20, 3), splits=("train", "val"), suffix="JPEG")
    options = DataOptions("imagenet", root=str(root), loaders=loaders)
    pictures = open_pictures(options, size=SIDE, device="cpu")
    alone = open_pictures(DataOptions("imagenet", root=str(root), loaders=0), size=SIDE, device="cpu")
    read: list[Path] = []
    content = packs.content
    monkeypatch.setattr(packs, "content", lambda path, name: (read.append(path), content(path, name))[1])
    expected = list(alone.train(seed=0, epoch=0, batch=4, **asked))
    rank, ranks = asked.get("rank", 0), asked.get("ranks", 1)
    tested = list(alone.test(2, rank=rank, ranks=ranks))
    assert len(read) == sum(len(y) for _, y in expected) + sum(len(y) for _, y in tested)
    others = [file for file in root.rglob("*.JPEG") if file not in read]
    assert len(others) == 7 * 3 + 3 * 3 - len(read)
    for file in others:
        file.unlink()
    assert equal(list(pictures.train(seed=0, epoch=0, batch=4, **asked)), expected)
    assert equal(list(pictures.test(2, rank=rank, ranks=ranks)), tested)


RANK = """
import sys, torch
from normbench.data import open_pictures
from normbench.options import DataOptions

if __name__ == "__main__":
    out, rank, name, root, loaders = sys.argv[1:]
    options = DataOptions(name, root=root or None, limit=20, **({"loaders": int(loaders)} if loaders else {}))
    pictures = open_pictures(options, size=None if name == "digits" else 16, device="cpu")
    where = {"rank": int(rank), "ranks": 2}
    trained = list(pictures.train(seed=4, epoch=1, batch=4, start=2, **where))
    torch.save((trained, list(pictures.test(4, **where))), out)
"""


@pytest.mark.parametrize(("name", "loaders"), [("digits", ""), pytest.param("imagenet", "2", marks=pytest.mark.slow)])
def test_ranks_that_are_processes(place, tmp_path, name, loaders):
    (tmp_path / "rank.py").write_text(RANK)
    root = "" if name == "digits" else str(place / "stream")
    processes = [
        subprocess.Popen(
            [sys.executable, tmp_path / "rank.py", tmp_path / f"{rank}.pt", str(rank), name, root, loaders]
        )
        for rank in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    parts, tested = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    options = DataOptions(name, root=root or None, limit=20, loaders=0 if loaders else None)
    pictures = open_pictures(options, size=16 if loaders else None, device="cpu")
    assert equal(joined(parts), list(pictures.train(seed=4, epoch=1, batch=4))[2:])
    whole = list(pictures.test(4))
    for rank in range(2):
        assert equal(tested[rank], whole[rank::2])


def test_the_cores_are_shared_out_among_the_ranks(place, monkeypatch):
    monkeypatch.setattr(stream, "cores", lambda: 2)
    options = DataOptions("imagenet", root=str(place / "stream"))
    pictures = open_pictures(options, size=SIDE, device="cpu")
    next(pictures.train(seed=0, epoch=0, batch=4, rank=0, ranks=2))
    assert len(pictures.training._iterator._workers) == 1


def test_a_rank_without_evaluation_batches_starts_no_loaders(place):
    options = DataOptions("imagenet", root=str(place / "stream"), loaders=2)
    pictures = open_pictures(options, size=SIDE, device="cpu")
    assert list(pictures.test(9, rank=1, ranks=2)) == []
    assert pictures.testing._iterator is None


def test_own_pictures_are_asked_for_what_they_can_share_out(place):
    pictures = open_pictures(DataOptions(f"{place / 'own.py'}:Full"), size=None, device="cpu")
    list(pictures.train(seed=0, epoch=0, batch=4, start=3, rank=1, ranks=2))
    assert pictures.pictures.given == [2]


@pytest.mark.parametrize("ranks", [1, 2])
def test_own_pictures_with_a_short_step_are_an_error(place, ranks):
    pictures = open_pictures(DataOptions(f"{place / 'own.py'}:Short"), size=None, device="cpu")
    with pytest.raises(DataError, match="own: gave 3 pictures and 3 labels for a step, expected 4"):
        list(pictures.train(seed=0, epoch=0, batch=4, ranks=ranks))


def test_own_pictures_whose_files_go_away(place):
    pictures = open_pictures(DataOptions(f"{place / 'own.py'}:Gone"), size=None, device="cpu")
    for batches in (pictures.train(seed=0, epoch=0, batch=4), pictures.test(1)):
        next(batches)
        with pytest.raises(DataError, match=r"own: its pictures cannot be read \(FileNotFoundError.*/nowhere/picture"):
            next(batches)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["digits augmented", "folder, larger", "folder, smaller", "streamed by two"])
def test_a_gpu_goes_on_and_shares_out_bit_for_bit(place, kind):
    options, size = kinds(place)[kind]
    pictures = open_pictures(options, size=size, device="cuda")
    whole = list(pictures.train(seed=1, epoch=2, batch=4))
    parts = [list(pictures.train(seed=1, epoch=2, batch=4, start=1, rank=rank, ranks=2)) for rank in range(2)]
    assert equal(joined(parts), whole[1:])
    tested = list(pictures.test(2))
    for rank in range(3):
        assert equal(list(pictures.test(2, rank=rank, ranks=3)), tested[rank::3])
