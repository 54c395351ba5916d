"""What a table says of learning rates that were tuned, and tune.csv."""

from normbench import report
from normbench.report import frame, notes, tuned

WAY = "0.01, 0.1 on a held-out 10 % of the training set (1 seed, full length)"
WIDER = WAY.replace("0.1 on", "0.1, 1 on")


def made(cell, top1, lr, *, tune=WAY, edge="", trials=(), **config):
    result = cell(top1, lr=lr, tune=tune, **config)
    return {**result, "tune_trials": 2, "tune_top1": 90.0, "tune_edge": edge, "trials": dict(trials)}


def read(folder):
    cells = frame.read(folder)
    spots = frame.spots(cells)
    return cells, spots, notes.notes(cells, spots)


def test_tuned_norms_are_rivals_whatever_their_rates(sweep, cell):
    grid = [made(cell, 90, 0.01, norm="bn"), made(cell, 95, 0.1, norm="gn", edge="highest")]
    _, spots, said = read(sweep(grid))
    assert [(spot.line, spot.best) for spot in spots] == [("bn", False), ("gn", True)]
    assert said[1:4] == [
        f"learning rate tuned over {WAY}, for each norm and batch; then tested once",
        "at the edge of the rates tried, a better one may lie beyond: gn at batch 8 (highest)",
        "bn: lr 0.01",
    ]


def test_tuned_and_untuned_are_different_contests(sweep, cell):
    grid = [made(cell, 90, 0.01, norm="bn"), cell(95, norm="bn"), cell(80, norm="gn")]
    _, spots, said = read(sweep(grid))
    assert {(spot.line, spot.best) for spot in spots} == {("bn", True), ("bn tuned", False), ("gn", False)}
    assert said[1].startswith("tuned: learning rate tuned over 0.01, 0.1 on")
    assert "lines that are not tuned have the recipe's rate, or one that was given: another contest" in said


def test_tunings_of_several_kinds_are_told_apart(sweep, cell):
    grid = [made(cell, 90, 0.01), made(cell, 95, 0.1, tune=WIDER)]
    assert [spot.line for spot in read(sweep(grid))[1]] == [
        "bn tuned over 0.01, 0.1", "bn tuned over 0.01, 0.1, 1",
    ]  # fmt: skip
    half = WAY.replace("full length", "50 % of the length")
    grid = [made(cell, 90, 0.01), made(cell, 95, 0.1, tune=half)]
    assert {spot.line for spot in read(sweep(grid, "second"))[1]} == {
        f"bn tuned over {WAY}", f"bn tuned over {half}",
    }  # fmt: skip


def test_a_tuned_line_stays_one_beside_rates_that_were_given(sweep, cell):
    grid = [
        cell(80 + k, batch=batch, lr=lr) for k, (batch, lr) in enumerate((b, r) for b in (2, 8) for r in (0.3, 3.0))
    ]
    grid += [made(cell, 90, 0.01, batch=2), made(cell, 95, 0.1, batch=8)]
    _, spots, _ = read(sweep(grid))
    assert {spot.line: [other.batch for other in spots if other.line == spot.line] for spot in spots} == {
        "bn lr=0.3": [2, 8], "bn lr=3": [2, 8], "bn tuned": [2, 8],
    }  # fmt: skip


def test_a_sweep_that_tuned_nothing_says_nothing_of_it(sweep, cell):
    folder = sweep([cell(90)])
    assert tuned.notes(frame.read(folder)) == []
    assert tuned.read(folder) == ([], [])
    assert "tune.csv" not in {path.name for path in report.write(folder).paths}


def test_a_cell_without_a_rate_says_none(sweep, cell):
    failed = {**made(cell, None, None, status="diverged", reason="tune.lr: none passed", batch=2)}
    _, _, said = read(sweep([made(cell, 90, 0.1, batch=8), failed]))
    assert "lr none, 0.1 at batch 2, 8" in said


def test_every_trial_is_a_row_of_tune_csv(sweep, cell):
    """Two cells of one tuning, one that failed, and a trial that no cell had yet."""
    trials = [cell(top1, lr=lr, seed=1000, data__valid=0.1, norm=norm) for norm, lr, top1 in (
        ("bn", 0.01, 90), ("bn", 0.1, 95), ("gn", 0.01, None), ("ln", 0.01, 80),
    )]  # fmt: skip
    trials[2] |= {"status": "diverged", "reason": "loss is nan"}
    ids = ["bn-b8-s1000-0000", "bn-b8-s1000-0001", "gn-b8-s1000-0002", "ln-b8-s1000-0003"]
    bn = {ids[0]: 0.01, ids[1]: 0.1}
    failed = made(cell, None, None, status="diverged", norm="gn", trials={ids[2]: 0.01})
    damaged = {**made(cell, 95, 0.1, seed=2), "trials": "lost"}
    folder = sweep([*(made(cell, 95, 0.1, seed=seed, trials=bn) for seed in (0, 1)), failed, damaged])
    sweep(trials, "first/.tune")
    written = {path.name: path for path in report.write(folder).paths}
    (folder / ".tune" / ids[3] / "result.json").write_text("damaged")
    assert {line.partition(":")[0] for line in tuned.read(folder)[1]} == {"trials"}
    (folder / ".tune" / "store.json").write_text("damaged")
    (problem,) = tuned.read(folder)[1]
    assert problem.startswith("trials left out: ")
    assert written["tune.csv"].read_text().splitlines() == [
        "cell_id,arch,data,norm,batch,workers,seed,epochs,lr,data.valid,split,eval_count,top1,loss,status,reason,chosen",
        "bn-b8-s1000-0000,resnet8,digits,bn,8,1,1000,10,0.01,0.1,test,NaN,90,0.1,ok,,false",
        "bn-b8-s1000-0001,resnet8,digits,bn,8,1,1000,10,0.1,0.1,test,NaN,95,0.1,ok,,true",
        "gn-b8-s1000-0002,resnet8,digits,gn,8,1,1000,10,0.01,0.1,test,NaN,NaN,NaN,diverged,loss is nan,false",
        "ln-b8-s1000-0003,resnet8,digits,ln,8,1,1000,10,0.01,0.1,test,NaN,80,0.1,ok,,",
    ]
