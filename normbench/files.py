"""Files that are written whole or not at all, and read without a word if they are damaged; where the configs lie."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from normbench.errors import ConfigError

# The folder of a sweep where what auto came to stands.
CHOICES = ".choices"
# The folder of a sweep where the trials lie that choose learning rates: a sweep's folder itself.
TRIALS = ".tune"


def conf_folder() -> Path:
    """conf/ inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "sweep.yaml").is_file():
            return folder
    raise ConfigError(f"no conf/sweep.yaml in or beside {package}; expected the installed package or a checkout")


def write_atomically(path: Path, text: str | bytes) -> None:
    """Write a whole file or nothing: a temporary file beside it, flushed to disk, then renamed over it."""
    data = text.encode() if isinstance(text, str) else text
    with temporary(path) as own:
        with own.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        own.replace(path)


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A name beside ``path`` that nobody else uses, on this machine or another; what is left there at the end goes."""
    own = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield own
    finally:
        _remove(own)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep_up(folder: Path, older_than: float = 0.0) -> None:
    """Delete what writers that were killed left half written, if it is so many seconds old."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime >= older_than:
                _remove(path)


def shorten(path: Path, size: int) -> None:
    """Keep the last ``size`` bytes of a file that is longer."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        if path.stat().st_size > size:
            file.seek(-size, os.SEEK_END)
            last = file.read()
            file.seek(0)
            file.write(last)
            file.truncate()


def truncate_to_lines(path: Path, keep: int) -> bool:
    """Keep the first ``keep`` whole lines of a file; False if it has not so many."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if len(lines) != keep:
        write_atomically(path, b"".join(lines[:keep]))
    return len([line for line in lines[:keep] if line.endswith(b"\n")]) == keep


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(plain(content), indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing or damaged (its owner was killed)."""
    try:
        content = decoded(path.read_bytes())
    except OSError:
        return {}
    return content if isinstance(content, dict) else {}


def decoded(data: bytes) -> Any:
    """What JSON in UTF-8 says; None if it is damaged. Letters that no file could hold again become U+FFFD."""
    try:
        content = json.loads(data.decode())
    except (ValueError, RecursionError):
        return None
    return writable(content) if _UNWRITABLE.search(data) else content


# Escapes of control characters and of halves of letters, which JSON can hold but no text file or page.
_UNWRITABLE = re.compile(rb"\\u(?:00[01]|[dD][89a-fA-F])|\\[bf]")


def writable(value: Any) -> Any:
    """With U+FFFD for letters that no text file or page can hold."""
    if isinstance(value, dict):
        return {writable(key): writable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [writable(item) for item in value]
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", "\ufffd", value) if isinstance(value, str) else value


def legible(text: str) -> str:
    """``text`` on one line: spaces for what breaks lines, escapes for what cannot be printed or written."""
    if text.isprintable():
        return text
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: NaN and infinities become None, tuples lists, other objects their text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def one_value(value: Any) -> Any:
    """As a flat configuration holds it: a table (BGN's groups by batch) on one line."""
    return " ".join(f"{key}:{item}" for key, item in value.items()) if isinstance(value, Mapping) else value


def cache_folder() -> Path:
    """Where cache files lie: $NORMBENCH_CACHE, else $XDG_CACHE_HOME/normbench, else ~/.cache/normbench."""
    if os.environ.get("NORMBENCH_CACHE"):
        return Path(os.environ["NORMBENCH_CACHE"]).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "normbench"
