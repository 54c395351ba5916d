"""Recorded steps: as eager ones, to the last bit, for every method that says so; on a CPU a tape is the graph."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from normbench import graph, machine, norms, train
from normbench.cell import Cell
from normbench.check.subject import Broken
from normbench.check.tape import TapeRecorder
from normbench.data import describe, feed
from normbench.graph import CudaRecorder, Recorded
from normbench.grid import read
from normbench.meter import DivergedError, StoppedError
from normbench.norms import fused
from normbench.optimize import optimizer
from normbench.step import Step
from normbench.train import open_for, prepare, tell_steps

CPU = torch.device("cpu")
STEPS = 6


def a_cell(*words: str) -> Cell:
    given = {"arch": "resnet8", "data.limit": "40", "batch": "4", "recipe.clip": "1"}
    given |= dict(word.split("=", 1) for word in words)
    return read([f"{key}={value}" for key, value in given.items()]).cells[0].cell


def ends(cell: Cell, recorder: Any, device: torch.device = CPU, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Losses and state after some steps, recorded by ``recorder``, or eager ones by None."""
    description = describe(cell.data)
    pictures, net = open_for(cell, description, device), prepare(cell, description, device).train()
    tell_steps(net, steps)
    update = optimizer(net, cell.recipe, cell.peak_lr, recorded=recorder is not None)
    step = Step(cell, net, net, update, device, classes=description.domain_classes)
    rates = [0.01 + 0.01 * i for i in range(steps)]
    machine.seed(5)
    if recorder is None:
        batches = pictures.train(seed=1, epoch=2, batch=cell.images)
        losses = [float(step(x, y, rate)) for rate, (x, y) in zip(rates, batches, strict=False)]
    else:
        source = feed(pictures, cell.images)
        assert source is not None
        recorded = Recorded(step, source, pictures.train_steps(cell.images), recorder)
        recorded.begin(rates, seed=1, epoch=2, start=0)
        losses = [float(recorded()) for _ in rates]
        assert recorded.replays
    return {"losses": torch.tensor(losses), **net.state_dict()}


