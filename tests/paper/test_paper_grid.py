"""conf/paper: each table composes into exactly the published cells; the command line chooses and changes."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import yaml

from normbench import grid, norms
from normbench.errors import ConfigError, UnknownName
from normbench.paper import published
from normbench.preflight import Preflight
from normbench.records import Store

CONFIGS = grid.Configs()
TABLES = CONFIGS.options("paper")


def read(*words: str) -> grid.PaperGrid:
    return grid.read_paper(words)


@functools.cache
def table(name: str) -> grid.PaperGrid:
    """As conf/paper has it."""
    return read(f"paper={name}")


def places(found: grid.PaperGrid) -> list[tuple[str, int]]:
    return [(line.label, item.cell.batch) for line, cells in found.lines for item in cells]


def test_there_is_a_table_for_every_overlay_that_is_named() -> None:
    assert {entry.overlay for entry in published.entries() if entry.overlay} <= set(TABLES)
    assert {"bgn", "frn", "frn-inception", "gn", "bkn", "mabn", "brn", "sn", "hysts"} <= set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_its_cells_are_the_published_ones(name: str) -> None:
    known, lines = published.of(name), table(name).lines
    unseen = {(line.label, batch) for line, _ in lines if not line.recovered for batch in line.batches}
    assert set(places(table(name))) == set(known) | unseen
    for line, cells in lines:
        for item in cells:
            cell, entry = item.cell, known.get((line.label, item.cell.batch))
            if entry is None:
                assert not line.recovered
                continue
            assert (cell.arch.name, cell.data.name, cell.norm.name) == (entry.arch, entry.data, entry.norm)
            assert entry.workers in (None, cell.workers)
            printed = {
                key: yaml.safe_load(value) for key, _, value in (w.partition("=") for w in entry.options.split())
            }
            own = {key: value for key, value in line.settings.items() if key.startswith("norm.")}
            assert own == {f"norm.{key}": value for key, value in printed.items()}, entry
            assert printed.items() <= cell.norm.options.items()


def test_its_cells_can_be_without_any_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By tracing alone, as a sweep does before it runs: every network with each of its normalizers, smallest batch."""
    monkeypatch.chdir(tmp_path)
    kinds: dict[str, grid.GridCell] = {}
    for cells in (cells for name in TABLES for _, cells in table(name).lines):
        for item in sorted(cells, key=lambda item: -item.cell.batch):
            kinds[repr((item.cell.arch, item.cell.data, item.cell.norm))] = item
    asked = grid.Grid(list(kinds.values()), table("gn").settings)
    planned = Preflight(fetch=False).plan(asked, Store(tmp_path, "none"))
    assert len(planned) == len(kinds) > 30
    assert [(item.cell_id, item.skip) for item in planned if item.skip] == []


@pytest.mark.parametrize("name", TABLES)
def test_its_header_says_what_a_reader_wants_first(name: str) -> None:
    text = (grid.conf_folder() / "paper" / f"{name}.yaml").read_text()
    header = text[: text.index("title:")]
    count = sum(len(cells) for _, cells in table(name).lines)
    command = f"# Command: make table-{name}, or: python -m normbench.paper run {name}"
    for words in ("# Claim", command, f"# Cost: {count} run", "# Expected"):
        assert words in header


def lengths(found: grid.PaperGrid) -> set[tuple[int | None, float]]:
    cells = [item.cell for _, items in found.lines for item in items]
    return {(cell.length("epochs"), cell.recipe.warmup_epochs) for cell in cells}


def test_a_scale_shortens_every_run_and_lies_apart() -> None:
    full, short = table("sn-zoo"), read("paper=sn-zoo", "scale=0.02")
    assert (full.settings["name"], short.settings["name"]) == ("paper-sn-zoo", "paper-sn-zoo-scale0.02")
    assert lengths(full) == {(100, 0.0), (120, 5.0)}
    assert lengths(short) == {(2, 0.0), (2, 0.1)}
    (_, cells), *_ = read("paper=frn", "scale=0.001").lines
    assert (cells[0].cell.steps, cells[0].cell.recipe.warmup_epochs) == (300, 0.005)
    (_, cells), *_ = read("paper=gn", "scale=0.001").lines
    assert cells[0].cell.epochs == 1


