"""Which line of the table a cell belongs to, and what stands there."""

import pytest

from normbench.errors import StoreError
from normbench.report import frame


def lines(folder):
    return list(dict.fromkeys(frame.read(folder)["line"]))


def texts(folder):
    return {(spot.line, spot.batch): spot.text for spot in frame.spots(frame.read(folder))}


def test_only_seeds_are_averaged(sweep, cell):
    grid = [cell(90 + seed + 2 * (batch > 2), norm=norm, batch=batch, seed=seed)
            for norm in ("bn", "gn") for batch in (2, 8) for seed in (0, 1, 2)]  # fmt: skip
    table = texts(sweep(grid))
    assert table == {
        (norm, batch): f"{mean} ± 1.0 (3)" for norm in ("bn", "gn") for batch, mean in ((2, "91.0"), (8, "93.0"))
    }


AXES = {
    "arch": ("resnet8", "resnet20"),
    "data": ("digits", "cifar10"),
    "workers": (1, 8),
    "epochs": (10, 20),
    "recipe": ("quick", "cifar"),
    "amp": (False, True),
    "recipe.label_smoothing": (None, 0.1),
    "data.limit": (100, 1000),
    "norm.num_groups": (16, 32),
    "lr": (0.1, 0.2),
}


@pytest.mark.parametrize("key", AXES)
def test_no_axis_is_averaged_over(sweep, cell, key):
    name, (one, other) = key.replace(".", "__"), AXES[key]
    grid = [cell(90, norm="gn", **{name: one}), cell(95, norm="gn", **{name: other})]
    spots = frame.spots(frame.read(sweep(grid)))
    assert sorted(spot.text for spot in spots) == ["90.0", "95.0"]
    assert len({(spot.block, spot.line) for spot in spots}) == 2


def test_labels_are_short_and_say_what_differs(sweep, cell):
    grid = [cell(90, norm="bn"), *(cell(90, norm="gn", norm__num_groups=g) for g in (4, 16)), cell(90, norm="gn")]
    assert lines(sweep(grid)) == ["bn", "gn", "gn num_groups=4", "gn num_groups=16"]


def test_labels_keep_whole_numbers_whole(sweep, cell):
    grid = [cell(90, data__limit=limit, epochs=3) for limit in (None, 1281167)]
    assert lines(sweep(grid)) == ["bn", "bn limit=1281167"]


def test_labels_name_the_group_where_two_options_share_a_name(sweep, cell):
    grid = [cell(90, data__size=a, arch__size=b) for a in (32, 64) for b in (32, 64)]
    assert "bn arch.size=32 data.size=64" in lines(sweep(grid))


def test_labels_leave_out_folders_where_that_is_unambiguous(sweep, cell):
    grid = [cell(90, norm=name) for name in ("bn", "/home/me/my.py:Norm")]
    assert lines(sweep(grid)) == ["bn", "my.py:Norm"]
    twins = [cell(90, norm=name) for name in ("/a/my.py:Norm", "/b/my.py:Norm")]
    assert lines(sweep(twins, "twins")) == ["/a/my.py:Norm", "/b/my.py:Norm"]


def test_a_rate_that_follows_the_batch_is_no_axis(sweep, cell):
    grid = [cell(90, batch=batch, lr=batch / 320, seed=seed) for batch in (2, 8, 32) for seed in (0, 1)]
    assert lines(sweep(grid)) == ["bn"]


def test_a_rate_that_was_swept_is_an_axis_of_that_norm_only(sweep, cell):
    grid = [cell(90, norm="bn", batch=batch, lr=batch / 320) for batch in (2, 8)]
    grid += [cell(90, norm="gn", batch=batch, lr=lr) for batch in (2, 8) for lr in (0.1, 0.2)]
    assert lines(sweep(grid)) == ["bn", "gn lr=0.1", "gn lr=0.2"]


