"""Words that the kernels are written in: typed pointers, numbers of a pointer's type, a shared counter, scratch space.

Numba's arrays carry reference counts, bounds and error paths; a kernel of raw pointers compiles to code that calls
nothing at all, and so can be kept as an object file and loaded without Numba (compiler.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

intrinsic: Any = extending.intrinsic

# Sums may be reordered, which is what lets them run in vector registers; NaN and infinity keep their meaning.
REDUCE = {"reassoc", "contract", "nsz", "arcp"}
# Elementwise code rounds the same in forward and backward, so that both see the same sign before an activation.
EXACT = {"contract", "nsz"}
# Adds what other loops may fuse with a product or put in another order: so what a loop makes of a value does not depend
# on whether that is done in a vector register or behind its last one.
ALIKE: set[str] = set()
# The kernels' own numbers: float64 for all that is small, and whole numbers for places.
NUMBER, WHOLE = types.float64, types.int64
# Bytes that the processors at hand fetch at once.
LINE = 64
SETTINGS: dict[str, Any] = {"error_model": "numpy", "_nrt": False}

reduction: Any = numba.njit(fastmath=REDUCE, **SETTINGS)
elementwise: Any = numba.njit(fastmath=EXACT, **SETTINGS)
alike: Any = numba.njit(fastmath=ALIKE, **SETTINGS)
algebra: Any = numba.njit(fastmath=EXACT, **SETTINGS)


@intrinsic
def at(typing: Any, address: Any, dtype: Any) -> Any:
    """The memory at ``address`` as a pointer to ``dtype``."""
    signature = types.CPointer(dtype.dtype)(types.int64, dtype)

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(sig.return_type))

    return signature, generate


@intrinsic
def number(typing: Any, pointer: Any, value: Any) -> Any:
    """``value`` rounded to the type that ``pointer`` points to."""
    signature = pointer.dtype(pointer, value)

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return context.cast(builder, arguments[1], sig.args[1], sig.return_type)

    return signature, generate


@intrinsic
def prefetch(typing: Any, pointer: Any, index: Any) -> Any:
    """Begin to fetch the line of memory of a place; it need not exist."""
    signature = types.void(pointer, index)

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        place = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [place, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def line(typing: Any, pointer: Any) -> Any:
    """How many numbers of the pointer's type are a line of memory."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return ir.Constant(ir.IntType(64), LINE * 8 // sig.args[0].dtype.bitwidth)

    return types.int64(pointer), generate


@intrinsic
def root(typing: Any, value: Any) -> Any:
    """√value, as the processor's instruction (math.sqrt is a call that also sets errno, and so never a vector's)."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        function = builder.module.declare_intrinsic("llvm.sqrt", [arguments[0].type])
        return builder.call(function, arguments)

    return value(value), generate


@intrinsic
def rounded(typing: Any, value: Any) -> Any:
    """The nearest whole number, as the processor's instruction."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        function = builder.module.declare_intrinsic("llvm.rint", [arguments[0].type])
        return builder.call(function, arguments)

    return value(value), generate


@intrinsic
def power_of_two(typing: Any, value: Any) -> Any:
    """2ⁿ of a whole number n, of float64, from −1022 to 1023."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        # 1.5 · 2⁵² brings n into the lowest bits, which are then moved to where the exponent is.
        shifted = builder.fadd(arguments[0], ir.Constant(ir.DoubleType(), 6755399441055744.0 + 1023.0))
        word = builder.bitcast(shifted, ir.IntType(64))
        return builder.bitcast(builder.shl(word, ir.Constant(ir.IntType(64), 52)), ir.DoubleType())

    return types.float64(types.float64), generate


@intrinsic(prefer_literal=True)
def scratch(typing: Any, pointer: Any, length: Any) -> Any:
    """``length`` (a literal) numbers of the pointer's type on the stack, not cleared; they begin a line of memory, as
    vectors that lie across two take twice as long.
    """
    count = length.literal_value
    signature = pointer(pointer, length)

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        element = context.get_value_type(sig.return_type.dtype)
        space = cgutils.alloca_once(builder, ir.ArrayType(element, count))
        space.align = LINE
        return builder.bitcast(space, context.get_value_type(sig.return_type))

    return signature, generate


@intrinsic
def claim(typing: Any, address: Any, count: Any) -> Any:
    """Take the next ``count`` pieces of work: adds to the counter at ``address`` and returns what stood there."""
    signature = types.int64(types.int64, types.int64)

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "monotonic")

    return signature, generate


def worker(unpack: Any, work: Any) -> Callable[[Any], Callable[[int], None]]:
    """A kernel for each type: takes the pieces of each step while there are any, ``work(job, phase, first, last)``."""

    def of_type(T: Any) -> Callable[[int], None]:
        def run(block: int) -> None:
            w, which = unpack(block, T), at(block, WHOLE)
            for i in range(which[0], which[1]):
                place = block + 16 + 32 * i
                step = at(place, WHOLE)
                total, chunk, phase = step[1], step[2], step[3]
                while True:
                    start = claim(place, chunk)
                    if start >= total:
                        break
                    work(w, phase, start, min(start + chunk, total))

        return run

    return of_type
