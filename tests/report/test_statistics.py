"""From a store to verdicts: who is compared with whom, on which seeds and pictures, and what is said of it."""

import csv
import json

import numpy as np
import pytest
from scipy import stats

from normbench import report
from normbench.errors import ConfigError, UnknownName
from normbench.records import correct
from normbench.report import frame, statistics, table
from normbench.report.__main__ import main


def judged(folder, baseline=None):
    cells = frame.read(folder)
    return {(s.line, s.batch): s for s in statistics.judged(folder, cells, frame.spots(cells), baseline)}


def notes(folder, baseline=None):
    cells = frame.read(folder)
    return table.make("first", cells, list(judged(folder, baseline).values())).notes


def grid(cell, top1, batches=(8,), **more):
    """``top1``: per line its seeds' values."""
    return [cell(value, norm=norm, batch=batch, seed=seed, **more)
            for norm, values in top1.items() for batch in batches for seed, value in enumerate(values)]  # fmt: skip


BN, GN = (90.0, 91.0, 90.5, 90.2), (93.1, 94.2, 93.4, 93.3)


def with_pictures(folder, rights):
    """Write correct.npy and what follows from it; ``rights``: (norm, batch, seed) → bool (pictures,)."""
    for path in folder.glob("*/result.json"):
        result = json.loads(path.read_text())
        config = result["config"]
        right = rights.get((config["norm"], config["batch"], config["seed"]))
        if right is not None:
            path.write_text(json.dumps(result | {"top1": 100 * right.mean(), "eval_count": len(right)}))
            correct.write(path.parent, right)
    return folder


def networks(lines, seeds, pictures=1000, batches=(8,), gain=0.0):
    """Each line better than the one before it by ``gain`` of a latent s.d."""
    generator = np.random.default_rng(0)
    hard = generator.normal(size=pictures)
    return {(line, batch, seed): hard + 0.4 * generator.normal(size=pictures) + 1.3 + gain * k > 0
            for k, line in enumerate(lines) for batch in batches for seed in range(seeds)}  # fmt: skip


def seen(sweep, cell, rights, name="first"):
    cells = [cell(100 * right.mean(), norm=norm, batch=batch, seed=seed)
             for (norm, batch, seed), right in rights.items()]  # fmt: skip
    return with_pictures(sweep(cells, name), rights)


def test_without_pictures_it_is_the_paired_t_test(sweep, cell):
    found = judged(sweep(grid(cell, {"bn": BN, "gn": GN})))["gn", 8].versus
    wanted = stats.ttest_rel(GN, BN)
    assert found.p == pytest.approx(wanted.pvalue)
    assert found.interval == pytest.approx(tuple(wanted.confidence_interval(0.95)))
    assert found.difference == pytest.approx(np.mean(GN) - np.mean(BN))
    assert (found.verdict, found.seeds, found.left_out, found.pooled) == ("better", 4, 0, False)


def test_seeds_are_paired_whatever_their_order(sweep, cell):
    cells = grid(cell, {"bn": BN, "gn": GN})
    straight = judged(sweep(cells))["gn", 8].versus
    assert judged(sweep(cells[::-1], "reversed"))["gn", 8].versus == straight


def test_the_family_is_all_lines_and_batches_of_a_block(sweep, cell):
    lines = {"bn": BN, "gn": GN, "ln": (90.1, 91.2, 90.4, 90.0)}
    found = judged(sweep(grid(cell, lines, (2, 8, 32))))
    assert {spot.versus.family.size for spot in found.values() if spot.versus} == {6}
    p = {place: spot.versus.p for place, spot in found.items() if spot.versus}
    assert found["gn", 2].versus.p_holm == pytest.approx(min(1, 6 * p["gn", 2]))
    blocks = [c for arch in ("resnet8", "resnet20") for c in grid(cell, lines, (2, 8), arch=arch)]
    cells = frame.read(folder := sweep(blocks, "blocks"))
    spots = statistics.judged(folder, cells, frame.spots(cells))
    assert {(spot.block, spot.versus.family.size) for spot in spots if spot.versus} == {("resnet8", 4), ("resnet20", 4)}


def test_another_baseline(sweep, cell):
    found = judged(sweep(grid(cell, {"bn": BN, "gn": GN})), "gn")
    assert found["bn", 8].versus.verdict == "worse"
    assert found["gn", 8].versus is None


