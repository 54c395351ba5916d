"""Training: the same mathematics however the workers are run, the same weights whatever the norm, honest ends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normbench import cell as cells
from normbench import checkpoint, norms, train
from normbench.cell import Cell
from normbench.data import Description
from normbench.meter import DivergedError, StoppedError
from normbench.optimize import optimizer
from normbench.step import Step, classification_loss

CPU = torch.device("cpu")


def make(
    norm: str = "bn", *, options: dict[str, Any] | None = None, arch: dict[str, Any] | None = None, **keys: Any
) -> Cell:
    recipe = {
        "name": "t",
        "epochs": 1,
        "base_lr": 0.05,
        "base_batch": 8,
        "schedule": "constant",
        **keys.pop("recipe", {}),
    }
    config = {"arch": {"name": "resnet8", **(arch or {})}, "data": {"name": "digits"}, "recipe": recipe}
    return cells.make({**config, "norm": {"name": norm, **(options or {})}, "batch": 2, **keys})


def described(train_count: int = 48, test: int = 10, size: int = 8) -> Description:
    classes = tuple("0123456789")
    return Description("made", classes, train_count, test, "test", size, size, 3, False, "f")


class Made:
    """Pictures that depend on their number alone."""

    def __init__(self, description: Description) -> None:
        self.description, self.num_classes = description, 10
        self.asked: list[tuple[int, int, int]] = []

    def _pair(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        side = self.description.height or 8
        draws = [torch.randn(3, side, side, generator=torch.Generator().manual_seed(int(i))) for i in indices]
        return torch.stack(draws), indices % 10

    def train(
        self, *, seed: int, epoch: int, batch: int, start: int = 0, rank: int = 0, ranks: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        self.asked.append((seed, epoch, batch))
        order = torch.randperm(self.description.train, generator=torch.Generator().manual_seed(seed + epoch))
        for step in range(start, self.train_steps(batch)):
            yield self._pair(order[step * batch : (step + 1) * batch].chunk(ranks)[rank])

    def train_steps(self, batch: int) -> int:
        return self.description.train // batch

    def test(self, batch: int, *, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        for part in torch.arange(self.description.test).split(batch)[rank::ranks]:
            yield self._pair(part)


class Notes:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.steps: list[tuple[int, int, float]] = []

    def step(self, epoch: int, step: int, loss: float, images_per_s: float) -> None:
        self.steps.append((epoch, step, loss))

    def row(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def right(self, _: Any) -> None: ...


def run(cell: Cell, description: Description | None = None) -> tuple[dict[str, Any], nn.Module, Notes, Made]:
    pictures = Made(description or described())
    net, notes = train.prepare(cell, pictures.description, CPU), Notes()
    return train.train(cell, net, pictures, CPU, notes), net, notes, pictures


def test_the_result_is_the_last_epochs_never_the_best() -> None:
    result, _, notes, pictures = run(make(batch=4, epochs=3))
    assert [row["epoch"] for row in notes.rows] == [1, 2, 3]
    assert result["top1"] == notes.rows[-1]["top1"]
    assert [row["step"] for row in notes.rows] == [12, 24, 36]
    assert pictures.asked == [(0, 1, 4), (0, 2, 4), (0, 3, 4)]
    assert result["train_seconds"] == notes.rows[-1]["train_seconds"] > 0
    assert result["eval_count"] == 10


def test_steps_end_a_run_in_the_middle_of_an_epoch() -> None:
    result, _, notes, _ = run(make(batch=4, steps=15))
    assert [row["step"] for row in notes.rows] == [12, 15]
    assert len(notes.steps) == 15
    assert result["epoch"] == 2


def weights(cell: Cell) -> dict[str, Tensor]:
    net = train.prepare(cell, described(), CPU)
    return {key: value.detach() for key, value in net.named_parameters() if "conv" in key or "fc" in key}


@pytest.mark.parametrize("norm", norms.names())
def test_all_normalizers_start_from_the_same_weights(norm: str) -> None:
    ours, theirs = weights(make(norm)), weights(make("bn"))
    assert len(ours) > 8
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not torch.equal(ours["conv1.weight"], weights(make(norm, seed=1))["conv1.weight"])


def one_step(cell: Cell, x: Tensor, y: Tensor) -> tuple[Tensor, nn.Module]:
    """A step in float64, so that only mathematics can make a difference."""
    net = train.prepare(cell, described(), CPU).double()
    net.train()
    step = Step(cell, net, net, optimizer(net, cell.recipe, 0.1), CPU)
    return step(x, y, 0.1), net


# Of a method that draws at random every forward is another: what can be compared is the rest of it.
WITHOUT_DRAWS: dict[str, dict[str, Any]] = {"ic": {"drop": 0.0}, "bkn": {"propagate": "moments"}}
NORMS = [(name, WITHOUT_DRAWS.get(name, {})) for name in norms.names()]
NORMS += [("bgn", {"num_groups": 128}), ("bgn", {"num_groups": 1})]
NORMS += [("mabn", {"window": 2, "warmup_steps": 0, "clip_start": 0}), ("bcn", {"estimated": True})]
NORMS += [("cbn", {"window": 3, "burnin": 0}), ("mbn", {"memory": 2, "double_forward": False})]
NORMS += [("online", {"alpha_fwd": 0.5, "alpha_bkw": 0.5, "layer_scaling": True})]


@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize(("norm", "options"), NORMS, ids=[f"{n} {o or ''}" for n, o in NORMS])
def test_workers_run_a_chunk_at_a_time_are_the_same_step(norm: str, options: dict[str, Any], chunk: int) -> None:
    """4 workers of 2: all in one forward, or 1, 2, 3 + 1 at a time; weights and what is kept after the step.

    One whose statistics are of all workers is run in one forward whatever is asked for.
    """
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(8)
    loss, whole = one_step(make(norm, options=options, workers=4), x, y)
    loss_in_parts, parts = one_step(make(norm, options=options, workers=4, chunk=chunk), x, y)
    torch.testing.assert_close(loss, loss_in_parts, rtol=1e-12, atol=1e-12)
    ours, theirs = parts.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(
            ours[key], theirs[key], rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_a_schedule_counts_optimizer_steps_and_knows_the_length_of_the_run() -> None:
    """However the workers are run; and the correction it allows in the end shows in the training."""
    for keys in ({"workers": 2}, {"workers": 2, "chunk": 1}, {"workers": 1}):
        _, net, _, _ = run(make("brn", steps=5, **keys))
        units = [module for module in net.modules() if norms.is_unit(module)]
        assert {(unit.run_steps, int(unit.num_batches_tracked)) for unit in units} == {(5, 5)}
        assert units[0].bounds().tolist() == [3, 5]


def test_a_users_norm_that_mixes_pictures_is_run_one_worker_at_a_time(tmp_path: Any) -> None:
    """It knows nothing of workers, so its BatchNorm must still see two pictures at a time."""
    path = tmp_path / "plain.py"
    path.write_text("import torch\nclass Plain(torch.nn.BatchNorm2d):\n    mixes_samples = True\n")
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, ours = one_step(make("bn", workers=4), x, torch.arange(8))
    _, theirs = one_step(make(f"{path}:Plain", workers=4), x, torch.arange(8))
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(value, ours.state_dict()[key], rtol=1e-9, atol=1e-9)


def test_virtual_workers_are_not_one_large_batch() -> None:
    x = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    _, apart = one_step(make("bn", workers=4), x, torch.arange(8))
    _, together = one_step(make("bn", batch=8), x, torch.arange(8))
    assert not torch.allclose(apart.state_dict()["conv1.weight"], together.state_dict()["conv1.weight"])


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_finite_one() -> None:
    with pytest.raises(DivergedError, match=r"training loss is (nan|inf) in epoch \d, step \d") as caught:
        run(make("none", lr=1e12, epochs=2))
    assert math.isfinite(caught.value.reached["last_loss"])
    assert caught.value.reached["step"] >= 2


BOTH: dict[str, Any] = {"memory_format": "channels_last", "amp": True}


@pytest.mark.parametrize(
    ("norm", "keys"), [*((name, BOTH) for name in norms.names()), *(("bn", {key: BOTH[key]}) for key in BOTH)]
)
def test_memory_format_and_precision_train_every_norm(norm: str, keys: dict[str, Any]) -> None:
    result, _, _, _ = run(make(norm, batch=4, steps=2, **keys))
    assert math.isfinite(result["loss"])


RECIPES: list[dict[str, Any]] = [
    {"label_smoothing": 0.1}, {"clip": 0.1}, {"optimizer": "adamw", "base_lr": 1e-3}, {"schedule": "step"},
]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_recipe_can_ask_for_is_done(recipe: dict[str, Any]) -> None:
    plain, _, _, _ = run(make(batch=4, steps=12))
    asked, _, _, _ = run(make(batch=4, steps=12, recipe=recipe))
    assert math.isfinite(asked["loss"])
    assert asked["loss"] != plain["loss"]


def test_auxiliary_heads_count_by_their_weight() -> None:
    main, aux, y = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    cross_entropy = nn.functional.cross_entropy
    found = classification_loss((main, aux), y, 0.0)
    torch.testing.assert_close(found, cross_entropy(main, y) + 0.4 * cross_entropy(aux, y))
    torch.testing.assert_close(classification_loss((main, None), y, 0.0), cross_entropy(main, y))


def test_the_network_is_fed_its_size() -> None:
    assert train.fed_size(make(), described()) == (8, 8)
    assert train.fed_size(make(arch={"size": 32}), described()) == (32, 32)
    assert train.fed_size(make(arch={"name": "inception_v3"}), described(size=32)) == (128, 128)


@pytest.mark.slow
@pytest.mark.parametrize("norm", [name for name in norms.names() if not norms.get(name).own_gradient])
def test_a_compiled_run_agrees_with_an_eager_one(norm: str) -> None:
    options = WITHOUT_DRAWS.get(norm, {})
    eager, _, _, _ = run(make(norm, batch=4, steps=3, options=options))
    compiled, _, _, _ = run(make(norm, batch=4, steps=3, compile=True, options=options))
    assert compiled["train_loss"] == pytest.approx(eager["train_loss"], rel=1e-3)


class Stops:
    """A keeper that asks a run to stop at one step, and keeps what it leaves on disk."""

    def __init__(self, path: Path, at: int) -> None:
        self.path, self.at, self.seen, self.stop = path, at, 0, False

    def due(self, at_end: bool) -> bool:
        self.seen += not at_end
        self.stop = self.seen == self.at
        return False

    def save(self, state: dict[str, Any]) -> None:
        checkpoint.save(self.path, state)

    def trained(self, result: dict[str, Any]) -> bool:
        return True


DROPOUT = """
import torch
from torch import nn

