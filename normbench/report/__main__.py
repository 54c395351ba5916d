"""python -m normbench.report DIR: print the tables of a store or of one sweep, and write them and the plots.

With ``power=…`` it says how many seeds would show a difference instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from normbench import records
from normbench.commands import DONE, ended, hush
from normbench.errors import ConfigError, NormbenchError, StoreError
from normbench.report import command, write

EPILOG = """\
Into each sweep's folder go
  results.csv          one row per cell (a training run): configuration, status, measurements
  results.parquet      the same, typed
  epochs.parquet       one row per cell and epoch
  table.csv            one row per entry of the table: line, configuration, batch; mean, s.d., interval and number of
                       its seeds; difference to the baseline with interval, p and p_holm, verdict and kinds of noise
  table.md, table.tex  the table as it is printed, and its notes; for LaTeX, with booktabs
  tune.csv             where tune.lr chose rates: one row per trial, its top-1 on held-out pictures, chosen or not
  plot.png, plot.svg   top-1 against batch; and, likewise, as far as there is something to show:
    heat               heat map norm × batch
    curves             learning curves: top-1 and the training loss against the epoch
    cost               top-1 against the time of a step and the peak memory
  report.html          all of it for a browser: cells to sort and filter, curves, failures; needs no network
They are made from the cells' own folders, so this can be done again at any time, while a sweep runs too, and on a
machine without torch.

keys:
  baseline=LINE        what the others are compared with, a line's label or a normalizer; bn where it is there
  power=POINTS,...     print how many seeds would show such differences of top-1 (in points) to the baseline, by the
                       noise that the sweep itself has; nothing is written

examples:
  python -m normbench.report runs              every sweep in runs/ but reference/
  python -m normbench.report runs/first        one sweep
  python -m normbench.report runs/reference    the published results that came along
  python -m normbench.report runs/first baseline=gn
  python -m normbench.report runs/first power=0.2,0.5,1

exit status: 0, or 2 for a folder that is missing, holds no sweep or was written by another schema version, for a
baseline that stands in no line, and for power where no two seeds can be compared
"""


# The table's marks where a terminal has no letters for them.
PLAIN = str.maketrans("▲▼≈", "^v~")


def main(arguments: Sequence[str] | None = None) -> int:
    """Report on every folder named.

    What cannot be reported on is an error when it is named, and passed over with a word when it lies in a store: a
    sweep without a cell yet, of another schema, without the baseline that is asked for, without the seeds that
    ``power`` takes. Nothing is written unless all that are named are of this schema.
    """
    words = _parser().parse_args(arguments).word
    return ended(lambda: _report(command.read(words)), "normbench.report")


def _report(asked: command.Asked) -> int:
    """One sweep after the other; what one of a store lacks to be compared is an error only if all lack it."""
    folders = list(dict.fromkeys(sweep for named in asked.folders for sweep in records.sweeps(named)))
    named = [Path(path) for path in asked.folders]
    for folder in folders:
        if folder in named:
            records.check_schema(folder)
    done, passed = 0, list[NormbenchError]()
    for folder in folders:
        if folder not in named and not records.cells_of(folder):
            _say(f"{folder}: no cell yet")
            continue
        if folder not in named and (error := _of_another_schema(folder)):
            _say(str(error))
            passed.append(error)
            continue
        try:
            _say(_power(folder, asked) if asked.power else str(write(folder, asked.baseline)))
            done += 1
        except NormbenchError as error:
            if folder in named or not (asked.power or isinstance(error, ConfigError)):
                raise
            passed.append(error)
            _say(str(error) if str(folder) in str(error) else f"{folder}: {error}")
    if passed and not done:
        raise passed[0]
    return DONE


def _of_another_schema(folder: Path) -> StoreError | None:
    try:
        records.check_schema(folder)
    except StoreError as error:
        return error
    return None


def _power(folder: Path, asked: command.Asked) -> str:
    """The seeds it takes, block by block."""
    from normbench.report import frame, power

    cells = frame.read(folder)
    found = power.bases(folder, cells, frame.spots(cells), asked.baseline)
    return "\n\n".join(power.told(folder.resolve().name, basis, asked.power) for basis in found) + "\n"


def _say(text: str) -> None:
    """Print; whoever has read enough (``| head``) or cannot show a letter keeps no report from being written."""
    try:
        print(text, flush=True)
    except UnicodeEncodeError:
        _say(text.translate(PLAIN).encode("ascii", "replace").decode())
    except BrokenPipeError:
        hush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m normbench.report",
        usage="python -m normbench.report [-h] [baseline=LINE] [power=POINTS,...] DIR [DIR ...]",
        description="Print the table norm × batch of finished cells, and write it and its pictures.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("word", metavar="DIR", nargs="+", help="a store (runs/) or one sweep in it (runs/<name>)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
