"""The grid from a command line: read it, check every cell, run what is not done, leave a table and a plot.

python -m normbench.sweep norm=bgn batch=2,8,32
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import textwrap
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from normbench import __version__, grid, track
from normbench.errors import ConfigError, NormbenchError, StoreError, UnknownName, one_line
from normbench.files import plain
from normbench.launch import forkserver, slurm
from normbench.options import AUTO, at_least, one_of
from normbench.records import Store, cell_status, cells_of
from normbench.spinning import spin_less

DONE, FAILED, BAD_COMMAND, STOPPED = 0, 1, 2, 130
FINE = ("ok", "skipped")
FAILURES = ("diverged", "oom", "timeout", "error")
RERUNS = ("none", "failed", "all")

HELP = """\
python -m normbench.sweep KEY=VALUE[,VALUE...] ...

Trains one network per combination of the values and leaves runs/<name>/results.csv, table.md and plot.png.

  python -m normbench.sweep norm=bgn batch=2,8,32
  python -m normbench.sweep norm=bn,gn,bgn,frn batch=2,4,8,16 arch=resnet50 data=cifar10 'seed=range(3)'
  python -m normbench.sweep 'norm=glob(*)' batch=2 plan=true
  python -m normbench.sweep norm=bn,gn options.gn.num_groups=16,32

Groups (a config file, or what else the group takes):
{groups}
  An option of one: norm.num_groups=16  arch.stem=cifar  data.root=FOLDER  recipe.weight_decay=0

Keys and their defaults
{keys}

"""
FLAGS = """\
Flags:
  --config-dir DIR   a folder with more configs: DIR/norm/mine.yaml, DIR/data/..., DIR/recipe/...
  --cfg job          print the configuration of every cell and run nothing
  --version, --help
