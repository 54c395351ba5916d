"""python -m normbench.report DIR: print the tables of a store or of one sweep, and write them and the plots."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from normbench import records
from normbench.errors import NormbenchError
from normbench.report import write

EPILOG = """\
Into each sweep's folder go
  results.csv          one row per cell (a training run): configuration, status, measurements
  table.csv            one row per entry of the table: line, configuration, batch, mean, s.d. and number of its seeds
  table.md             the table as it is printed, and its notes
  plot.png, plot.svg   top-1 against batch
  report.html          all of it for a browser: cells to sort and filter, curves, failures; needs no network
They are made from the cells' own folders, so this can be done again at any time, while a sweep runs too, and on a
machine without torch.

examples:
  python -m normbench.report runs              every sweep in runs/ but reference/
  python -m normbench.report runs/first        one sweep
  python -m normbench.report runs/reference    the published results that came along

exit status: 0, or 2 for a folder that is missing, holds no sweep or was written by another schema version
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Report on every folder named; nothing is written unless all of them can be read.

    A sweep without a cell yet is an error when it is named, and passed over with a word when it lies in a store.
    """
    options = _parser().parse_args(arguments)
    try:
        folders = list(dict.fromkeys(sweep for named in options.dir for sweep in records.sweeps(named)))
        for folder in folders:
            records.check_schema(folder)
        named = [Path(path) for path in options.dir]
        for folder in folders:
            if folder not in named and not any(folder.glob("*/config.yaml")):
                _say(f"{folder}: no cell yet")
            else:
                _say(str(write(folder)))
    except NormbenchError as error:
        print(f"normbench.report: {error}", file=sys.stderr)
        return 2
    return 0


def _say(text: str) -> None:
    """Print; whoever has read enough (``| head``) or cannot show a letter keeps no report from being written."""
    try:
        print(text, flush=True)
    except UnicodeEncodeError:
        _say(text.encode("ascii", "replace").decode())
    except BrokenPipeError:
        # What is still buffered would be tried again, and fail again, when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m normbench.report",
        description="Print the table norm × batch of finished cells, and write it and its plot.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dir", metavar="DIR", nargs="+", help="a store (runs/) or one sweep in it (runs/<name>)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
