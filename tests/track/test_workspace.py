"""The dashboard as code, against what it was when somebody last looked at it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from stored import environment, put
from wandb_server import KEY, Server

from normbench.track import cell, workspace
from normbench.track.__main__ import main

GOLDEN = Path(__file__).with_name("workspace.json")
TOLD = """
import json, sys
from normbench.track.__main__ import main
for _ in range(2):
    print("exit", main(["dashboard"]))
"""


@pytest.fixture(scope="module")
def text():
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed: pip install 'normbench[dev]'")
    return workspace.as_json()


def test_it_is_what_it_was(text):
    """After a change that is meant: python -m normbench.track dashboard --json > tests/track/workspace.json"""
    assert json.loads(text) == json.loads(GOLDEN.read_text())
    assert text == GOLDEN.read_text()
    assert workspace.as_json() == text, "the same every time"


def test_it_is_printed(text, capsys):
    assert main(["dashboard", "--json"]) == 0
    assert capsys.readouterr().out == text


def test_every_view_averages_over_seeds_only(text):
    for view in json.loads(text).values():
        (runs,) = view["section"]["runSets"]
        shown = [(key["section"], key["name"]) for key in runs["grouping"]]
        assert shown == [("run", "group"), *(("config", f"{key}.value") for key in ("line", "batch", "global_batch"))]


def test_it_asks_for_what_runs_have(text, tmp_path):
    """Every key of a panel, a column or a filter is one that a cell's run gets."""
    content = cell.read(put(tmp_path, top5=99.0))
    logged = {key for row in content.rows for key in row}
    has = {f"summary:{key}" for key in content.summary} | {f"config:{key}.value" for key in content.config}
    asked = set()
    for view in json.loads(text).values():
        (runs,) = view["section"]["runSets"]
        asked |= set(runs["runFeed"]["columnOrder"]) - {"run:displayName"}
        asked |= {f"{f['key']['section']}:{f['key']['name']}" for f in runs["filters"]["filters"]}
        asked |= {f"config:{key['key']['name']}" for key in runs["sort"]["keys"]}
        for section in view["section"]["panelBankConfig"]["sections"]:
            for panel in section["panels"]:
                config = panel["config"]
                if panel["viewType"] == "Scatter Plot":
                    asked |= {config["xAxis"], config["yAxis"]}
                elif panel["viewType"] == "Run History Line Plot":
                    assert {config["xAxis"], *config["metrics"]} <= logged
                elif panel["viewType"] == "Bar Chart":
                    asked |= {f"summary:{key}" for key in config["metrics"]}
    assert asked - has == set()


def test_without_the_package_it_is_said(monkeypatch, capsys):
    workspace._parts.cache_clear()
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.delitem(sys.modules, "wandb_workspaces.workspaces", raising=False)
    try:
        assert main(["dashboard", "--json"]) == 2
        assert "pip install 'normbench[workspaces]'" in capsys.readouterr().err
    finally:
        workspace._parts.cache_clear()


@pytest.mark.slow
def test_it_is_saved_and_saved_again_in_place(text, tmp_path):
    (tmp_path / "home").mkdir()
    with Server() as server:
        env = environment(tmp_path / "home", WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
        told = subprocess.run(
            [sys.executable, "-c", TOLD], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True
        )
    assert told.stdout.count("exit 0") == 2, told.stderr
    assert {view["displayName"]: json.loads(view["spec"]) for view in server.views.values()} == json.loads(text)
    assert told.stdout.count(f"{server.url}/me/normbench") == 4