def test_workers_that_follow_the_batch_are_no_axis(sweep, cell):
    """Batch × workers kept; but workers swept at one batch are one."""
    grid = [cell(90, norm=norm, batch=batch, workers=128 // batch) for norm in ("bn", "gn") for batch in (2, 8, 128)]
    assert lines(sweep(grid)) == ["bn", "gn"]
    swept = [cell(90, batch=2, workers=workers) for workers in (1, 4)]
    assert lines(sweep(swept, "swept")) == ["bn workers=1", "bn workers=4"]


def test_groups_that_follow_the_batch_are_no_axis(sweep, cell):
    grid = [cell(90, norm="bgn", batch=batch, norm__num_groups=groups) for batch, groups in ((2, 1), (8, 16))]
    assert lines(sweep(grid)) == ["bgn"]


def test_values_that_print_alike_are_two_lines(sweep, cell):
    grid = [
        cell(top1, recipe__decay=decay, seed=seed)
        for decay, top1 in ((0.123451, 50), (0.123452, 90))
        for seed in (0, 1)
    ]
    assert texts(sweep(grid)) == {
        ("bn decay=0.123451", 8): "50.0 ± 0.0 (2)",
        ("bn decay=0.123452", 8): "90.0 ± 0.0 (2)",
    }


@pytest.mark.parametrize("value", ["2²", 10**400, "9" * 400], ids=["superscript", "int", "digits"])
def test_odd_values_are_sorted_somehow(sweep, cell, value):
    assert len(lines(sweep([cell(90, arch=name, norm__kind=value) for name in ("resnet8", "2²")]))) >= 1


def test_cells_alike_in_all_but_their_id_are_no_repetitions(sweep, cell):
    folder = sweep([cell(90), cell(95)])
    assert lines(folder) == ["bn", "bn #2"]
    assert texts(folder) == {("bn", 8): "90.0", ("bn #2", 8): "95.0"}


def test_baselines_come_first_and_numbers_by_size(sweep, cell):
    grid = [cell(90, norm=norm, arch=arch, batch=batch) for norm in ("gn", "bn", "none", "bgn")
            for arch in ("resnet20", "resnet8") for batch in (16, 2)]  # fmt: skip
    found = frame.read(sweep(grid))
    assert list(dict.fromkeys(found["block"])) == ["resnet8", "resnet20"]
    assert list(dict.fromkeys(found["line"])) == ["none", "bn", "bgn", "gn"]
    assert list(found["batch"][:2]) == [2, 16]


BAD = ("diverged", "oom", "killed", "timeout", "error", "skipped", "interrupted")


@pytest.mark.parametrize("status", BAD)
def test_a_failure_is_its_status(sweep, cell, status):
    assert texts(sweep([cell(status=status)])) == {("bn", 8): status}


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ([98.0, 98.2, 98.1], "98.1 ± 0.1 (3)"),
        ([98.1], "98.1"),
        ([97.9, 97.9, "diverged"], "97.9 (2/3, 1 diverged)"),
        (["diverged", "diverged"], "diverged (2)"),
        (["diverged", "oom", "diverged"], "0/3, 2 diverged, 1 oom"),
        ([100.0, 100.0], "100.0 ± 0.0 (2)"),
        ([float("nan")], "no top-1"),
    ],
)
def test_failures_stay_in_the_denominator(sweep, cell, ends, text):
    grid = [cell(seed=k, **({"status": end} if isinstance(end, str) else {"top1": end})) for k, end in enumerate(ends)]
    assert texts(sweep(grid)) == {("bn", 8): text}


def best(folder):
    return {(spot.line, spot.batch) for spot in frame.spots(frame.read(folder)) if spot.best}


def test_best_is_the_highest_complete_mean_of_its_batch(sweep, cell):
    grid = [cell(top1, norm=norm, batch=batch, seed=seed, **({} if top1 else {"status": "diverged"}))
            for norm, batch, tops in (
                ("bn", 2, (90, 91)), ("gn", 2, (95, 96)), ("ln", 2, (99, None)),
                ("bn", 8, (90.01, 90)), ("gn", 8, (90.02, 90)), ("ln", 8, (80, 80)),
            ) for seed, top1 in enumerate(tops)]  # fmt: skip
    assert best(sweep(grid)) == {("gn", 2), ("bn", 8), ("gn", 8)}


