"""python -m normbench.track push DIR...   |   python -m normbench.track dashboard [--json]"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Sequence

from normbench import records
from normbench.commands import DONE, FAILED, ended
from normbench.errors import NormbenchError

EPILOG = """\
examples:
  python -m normbench.track push runs                      every sweep in runs/ but reference/
  python -m normbench.track push runs/first                one sweep
  WANDB_MODE=offline python -m normbench.track push runs/first
  wandb sync runs/first/wandb/offline-run-*                sends what was written offline
  python -m normbench.track dashboard                      saves the dashboard in the project
  python -m normbench.track dashboard --json               prints it; needs no account

WANDB_PROJECT (normbench), WANDB_ENTITY, WANDB_MODE and WANDB_DIR are heeded.
exit status: 0; 1 when W&B failed (the same command goes on from there); 2 for a bad command, or a folder that is
missing, holds no sweep, was written by another schema version or is being mirrored by its sweep; 130 after Ctrl-C
"""
PUSH = """\
Make or complete a Weights & Biases run for every cell (training run) of the sweeps. What W&B has already is left alone,
so this can be done again at any time: after a bad network, and when cells that were at work or killed have ended."""
DASHBOARD = """\
Save the dashboard as a workspace of the project: top-1 against batch for each normalizer, learning curves, cost,
failures, gap between training and test. The package wandb-workspaces is needed: pip install 'normbench[workspaces]'."""


def main(argv: Sequence[str] | None = None) -> int:
    """Push stores, or make the dashboard; the exit code says how it went."""
    options = _parser().parse_args(argv)
    return ended(
        lambda: _push(options.dir) if options.command == "push" else _dashboard(options),
        "normbench.track",
        stopped="stopped; the same command goes on from here",
    )


def _push(named: Sequence[str]) -> int:
    from normbench.track.push import push, told
    from normbench.track.runs import Runs, reason

    folders = list(dict.fromkeys(sweep for name in named for sweep in records.sweeps(name)))
    for folder in folders:
        records.check_schema(folder)
    for folder in folders:
        runs = Runs(folder)
        try:
            print(told(folder, runs, push(folder, runs)), flush=True)
        except NormbenchError:
            raise
        except (Exception, SystemExit) as error:
            print(
                f"normbench.track: {folder}: W&B: {reason(error)}; the same command goes on from here", file=sys.stderr
            )
            return FAILED
    return DONE


def _dashboard(options: argparse.Namespace) -> int:
    from normbench.track import workspace
    from normbench.track.runs import reason

    if options.json:
        print(workspace.as_json(), end="")
        return DONE
    try:
        print(*workspace.save(), sep="\n")
    except NormbenchError:
        raise
    except (Exception, SystemExit) as error:
        print(f"normbench.track: W&B: {reason(error)}", file=sys.stderr)
        return FAILED
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m normbench.track",
        description="Weights & Biases as a projection of the store.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="push|dashboard")
    add = functools.partial(commands.add_parser, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EPILOG)
    pushing = add("push", help="send what is in a store and not in W&B", description=PUSH)
    pushing.add_argument("dir", metavar="DIR", nargs="+", help="a store (runs/) or one sweep in it (runs/<name>)")
    board = add("dashboard", help="the dashboard as code", description=DASHBOARD)
    board.add_argument("--json", action="store_true", help="print the workspace instead of saving it")
    return parser


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    # Not by way of W&B's own ending, which waits for a network that does not answer: what was finished is sent.
    os._exit(code)
