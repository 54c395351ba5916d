"""python -m normbench.records merge SOURCE... --into TARGET"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from normbench.errors import NormbenchError, one_line
from normbench.records.merge import merge


def main(argv: Sequence[str] | None = None) -> int:
    """Merge stores; exit code 0, or 2 for what cannot be merged."""
    parser = argparse.ArgumentParser(prog="python -m normbench.records", description="Put stores together.")
    commands = parser.add_subparsers(dest="command", required=True)
    words = "copy the cells of several stores, or of several sweeps, into one; of a cell that is there twice the better"
    merging = commands.add_parser("merge", help=words, description=words)
    merging.add_argument("sources", nargs="+", metavar="SOURCE", help="runs/ of another machine, or runs/<name>")
    merging.add_argument("--into", required=True, metavar="TARGET", help="the store or sweep that gets them")
    arguments = parser.parse_args(argv)
    try:
        counts = merge(arguments.sources, arguments.into)
    except NormbenchError as error:
        print(f"normbench: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"{arguments.into}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()) + " cells")
    print(f"tables and plots of it:  python -m normbench.report {arguments.into}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