class Noisy(nn.BatchNorm2d):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.1, self.training)
"""


@pytest.mark.parametrize(
    ("norm", "keys", "at"),
    [
        *((name, {}, 6) for name in norms.names()),
        *(("bn", {}, at) for at in (1, 4, 5)),
        ("bn", {"workers": 4, "chunk": 1}, 5),
        ("mabn", {"workers": 4, "chunk": 2, "options": {"window": 3, "warmup_steps": 2, "clip_start": 4}}, 5),
        ("online", {"workers": 2, "chunk": 1}, 5),
        ("cbn", {"workers": 4, "chunk": 2, "options": {"window": 4, "burnin": 2}}, 5),
        ("mbn", {"workers": 4, "chunk": 2, "options": {"memory": 3, "eta_warmup": 2}}, 5),
        ("bcn", {"options": {"estimated": True}}, 5),
        ("syncbn", {"workers": 4, "chunk": 1}, 5),
        ("bkn", {"workers": 4, "chunk": 2}, 5),
        ("bnp", {"workers": 4, "chunk": 2, "options": {"base": "gn", "debias": True, "add_bias": True}}, 5),
        ("bn", {"memory_format": "channels_last"}, 5),
        ("bn", {"recipe": {"optimizer": "adamw"}}, 5),
        ("mine.py:Noisy", {}, 5),
    ],
)
def test_a_run_goes_on_bit_for_bit(
    norm: str, keys: dict[str, Any], at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the first epoch, at its last step, in the second: weights, rows and result are those of one run."""
    (tmp_path / "mine.py").write_text(DROPOUT)
    monkeypatch.chdir(tmp_path)
    cell = make(norm, deterministic=True, **{"epochs": 2, **keys})
    description = described(train_count=4 * cell.images)

    def begin() -> tuple[nn.Module, Notes]:
        return train.prepare(cell, description, CPU), Notes()

    whole, notes = begin()
    result = train.train(cell, whole, Made(description), CPU, notes)

    first, before = begin()
    with pytest.raises(StoppedError, match=rf"step {at}$"):
        train.train(cell, first, Made(description), CPU, before, Stops(tmp_path / "c.pt", at))
    second, after = begin()
    state = checkpoint.load(tmp_path / "c.pt")
    assert state is not None
    again = train.train(cell, second, Made(description), CPU, after, state=state)

    def compared(row: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in row.items() if key not in TIMES}

    assert compared(again) == compared(result)
    kept = before.rows[: state["meter"]["epoch"] - 1]
    assert [compared(row) for row in kept + after.rows] == [compared(row) for row in notes.rows]
    assert checkpoint.digest(second.state_dict()) == checkpoint.digest(whole.state_dict())


TIMES = ("train_seconds", "images_per_s", "peak_memory_mib")
