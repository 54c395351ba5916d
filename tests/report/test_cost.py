"""Accuracy against cost: points where they belong, times of one machine, names that cover nothing."""

from pathlib import Path

import legible
import numpy as np
import pytest
from made import LONG, NORMS, lived, table

from normbench.report import cost, costs


def grid(cell, norms, batches=(2, 8), seeds=(0, 1), memory=True, **more):
    """A step of the k-th norm takes 2 + k ms and twice as many at the second batch …; memory 100 MiB (k + 1)."""
    made = []
    for k, norm in enumerate(norms):
        for j, batch in enumerate(batches):
            for seed in seeds:
                one = cell(90.0 + k / len(norms) * 8 + seed / 10, norm=norm, batch=batch, seed=seed, **more)
                workers = one["config"]["workers"]
                one["images_per_s"] = 1000 * batch * workers / ((2 + k) * (j + 1))
                made.append(one | ({"peak_memory_mib": 100.0 * (k + 1)} if memory else {}))
    return made


def drawn(folder):
    cells, spots = table(folder)
    rows, left_out = cost._rows(folder, cells, spots)
    measures = [name for name in cost.MEASURES if any(len(row.points(name)) > 1 for row in rows)]
    figure, texts = legible.read(lambda: cost.figure("first", rows, measures, spots, [], left_out))
    return figure, texts, [text.get_text() for text in texts]


def measured(folder, batch):
    cells, spots = table(folder)
    return costs.measure(folder, cells, [spot for spot in spots if spot.batch == batch])


@pytest.mark.parametrize("workers", [1, 4])
def test_a_step_is_of_batch_times_workers_images(sweep, cell, workers):
    folder = lived(sweep(grid(cell, ["bn", "gn"], workers=workers)))
    found = measured(folder, 8)
    assert [(c.spot.line, c.step_ms, c.memory_mib) for c in found.costs] == [
        ("bn", pytest.approx(4.0), 100.0),
        ("gn", pytest.approx(6.0), 200.0),
    ]


def test_times_of_another_machine_are_left_out_and_said(sweep, cell):
    folder = sweep(grid(cell, ["bn", "gn", "frn"]))
    lived(folder, machine=lambda config: {"processor": "Another"} if config["norm"] == "frn" else {})
    found = measured(folder, 2)
    assert [c.spot.line for c in found.costs] == ["bn", "gn"]
    assert found.elsewhere == ("frn",)
    *_, words = drawn(folder)
    told = " ".join(words)
    assert "as trained on cpu, Some Processor, 1 thread" in told
    assert "left out, as another machine ran them: frn at batch 2, frn at batch 8" in " ".join(told.split())
    assert "frn" not in words


def test_seeds_of_another_machine_do_not_count(sweep, cell):
    cells = grid(cell, ["bn", "gn"], seeds=(0, 1, 2))
    for one in cells:
        one["images_per_s"] *= 10 if one["config"]["seed"] == 2 else 1
    folder = lived(sweep(cells), machine=lambda config: {"threads": 8} if config["seed"] == 2 else {})
    assert [c.step_ms for c in measured(folder, 2).costs] == pytest.approx([2.0, 3.0])


def test_points_stand_at_the_numbers_of_the_axes(sweep, cell):
    figure, texts, words = drawn(lived(sweep(grid(cell, ["bn", "gn", "bgn", "frn"], batches=(2,)))))
    signs = {line.get_marker(): line.get_xydata()[0] for line in figure.axes[0].lines if len(line.get_xydata()) == 1}
    ticks = {text.get_text(): text.get_position()[0] for text in texts if text.get_position()[0] < 2.5}
    assert signs["o"][0] < signs["^"][0] < signs["s"][0] < signs["D"][0] or len(signs) == 4
    marks = [line.get_xydata()[0] for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert marks[0][0] == pytest.approx(ticks["2"], abs=1e-6), "bn takes 2 ms"
    assert {"bn", "gn", "bgn", "frn", "step time (ms)", "peak memory (MiB)", "batch 2"} <= set(words)


def test_memory_only_where_it_was_measured(sweep, cell):
    folder = lived(sweep(grid(cell, ["bn", "gn"], memory=False)))
    *_, words = drawn(folder)
    assert "peak memory (MiB)" not in words


@pytest.mark.parametrize("norms", [NORMS, NORMS[:8], LONG], ids=["31", "eight", "long"])
def test_it_is_legible(sweep, cell, norms):
    *_, words = drawn(lived(sweep(grid(cell, norms, batches=(2, 8), seeds=(0,)))))
    assert [word for word in words if word.startswith("batch ")] == ["batch 2", "batch 8"]
    assert any("grey dots: other lines" in word for word in words) == (len(norms) > 8)
    if len(norms) == 8:
        assert all(words.count(norm) == 4 for norm in norms)


def test_there_is_no_picture_of_one_line_or_without_times(sweep, cell):
    for name, cells in (("one", grid(cell, ["bn"])), ("none", [cell(90.0, norm=norm) for norm in ("bn", "gn")])):
        folder = lived(sweep(cells, name))
        assert cost.draw("first", folder, *table(folder)) == {}


def test_of_many_batches_some_are_shown(sweep, cell):
    cells, made = table(lived(sweep(grid(cell, ["bn", "gn"], batches=(2, 4, 8, 16, 32)))))
    rows, left_out = cost._rows(Path("."), cells, made)
    assert ([row.batch for row in rows], left_out) == ([2, 8, 32], 2)
    assert "2 more batches stand in the table" in " ".join(cost._keys(rows, ["step time (ms)"], left_out))


def test_machines_that_were_not_recorded_are_said(sweep, cell):
    folder = sweep(grid(cell, ["bn", "gn"]))
    *_, words = drawn(folder)
    assert any("as trained on a machine that was not recorded" in word for word in words)


def test_what_nothing_beats():
    points = {"a": (1.0, 90.0), "b": (2.0, 89.0), "c": (2.0, 95.0), "d": (3.0, 95.0), "e": (4.0, 96.0)}
    assert costs.front(points) == ["a", "c", "e"]
    random = np.random.default_rng(0).uniform(size=(60, 2))
    made = {str(k): (float(x), float(y)) for k, (x, y) in enumerate(random)}
    beaten = {a for a in made for b in made if a != b and made[b][0] <= made[a][0] and made[b][1] >= made[a][1]}
    assert set(costs.front(made)) == made.keys() - beaten