def test_a_baseline_by_its_label_where_its_name_is_several_lines(sweep, cell):
    cells = grid(cell, {"bn": BN}) + [c for m in (0.1, 0.2) for c in grid(cell, {"gn": GN}, norm__eps=m)]
    with pytest.raises(ConfigError, match=r"several lines, 'gn eps=0.1', 'gn eps=0.2'"):
        judged(sweep(cells, "which of the two"), "gn")
    assert judged(sweep(cells, "label"), "gn eps=0.2")["bn", 8].versus.baseline == "gn eps=0.2"


def test_a_baseline_that_is_not_there(sweep, cell, capsys):
    folder = sweep(grid(cell, {"bn": BN, "gn": GN}))
    with pytest.raises(UnknownName, match="Did you mean 'gn'"):
        report.write(folder, "gnn")
    assert main([str(folder), "baseline=gnn"]) == 2
    assert "Choices: bn, gn" in capsys.readouterr().err
    assert not any(spot.versus for spot in judged(sweep(grid(cell, {"gn": GN, "ln": BN}), "no bn")).values())


def test_only_one_contest_is_compared(sweep, cell):
    cells = grid(cell, {"bn": BN}, epochs=10) + grid(cell, {"gn": GN, "bn": GN}, epochs=20)
    found = judged(sweep(cells))
    assert {line: spot.versus.baseline for (line, _), spot in found.items() if spot.versus} == {
        "gn epochs=20": "bn epochs=20"
    }


@pytest.mark.parametrize("status", ["diverged", "oom", "timeout", "error"])
@pytest.mark.parametrize("who", ["bn", "gn"])
def test_a_failed_seed_leaves_no_verdict(sweep, cell, status, who):
    cells = [*grid(cell, {"bn": BN, "gn": GN}), cell(status=status, norm=who, seed=9)]
    found = judged(sweep(cells))["gn", 8]
    assert found.versus.verdict == ("failed" if who == "gn" else "baseline failed")
    assert np.isnan(found.versus.p)
    assert found.versus.family.size == 0
    assert not found.marks
    assert any(note.startswith("no verdict where a seed") for note in notes(sweep(cells, "again")))


@pytest.mark.parametrize("status", ["killed", "interrupted", "skipped"])
def test_what_is_no_result_is_left_out_and_said(sweep, cell, status):
    cells = [*grid(cell, {"bn": BN, "gn": GN}), cell(status=status, norm="gn", seed=9), cell(80.0, norm="bn", seed=9)]
    found = judged(sweep(cells))["gn", 8].versus
    assert (found.verdict, found.seeds, found.left_out) == ("better", 4, 1)
    assert found.p == pytest.approx(stats.ttest_rel(GN, BN).pvalue)
    said = notes(sweep(cells, "again"))
    assert "paired are the seeds that both have: 1 seed of one side left out" in said


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_are_said_in_place_of_a_verdict(sweep, cell, seeds):
    folder = sweep(grid(cell, {"bn": BN[:seeds], "gn": GN[:seeds]}))
    spot = judged(folder)["gn", 8]
    assert spot.versus.verdict == "too few seeds"
    assert np.isnan([spot.versus.p, spot.versus.p_holm]).all()
    assert spot.versus.difference == pytest.approx(np.mean(GN[:seeds]) - np.mean(BN[:seeds]))
    assert not spot.marks
    assert any(note.startswith("too few seeds for a verdict: it takes 3") for note in notes(folder))


def test_three_seeds_get_verdicts_where_others_know_the_noise_and_two_get_none(sweep, cell):
    lines = {f"n{k}": (90.2 + k / 50, 89.9, 90.1)[:: (-1) ** k] for k in range(8)} | {"gn": (96.0, 96.2, 96.1)}
    folder = sweep(grid(cell, {"bn": (90.05, 90.0, 90.1), **lines}, (2, 8, 32)))
    found = judged(folder)
    assert found["gn", 2].versus.pooled
    assert found["gn", 2].versus.verdict == "better"
    assert found["n0", 2].versus.verdict == "undecided"
    assert not {spot.versus.verdict for (line, _), spot in found.items() if line[0] == "n"} & {"better", "worse"}
    assert any("pooled over the comparisons" in note for note in notes(folder))
    two = {norm: values[:2] for norm, values in {"bn": (90.05, 90.0), **lines}.items()}
    few = judged(sweep(grid(cell, two, (2, 8, 32)), "few"))
    assert {spot.versus.verdict for spot in few.values() if spot.versus} == {"too few seeds"}


