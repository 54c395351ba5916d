"""The dashboard as code: two views (workspaces) of the W&B project, made from what cell.py puts into runs.

Results: top-1 against batch, learning curves, cost, the gap between training and test. Failures: what did not end ok,
with status and reason. Both group runs by sweep, data and network, then by line, then by batch, then by images a step,
so that means are over seeds and nothing else that was set or swept. W&B's package for it is in public preview; ours
rests on its 0.4.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import warnings
from collections.abc import Iterable
from typing import Any

from normbench.errors import ConfigError
from normbench.track.cell import project

# Summary keys that a table of failures shows.
FAILURE = ("status", "reason", "epoch", "step", "last_loss", "train_loss", "peak_memory_mib")
RESULT = ("status", "top1", "top5", "loss", "gap", "step_time_ms", "peak_memory_mib")
MANY = 200  # groups a panel draws; W&B's own 10 would leave most lines out


def save() -> list[str]:
    """Save both views in the project; saved again they are replaced. Returns their addresses.

    Raises ConfigError without the package, and whatever W&B raises.
    """
    _parts()
    wandb = importlib.import_module("wandb")
    entity = os.environ.get("WANDB_ENTITY") or wandb.Api(timeout=30).default_entity
    views = make(entity)
    for view in views:
        view.save()
    return [view.url for view in views]


def as_json() -> str:
    """What would be saved, as W&B stores it: the name of each view and its specification. The same text every time."""
    specs = {view.name: view._to_model().spec.model_dump(by_alias=True, exclude_none=True) for view in make("entity")}
    return json.dumps(specs, indent=1, sort_keys=True) + "\n"


def make(entity: str) -> list[Any]:
    """The two views, for a project of ``entity``, a user or team."""
    ws, _, _ = _parts()
    every = [results(), curves(), cost(), gap()]
    return [
        _view(ws.Workspace, entity, "normbench results", every, RESULT, "Summary('status') in ['ok', 'running']"),
        _view(
            ws.Workspace, entity, "normbench failures", [failures()], FAILURE,
            "Summary('status') not in ['ok', 'running']",
        ),
    ]  # fmt: skip


def results() -> Any:
    ws, wr, _ = _parts()
    return ws.Section(
        name="Top-1 against batch",
        is_open=True,
        panels=[
            _against_batch("top-1 (%), last epoch", "top1"),
            wr.BarPlot(title="top-1 (%), last epoch", metrics=["top1"], **_each()),
            _against_batch("top-1 (%), statistics of the evaluated batch", "batch_top1"),
            _against_batch("top-1 (%), population statistics recomputed", "precise_top1"),
        ],
    )


def curves() -> Any:
    ws, wr, _ = _parts()
    shown = {"x": "epoch", "title_x": "epoch", "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    return ws.Section(
        name="Learning curves",
        is_open=True,
        panels=[
            wr.LinePlot(title="top-1 (%)", y=["val/top1"], max_runs_to_show=MANY, **shown),
            wr.LinePlot(title="test loss", y=["val/loss"], log_y=True, max_runs_to_show=MANY, **shown),
            wr.LinePlot(title="training loss", y=["train/loss"], log_y=True, max_runs_to_show=MANY, **shown),
            wr.LinePlot(title="learning rate", y=["train/lr"], max_runs_to_show=MANY, **shown),
        ],
    )


def cost() -> Any:
    ws, wr, _ = _parts()
    time, memory = "time of a step (ms)", "peak memory (MiB)"
    return ws.Section(
        name="Cost",
        is_open=True,
        panels=[
            _against_batch(time, "step_time_ms", log_y=True),
            _against_batch(memory, "peak_memory_mib", log_y=True),
            wr.ScatterPlot(title=f"top-1 (%) against {time}", x=_of("step_time_ms"), y=_of("top1"), log_x=True),
            wr.ScatterPlot(title=f"top-1 (%) against {memory}", x=_of("peak_memory_mib"), y=_of("top1"), log_x=True),
        ],
    )


def gap() -> Any:
    ws, wr, _ = _parts()
    return ws.Section(
        name="Training against test",
        is_open=True,
        panels=[
            _against_batch("gap: training minus test top-1 (points)", "gap"),
            wr.ScatterPlot(title="test against training top-1 (%)", x=_of("train_top1"), y=_of("top1")),
            _against_batch("pictures whose answer depends on the evaluation batch", "eval_flips"),
        ],
    )


def failures() -> Any:
    ws, wr, _ = _parts()
    return ws.Section(
        name="Failures",
        is_open=True,
        panels=[
            wr.RunComparer(diff_only="split"),
            wr.LinePlot(title="training loss before the end", x="epoch", y=["train/loss"], max_runs_to_show=MANY),
            wr.BarPlot(title="last epoch", metrics=["epoch"], **_each()),
        ],
    )


def _view(kind: Any, entity: str, name: str, sections: list[Any], columns: Iterable[str], which: str) -> Any:
    ws, _, expr = _parts()
    view = kind(
        entity=entity,
        project=project(),
        name=name,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=MANY),
        runset_settings=ws.RunsetSettings(
            filters=which,
            groupby=[expr.Metric("Group"), *map(expr.Config, ("line", "batch", "global_batch"))],
            order=[expr.Ordering(expr.Config("line.value")), expr.Ordering(expr.Config("batch.value"))],
            pinned_columns=[f"summary:{column}" for column in columns],
        ),
    )
    # Names of our own in place of random ones: the same text every time, and a view that is saved again is replaced.
    view._internal_name = f"nw-{name.replace(' ', '')[-11:]}-v"
    for number, panel in enumerate(panel for section in sections for panel in section.panels):
        panel._id = f"{name.replace(' ', '-')}-{number}"
    return view


def _against_batch(title: str, key: str, **more: Any) -> Any:
    """A point for each run, coloured by its group."""
    _, wr, _ = _parts()
    return wr.ScatterPlot(title=f"{title} against batch", x=wr.Config("batch"), y=_of(key), log_x=True, **more)


def _each() -> dict[str, Any]:
    return {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev", "max_bars_to_show": MANY}


def _of(key: str) -> Any:
    _, wr, _ = _parts()
    return wr.SummaryMetric(key)


@functools.cache
def _parts() -> tuple[Any, Any, Any]:
    """W&B's workspaces, panels and filters. Raises ConfigError without the package."""
    try:
        names = ("workspaces", "reports.v2", "expr")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of theirs about theirs
            workspaces, panels, expr = (importlib.import_module(f"wandb_workspaces.{name}") for name in names)
    except ImportError as error:
        raise ConfigError(
            f"the dashboard needs the package wandb-workspaces ({error}); pip install 'normbench[workspaces]'"
        ) from None
    return workspaces, panels, expr
