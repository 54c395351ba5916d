"""The grid from a command line: read it, check every cell, run what is not done, leave a table and a plot.

python -m normbench.sweep norm=bgn batch=2,8,32
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from normbench import __version__, grid, planning, stages, track
from normbench.commands import DONE, begin, ended
from normbench.errors import ConfigError, NormbenchError, UnknownName, one_line
from normbench.files import plain
from normbench.launch import forkserver, slurm
from normbench.options import AUTO, at_least, one_of
from normbench.records import Store
from normbench.spinning import spin_less
from normbench.tune import Tuning

if TYPE_CHECKING:
    from normbench.preflight import Planned

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
    goes_on = "the same command goes on from here"
    words = sys.argv[1:] if argv is None else argv
    return ended(lambda: sweep(words), mend=f"; mend it, and {goes_on}", stopped=f"stopped; {goes_on}")


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
    planned, tuning = _checked(request, store)
    if len(planned) < len(request.cells):
        alike = len(request.cells) - len(planned)
        print(
            f"{alike} of {len(request.cells)} combinations are the same cell as another and run once", file=sys.stderr
        )
    if settings["plan"]:
        planning.show(planned, store, settings, tuning)
        return DONE
    warning = stages.make_room(planned, tuning, settings)
    store.create()
    return stages.run(planned, tuning, store, settings, warning)


def _checked(request: grid.Grid, store: Store) -> tuple[list[Planned], Tuning | None]:
    """Every cell of the grid, checked, and where rates are tuned the trials that choose them."""
    from normbench.preflight import Preflight

    preflight = Preflight(fetch=not request.settings["plan"])
    try:
        planned = preflight.plan(request, store)
        tuned = any(item.cell.tune is not None for item in planned)
        return planned, Tuning(planned, preflight, request, store) if tuned else None
    except (NormbenchError, OSError):
        raise
    except Exception as error:  # a user's own network, pictures or normalizer, most likely
        raise ConfigError(
            f"checking the grid failed{_where(error)}: {type(error).__name__}: {one_line(error)}"
        ) from error


def _where(error: BaseException) -> str:
    """The innermost line of code that an error came from, with its file's name."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


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


if __name__ == "__main__":
    spin_less()
    begin()
    sys.exit(main())
