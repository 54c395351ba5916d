"""Kernels are compiled once, kept as files that are whole or not there, and loaded by LLVM alone."""

from __future__ import annotations

import importlib
import math
import os
import struct
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from normbench.norms.cpu import compiler

# The smallest kernel, which takes about a second to compile.
SMALLEST = ("quantiles", "quantiles", "float32")
LAYOUTS = ("planes", "pixels", "rows", "small", "segments", "stretches")
EVERY_KERNEL = [
    *((layout, f"{layout}_{way}") for layout in LAYOUTS for way in ("forward", "backward")),
    *(("positions", f"positions_{layout}_{way}") for layout in ("planes", "pixels") for way in ("forward", "backward")),
    ("quantiles", "quantiles"),
    ("transposes", "transpose"),
]


@pytest.fixture(autouse=True)
def _forget_what_is_loaded() -> Iterator[None]:
    compiler.kernel.cache_clear()
    yield
    compiler.kernel.cache_clear()


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without kernels; gives the folder that they will be in."""
    monkeypatch.setenv("NORMBENCH_CACHE", str(tmp_path / "empty"))
    return tmp_path / "empty" / "kernels"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fills with the names of the kernels that are compiled."""
    names, compile_it = list[str](), compiler._compile

    def noted(module: str, name: str, dtype: str) -> bytes:
        names.append(name)
        return compile_it(module, name, dtype)

    monkeypatch.setattr(compiler, "_compile", noted)
    return names


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def test_a_kernel_that_is_there_is_loaded_without_numba() -> None:
    code = (
        "import sys, torch; from normbench import norms\n"
        "x = torch.randn(4, 6, 5, 3, requires_grad=True)\n"
        "for memory_format in (torch.contiguous_format, torch.channels_last):\n"
        "    unit = norms.build('bn', 6)\n"
        "    y = unit(x.contiguous(memory_format=memory_format))\n"
        "    y.sum().backward()\n"
    )
    exec(code, {})  # compiles what is not there yet
    told = "print(type(y.grad_fn).__name__, 'numba' in sys.modules)"
    assert output(python(code + told)).split() == ["_FusedBackward", "False"]


def test_a_kernel_is_compiled_once_and_then_read(empty: Path, compiled: list[str]) -> None:
    first = compiler.kernel(*SMALLEST)
    assert compiler.kernel(*SMALLEST) is first
    compiler.kernel.cache_clear()
    assert compiler.kernel(*SMALLEST).address
    assert compiled == ["quantiles"]
    (path,) = empty.iterdir()
    assert compiler._read(path)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:100], lambda data: b"", lambda data: data[:-1], lambda data: data[:50] + b"x" + data[51:]],
    ids=["cut short", "empty", "a byte less", "a byte changed"],
)
def test_a_damaged_file_is_made_anew(damage: Callable[[bytes], bytes], empty: Path, compiled: list[str]) -> None:
    compiler.kernel(*SMALLEST)
    (path,) = empty.iterdir()
    whole = path.read_bytes()
    damaged = damage(whole)
    assert damaged != whole
    path.write_bytes(damaged)
    compiler.kernel.cache_clear()
    assert compiler.kernel(*SMALLEST).address
    assert compiled == ["quantiles", "quantiles"]
    assert compiler._read(path)


def test_without_a_place_to_write_kernels_work_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("NORMBENCH_CACHE", str(tmp_path / "file"))
    assert compiler.kernel(*SMALLEST).address
    assert compiled == ["quantiles"]
    assert (tmp_path / "file").read_text() == "not a folder"


def test_processes_that_compile_at_once_all_work_and_leave_one_whole_file(empty: Path) -> None:
    code = f"""
import os, warnings, numba
from normbench.norms.cpu import compiler

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
children = []
for _ in range(2):
    child = os.fork()
    if not child:
        children = []
        break
    children.append(child)
assert compiler.kernel(*{SMALLEST}).address
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
os.write(1, b"works\\n")  # at once: print may write the line and its end apart
"""
    assert output(python(code)).split() == ["works"] * 3
    (path,) = empty.iterdir()
    assert compiler._read(path)


@pytest.mark.skipif(sys.platform != "linux", reason="object files are of another format")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("module", "name"), EVERY_KERNEL)
def test_an_object_file_needs_nothing_but_what_is_allowed(module: str, name: str, dtype: str) -> None:
    compiler.kernel(module, name, dtype)
    file = f"{name}-{dtype}-{compiler._digest(module, name, dtype)}.o"
    code = compiler._read(Path(os.environ["NORMBENCH_CACHE"], "kernels", file))
    assert code is not None
    defined, needed = symbols(code)
    assert compiler.ENTRY in defined
    assert needed <= compiler.ALLOWED


def symbols(code: bytes) -> tuple[set[str], set[str]]:
    """The names that an ELF object file defines, and those that it needs of others."""
    start, size, count = struct.unpack_from("<Q10xHH", code, 0x28)
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, start + i * size) for i in range(count)]
    (table,) = (section for section in sections if section[1] == 2)
    names, found = sections[table[6]][4], (set[str](), set[str]())
    for at in range(table[4], table[4] + table[5], 24):
        name, _, _, section = struct.unpack_from("<IBBH", code, at)
        text = code[names + name : code.index(b"\0", names + name)].decode()
        if text:
            found[section == 0].add(text)
    return found


def test_what_a_kernel_calls_outside_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the error function of the C library."""
    pointers = importlib.import_module("normbench.norms.cpu.pointers")
    at, number = pointers.at, pointers.NUMBER

    def asking(_dtype: object) -> Callable[[int], None]:
        def run(block: int) -> None:
            numbers = at(block, number)
            numbers[0] = math.erf(numbers[1])

        return run

    module = types.ModuleType("asking")
    module.asking = asking  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "normbench.norms.cpu.asking", module)
    with pytest.raises(AssertionError, match="kernel asking: calls erf, expected nothing outside itself"):
        compiler._compile("asking", "asking", "float32")


@pytest.mark.parametrize("what", ["source", "numba", "llvmlite", "processor", "module", "name", "dtype"])
def test_all_that_makes_a_kernel_changes_its_files_name(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, asked = compiler._digest(*SMALLEST), list(SMALLEST)
    assert compiler._digest(*SMALLEST) == before
    if what in ("numba", "llvmlite"):
        version = compiler.version
        monkeypatch.setattr(compiler, "version", lambda name: version(name) + "+" * (name == what))
    elif what == "processor":
        monkeypatch.setattr(compiler, "_processor", lambda: "another")
    elif what == "source":
        read, sources = Path.read_bytes, compiler._sources()
        monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"\n" * (path.name == "family.py"))
        assert compiler._sources() != sources
        monkeypatch.setattr(compiler, "SOURCES", compiler._sources())
    else:
        asked[("module", "name", "dtype").index(what)] += "x"
    assert compiler._digest(*asked) != before


def test_what_was_edited_under_the_process_is_not_kept(
    empty: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code in memory may be older than the files that the name would stand for."""
    monkeypatch.setattr(compiler, "_sources", lambda: "edited")
    assert compiler.kernel(*SMALLEST).address
    assert compiled == ["quantiles"]
    assert not list(empty.glob("*"))
