"""The command ``python -m normbench.data``: exit 0 done, 1 a source that will not do, 2 a bad command, 130 stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from normbench.commands import BAD_COMMAND, DONE, FAILED, STOPPED, begin
from normbench.data.files import cores
from normbench.data.prepare import prepare
from normbench.data.prepared import Recipe
from normbench.errors import ConfigError, NormbenchError, UnknownName, one_line
from normbench.options import one_of

SPLITS = ("train", "val", "test")
HELP = """\
python -m normbench.data prepare root=DIR out=DIR [size=320] [quality=90] [split=train,val] [workers=N]

Makes a resized copy of class-per-folder pictures, to be read faster than they are: data.prepared=DIR, beside
data.root=DIR with the originals (then it is compared with them), or data.root=DIR with the copy alone.

  root      folder with train/ and val/ (or test/)
  out       a new folder; after a kill the same command goes on
  size      shorter side in pixels that larger pictures are resized to; smaller ones are copied as they are
  quality   of the JPEGs, 1 to 95
  split     folders to copy; train alone leaves the originals to evaluate on; default: train and val, or test without it
  workers   threads; default: one per core
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what ``argv`` says; the exit code says how it ended."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or any(word in ("--help", "-h", "help") for word in words):
        print(HELP, end="")
        return DONE
    try:
        if words[0] != "prepare":
            raise UnknownName("command", words[0], ["prepare"])
        print(made(read(words[1:])))
        return DONE
    except ConfigError as error:
        print(f"normbench: {one_line(error)}", file=sys.stderr)
        return BAD_COMMAND
    except (NormbenchError, OSError) as error:
        print(f"normbench: {one_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("normbench: stopped; the same command goes on", file=sys.stderr)
        return STOPPED


def made(values: Mapping[str, Any]) -> str:
    """Make the copy; the line that tells of it."""
    root, out = (Path(values[key]).expanduser() for key in ("root", "out"))
    recipe = Recipe(values.get("size", 320), values.get("quality", 90), values.get("split") or splits_of(root))
    manifest = prepare(root, out, recipe, threads=values.get("workers", cores()))
    count = sum(manifest["pictures"].values())
    return (
        f"{out}: {count:,} pictures ({', '.join(manifest['pictures'])}), {manifest['resized']:,} of them resized, "
        f"{manifest['bytes'] / 2**20:,.1f} MiB (were {manifest['source_bytes'] / 2**20:,.1f}); "
        f"read it with data.prepared={out} data.root={root}"
    )


def splits_of(root: Path) -> tuple[str, ...]:
    """What is copied where nothing is said."""
    tops = [root, *(path for path in root.glob("*") if (path / "train").is_dir())]
    return ("train", next((split for split in SPLITS[1:] if any((top / split).is_dir() for top in tops)), SPLITS[1]))


def read(words: Sequence[str]) -> dict[str, Any]:
    """The values that ``words`` give. Raises ConfigError."""
    values: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in PARSERS:
            raise UnknownName("key", key, PARSERS)
        if not equals or not value:
            raise ConfigError(f"{key}: got nothing; expected {key}=…; see --help")
        if key in values:
            raise ConfigError(f"{key}: given twice; expected it once")
        values[key] = PARSERS[key](key, value)
    for key in ("root", "out"):
        if key not in values:
            raise ConfigError(f"{key}: not given; expected {key}=DIR; see --help")
    return values


def _text(key: str, value: str) -> str:
    return value


def _number(least: int, most: int | None = None) -> Callable[[str, str], int]:
    def parse(key: str, value: str) -> int:
        if not value.isdecimal() or int(value) < least or (most is not None and int(value) > most):
            wanted = f"{least} to {most}" if most else f"{least} or more"
            raise ConfigError(f"{key}: got {value!r}, expected a whole number, {wanted}")
        return int(value)

    return parse


def _splits(key: str, value: str) -> tuple[str, ...]:
    for word in (words := value.split(",")):
        one_of(key, word, SPLITS)
    if len(set(words)) < len(words) or "train" not in words:
        raise ConfigError(f"{key}: got {value!r}, expected train, alone or with val or test behind a comma, each once")
    return tuple(split for split in SPLITS if split in words)


PARSERS: dict[str, Callable[[str, str], Any]] = {
    "root": _text, "out": _text, "size": _number(1), "quality": _number(1, 95), "split": _splits, "workers": _number(1),
}  # fmt: skip


if __name__ == "__main__":
    begin()
    sys.exit(main())
