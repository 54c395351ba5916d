"""Learning curves: from rows.jsonl to the right places in the right panel."""

import legible
import numpy as np
import pytest
from made import LONG, NORMS, TOLD, lived, table
from matplotlib.collections import LineCollection

from normbench.report import curves, epochs, histories, look


def grid(cell, norms, batches=(2, 8), seeds=(0, 1), **more):
    return [cell(85.0 + k + s, norm=norm, batch=batch, seed=s, **more)
            for k, norm in enumerate(norms) for batch in batches for s in seeds]  # fmt: skip


def drawn(folder):
    cells, spots = table(folder)
    past = histories.collect(cells, epochs.read(folder)[0])
    figure, texts = legible.read(lambda: curves.figure("first", spots, past, TOLD))
    return figure, texts, [text.get_text() for text in texts]


def means(figure, colour):
    """The mean lines in a colour, as inches, from the left and the top of the sheet."""
    return [path.vertices for some in figure.axes[0].collections if isinstance(some, LineCollection)
            and some.get_linewidths()[0] == 1.1 and tuple(some.get_colors()[0][:3]) == tuple(colour)
            for path in some.get_paths()]  # fmt: skip


def rgb(name):
    return [int(look.COLOURS[name][k : k + 2], 16) / 255 for k in (1, 3, 5)]


def test_means_stand_at_the_numbers_of_the_axes(sweep, cell):
    """Seeds at 90 + epoch and 91 + epoch: the mean after epoch 4 is 94.5, after 6 epochs of loss 2/epoch it is 1/3."""
    figure, texts, words = drawn(lived(sweep(grid(cell, ["bn", "gn"]))))
    where = {text.get_text(): text.get_position() for text in texts}
    accuracy = means(figure, rgb("black"))[0]
    assert len(accuracy) == 6
    ticks = sorted((float(w), where[w][1]) for w in words if w in ("91", "92", "93", "94", "95", "96", "97"))
    (a, ya), (b, yb) = ticks[0], ticks[-1]
    assert accuracy[3, 1] == pytest.approx(ya + (94.5 - a) * (yb - ya) / (b - a), abs=1e-6)
    epoch = next(t for t in texts if t.get_text() == "4").get_position()[0]
    assert accuracy[3, 0] == pytest.approx(epoch, abs=1e-6)
    loss = means(figure, rgb("black"))[1]
    one = where["1"][1]
    assert loss[1, 1] == pytest.approx(one, abs=1e-6)
    assert {"bn", "gn", "batch 2", "batch 8", "top-1 (%)", "train loss", "epoch", "mean over seeds, seeds faint"} <= {
        *words
    }


@pytest.mark.parametrize("norms", [NORMS[:12], LONG, ["bn"]], ids=["twelve", "long", "one"])
def test_it_is_legible(sweep, cell, norms):
    *_, words = drawn(lived(sweep(grid(cell, norms, batches=(2, 4, 8, 16, 32), seeds=(0,)))))
    if len(norms) == 12:
        assert "grey: the other 9 lines" in " ".join(words)
        assert {"bn", norms[0], norms[11]} <= set(words)


def test_blocks_stand_below_each_other(sweep, cell):
    cells = [one for arch in ("resnet8", "resnet20") for one in grid(cell, ["bn", "gn"], arch=arch)]
    *_, words = drawn(lived(sweep(cells)))
    assert {"resnet8", "resnet20"} <= set(words)


def test_what_ended_early_stops_at_a_cross(sweep, cell):
    folder = sweep([*grid(cell, ["bn", "gn"]), cell(status="diverged", norm="frn", batch=2)])
    figure, _, words = drawn(lived(folder))
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert not crosses, "frn has no mean, and so no colour"
    more = sweep([*grid(cell, ["bn", "gn"]), cell(status="diverged", norm="gn", batch=2, seed=2)], "second")
    figure, _, words = drawn(lived(more))
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert len(crosses) == 2
    assert any("× ended without a result" in word for word in words)


def test_every_seed_stands_inside_its_panel(sweep, cell):
    """Seeds far from their mean, too: a line that leaves the panel would not be drawn."""
    folder = lived(sweep(grid(cell, ["bn", "gn"])), top1=lambda epoch, seed: 20.0 + 5 * epoch + 30 * seed)
    cells, spots = table(folder)
    past = histories.collect(cells, epochs.read(folder)[0])
    _, top, _ = curves._Drawing(spots, past).scales[""]
    assert top.low <= 25
    assert top.high >= 80


def test_without_epochs_there_is_no_picture(sweep, cell):
    for name, count in (("none", 0), ("one", 1)):
        folder = lived(sweep(grid(cell, ["bn", "gn"]), name), epochs=count)
        cells, spots = table(folder)
        past = histories.collect(cells, epochs.read(folder)[0])
        assert curves.draw("first", spots, past, []) == {}


def test_a_loss_beyond_all_numbers_leaves_the_panel(sweep, cell):
    folder = lived(sweep(grid(cell, ["bn", "gn"])))
    path = next(folder.glob("bn-b2-s0-*/rows.jsonl"))
    path.write_text('{"epoch": 1, "top1": 10.0, "train_loss": 1e300}\n{"epoch": 2, "top1": null, "train_loss": NaN}\n')
    figure, _, _ = drawn(folder)
    for some in figure.axes[0].collections:
        for one in some.get_paths() if isinstance(some, LineCollection) else ():
            inside = one.vertices[np.isfinite(one.vertices).all(axis=1)]
            assert (inside >= 0).all()
            assert (inside[:, 1] <= figure.get_figheight()).all()