def assert_equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float = 0.0) -> None:
    assert got.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(
            got[key], expected[key], rtol=rtol, atol=rtol / 10, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.fixture
def plain() -> Iterator[None]:
    """The same operations on both sides: a tape sees none of the fused kernels'."""
    with fused.unfused():
        yield


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("norm", norms.ours())
def test_a_recorded_step_replays_as_it_runs(norm: str) -> None:
    cell = a_cell(f"norm={norm}")
    if norms.get(norm).no_graph:
        with pytest.raises(Broken, match="a graph cannot hold it"):
            ends(cell, TapeRecorder())
        return
    assert_equal(ends(cell, TapeRecorder()), ends(cell, None))


WORDS = [
    ("norm=bn", "workers=3", "batch=2", "chunk=2"),
    (
        "norm=brn",
        "workers=2",
        "batch=2",
        "recipe.optimizer=adamw",
        "recipe.affine_anchor=init",
        "recipe.affine_weight_decay=0.01",
    ),
    ("norm=bn", "norm.momentum=0.3", "recipe.affine_anchor=one", "recipe.affine_weight_decay=0.01"),
    ("norm=gn", "amp=true", "memory_format=channels_last", "recipe.label_smoothing=0.1"),
    ("norm=ic", "norm.drop=0.5"),
    ("norm=nf", "norm.agc=0.02"),
    ("norm=bnp", "workers=2", "batch=2"),
]


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_whatever_a_step_consists_of(words: tuple[str, ...]) -> None:
    cell = a_cell(*words)
    # AdamW reads a recorded learning rate in float32; SGD in float32 either way.
    rtol = 1e-5 if cell.recipe.optimizer == "adamw" else 0.0
    assert_equal(ends(cell, TapeRecorder(), steps=5), ends(cell, None, steps=5), rtol)


@pytest.mark.gpu
@pytest.mark.parametrize("words", [*((f"norm={norm}",) for norm in norms.ours()), *WORDS], ids=" ".join)
def test_a_cuda_graph_replays_as_eager_steps_run(words: tuple[str, ...]) -> None:
    cell, device = a_cell(*words), torch.device("cuda")
    if norms.get(cell.norm.name).no_graph:
        pytest.skip(norms.get(cell.norm.name).no_graph)
    got, expected = (ends(cell, recorder, device) for recorder in (CudaRecorder(device), None))
    assert_equal(got, expected, 1e-4)


class Rows:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def step(self, *_: Any) -> None: ...

    def row(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def right(self, _: Any) -> None: ...


class StopAt:
    """A keeper that stops the run at its n-th look."""

    def __init__(self, looks: int) -> None:
        self.looks, self.state = looks, None
        self.state: Any

    @property
    def stop(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def due(self, at_end: bool) -> bool:
        return False

    def save(self, state: dict[str, Any]) -> None:
        self.state = copy.deepcopy(state)

    def trained(self, result: dict[str, Any]) -> bool:
        return True


def a_run(cell: Cell, keep: Any = None, state: Any = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    description = describe(cell.data)
    watch = Rows()
    net, pictures = prepare(cell, description, CPU), open_for(cell, description, CPU)
    return watch.rows, train.train(cell, net, pictures, CPU, watch, keep, state)


TIMES = ("images_per_s", "train_seconds", "peak_memory_mib", "execution")


def numbers(found: tuple[list[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in (*found[0], found[1])]


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch, plain: None) -> pytest.MonkeyPatch:
    """Runs record their steps, on a tape."""
    monkeypatch.setattr(graph, "wanted", lambda *_: True)
    monkeypatch.setattr(train, "RECORDER", lambda _: TapeRecorder())
    return monkeypatch


def test_a_run_gives_the_same_rows_whether_it_records_or_not(taped: pytest.MonkeyPatch) -> None:
    cell = a_cell("norm=bn", "epochs=2")
    recorded = a_run(cell)
    taped.setattr(graph, "wanted", lambda *_: False)
    eager = a_run(cell)
    assert numbers(recorded) == numbers(eager)
    assert (recorded[1]["execution"], eager[1]["execution"]) == ("graph", "eager")


def test_a_run_that_goes_on_from_a_checkpoint_ends_alike(taped: pytest.MonkeyPatch) -> None:
    cell = a_cell("norm=brn", "epochs=3")
    whole = a_run(cell)
    keep = StopAt(8)  # in the first epoch, of ten steps
    with pytest.raises(StoppedError):
        a_run(cell, keep)
    assert keep.state["done"] == 9
    assert numbers(a_run(cell, state=copy.deepcopy(keep.state)))[-1] == numbers(whole)[-1]
    taped.setattr(graph, "wanted", lambda *_: False)  # nor does it matter where it goes on
    assert numbers(a_run(cell, state=copy.deepcopy(keep.state)))[-1] == numbers(whole)[-1]


@pytest.mark.usefixtures("taped")
def test_a_loss_that_is_not_finite_is_noticed() -> None:
    with pytest.raises(DivergedError):
        a_run(a_cell("norm=none", "lr=1e30", "epochs=2", "recipe.clip=null"))


def test_adamw_goes_on_from_eager_steps_recorded_and_the_other_way(taped: pytest.MonkeyPatch) -> None:
    cell = a_cell("norm=bn", "epochs=2", "recipe.optimizer=adamw")
    for before in (False, True):
        taped.setattr(graph, "wanted", lambda *_, before=before: before)
        keep = StopAt(3)
        with pytest.raises(StoppedError):
            a_run(cell, keep)
        taped.setattr(graph, "wanted", lambda *_, before=before: not before)
        description = describe(cell.data)
        run = train.Run(
            cell, prepare(cell, description, CPU), open_for(cell, description, CPU), CPU, Rows(), train.Forget()
        )
        run.restore(keep.state)
        assert [group["capturable"] for group in run.update.param_groups] == [not before] * len(run.update.param_groups)


def test_steps_that_prepare_are_not_timed(taped: pytest.MonkeyPatch) -> None:
    cell = a_cell("norm=bn", "epochs=1")
    keep = StopAt(8)
    with pytest.raises(StoppedError):
        a_run(cell, keep)
    assert (keep.state["meter"]["untimed"], keep.state["meter"]["steps"]) == (4, 9)
    keep.state["meter"]["seconds"] = 1000.0
    (row,), result = a_run(cell, state=copy.deepcopy(keep.state))
    assert row["train_seconds"] >= 1000
    assert result["images_per_s"] < 4 * 10 / 1000 * 1.01  # what one step more takes does not count


class Garbles(TapeRecorder):
    """Fails as a recording does that nothing of was done, and leaves nonsense in what was made in it."""

    def record(self, work: Any) -> Any:
        try:
            with self.tape:
                work()
        finally:
            for *_, out in self.tape.calls:
                if isinstance(out, torch.Tensor) and out.untyped_storage()._cdata in self.tape.made:
                    out.fill_(float("nan") if out.is_floating_point() else 0)
            self.tape.undo()


def test_a_recording_that_fails_leaves_no_trace(taped: pytest.MonkeyPatch) -> None:
    taped.setattr(train, "RECORDER", lambda _: Garbles())
    words = (f"norm={__name__}:Waits", "epochs=1", "batch=2", "workers=2", "chunk=1")
    with pytest.warns(RuntimeWarning, match="could not be recorded"):
        found = a_run(a_cell(*words))
    taped.setattr(graph, "wanted", lambda *_: False)
    assert numbers(a_run(a_cell(*words))) == numbers(found)


class Waits(torch.nn.BatchNorm2d):
    """Looks at a number of its input's."""

    no_graph = ""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (1.0 if math.isfinite(x.sum().item()) else 0.0)


def test_what_cannot_be_recorded_is_made_as_always_unless_it_was_asked_for(taped: pytest.MonkeyPatch) -> None:
    name = f"{__name__}:Waits"
    with pytest.warns(RuntimeWarning, match="could not be recorded in a CUDA graph.*waits for the device"):
        found = a_run(a_cell(f"norm={name}", "epochs=1"))
    assert found[1]["execution"] == "eager"
    taped.setattr(graph, "wanted", lambda *_: False)
    assert numbers(a_run(a_cell(f"norm={name}", "epochs=1"))) == numbers(found)
    taped.setattr(graph, "wanted", lambda *_: True)
    with pytest.raises(Broken):
        a_run(a_cell(f"norm={name}", "epochs=1", "graph=true"))


def test_it_is_chosen_where_it_can_be() -> None:
    cuda = torch.device("cuda")
    assert graph.wanted(a_cell("norm=bn"), cuda, 1)
    assert not graph.wanted(a_cell("norm=bn"), CPU, 1)
    assert not graph.wanted(a_cell("norm=bn"), cuda, 2)
    assert not graph.wanted(a_cell("norm=bn", "graph=false"), cuda, 1)
    assert not graph.wanted(a_cell("norm=bn", "compile=true"), cuda, 1)
    assert not graph.wanted(a_cell("norm=mbn"), cuda, 1)
    assert graph.wanted(a_cell(f"norm={__name__}:Waits"), cuda, 1)
    assert not graph.wanted(a_cell("norm=torch.nn:BatchNorm2d"), cuda, 1)


def test_auto_leaves_the_id_as_it_was() -> None:
    evidence: dict[str, str | None] = {"data": None, "arch": None, "norm": None}
    ids = [a_cell("norm=bn", *words).identity(evidence) for words in ((), ("graph=auto",), ("graph=false",))]
    assert ids[0] == ids[1] != ids[2]