@pytest.mark.parametrize("scale", ["0", "1.5", "-1"])
def test_a_scale_is_a_share(scale: str) -> None:
    with pytest.raises(ConfigError, match="above 0 and up to 1"):
        read("paper=gn", f"scale={scale}")
    with pytest.raises(ConfigError, match=r"scale=0\.5: goes with paper"):
        grid.read(["norm=bn", "scale=0.5"])


def test_norm_and_batch_choose_among_the_cells() -> None:
    assert places(read("paper=gn", "norm=gn", "batch=2,8")) == [("GN", 8), ("GN", 2)]
    assert places(read("paper=gn", "norm=brn")) == [("BRN", 4)]
    assert places(read("paper=hysts", "batch=8")) == [("BN, cosine", 8), ("BN, multistep", 8)]


def test_what_no_line_has_is_added_in_the_first_lines_setting() -> None:
    found = read("paper=gn", "norm=bn,frn", "batch=2,64")
    assert places(found) == [("BN", 2), ("BN", 64), ("frn", 2), ("frn", 64)]
    cell = found.lines[1][1][0].cell
    assert (cell.recipe.name, cell.workers, cell.arch.zero_init, cell.length("epochs")) == ("gn_paper", 8, True, 100)
    assert not cell.norm.options.get("num_groups")


def test_every_other_key_changes_the_cells() -> None:
    found = read("paper=gn", "data=digits", "seed=0,1", "steps=5", "options.gn.num_groups=4", "norm=bn,gn", "batch=2")
    cells = [item.cell for _, items in found.lines for item in items]
    assert [(c.norm.name, c.seed, c.steps, c.data.name) for c in cells] == [
        ("bn", 0, 5, "digits"), ("bn", 1, 5, "digits"), ("gn", 0, 5, "digits"), ("gn", 1, 5, "digits"),
    ]  # fmt: skip
    assert cells[2].norm.options["num_groups"] == 4
    assert {c.steps for _, items in read("paper=hysts-long", "steps=7").lines for c in [items[0].cell]} == {7}


def test_the_images_of_a_step_stay_where_a_paper_keeps_them() -> None:
    cells = [item.cell for _, items in read("paper=mabn", "batch=2,16,32").lines for item in items]
    assert {cell.images for cell in cells} == {256}
    assert {cell.batch: cell.workers for cell in cells} == {2: 128, 16: 16, 32: 8}
    with pytest.raises(ConfigError, match="every step of this table has 256 images"):
        read("paper=mabn", "batch=3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["paper=gm"], "Did you mean 'gn'"),
        (["paper=gn,bgn"], "cannot be swept"),
        (["paper=gn", "batch=0.5"], "batch: got 0.5"),
        (["paper=gn", "norm=bn", "options.gn.num_groups=2"], "the cells chosen are of bn only"),
        (["paper=gn", "epoch=3"], "Did you mean 'epochs'"),
        (["paper=hysts", "tune.valid=0.3"], "tune.valid is given, but no rates to choose from"),
    ],
)
def test_bad_words_are_answered(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grid.read(words)


def test_the_rates_of_a_table_can_be_tuned() -> None:
    found = read("paper=hysts", "lr=null", "tune.lr=[0.1,0.2]", "tune.valid=0.3")
    assert {item.cell.tune and item.cell.tune.valid for _, cells in found.lines for item in cells} == {0.3}


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "paper").mkdir()
    text = (
        "title: mine\nclaim: none\ncells: {norm: bn, batch: [4, 8]}\nlines:\n  - {line: A}\n  - {line: B, norm: gn}\n"
    )
    (tmp_path / "paper" / "mine.yaml").write_text(text)
    assert places(grid.read_paper(["paper=mine"], [str(tmp_path)])) == [("A", 4), ("A", 8), ("B", 4), ("B", 8)]
    (tmp_path / "paper" / "mine.yaml").write_text("title: mine\nclaims: none\n")
    with pytest.raises(UnknownName, match="Did you mean 'claim'"):
        grid.read_paper(["paper=mine"], [str(tmp_path)])
    (tmp_path / "paper" / "mine.yaml").write_text("title: mine\nclaim: none\n")
    with pytest.raises(ConfigError, match=r"paper/mine.yaml: 'lines'; expected title, claim"):
        grid.read_paper(["paper=mine"], [str(tmp_path)])


def test_every_normalizer_of_a_table_is_registered() -> None:
    used = {cell.cell.norm.name for name in TABLES for _, cells in table(name).lines for cell in cells}
    assert used <= set(norms.names())
    assert len(used) > 10
