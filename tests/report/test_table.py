"""The table on the terminal and as Markdown, and its notes."""

import io

import pytest
from rich.console import Console

from normbench.report import frame, table


def made(folder):
    cells = frame.read(folder)
    return table.make(folder.name, cells, frame.spots(cells))


def printed(thing, width=200, **terminal):
    console = Console(file=io.StringIO(), width=width, **terminal)
    console.print(thing)
    return console.file.getvalue()


@pytest.fixture
def grid(sweep, cell):
    cells = [cell(90 + batch / 10, norm=norm, batch=batch, lr=batch / 320) for norm in ("bn", "gn") for batch in (2, 8)]
    why = "bn: a single value per channel at layer3.0.bn2"
    return sweep([*cells, cell(norm="ln", batch=2, lr=2 / 320, status="skipped", reason=why)])


def test_terminal(grid):
    rows = printed(made(grid)).splitlines()
    assert rows[0] == "first: resnet8 on digits, 10 epochs"
    assert rows[1].split() == ["norm", "\\", "batch", "2", "8"]
    assert [row.split() for row in rows[2:5]] == [
        ["bn", "90.2", "90.8"], ["gn", "90.2", "90.8"], ["ln", "skipped", "–"],
    ]  # fmt: skip


def test_the_best_are_bold_on_a_terminal(sweep, cell):
    folder = sweep([cell(98.1), cell(97.4, norm="gn")])
    assert "\x1b[1m98.1\x1b[0m" in printed(made(folder), force_terminal=True, color_system="standard")


@pytest.mark.parametrize("width", [30, 50, 80])
def test_a_narrow_terminal_breaks_the_table_by_batch(sweep, cell, width):
    batches = [2**k for k in range(1, 9)]
    folder = sweep([cell(90 + seed, batch=batch, seed=seed) for batch in batches for seed in (0, 1)])
    text = printed(made(folder), width=width).split("top-1")[0]
    assert max(map(len, text.splitlines())) <= width
    assert text.count("90.5 ± 0.7 (2)") == len(batches)


def test_long_labels_cost_no_number(sweep, cell):
    """Piped, a terminal is 80 wide: the label wraps, the numbers stay whole."""
    names = [f"norm__{name}_of_the_longer_kind" for name in ("one", "another", "third")]
    cells = [cell(90.0 + seed, batch=batch, seed=seed, **{name: 17 + k + more for k, name in enumerate(names)})
             for batch in (2, 8) for seed in (0, 1) for more in (0, 1)]  # fmt: skip
    text = printed(made(sweep(cells)), width=80).split("top-1")[0]
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("90.5 ± 0.7 (2)") == 4


def test_markdown(sweep, cell):
    grid = [cell(98.1), cell(97.4, norm="my_norm"), cell(status="error", norm="x", reason="a|b*")]
    text = made(sweep(grid)).markdown()
    assert "| norm \\ batch | 8 |\n|:---|---:|\n| bn | **98.1** |\n| my\\_norm | 97.4 |\n| x | error |\n" in text
    assert "- error: x at batch 8 (a\\|b\\*)" in text


def test_caption_says_split_epoch_and_spread(sweep, cell):
    folder = sweep([cell(90, seed=0), cell(91, seed=1)])
    assert made(folder).notes[0] == "top-1 (%), test split, last epoch, mean ± s.d. over seeds (n)"


def test_what_follows_the_batch_is_told(sweep, cell):
    grid = [cell(90, norm="bgn", batch=b, lr=lr, norm__num_groups=g) for b, lr, g in ((2, 0.01, 1), (8, 0.04, 16))]
    grid += [cell(90, norm="gn", batch=b, lr=lr, norm__num_groups=4) for b, lr in ((2, 0.01), (8, 0.04))]
    notes = made(sweep(grid)).notes
    assert "lr 0.01, 0.04 at batch 2, 8" in notes
    assert "bgn: num_groups 1, 16 at batch 2, 8" in notes
    assert "gn: num_groups 4" in notes


