"""Kernels from Python functions: compiled by Numba on first use, kept on disk as object files, loaded by LLVM alone.

An object file's name holds a digest of all that made it (these sources, Numba, LLVM, the processor), and it is put in
place in one move: whatever processes do at once, each loads a whole file that fits, or makes its own, equal one.
Numba itself is imported only to compile; loading takes a few hundredths of a second.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding as llvm

from normbench.files import cache_folder, write_atomically

# What a kernel may call: of the C library, which every process has.
ALLOWED = {"exp", "memset", "memcpy", "memmove"}
ENTRY = "entry"


class Kernel(NamedTuple):
    """A compiled kernel: a C function of one pointer, by its address and as something to call from Python."""

    address: int
    call: Callable[[int], None]


_engines: list[Any] = []  # they own the code, which lives as long as the process


@functools.cache
def kernel(module: str, name: str, dtype: str) -> Kernel:
    """The kernel that the function ``name(dtype)`` of ``normbench.norms.cpu.<module>`` describes."""
    path = cache_folder() / "kernels" / f"{name}-{dtype}-{_digest(module, name, dtype)}.o"
    code = _read(path)
    if code is None:
        code = _compile(module, name, dtype)
        if _sources() == SOURCES:  # else they were edited under this process, and the code may be of either
            _keep(path, code)
    return _load(code)


def prepare() -> None:
    """Raises what stands in the way of compiling and loading kernels here, by doing it to the smallest."""
    kernel("quantiles", "quantiles", "float32")


def _sources() -> str:
    """A digest of the files that kernels are made from, as they are now."""
    sources = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(b"\0".join(sources)).hexdigest()


# As they were when this process began to import them.
SOURCES = _sources()


def _digest(module: str, name: str, dtype: str) -> str:
    made_of = (SOURCES, version("numba"), version("llvmlite"), sys.platform, _processor(), module, name, dtype)
    return hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:24]


@functools.cache
def _processor() -> str:
    return f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"


def _read(path: Path) -> bytes | None:
    """The code in ``path``; None if there is none or it is damaged (its last 32 bytes are its SHA-256)."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    code, seal = data[:-32], data[-32:]
    return code if hashlib.sha256(code).digest() == seal else None


def _keep(path: Path, code: bytes) -> None:
    """Without a place to write, the next process compiles again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, code + hashlib.sha256(code).digest())
    except OSError:
        return


@functools.cache
def _machine(for_code: bool = False) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    host = {"cpu": llvm.get_host_cpu_name(), "features": llvm.get_host_cpu_features().flatten(), "opt": 3}
    host["codemodel"] = "large"  # code and the C library may lie further apart than a near call reaches
    return target.create_target_machine(jit=True, **(host if for_code else {}))


@functools.cache
def _tell() -> None:
    """Once in a process, since nothing else would explain the wait."""
    folder = cache_folder() / "kernels"
    words = "compiling kernels for this processor, as they are needed: up to half a minute each, once, kept in"
    print(f"{words} {folder}", file=sys.stderr, flush=True)


def _compile(module: str, name: str, dtype: str) -> bytes:
    """Numba's code for the kernel, optimized once more as a whole, in which nothing can fail any more."""
    import numba

    _tell()
    describe = getattr(importlib.import_module(f"normbench.norms.cpu.{module}"), name)
    signature = numba.void(numba.int64)
    settings: dict[str, Any] = {"error_model": "numpy", "_nrt": False}
    compiled = numba.cfunc(signature, **settings)(describe(getattr(numba, dtype)))
    code = llvm.parse_assembly(compiled.inspect_llvm())
    for function in code.functions:
        if function.name == compiled.native_name:
            function.name = ENTRY
        elif not function.is_declaration:
            function.linkage = "internal"
            function.add_function_attribute("alwaysinline")
    _optimize(code)
    outside = {f.name for f in code.functions if f.is_declaration and not f.name.startswith("llvm.")} - ALLOWED
    if outside:
        raise AssertionError(f"kernel {name}: calls {', '.join(sorted(outside))}, expected nothing outside itself")
    return _machine(for_code=True).emit_object(code)


def _optimize(code: Any) -> None:
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = True
    builder = llvm.create_pass_builder(_machine(for_code=True), options)
    builder.getModulePassManager().run(code, builder)


@functools.cache
def _link() -> None:
    """Tell LLVM where the C library's functions are; it does not look in the process by itself."""
    process = ctypes.CDLL(None)
    for name in ALLOWED:
        llvm.add_symbol(name, ctypes.cast(getattr(process, name), ctypes.c_void_p).value)


def _load(code: bytes) -> Kernel:
    _link()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    address = engine.get_function_address(ENTRY)
    return Kernel(address, ctypes.CFUNCTYPE(None, ctypes.c_int64)(address))
