"""How many seeds show a difference: against the noncentral t distribution, simulation, and as a command."""

import dataclasses
import math
import re

import numpy as np
import pytest
from scipy import stats

from normbench.errors import StoreError
from normbench.report import frame, power
from normbench.report.__main__ import main
from normbench.report.compare import LEVEL, p_values

SEEDS_ONLY = power.Basis("", "bn", 0.25, math.nan, 0, 1.0, 10, 1, False)
BOTH = power.Basis("", "bn", 0.25, 0.02, 10_000, 4.0, 20, 12, True)


@pytest.mark.parametrize("n", [2, 3, 6, 40])
@pytest.mark.parametrize("size", [1, 28])
@pytest.mark.parametrize("freedom", [1.0, 5.5])
def test_without_pictures_it_is_the_noncentral_t(n, size, freedom):
    basis = dataclasses.replace(SEEDS_ONLY, size=size, freedom=freedom)
    nu, shift = freedom * (n - 1), 0.5 / math.sqrt(0.25 / n)
    t = stats.t.isf(LEVEL / size / 2, nu)
    wanted = stats.nct.sf(t, nu, shift) + np.nan_to_num(stats.nct.cdf(-t, nu, shift))  # scipy's NaN is below 1e-100
    assert power.power(0.5, n, basis) == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize("delta", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("n", [3, 8])
def test_a_planted_difference_is_found_as_often_as_said(delta, n):
    generator, times = np.random.default_rng(n), 1000
    S, nu = BOTH.seed / n, BOTH.freedom * (n - 1)
    D = delta + math.sqrt(S + BOTH.picture) * generator.normal(size=times)
    p = p_values(D, S * generator.chisquare(nu, times) / nu, nu, BOTH.picture, BOTH.pictures)
    found = np.mean(p <= LEVEL / BOTH.size)
    said = power.power(delta, n, BOTH)
    assert abs(found - said) <= 3.3 * math.sqrt(max(said * (1 - said), 0.002) / times)


@pytest.mark.parametrize("basis", [SEEDS_ONLY, BOTH])
@pytest.mark.parametrize("delta", [0.7, 1.0, 3.0])
def test_the_number_of_seeds_is_the_least_that_will_do(basis, delta):
    n = power.seeds(delta, basis)
    assert power.power(delta, n, basis) >= 0.8
    assert n == 3 or power.power(delta, n - 1, basis) < 0.8
    assert n >= 3


def test_seeds_that_all_differ_alike_are_no_basis(sweep, cell):
    cells = [cell(90.0 + seed + (norm == "gn"), norm=norm, seed=seed) for norm in ("bn", "gn") for seed in range(5)]
    folder = sweep(cells)
    frame_ = frame.read(folder)
    with pytest.raises(StoreError, match="nothing to estimate noise from"):
        power.bases(folder, frame_, frame.spots(frame_))


def test_no_number_of_seeds_outdoes_the_test_set():
    assert power.seeds(0.2, BOTH) is None
    needed = power.pictures(0.2, BOTH)
    larger = dataclasses.replace(BOTH, picture=BOTH.picture * BOTH.pictures / (1.01 * needed), pictures=needed)
    assert power.seeds(0.2, larger) is not None
    smaller = dataclasses.replace(BOTH, picture=BOTH.picture * BOTH.pictures / (0.97 * needed))
    assert power.seeds(0.2, smaller) is None


def grid(cell, seeds, spread=0.5):
    """A store's cells: bn and two others at two batches, with Gaussian seeds."""
    generator = np.random.default_rng(0)
    return [cell(float(90 + spread * generator.normal()), norm=norm, batch=batch, seed=seed)
            for norm in ("bn", "gn", "ln") for batch in (2, 8) for seed in range(seeds)]  # fmt: skip


def test_the_command_tells_seeds_and_what_they_rest_on(sweep, cell, capsys):
    folder = sweep(grid(cell, 4))
    assert main(["power=0.5,2", str(folder)]) == 0
    out = capsys.readouterr().out
    assert (
        "first: seeds that would show a difference to bn\n(5 %, two-sided, Holm over 4 comparisons; power 80 %)" in out
    )
    few, many = (int(re.search(rf"^ +{delta}  (\d+)$", out, re.M)[1]) for delta in ("2", "0.5"))
    assert 2 <= few < many
    assert "s.d. of a paired difference" in out
    assert "not known without per-picture correctness" in out
    assert not list(folder.glob("table.*")), "it writes nothing"


def test_one_seed_tells_nothing(sweep, cell, capsys):
    assert main([str(sweep(grid(cell, 1))), "power=1"]) == 2
    error = capsys.readouterr().err
    assert "nothing to estimate noise from" in error
    assert "seed=0,1,2" in error


def test_in_a_store_sweeps_that_tell_nothing_are_passed_over(sweep, cell, capsys):
    sweep(grid(cell, 1), "alone")
    store = sweep(grid(cell, 3), "several").parent
    assert main(["power=1", str(store)]) == 0
    out = capsys.readouterr().out
    assert "several: seeds that would show" in out
    assert "nothing to estimate noise from" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["power=0"], "expected differences"), (["power=1,x"], "expected differences"), (["power="], "got nothing"),
        (["pwer=1"], "Did you mean 'power'"), (["power=1", "power=2"], "given twice"), (["power=nan"], "expected diff"),
    ],
)  # fmt: skip
def test_bad_words_are_answered(sweep, cell, capsys, words, said):
    folder = sweep(grid(cell, 2))
    assert main([str(folder), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "table.md").exists()


def test_power_without_a_folder_is_answered(capsys):
    assert main(["power=1"]) == 2
    assert "no folder named" in capsys.readouterr().err
