"""python -m normbench.track push, with the real package: W&B has what the store has, each row once."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from stored import RESULT, begin, end, environment, put
from wandb_server import KEY, Server

from normbench import records
from normbench.errors import StoreError
from normbench.track import cell, fragments
from normbench.track.__main__ import main
from normbench.track.push import alone

# Takes lines of what to push, and tells after each how that went: one start of Python and W&B for all.
PUSHES = """
import os, sys
from normbench.track.__main__ import main
for line in sys.stdin:
    print("exit", main(["push", *line.split()]), flush=True)
os._exit(0)
"""


class Pushes:
    """A process that pushes when it is told to."""

    def __init__(self, home, **env):
        (home / "here").mkdir(parents=True)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-c", PUSHES], env=environment(home, **env), cwd=home / "here", stdin=pipe, stdout=pipe,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def __call__(self, *folders):
        """Exit code and what was said."""
        self.process.stdin.write(" ".join(map(str, folders)) + "\n")
        self.process.stdin.flush()
        said = []
        for line in self.process.stdout:
            if line.startswith("exit "):
                return int(line.split()[1]), "".join(said)
            said.append(line)
        raise AssertionError("".join(said))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def written(folder):
    return sorted(folder.glob("wandb/offline-run-*"))


def read_back(folder, content, home):
    """The records of a cell's offline run, by type."""
    (file,) = folder.glob(f"wandb/offline-run-*-{content.id}*/run-{content.id}.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    read = subprocess.run(inspect, env=environment(home), capture_output=True, text=True, timeout=300, check=True)
    found = {}
    for record in map(json.loads, read.stdout.splitlines()):
        found.setdefault(record["type"], []).append(record.get(record["type"]))
    return found


def test_offline_what_is_written_is_what_the_store_has(tmp_path):
    """Read back with W&B's own reader, value by value: a cell that ended, one that diverged, one that was killed."""
    ends = {"a": "ok", "b": "diverged", "c": "killed"}
    folders = [
        put(tmp_path, name, status, batch=size) for size, (name, status) in zip((2, 8, 32), ends.items(), strict=True)
    ]
    home, sweep = tmp_path / "home", tmp_path / "first"
    with Pushes(home, WANDB_MODE="offline") as push:
        code, said = push(sweep)
        assert (code, said) == (0, f"{sweep}: 3 written, 0 unchanged; {fragments.sending(sweep)}\n")
        before = written(sweep)
        assert push(sweep) == (0, f"{sweep}: 0 written, 3 unchanged\n")
        assert written(sweep) == before
    assert list((home / "here").iterdir()) == []
    for folder, status in zip(folders, ends.values(), strict=True):
        content = cell.read(folder)
        found = read_back(sweep, content, home)
        run = found["run"][0]
        assert (run["run_group"], run["job_type"], run["display_name"]) == (content.group, "cell", content.name)
        assert run["run_id"] == content.id
        assert run["project"] == "normbench"
        config = {key: value for key, value in run["config"]["update"].items() if key != "_wandb"}
        assert config == content.config
        rows = [item["item"] for item in found["history"]]
        assert [item["epoch"] for item in rows] == [1, 2], "each epoch once"
        own = [{key: value for key, value in item.items() if not key.startswith("_")} for item in rows]
        assert own == [dict(line) for line in content.rows]
        assert [item["val/top1"] for item in rows] == [line["top1"] for line in records.epochs(folder)]
        summary = {}
        for update in found["summary"]:
            summary |= update.get("update", {})
        assert {key: summary[key] for key in content.summary} == content.summary
        assert summary["status"] == status
        assert ("top1" in summary) == (status == "ok")
        assert found["exit"][0].get("exit_code", 0) == (0 if status == "ok" else 1)
        assert [record["tags"] for record in found["run"]][-1] == [f"status:{status}"]
    assert summary["reason"] == "its process ended without a result"


@pytest.mark.slow
def test_offline_a_cell_that_goes_on_is_written_anew_until_it_was_sent(tmp_path):
    home, sweep = tmp_path / "home", tmp_path / "first"
    put(tmp_path, status="killed", rows=1)
    with Pushes(home, WANDB_MODE="offline") as push:
        assert push(sweep)[0] == 0
        content = cell.read(end(begin(tmp_path)))
        assert push(sweep)[0] == 0
        (late,) = written(sweep)  # the early one was not sent, and says less
        (late / f"run-{content.id}.wandb.synced").touch()
        assert push(sweep) == (0, f"{sweep}: 0 written, 1 unchanged\n")
        begun = begin(tmp_path, rows=3)
        content = cell.read(end(begun, epochs=3))
        assert push(sweep)[0] == 0
    assert len(written(sweep)) == 2, "what was sent stays"
    (newest,) = set(written(sweep)) - {late}
    late.rename(tmp_path / "away")
    found = read_back(sweep, content, home)
    assert newest == written(sweep)[0]
    assert [item["item"]["epoch"] for item in found["history"]] == [3], "the others were sent"


def test_online_pushed_again_nothing_changes(tmp_path):
    home, sweep = tmp_path / "home", tmp_path / "first"
    put(tmp_path, "a")
    killed = put(tmp_path, "b", "killed", rows=1)
    with Server() as server, Pushes(home, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY) as push:
        assert push(sweep) == (0, f"{sweep}: 2 sent, 0 unchanged; {server.url}/me/normbench\n")
        early = json.dumps(server.runs, sort_keys=True)
        server.asked.clear()
        assert push(sweep) == (0, f"{sweep}: 0 sent, 2 unchanged\n")
        assert "UpsertBucket" not in server.asked, "W&B is asked, and told nothing"
        assert json.dumps(server.runs, sort_keys=True) == early
        content = cell.read(end(begin(tmp_path, "b")))
        assert push(sweep)[1].startswith(f"{sweep}: 1 sent, 1 unchanged")
        (run,) = [run for name, run in server.runs.items() if name == content.id]
        assert content.cell_id == killed.name
        assert [item["epoch"] for item in run["history"]] == [1, 2], "completed, and none twice"
        assert (run["summary"]["status"], run["tags"], run["exit"]) == ("ok", ["status:ok"], 0)
        assert run["summary"]["top1"] == RESULT["top1"]
        for kept in server.runs.values():
            kept["summary"].pop("mirror")  # what we noted there
        assert push(sweep)[1].startswith(f"{sweep}: 2 sent, 0 unchanged")
        assert [len(kept["history"]) for kept in server.runs.values()] == [2, 2]


def test_cells_that_no_table_counts_are_left_out(tmp_path):
    """And what W&B has of them stays."""
    home, sweep = tmp_path / "home", tmp_path / "first"
    folders = [put(tmp_path, name, seed=seed) for seed, name in enumerate(("a", "b", "c"))]
    with Server() as server, Pushes(home, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY) as push:
        assert push(sweep)[1].startswith(f"{sweep}: 3 sent, 0 unchanged; ")
        early = json.dumps(server.runs, sort_keys=True)
        shutil.copytree(folders[0], sweep / "a-copy")
        result = json.loads((folders[1] / "result.json").read_text())
        (folders[1] / "result.json").write_text(json.dumps({**result, "schema": 99}))
        (folders[2] / "result.json").write_text(json.dumps({**result, "status": "splendid"}))
        statuses = {row["cell_id"]: row["status"] for row in records.rows(sweep)}
        assert statuses == {"a": "ok", "a-copy": "duplicate", "b": "unreadable", "c": "unreadable"}
        told = f"{sweep}: 0 sent, 1 unchanged, 3 left out (unreadable or duplicate)\n"
        assert push(sweep) == (0, told)
        assert json.dumps(server.runs, sort_keys=True) == early


@pytest.mark.slow
def test_offline_then_synced_then_more(tmp_path):
    """``wandb sync`` as a person would use it: after every push, and once too often."""
    home, sweep = tmp_path / "home", tmp_path / "first"
    put(tmp_path, "a")
    put(tmp_path, "b", "killed", rows=1)
    with Server() as server, Pushes(home, WANDB_MODE="offline", WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY) as push:

        def sync():
            command = [sys.executable, "-m", "wandb", "sync", *map(str, written(sweep))]
            env = environment(home, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
            subprocess.run(command, env=env, cwd=home, check=True, capture_output=True, timeout=300)

        for _ in range(2):
            push(sweep)
            sync()
        assert sorted(len(run["history"]) for run in server.runs.values()) == [1, 2]
        content = cell.read(end(begin(tmp_path, "b", rows=3), epochs=3))
        for _ in range(2):
            push(sweep)
            sync()
        run = server.runs[content.id]
        assert [item["epoch"] for item in run["history"]] == [1, 2, 3]
        assert (run["summary"]["status"], run["summary"]["top1"], run["tags"]) == ("ok", 92.0, ["status:ok"])


@pytest.mark.slow
def test_a_dead_network_is_said_and_nothing_is_lost(tmp_path):
    put(tmp_path)
    env = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
    with Pushes(tmp_path / "home", **env) as push:
        code, said = push(tmp_path / "first")
    assert code == 1
    assert said.startswith(f"normbench.track: {tmp_path / 'first'}: W&B: ")
    assert said.endswith("the same command goes on from here\n")


def test_bad_folders_are_refused(tmp_path, capsys):
    assert main(["push", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err
    put(tmp_path)
    (tmp_path / "first" / "store.json").write_text('{"schema": 99}')
    assert main(["push", str(tmp_path)]) == 2
    assert "schema 99" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end_of_it:
        main(["pull"])
    assert end_of_it.value.code == 2


def test_help_has_examples(capsys):
    for words in (["--help"], ["push", "--help"], ["dashboard", "--help"]):
        with pytest.raises(SystemExit) as end_of_it:
            main(words)
        assert end_of_it.value.code == 0
        assert "python -m normbench.track push runs/first" in capsys.readouterr().out


def test_two_at_once_are_refused(tmp_path, capsys):
    put(tmp_path)
    with alone(tmp_path / "first"):
        assert main(["push", str(tmp_path)]) == 2
    assert "being mirrored by its sweep" in capsys.readouterr().err
    with alone(tmp_path / "first"), pytest.raises(StoreError), alone(tmp_path / "first"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_store_that_cannot_be_written_is_taken_as_it_is(tmp_path):
    tmp_path.chmod(0o500)
    with alone(tmp_path):
        pass


def test_nothing_is_written_into_cells(tmp_path):
    folder = put(tmp_path)
    before = sorted(path.name for path in folder.iterdir())
    cell.read(folder)
    assert sorted(path.name for path in folder.iterdir()) == before