def test_a_mean_over_fewer_seeds_is_not_the_best(sweep, cell):
    assert best(sweep([cell(90, seed=0), cell(90, seed=1), cell(99, norm="gn"), cell(80, norm="ln", seed=0)])) == set()


def test_other_pictures_are_another_contest(sweep, cell):
    grid = [cell(top1, norm=norm, data=data) for data, norm, top1 in
            (("digits", "bn", 98), ("digits", "gn", 97), ("cifar10", "bn", 90), ("cifar10", "gn", 91))]  # fmt: skip
    spots = frame.spots(frame.read(sweep(grid)))
    assert {(spot.block, spot.line) for spot in spots if spot.best} == {("digits", "bn"), ("cifar10", "gn")}


@pytest.mark.parametrize("key", ["epochs", "data.limit", "workers", "recipe", "lr"])
def test_only_lines_that_differ_in_the_norm_alone_compete(sweep, cell, key):
    name, (one, other) = key.replace(".", "__"), AXES[key]
    assert best(sweep([cell(90, norm="bn", **{name: one}), cell(95, norm="gn", **{name: other})])) == set()
    grid = [cell(top1, norm=norm, **{name: value}) for value, tops in ((one, (90, 91)), (other, (96, 95)))
            for norm, top1 in zip(("bn", "gn"), tops, strict=True)]  # fmt: skip
    assert {line.split(" ")[0] + str(spots) for line, spots in best(sweep(grid, "both"))} == {"bn8", "gn8"}
    assert len(best(sweep(grid, "again"))) == 2


def test_a_norms_own_options_do_not_keep_it_from_the_contest(sweep, cell):
    folder = sweep([cell(90), cell(95, norm="gn", norm__num_groups=4), cell(94, norm="gn", norm__num_groups=8)])
    assert best(folder) == {("gn num_groups=4", 8)}


def test_a_users_file_that_changed_is_another_line(sweep, cell):
    mine = {"norm": "/home/me/mine.py:MyNorm"}
    grid = [cell(90 + k, **mine, norm__source=mark) for k, mark in enumerate(("1a2b3c4d", "5e6f7a8b"))]
    grid += [cell(80), cell(70, norm="/home/me/other.py:Norm", norm__source="99999999")]
    assert lines(sweep(grid)) == ["bn", "mine.py:MyNorm @1a2b3c4d", "mine.py:MyNorm @5e6f7a8b", "other.py:Norm"]


@pytest.mark.parametrize(("group", "name"), [("data", "digits"), ("arch", "/home/me/nets.py:small")])
def test_other_pictures_or_another_network_of_the_same_name_are_another_block(sweep, cell, group, name):
    grid = [cell(90, norm=norm, **{group: name, f"{group}__source": mark})
            for mark in ("1a2b3c4d", "5e6f7a8b") for norm in ("bn", "gn")]  # fmt: skip
    found = frame.read(sweep(grid))
    short = name.rpartition("/")[2]
    assert list(dict.fromkeys(found["block"])) == [f"{short} @1a2b3c4d", f"{short} @5e6f7a8b"]
    assert list(dict.fromkeys(found["line"])) == ["bn", "gn"]


def test_a_hash_that_only_follows_the_limit_is_not_told(sweep, cell):
    grid = [cell(90, data__limit=limit, data__source=mark) for limit, mark in ((100, "1a2b3c4d"), (200, "5e6f7a8b"))]
    assert lines(sweep(grid)) == ["bn limit=100", "bn limit=200"]
    assert set(frame.read(sweep(grid, "again"))["block"]) == {""}


def test_a_cell_without_configuration_is_kept_apart(sweep, cell):
    folder = sweep([cell(90)])
    (folder / "bn-damaged").mkdir()
    (folder / "bn-damaged" / "config.yaml").write_text("")
    found = frame.read(folder)
    assert list(found["status"]) == ["ok", "killed"]
    assert [spot.text for spot in frame.spots(found)] == ["90.0"]


def test_an_empty_sweep_is_an_error(sweep):
    with pytest.raises(StoreError, match="no cell yet"):
        frame.read(sweep([]))
