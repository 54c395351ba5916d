"""One run of the command: who, on what, how long; measure; leave the files and show the table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from normbench import machine, norms
from normbench.bench import cases, contestants, networks, plot, table, units
from normbench.bench.command import NETWORK, Settings
from normbench.bench.contestants import Contestant
from normbench.bench.measure import Rule
from normbench.bench.progress import Bar, duration
from normbench.bench.results import Row, to_csv
from normbench.errors import one_line
from normbench.files import write_atomically, write_json
from normbench.norms import listing

Counts = dict[str, dict[cases.Shape, int]]


def run(settings: Settings, words: Sequence[str]) -> bool:
    """Measure and write; whether anything was measured. What was measured is written when the run is stopped, too."""
    machine.keep_memory()
    device = machine.device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.backends.cudnn.benchmark = True  # as the runner has it
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where events are recorded
    entrants, notes = _contestants(settings, device)
    counts = _counts(settings)
    console, folder = Console(highlight=False), Path(settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    about = _provenance(device, words)
    console.print(_told(about), style="dim", soft_wrap=True)
    rows: list[Row] = []
    facts = {"threads": about["threads"], "device": about["device"], "torch": about["torch"]}
    try:
        if settings.mode == NETWORK:
            found = _steps(settings, entrants, device, console)
        else:
            found = _units(settings, counts, entrants, device, console, notes)
        for some in found:
            rows += [replace(row, **facts) for row in some]
    except KeyboardInterrupt:
        notes.append("stopped before all was measured")
        raise
    finally:
        if rows:
            _write(settings.mode, folder, rows, notes, about, console)
    return any(row.measured and row.kind != "baseline" for row in rows)


def _contestants(settings: Settings, device: torch.device) -> tuple[list[Contestant], list[str]]:
    chosen = contestants.of_registry(settings.norm, extra=settings.mode != NETWORK)
    others: list[Contestant] = []
    notes = _partly(chosen) if settings.mode != NETWORK else []
    if settings.peers and settings.mode != NETWORK:
        others, left = contestants.peers(device)
        notes += [f"not measured: {line}" for line in left]
    return [contestants.baseline(), *chosen, *others], notes


def _partly(chosen: Sequence[Contestant]) -> list[str]:
    """A line on the methods of which a unit alone is not all."""
    names = dict.fromkeys(one.norm for one in chosen)
    there = [name for name in names if listing.acts_on(norms.get(name))]
    if not there:
        return []
    return [
        f"units alone, without what they do to weights, graph or training loop (arch=… has that): {', '.join(there)}"
    ]


def _counts(settings: Settings) -> Counts:
    """The site shapes of the networks; none for whole steps, whose networks are checked here."""
    if settings.mode == NETWORK:
        networks.check(settings)
        return {}
    return {network: cases.site_counts(network) for network in settings.shapes}


def _units(
    settings: Settings,
    counts: Counts,
    entrants: list[Contestant],
    device: torch.device,
    console: Console,
    notes: list[str],
) -> Iterator[list[Row]]:
    """Rows of the cases, a case at a time; those that do not fit first."""
    limit = cases.limit_mib(settings.limit_mib, device)
    fit, large = cases.fitting(cases.cases(settings, counts), limit)
    yield list(units.left_out(large, entrants, f"needs more memory than {limit:.0f} MiB"))
    if large:
        notes.append(_too_large(large, limit))
    rule = Rule(settings.rounds, settings.seconds)
    console.print(f"{len(fit)} cases of {len(entrants)} contestants; a trial of the small ones first", style="dim")
    forecast = units.Forecast(entrants, device, rule)
    expected = [forecast.seconds(case) for case in fit]
    console.print(f"about {duration(sum(expected))}; stop with Ctrl-C, what was measured is kept", style="dim")
    with Bar(console, sum(expected)) as bar:
        for case, seconds in zip(fit, expected, strict=True):
            shape = case.shape
            bar.at(f"{shape.C}×{shape.H}×{shape.W} N={case.N} {case.memory_format} {case.dtype}")
            yield units.measure(case, entrants, device, rule)
            bar.advance(seconds)


def _steps(
    settings: Settings, entrants: list[Contestant], device: torch.device, console: Console
) -> Iterator[list[Row]]:
    """Rows of whole training steps, a network at a time."""
    total = len(settings.arch) * len(settings.batch) * len(settings.dtype) * len(settings.memory_format)
    rule = Rule(settings.rounds, settings.seconds)
    with Bar(console, total) as bar:
        for network in networks.networks(settings):
            bar.at(f"{network.label} N={network.N} {network.memory_format} {network.dtype}")
            yield networks.measure(network, entrants, device, rule)
            bar.advance(1)


def _too_large(large: Iterable[cases.Case], limit: float) -> str:
    large = list(large)
    most = max(large, key=cases.needed_mib)
    shape = most.shape
    return (
        f"{len(large)} cases left out, which need more than limit_mib={limit:.0f}: "
        f"the largest, {shape.C}×{shape.H}×{shape.W} N={most.N} {most.dtype}, {cases.needed_mib(most):.0f} MiB"
    )


def _provenance(device: torch.device, words: Sequence[str]) -> dict[str, Any]:
    """What a reader must know of the machine to judge a time."""
    return {
        **machine.provenance(device, torch.get_num_threads()),
        "kernels": norms.kernels(device),
        "command": ["python", "-m", "normbench.bench", *words],
        "spin": os.environ.get("GOMP_SPINCOUNT"),
    }


def _told(about: dict[str, Any]) -> str:
    processor = about["processor"] or about["machine"]
    where = processor if about["device"] in ("cpu", processor) else f"{about['device']} beside {processor}"
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''} on {about['cores']} cores"
    return f"{where}, {threads}, torch {about['torch']}; memory: {about['memory']}"


def _write(mode: str, folder: Path, rows: list[Row], notes: list[str], about: dict[str, Any], console: Console) -> None:
    """The rows first: a plot that cannot be drawn must not cost them."""
    steps = mode == NETWORK
    rows_name, table_name, plot_name = ("steps", "steps", "steps") if steps else ("bench", "summary", "bench")
    write_atomically(folder / f"{rows_name}.csv", to_csv(rows))
    write_json(folder / f"{plot_name}.json", {**about, "notes": notes})
    if not any(row.measured for row in rows):
        console.print(
            "nothing could be measured: " + "; ".join(dict.fromkeys(row.reason for row in rows if row.reason))
        )
        return
    made = table.make(rows, notes, _told(about), steps=steps)
    write_atomically(folder / f"{table_name}.md", made.markdown())
    made.show(console)
    try:
        for kind, data in plot.draw(rows, _told(about), steps=steps).items():
            write_atomically(folder / f"{plot_name}.{kind}", data)
    except Exception as error:
        console.print(f"the plot could not be drawn: {one_line(error)}")
    names = f"{rows_name}.csv, {table_name}.md, {plot_name}.png, {plot_name}.svg, {plot_name}.json"
    console.print(f"{folder}/: {names}", style="dim", soft_wrap=True)
