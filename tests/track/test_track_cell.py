"""What W&B is to hold of a cell, from the store."""

import json

import pytest
from stored import FLAT, RESULT, begin, end, put, row

from normbench import records
from normbench.track import cell


def test_a_cell_is_laid_out_for_grouping(tmp_path):
    content = cell.read(put(tmp_path))
    assert (content.group, content.name, content.tags) == ("first/digits-resnet8", "bgn-b8-s0", ("status:ok",))
    assert content.config == {
        "sweep": "first", "cell_id": "bgn-b8-s0-01", "norm": "bgn", "line": "bgn num_groups=16", "norm_num_groups": 16,
        "batch": 8, "workers": 4, "global_batch": 32, "seed": 0, "arch": "resnet8", "data": "digits",
        "recipe": "quick", "epochs": 2, "steps": None, "lr": 0.1, "amp": "none",
        "cfg": {"norm": {"num_groups": 16}, "arch": {"stem": "auto"}, "recipe": {"base_lr": 0.1}, "device": "auto"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"lr": 0.01, "recipe.weight_decay": 0.1}, "bgn lr=0.01 recipe.weight_decay=0.1"),
        ({"recipe": "cifar", "norm.num_groups": 4, "norm.eps": 0.1}, "bgn eps=0.1 num_groups=4 recipe=cifar"),
        ({"lr": 0.03, "tune": "0.01, 0.03 on a held-out 10 %"}, "bgn tuned over 0.01, 0.03 on a held-out 10 %"),
        ({"norm": "bn", "arch": "resnet20", "data": "cifar10", "batch": 2, "workers": 64, "seed": 3}, "bn"),
        ({"device": "cuda", "data.loaders": 8, "data.limit": 100}, "bgn data.limit=100"),
    ],
)
def test_a_line_says_what_was_set_or_swept(tmp_path, changed, line):
    """But for what runs are grouped by beside it, and for what cannot change a number."""
    assert cell.read(put(tmp_path, changed=tuple(changed), **changed)).config["line"] == line


def test_workers_that_follow_the_batch_split_no_line_and_others_split_the_images(tmp_path):
    def place(batch, workers):
        more = {"changed": ("batch", "workers"), "batch": batch, "workers": workers}
        config = cell.read(put(tmp_path, f"b{batch}-w{workers}", **more)).config
        return config["line"], config["batch"], config["global_batch"]

    assert [place(2, 64), place(8, 16), place(8, 1)] == [("bgn", 2, 128), ("bgn", 8, 128), ("bgn", 8, 8)]


def test_rows_and_summary(tmp_path):
    content = cell.read(put(tmp_path))
    assert content.rows[1] == {
        "epoch": 2, "step": 20, "train/lr": 0.05, "train/loss": 0.5, "val/top1": 92.0, "val/loss": 0.25,
        "images_per_s": 63.0, "train_seconds": 1.4,
    }  # fmt: skip
    measured = {key: value for key, value in RESULT.items() if key in records.METRICS}
    assert content.summary == {**measured, "step_time_ms": 500.0}, "32 images at 64 a second"
    assert content.exit_code == 0


@pytest.mark.parametrize(
    ("status", "code"), [("ok", 0), ("skipped", 0), ("diverged", 1), ("oom", 1), ("killed", 1), ("interrupted", 1)]
)
def test_every_end(tmp_path, status, code):
    content = cell.read(put(tmp_path, status=status))
    assert (content.status, content.tags, content.exit_code) == (status, (f"status:{status}",), code)
    assert content.summary["status"] == status
    assert ("top1" in content.summary) == (status == "ok"), "the last epoch is the headline: a failed cell has none"
    assert content.summary["reason"] == (
        {"ok": "", "killed": "its process ended without a result"}.get(status, f"it was {status}")
    )
    assert content.config["line"] == "bgn num_groups=16"
    assert len(content.rows) == 2


def test_a_cell_at_work_has_not_failed(tmp_path):
    content = cell.read(begin(tmp_path, rows=1).folder)
    assert (content.status, content.exit_code, content.epochs) == ("running", 0, 1)
    assert content.summary["images_per_s"] == 63.0


def test_the_id_is_stable_and_a_cells_own(tmp_path):
    one = cell.read(put(tmp_path)).id
    others = [put(tmp_path, "other"), put(tmp_path, sweep="second"), put(tmp_path / "elsewhere")]
    assert [cell.read(folder).id == one for folder in others] == [False, False, True]
    assert one.startswith("nb")
    assert one.isalnum()


def test_a_users_folders_are_not_told(tmp_path):
    own = {"norm": "/home/me/my.py:Norm", "arch": "/home/me/net.py:net", "data": "/home/me/d.py:data"}
    content = cell.read(put(tmp_path, changed=["norm", "arch", "data", "data.root"], **own))
    assert content.name == "my.py:Norm-b8-s0"
    assert content.group == "first/d.py:data-net.py:net"
    assert "/home" not in json.dumps(content.config)


def test_folders_in_options_are_not_told(tmp_path):
    own = {"norm.base": "/home/me/secret/mine.py:Norm", "arch.weights": ["~/w/a.pt", "/home/me/b/"], "arch.stem": "a/b"}
    hidden = {"data.prepared": "/home/me/secret/imagenet-320"}
    content = cell.read(put(tmp_path, changed=(*own, *hidden), **own, **hidden))
    told = json.dumps(content.config)
    assert [word for word in ("/home", "~", "secret", "prepared") if word in told] == []
    assert content.config["line"] == "bgn base=mine.py:Norm arch.stem=a/b arch.weights=['a.pt', 'b']"
    assert content.config["norm_base"] == content.config["cfg"]["norm"]["base"] == "mine.py:Norm"
    assert content.config["cfg"]["arch"]["weights"] == ["a.pt", "b"]


def test_the_digest_changes_with_the_content_and_the_curves_with_their_rows(tmp_path):
    begun = begin(tmp_path, rows=1)
    early = cell.read(begun.folder)
    assert cell.read(begun.folder).digest == early.digest
    begun.append_row(row(2))
    late = cell.read(begun.folder)
    assert late.digest != early.digest
    assert late.curves(1) == early.curves(1), "the first epoch is the same"
    assert late.curves(2) != early.curves(1)
    begun.keep_rows(0)
    begun.append_row(row(1, train_seconds=99.0))
    assert cell.read(begun.folder).curves(1) == early.curves(1), "clocks aside"
    begun.keep_rows(0)
    begun.append_row(row(1, train_loss=7.0))
    assert cell.read(begun.folder).curves(1) != early.curves(1)


def test_rows_that_are_damaged_or_doubled(tmp_path):
    begun = begin(tmp_path, rows=0)
    lines = [json.dumps(row(2)), json.dumps(row(1, top1=1.0)), json.dumps(row(1)), "7", '{"top1": 3.0}', '{"epoch": 3']
    (begun.folder / "rows.jsonl").write_text("\n".join(lines))
    assert [(r["epoch"], r["val/top1"]) for r in cell.read(end(begun)).rows] == [(1, 91.0), (2, 92.0)]


def test_a_cell_whose_result_is_damaged(tmp_path):
    folder = put(tmp_path)
    (folder / "result.json").write_text("{")
    content = cell.read(folder)
    assert (content.status, content.config["norm"]) == ("killed", FLAT["norm"])
    assert content.summary["reason"] == "its result.json cannot be read"


def test_what_json_cannot_hold_is_left_out(tmp_path):
    content = cell.read(end(begin(tmp_path), loss=float("nan"), gap=float("inf")))
    assert not {"loss", "gap"} & set(content.summary)