def test_why_there_is_no_verdict_is_said(sweep, cell):
    cells = [cell(status="skipped", norm="bn", batch=1, seed=seed) for seed in range(3)]
    cells += [cell(90.0 + seed, norm="gn", batch=1, seed=seed) for seed in range(3)]
    cells += [
        cell(90.0 + seed, norm=norm, batch=2, seed=seed + (norm == "gn") * 3)
        for norm in ("bn", "gn")
        for seed in range(3)
    ]
    folder = sweep(cells)
    found = judged(folder)
    assert [found["gn", batch].versus.verdict for batch in (1, 2)] == ["no result", "no seed in common"]
    said = notes(folder)
    assert "no verdict where the entry or the baseline has no result" in said
    assert "no verdict where the entry and the baseline have no seed in common" in said
    assert not any("too few seeds" in line for line in said)


def test_nothing_to_compare_is_said(sweep, cell):
    """Two rates are two contests: neither has both a baseline and another."""
    cells = [cell(90.0 + s, norm=norm, lr=lr, seed=s) for norm, lr in (("bn", 0.1), ("gn", 0.2)) for s in range(3)]
    assert "no comparison: nothing differs from bn in the norm alone" in notes(sweep(cells))


def test_pairs_of_pictures_find_what_seeds_alone_do_not(sweep, cell):
    folder = seen(sweep, cell, networks(("bn", "gn"), 3, gain=0.15))
    versus = judged(folder)["gn", 8].versus
    assert versus.verdict == "better"
    assert versus.family.by_picture
    a, b = (np.array([correct.read(p) for p in sorted(folder.glob(f"{norm}-*"))]) for norm in ("gn", "bn"))
    noise = versus.noise
    squares = (100 * (a.mean(1) - b.mean(1))).var(ddof=1)
    assert noise.seed**2 + noise.residual**2 == pytest.approx(max(squares, noise.residual**2))
    assert noise.picture >= 0


def test_test_set_noise_alone_keeps_from_a_verdict(sweep, cell):
    """Ten seeds that agree on every picture: sure for this test set, and not for another of 100 pictures."""
    bn, gn = np.arange(100) < 80, np.arange(100) < 83
    rights = {(norm, 8, seed): right for norm, right in (("bn", bn), ("gn", gn)) for seed in range(10)}
    flip = np.arange(100)
    for seed in range(10):
        rights["gn", 8, seed] = gn ^ (flip == seed)
    cells = [cell(100 * r.mean(), norm=n, seed=s) | {"eval_count": 100} for (n, _, s), r in rights.items()]
    seeds_alone = judged(sweep(cells))
    assert seeds_alone["gn", 8].versus.p < 1e-6
    versus = judged(seen(sweep, cell, rights, "seen"))["gn", 8].versus
    assert versus.verdict == "undecided"
    assert versus.noise.picture > 1


@pytest.mark.parametrize("how", ["count", "missing", "stale", "damaged", "empty"])
def test_other_pictures_are_not_paired(sweep, cell, how):
    rights = networks(("bn", "gn"), 3)
    if how == "count":
        rights = {key: right[:900] if key[0] == "gn" else right for key, right in rights.items()}
    folder = seen(sweep, cell, rights)
    victim = next(folder.glob("gn-*-s1-*"))
    if how == "missing":
        (victim / correct.NAME).unlink()
    if how == "damaged":
        (victim / correct.NAME).write_bytes(b"no array")
    if how == "empty":
        (victim / correct.NAME).write_bytes(b"")
    if how == "stale":
        correct.write(victim, ~correct.read(victim))
    versus = judged(folder)["gn", 8].versus
    assert not versus.family.by_picture
    assert np.isnan(versus.noise.picture)
    top1 = {norm: [100 * rights[norm, 8, seed].mean() for seed in range(3)] for norm in ("bn", "gn")}
    assert versus.p == pytest.approx(stats.ttest_rel(top1["gn"], top1["bn"]).pvalue)


def test_lines_that_are_the_same_network_do_not_differ(sweep, cell):
    rights = networks(("bn", "gn"), 3)
    rights |= {("ln", 8, seed): rights["bn", 8, seed] for seed in range(3)}
    found = judged(seen(sweep, cell, rights))
    assert (found["ln", 8].versus.p, found["ln", 8].versus.verdict) == (1, "undecided")
    assert found["ln", 8].versus.interval == (0, 0)
    assert judged(sweep(grid(cell, {"bn": BN, "gn": BN}), "plain"))["gn", 8].versus.p == 1


def test_seeds_that_all_differ_alike_are_not_sure_beyond_a_picture(sweep, cell):
    cells = [c | {"eval_count": 200} for c in grid(cell, {"bn": (90.0, 91.0, 92.0), "gn": (90.5, 91.5, 92.5)})]
    versus = judged(sweep(cells))["gn", 8].versus
    assert versus.noise.seed == pytest.approx(0.5 / np.sqrt(6))
    assert 0 < versus.p < 1
    without = judged(sweep(grid(cell, {"bn": (90.0, 91.0, 92.0), "gn": (90.5, 91.5, 92.5)}), "uncounted"))["gn", 8]
    assert without.versus.verdict == "no noise seen"


