"""``python -m normbench.norms``: the registry as a table; with names, those methods at length."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from normbench.errors import NormbenchError
from normbench.norms import listing


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code, 2 for a name that is none."""
    parser = argparse.ArgumentParser(prog="python -m normbench.norms", description="What normalizers there are.")
    parser.add_argument("name", nargs="*", help="tell of these alone, with their options; also file.py:Class")
    parser.add_argument("--markdown", action="store_true", help="the table as the README has it")
    given = parser.parse_args(argv)
    try:
        if given.markdown:
            print(listing.markdown())
        elif given.name:
            print("\n\n".join(map(listing.details, given.name)))
        else:
            print(listing.table(), listing.LEGEND, sep="\n\n")
    except NormbenchError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