Exit code: 0 all cells ok or skipped; 1 some failed; 2 bad command or config, nothing run; 130 stopped by Ctrl-C.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep that ``argv`` asks for; the exit code says how it ended."""
    try:
        return sweep(sys.argv[1:] if argv is None else argv)
    except NormbenchError as error:
        print(f"normbench: {one_line(error)}", file=sys.stderr)
        return BAD_COMMAND
    except BrokenPipeError:  # whoever read the output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:  # a disk that fills, a store that goes away: finished cells are whole
        print(f"normbench: {one_line(error)}; mend it, and the same command goes on from here", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("normbench: stopped; the same command goes on from here", file=sys.stderr)
        return STOPPED


def sweep(argv: Sequence[str]) -> int:
    arguments = _arguments(argv)
    if arguments.help:
        print(_help(), end="")
        return DONE
    request = grid.read(arguments.overrides, arguments.config_dir)
    settings = request.settings
    _check(settings)
    strays = [word.split("=")[0] for word in arguments.overrides if word.startswith("slurm.")]
    if strays and settings["launch"] != "slurm":
        raise ConfigError(f"{strays[0]} is given, but the cells would run here; add launch=slurm, or leave it out")
    if arguments.cfg:
        print(
            "---\n".join(yaml.safe_dump(plain(item.cell.nested()), sort_keys=False) for item in request.cells), end=""
        )
        return DONE
    store = Store(settings["runs"], settings["name"])

    # torch is imported from here on: whatever can be told without it has been told.
    if not settings["plan"] and settings["launch"] == "local":
        forkserver.shared()  # it imports torch too, meanwhile
    from normbench.preflight import Preflight

    try:
        planned = Preflight(fetch=not settings["plan"]).plan(request, store)
    except (NormbenchError, OSError):
        raise
    except Exception as error:  # a user's own network, pictures or normalizer, most likely
        raise ConfigError(
            f"checking the grid failed{_where(error)}: {type(error).__name__}: {one_line(error)}"
        ) from error
    if len(planned) < len(request.cells):
        alike = len(request.cells) - len(planned)
        print(
            f"{alike} of {len(request.cells)} combinations are the same cell as another and run once", file=sys.stderr
        )
    if settings["plan"]:
        _print_plan(planned, store, settings)
        return DONE
    warning = _make_room(planned, settings)
    store.create()
    return _run(planned, store, settings, warning)


def _make_room(planned: Sequence[Any], settings: Mapping[str, Any]) -> str | None:
    """Raise ConfigError for more slots than memory holds; what else is to be said of it."""
    from normbench.launch import room
    from normbench.launch.local import in_turn
    from normbench.preflight import will_run

    slots = settings["slots"]
    return room.check(in_turn(will_run(planned, settings["rerun"]), slots), slots, settings["ranks"])


def _run(planned: Sequence[Any], store: Store, settings: Mapping[str, Any], warning: str | None = None) -> int:
    from normbench.display import Display
    from normbench.launch.local import Local, record_skip
    from normbench.preflight import will_run

    todo = {item.cell_id: item for item in will_run(planned, settings["rerun"])}
    tracker = track.make(settings["track"], folder=store.folder)
    writable = True
    try:
        with Display(len(planned), settings["slots"]) as display:
            states = {item.cell_id: "new" if item.cell_id in todo else item.status for item in planned}
            display.plan([(item.cell_id, item.label, states[item.cell_id]) for item in planned])
            tracker.note = display.note
            if warning:
                display.note(warning)
            stand = Counter(item.status for item in planned if item.cell_id not in todo and item.status in FAILURES)
            if stand:
                counts = ", ".join(f"{count} {status}" for status, count in stand.items())
                display.note(f"failed before, and not run again without rerun=failed: {counts}")
            for item in planned:
                if item.skip is not None:
                    record_skip(item, store)
                    skipped = {"status": "skipped", "reason": item.skip}
                    display.finish(item.cell_id, item.label, skipped)
                    if item.status != "skipped":  # else it was told before
                        tracker.finish(item.cell_id, skipped)
            launcher: slurm.Slurm | Local
            if settings["launch"] == "slurm":
                launcher = slurm.Slurm(store, display, tracker, settings)
            else:
                slots, ranks, timeout, threads = (
                    settings[key] for key in ("slots", "ranks", "cell_timeout", "threads")
                )
                launcher = Local(store, display, tracker, slots, ranks, timeout, threads)
            launcher.run(todo.values(), [item for item in planned if item.cell_id not in todo])
    except StoreError as error:
        writable = False
        raise OSError(one_line(error)) from None
    finally:
        try:
            if writable:
                _report(store)
        finally:  # the results first: it may wait
            tracker.close()
    if isinstance(launcher, slurm.Slurm) and launcher.left:  # detached
        return DONE
    statuses = Counter(cell_status(store.cell(item.cell_id)) for item in planned)
    if statuses["running"]:
        print(f"{statuses['running']} of the cells are at work in another process, and not done", file=sys.stderr)
    fine = FINE[:1] if settings["strict"] else FINE
    return DONE if all(status in fine for status in statuses) else FAILED


def _where(error: BaseException) -> str:
    """The innermost line of code that an error came from, with its file's name."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _report(store: Store) -> None:
    """Table and plot; what goes wrong with them is said and changes nothing about the cells."""
    from normbench import report

    try:
        if cells_of(store.folder):
            print(report.write(store.folder))
        else:
            store.write_results()
    except Exception as error:
        print(f"normbench: what the cells left is whole, but no table or plot: {one_line(error)}", file=sys.stderr)


def _check(settings: Mapping[str, Any]) -> None:
    """The settings of the sweep as a whole."""
    one_of("rerun", settings["rerun"], RERUNS)
    one_of("track", settings["track"] or "none", track.KINDS)
    one_of("launch", settings["launch"], ("local", "slurm"))
    if settings["launch"] == "slurm":
        slurm.check(settings)
    elif settings["detach"]:
        raise ConfigError("detach=true: only jobs of a cluster go on without this process; it needs launch=slurm")
    for key in ("slots", "ranks"):
        at_least(key, settings[key], 1)
    threads = settings["threads"]
    if threads not in (None, AUTO) and not (threads.isdecimal() and int(threads) >= 1):
        raise ConfigError(f"threads: got {threads}, expected a whole number from 1, {AUTO} or null")
    if settings["cell_timeout"] is not None and not settings["cell_timeout"] > 0:
        raise ConfigError(f"cell_timeout: got {settings['cell_timeout']}, expected seconds, more than 0, or null")
    if not settings["name"] or "/" in settings["name"] or settings["name"].startswith("."):
        raise ConfigError(
            f"name: got {settings['name']!r}, expected the plain name of a folder below runs={settings['runs']}"
        )


