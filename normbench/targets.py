"""Load what a user named on the command line: ``file.py:name`` or ``package.module:name``.

A file is imported once for each content: the key is its path and its hash, so an edited file is a new module and a
cell's id, which holds the hash, changes with it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from normbench.errors import ConfigError, UnknownName, nearest

# The group under which installed packages name normalizers: name = "package.module:Class".
GROUP = "normbench.norms"

_modules: dict[tuple[Path, str], types.ModuleType] = {}


def is_target(name: str) -> bool:
    """Whether ``name`` is of the form ``file.py:name`` or ``package.module:name``."""
    return ":" in name


@functools.cache
def installed() -> Mapping[str, str]:
    """The normalizers that installed packages bring: name → ``package.module:Class``. Nothing is imported."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


def load(target: str, what: str) -> tuple[Callable[..., Any], str | None]:
    """The callable that ``target`` names, and the SHA-256 of the file it comes from (None: it has no source file).

    ``what`` is the kind of thing wanted ("architecture"), for the messages. Raises ConfigError for a file or module
    that is missing, cannot be imported or gives something that cannot be called; UnknownName for a name it lacks.
    """
    place, _, attribute = target.rpartition(":")
    if not place or not attribute:
        raise ConfigError(f"{what} {target!r}: expected file.py:name or package.module:name, such as nets.py:my_net")
    module, sha256 = _from_file(place, target, what) if place.endswith(".py") else _from_package(place, target, what)
    found = getattr(module, attribute, None)
    if found is None:
        raise UnknownName(f"{what} of {place}", attribute, _public(module))
    if not callable(found):
        raise ConfigError(
            f"{what} {target!r}: expected a class or a function, got {type(found).__name__} {found!r:.40}"
        )
    return found, sha256


def line_of(error: BaseException, found: Any) -> str:
    """``, at mine.py:57``: where in the file of ``found``, a user's, an error was raised; empty if it was elsewhere."""
    module = sys.modules.get(found.__module__)
    source = getattr(module, "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source]
    return f", at {Path(str(source)).name}:{lines[-1]}" if lines else ""


def _from_file(place: str, target: str, what: str) -> tuple[types.ModuleType, str]:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        near = nearest(path.name, (p.name for p in path.parent.glob("*.py")))
        mend = f"did you mean {near!r}?" if near else "give its path from the folder the command runs in"
        raise ConfigError(f"{what} {target!r}: no file {place} here; {mend}")
    source = path.read_bytes()
    sha256 = hashlib.sha256(source).hexdigest()
    if (path, sha256) not in _modules:
        with _said(target, what), _beside(path.parent):
            _modules[path, sha256] = _execute(path, source, f"normbench_user_{path.stem}_{sha256[:12]}")
    return _modules[path, sha256], sha256


def _execute(path: Path, source: bytes, name: str) -> types.ModuleType:
    """Run the very bytes that were hashed, not a cached compilation of the file; drop the module if it raises."""
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # where dataclasses and pickle look
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_package(place: str, target: str, what: str) -> tuple[types.ModuleType, str | None]:
    with _said(target, what):
        module = importlib.import_module(place)
    origin = Path(getattr(module, "__file__", None) or "")
    return module, hashlib.sha256(origin.read_bytes()).hexdigest() if origin.is_file() else None


@contextmanager
def _said(target: str, what: str) -> Iterator[None]:
    """Turn whatever importing a user's code raises into one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        mend = "is it installed here? A file goes by its path, such as nets.py:my_net"
        raise ConfigError(f"{what} {target!r}: no module {error.name!r}; {mend}") from error
    except Exception as error:
        raise ConfigError(f"{what} {target!r}: importing it raised {type(error).__name__}: {error}") from error


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Let a user's file import its neighbours, as it could if it were run by itself."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _public(module: types.ModuleType) -> list[str]:
    """What the module itself defines and does not hide."""
    own = (n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__)
    return [n for n in own if not n.startswith("_")]