def test_level_with_the_best(sweep, cell):
    lines = {"bn": (80.0, 80.9, 80.3, 80.6), "gn": (95.0, 95.4, 95.9, 95.1), "ln": (95.2, 95.3, 95.5, 95.6)}
    folder = sweep(grid(cell, lines, (2, 8)))
    found = judged(folder)
    assert [line for (line, batch), spot in found.items() if batch == 2 and spot.level] == ["gn"]
    assert found["ln", 2].best
    assert found["gn", 2].marks == "▲≈"
    assert any(note.startswith("≈ not significantly worse than the best") for note in notes(folder))


def test_failed_or_fewer_seeds_are_never_level(sweep, cell):
    lines = {"bn": (95.0, 95.4, 95.9, 95.1), "ln": (95.2, 95.3, 95.5, 95.6)}
    cells = grid(cell, lines) + grid(cell, {"gn": (95.2, 95.4, 95.4)})
    assert not judged(sweep(cells))["gn", 8].level
    cells.append(cell(norm="gn", seed=3, status="diverged"))
    assert not judged(sweep(cells, "failed"))["gn", 8].level


def test_the_mean_has_an_interval(sweep, cell):
    plain = judged(sweep(grid(cell, {"bn": BN})))["bn", 8]
    assert plain.interval[0] < np.mean(BN) < plain.interval[1]
    assert judged(sweep(grid(cell, {"bn": BN[:1]}), "one"))["bn", 8].interval is None
    single = judged(folder := seen(sweep, cell, networks(("bn",), 1), "seen"))["bn", 8]
    assert single.interval[1] - single.interval[0] > 2
    assert any("covers test-set noise only" in note for note in notes(folder))


def test_marks_and_notes_stand_in_table_and_markdown(sweep, cell):
    folder = seen(sweep, cell, networks(("bn", "gn", "ln"), 3, batches=(2, 8), gain=0.2))
    made = report.write(folder)
    text, markdown = str(made), (folder / "table.md").read_text()
    for said in (" ".join(text.split()), markdown):  # a terminal breaks notes at words
        assert "(3) ▲" in said
        assert "▲ significantly better than bn (5 %; paired by seed and picture; Holm over 4 comparisons)" in said
        assert "of this test set" in said
        assert "▼" not in said
    rows = [line for line in text.splitlines() if line.startswith(("bn ", "ln "))]
    assert len({row.index("(3)") for row in rows}) == 1, "numbers stand below each other"


def test_table_csv_tells_it_in_columns(sweep, cell):
    folder = seen(sweep, cell, networks(("bn", "gn"), 3, gain=0.2))
    report.write(folder)
    with (folder / "table.csv").open(newline="") as file:
        bn, gn = csv.DictReader(file)
    versus = judged(folder)["gn", 8].versus
    assert (bn["baseline"], bn["difference"], bn["p"], bn["verdict"]) == ("", "NaN", "NaN", "")
    assert float(bn["top1_low"]) < float(bn["top1_mean"]) < float(bn["top1_high"])
    assert (gn["baseline"], gn["pairs"], gn["family"], gn["verdict"]) == ("bn", "3", "1", "better")
    assert float(gn["difference"]) == pytest.approx(versus.difference, abs=1e-5)
    assert float(gn["p_holm"]) == pytest.approx(versus.p_holm, rel=1e-5)
    assert float(gn["picture_sd"]) == pytest.approx(versus.noise.picture, abs=1e-5)


def test_the_same_bytes_every_time(sweep, cell):
    folder = seen(sweep, cell, networks(("bn", "gn", "ln"), 2, batches=(2, 8)))
    files = ("table.csv", "table.md")
    report.write(folder)
    before = [(folder / name).read_bytes() for name in files]
    report.write(folder)
    assert [(folder / name).read_bytes() for name in files] == before


def test_a_terminal_without_the_marks_has_others(sweep, cell, monkeypatch, capsys):
    folder = sweep(grid(cell, {"bn": BN, "gn": GN}))
    real = print

    def ascii_print(text, **more):
        real(text.encode("ascii").decode(), **more)

    monkeypatch.setattr("builtins.print", ascii_print)
    assert main([str(folder)]) == 0
    assert "(4)  ^" in capsys.readouterr().out