def _print_plan(planned: Sequence[Any], store: Store, settings: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from normbench.preflight import will_run

    todo = {item.cell_id for item in will_run(planned, settings["rerun"])}
    axes = ["arch", "data", "norm", "batch", "workers", "seed"]
    flats = [item.cell.flat() for item in planned]
    chosen = dict.fromkeys(key for item in planned for key in item.changed if key not in axes)
    axes += [key for key in chosen if len({str(flat.get(key)) for flat in flats}) > 1]
    table = Table("cell", *axes, "state", box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    states = []
    for item, flat in zip(planned, flats, strict=True):
        states.append(_state(item, item.cell_id in todo))
        table.add_row(item.cell_id, *(str(flat.get(key, "")) for key in axes), states[-1])
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
    else:  # a log or a pipe has no width: nothing there may be cut
        wide = Console(width=400, highlight=False)
        with wide.capture() as captured:
            wide.print(table)
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))
    counts = Counter(state.split(":")[0] for state in states)
    console.print(f"{_count(planned)}: " + "; ".join(f"{count} {state}" for state, count in counts.items()))
    for line in _autos([item for item in planned if item.cell_id in todo], store, settings):
        console.print(line, soft_wrap=True)


def _autos(planned: Sequence[Any], store: Store, settings: Mapping[str, Any]) -> list[str]:
    """What is known of the values that are auto, a line for each."""
    from normbench.launch.choosing import Choosing
    from normbench.launch.places import Places

    places = Places(settings["slots"], settings["ranks"])
    return Choosing(store.folder, places, settings["threads"]).told(planned)


def _count(planned: Sequence[Any]) -> str:
    return f"{len(planned)} cell" + ("s" if len(planned) != 1 else "")


def _state(item: Any, runs: bool) -> str:
    if item.skip is not None:
        return f"would be skipped: {item.skip}"
    if item.status == "new":
        return "new"
    done = "done" if item.status == "ok" else item.status
    return f"{done}, to be run again" if runs else done


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="version", version=f"normbench {__version__}")
    parser.add_argument("--config-dir", "-cd", action="append", default=[])
    parser.add_argument("--cfg", "-c", choices=["job"])
    # Hydra's flag for sweeps: every run here is one, so it is welcome and means nothing.
    parser.add_argument("--multirun", "-m", action="store_true")
    return parser.parse_intermixed_args(argv)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        if message.startswith("unrecognized arguments"):
            got = message.split(": ", 1)[1].split()[0]
            key = got.lstrip("-").split("=")[0]
            raise UnknownName("flag", got, flags, f"Keys have no dashes: {key}=…")
        raise ConfigError(f"{message}; see --help")


def _help() -> str:
    configs = grid.Configs()
    more = {
        "arch": "any torchvision classifier by name, file.py:callable",
        "data": "file.py:callable",
        "norm": "file.py:Class, package.module:Class",
        "recipe": "",
    }
    groups = "\n".join(
        textwrap.fill(
            f"{group:<7} {', '.join(configs.options(group))}" + (f"; {more[group]}" if more[group] else ""),
            width=110,
            initial_indent="  ",
            subsequent_indent=" " * 10,
        )
        for group in grid.GROUPS
    )
    lines = (grid.conf_folder() / "sweep.yaml").read_text().partition("\n\n")[2].splitlines()
    keys = "\n".join(line.removeprefix("# ") if line.startswith("#") else f"  {line}" for line in lines if line)
    return HELP.format(groups=groups, keys=keys) + FLAGS


def _stop(signum: int, frame: Any) -> NoReturn:
    """A polite kill ends the sweep as Ctrl-C does: the cell at work is closed as interrupted."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    spin_less()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ± must not cost a sweep
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's word
            signal.signal(number, _stop)
    sys.exit(main())
