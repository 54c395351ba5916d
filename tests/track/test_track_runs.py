"""Cells into runs, each row once: against a stand-in for the package that remembers what it was told."""

import sys
import types
from pathlib import Path

import pytest
from stored import begin, end, put, row

from normbench.track import cell
from normbench.track.runs import MIRROR, Runs, reason


class FakeRun:
    """A run as W&B's server would have it; ``logged``: (step, row) in this session."""

    def __init__(self, home, asked):
        self.home, self.asked, self.logged, self.ended = home, asked, [], None
        kept = home.server.setdefault(asked["id"], {"history": [], "summary": {}, "tags": ()})
        resumed = asked.get("resume") == "allow"
        self.kept, self.summary = kept, dict(kept["summary"]) if resumed else {}
        self.starting_step = len(kept["history"]) if resumed else 0
        self.tags, self.project_url = asked["tags"], "https://wandb.test/me/normbench"

    def define_metric(self, *words, **more):
        pass

    def log(self, content, *, step, commit):
        if self.home.fail == "log":
            raise RuntimeError("log is broken\nand more")
        assert commit, "else the last row comes after the summary, and overrides it"
        assert step >= self.starting_step, "W&B drops such a row"
        self.logged.append((step, content))
        self.kept["history"].append(content)
        self.summary.update(content)

    def finish(self, *, exit_code):
        self.ended = exit_code
        self.kept.update(summary=self.summary, tags=self.tags, exit=exit_code)


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package; ``server``: what it keeps; ``runs``: those opened; ``fail``: the call that raises."""
    for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    fake = types.ModuleType("wandb")
    fake.server, fake.runs, fake.fail, fake.mode = {}, [], None, "online"
    fake.Settings = lambda **settings: settings
    fake.setup = lambda: types.SimpleNamespace(settings=types.SimpleNamespace(mode=fake.mode))

    def init(**asked):
        fake.runs.append(FakeRun(fake, asked))
        if fake.mode == "offline":
            folder = Path(asked["dir"]) / "wandb" / f"offline-run-{len(fake.runs):04}-{asked['id']}"
            folder.mkdir(parents=True)
        return fake.runs[-1]

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def epochs(run):
    return [content["epoch"] for _, content in run.logged]


def test_what_is_asked_for(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    content = cell.read(put(tmp_path))
    assert Runs(tmp_path / "first").show(content) == "sent"
    (run,) = wandb.runs
    asked = {key: run.asked[key] for key in ("project", "group", "job_type", "name", "id", "resume", "dir", "config")}
    assert asked == {
        "project": "mine", "group": content.group, "job_type": "cell", "name": content.name, "id": content.id,
        "resume": "allow", "dir": str(tmp_path / "first"), "config": content.config,
    }  # fmt: skip
    assert run.asked["settings"]["reinit"] == "create_new"
    assert run.asked["settings"]["x_disable_machine_info"]
    assert [step for step, _ in run.logged] == [0, 1], "the epoch, from 0"
    assert {key: run.summary[key] for key in content.summary} == content.summary
    assert (run.tags, run.ended) == (("status:ok",), 0)


def test_pushed_twice_nothing_is_sent_twice(wandb, tmp_path):
    folder = put(tmp_path)
    assert [Runs(tmp_path / "first").show(cell.read(folder)) for _ in range(3)] == ["sent", "unchanged", "unchanged"]
    assert [epochs(run) for run in wandb.runs] == [[1, 2], [], []]


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_killed_cell_is_completed_by_the_next_push(wandb, tmp_path, forgotten):
    folder = put(tmp_path, status="killed", rows=1)
    Runs(tmp_path / "first").show(cell.read(folder))
    (kept,) = wandb.server.values()
    assert (kept["summary"]["status"], kept["tags"], kept["exit"]) == ("killed", ("status:killed",), 1)
    if forgotten:  # what we noted of it is gone: what W&B says of the run is enough
        del kept["summary"][MIRROR]
    begun = begin(tmp_path)
    assert Runs(tmp_path / "first").show(cell.read(end(begun))) == "sent"
    assert [content["epoch"] for content in kept["history"]] == [1, 2]
    assert (kept["summary"]["status"], kept["summary"]["reason"], kept["exit"]) == ("ok", "", 0)
    assert (kept["summary"]["top1"], kept["tags"]) == (92.0, ("status:ok",))


def test_live_rows_come_as_they_are_written(wandb, tmp_path):
    runs, begun = Runs(tmp_path / "first"), begin(tmp_path, rows=0)
    other = begin(tmp_path, "other", rows=1)
    for epoch in (1, 2):
        begun.append_row(row(epoch))
        runs.show(cell.read(begun.folder))
        runs.show(cell.read(begun.folder))
        runs.show(cell.read(other.folder))
    runs.show(cell.read(end(begun)))
    first, second = wandb.runs
    assert (epochs(first), epochs(second)) == ([1, 2], [1])
    assert (first.ended, second.ended) == (0, None), "the other goes on"
    assert second.tags == ("status:running",)
    runs.show(cell.read(end(other, "oom")))
    assert (second.ended, second.tags, runs.open) == (1, ("status:oom",), {})


def test_a_final_value_that_is_no_more_goes(wandb, tmp_path):
    folder = put(tmp_path)
    Runs(tmp_path / "first").show(cell.read(folder))
    begun = begin(tmp_path)
    Runs(tmp_path / "first").show(cell.read(end(begun, "diverged")))
    (kept,) = wandb.server.values()
    assert kept["summary"]["status"] == "diverged"
    assert not {"top1", "gap"} & set(kept["summary"])


def test_curves_of_an_earlier_attempt_are_said(wandb, tmp_path):
    Runs(tmp_path / "first").show(cell.read(put(tmp_path)))
    begun = begin(tmp_path, rows=0)
    for epoch in (1, 2):
        begun.append_row(row(epoch, train_loss=7.0))
    assert Runs(tmp_path / "first").show(cell.read(end(begun))) == "stale"
    (kept,) = wandb.server.values()
    assert [content["epoch"] for content in kept["history"]] == [1, 2], "none twice"


def test_a_failure_of_theirs_gets_out(wandb, tmp_path):
    wandb.fail = "log"
    with pytest.raises(RuntimeError) as failure:
        Runs(tmp_path / "first").show(cell.read(put(tmp_path)))
    assert reason(failure.value) == "RuntimeError: log is broken"


def test_disabled_is_said_and_not_taken_for_sent(wandb, tmp_path):
    wandb.mode = "disabled"
    with pytest.raises(RuntimeError, match="take online or offline"):
        Runs(tmp_path / "first").show(cell.read(put(tmp_path)))


def folders(tmp_path):
    return sorted(path.name[12:16] for path in (tmp_path / "first" / "wandb").glob("offline-run-*"))


def test_offline_a_run_is_written_once(wandb, tmp_path):
    wandb.mode, folder = "offline", put(tmp_path)
    assert [Runs(tmp_path / "first").show(cell.read(folder)) for _ in range(2)] == ["sent", "unchanged"]
    assert wandb.runs[0].asked.get("resume") is None
    assert folders(tmp_path) == ["0001"]
    ours = tmp_path / "first" / "wandb" / f"offline-run-0001-{cell.read(folder).id}" / "normbench.json"
    ours.unlink()
    assert Runs(tmp_path / "first").show(cell.read(folder)) == "sent"
    assert folders(tmp_path) == ["0002"], "in place of the one of which nothing is known"


def test_offline_a_cell_that_goes_on_is_written_anew_until_it_was_sent(wandb, tmp_path):
    wandb.mode, folder = "offline", put(tmp_path, status="killed", rows=1)
    Runs(tmp_path / "first").show(cell.read(folder))
    content = cell.read(end(begin(tmp_path)))
    Runs(tmp_path / "first").show(content)
    assert folders(tmp_path) == ["0002"]
    assert epochs(wandb.runs[1]) == [1, 2]
    sent = tmp_path / "first" / "wandb" / f"offline-run-0002-{content.id}"
    (sent / "run.wandb.synced").touch()
    assert Runs(tmp_path / "first").show(content) == "unchanged"
    Runs(tmp_path / "first").show(cell.read(end(begin(tmp_path, rows=3), epochs=3)))
    assert folders(tmp_path) == ["0002", "0003"]
    assert epochs(wandb.runs[2]) == [3], "wandb sync adds them to those that it has sent"


def test_offline_curves_of_an_earlier_attempt_are_said(wandb, tmp_path):
    """Rows that were sent stay in W&B; those of another attempt are not joined to them without a word."""
    wandb.mode = "offline"

    def push(rows, **more):
        begun = begin(tmp_path, rows=0)
        for epoch in range(1, rows + 1):
            begun.append_row(row(epoch, **more))
        content = cell.read(end(begun, epochs=rows))
        told = Runs(tmp_path / "first").show(content)
        (*_, newest) = sorted((tmp_path / "first" / "wandb").glob(f"*-{content.id}"))
        (newest / "run.wandb.synced").touch()
        return told, epochs(wandb.runs[-1])

    assert push(2) == ("sent", [1, 2])
    assert push(1) == ("stale", []), "W&B keeps an epoch that the store has no more"
    assert push(2, train_seconds=99.0) == ("sent", []), "the same again, clocks aside"
    assert push(3, train_loss=7.0) == ("stale", [3])


def test_offline_elsewhere(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "else"))
    wandb.mode, folder = "offline", put(tmp_path)
    assert [Runs(tmp_path / "first").show(cell.read(folder)) for _ in range(2)] == ["sent", "unchanged"]
    assert len(list((tmp_path / "else" / "wandb").iterdir())) == 1
    assert folders(tmp_path) == []