def test_settings_that_are_the_same_for_all_are_told(sweep, cell):
    chosen = {"workers": 8, "recipe": "adamw", "amp": "bfloat16", "lr": 0.001, "epochs": None, "steps": 5}
    grid = [cell(90, norm=norm, batch=4, data__limit=200, **chosen) for norm in ("bn", "gn")]
    note = "throughout: workers 8, lr 0.001, amp bfloat16, recipe adamw, steps 5, data.limit 200"
    assert note in made(sweep(grid)).notes
    assert f"- {note}" in made(sweep(grid, "again")).markdown()


@pytest.mark.parametrize("others", [(), ("bn",)])
def test_options_of_one_norm_are_told_as_its_own(sweep, cell, others):
    grid = [cell(90, norm="gn", batch=batch, norm__num_groups=4, norm__eps=0.001) for batch in (2, 8)]
    notes = made(sweep([*grid, *(cell(90, norm=norm) for norm in others)])).notes
    assert "gn: eps 0.001, num_groups 4" in notes
    assert "throughout: lr 0.1" in notes


def test_places_hashes_and_a_single_worker_are_not_told(sweep, cell):
    elsewhere = {"device": "cuda", "data__root": "/data", "norm__source": "1a2b3c4d"}
    notes = made(sweep([cell(90, **elsewhere)])).notes
    assert not any(word in note for note in notes for word in ("cuda", "/data", "1a2b3c4d", "workers"))


@pytest.mark.parametrize(("counts", "said"), [((359, 359), " (359 pictures)"), ((359, 100), "")])
def test_the_caption_says_how_many_pictures(sweep, cell, counts, said):
    grid = [cell(90, norm=norm) | {"eval_count": count} for norm, count in zip(("bn", "gn"), counts, strict=True)]
    grid.append(cell(norm="ln", status="oom"))
    assert made(sweep(grid)).notes[0].startswith(f"top-1 (%), test split{said}, last epoch")


def test_the_caption_says_that_best_is_among_equals(sweep, cell):
    grid = [cell(90 + k, norm=norm, epochs=epochs) for epochs in (1, 6) for k, norm in enumerate(("bn", "gn"))]
    assert made(sweep(grid)).notes[0].endswith("bold: best of its batch among lines that differ in the norm alone")


def test_what_stands_in_the_labels_is_not_told_again(sweep, cell):
    notes = made(sweep([cell(90, norm="gn", norm__num_groups=g) for g in (4, 8)])).notes
    assert not any("num_groups" in note for note in notes)


def test_failures_are_listed_with_their_reasons(sweep, cell):
    grid = [cell(90, seed=seed) for seed in (0, 1)]
    grid += [cell(status="diverged", norm="frn", batch=8, seed=1, reason="loss is nan at step 3"), cell(90, norm="frn")]
    skipped = {"status": "skipped", "norm": "in", "reason": "one [value]\nper channel"}
    grid += [cell(**skipped, batch=batch, seed=seed) for batch in (2, 4) for seed in (0, 1)]
    notes = made(sweep(grid)).notes
    assert "diverged: frn at batch 8 (seed 1) (loss is nan at step 3)" in notes
    assert "skipped: in at batch 2, 4 (one [value] per channel)" in notes
    assert "one [value] per channel" in printed(made(sweep(grid, "again")))


def test_long_and_many_reasons_are_cut(sweep, cell):
    grid = [cell(status="error", seed=k, reason=f"{k} " + "word " * 60) for k in range(20)]
    notes = made(sweep(grid)).notes
    assert notes[-1] == "… and 8 more reasons: see results.csv"
    assert all(len(note) < 160 for note in notes)


def test_twins_are_explained(sweep, cell):
    assert "other data or another file" in made(sweep([cell(90), cell(91)])).notes[1]
