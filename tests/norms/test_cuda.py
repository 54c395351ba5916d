"""The CUDA kernels: equal to plain PyTorch in Triton's interpreter, taken by the compiler, and right on a device.

Run as a script, with TRITON_INTERPRET=1 in the environment, it compares all cases on CPU tensors and prints failures.
"""

from __future__ import annotations

import functools
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normbench.norms import plain
from normbench.norms.call import Parts, Shape

cuda = pytest.importorskip("normbench.norms.cuda")

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
ACTIVATIONS: dict[str, nn.Module | None] = {"none": None, "relu": nn.ReLU(), "relu6": nn.ReLU6()}
CLIPS = {"none": (-math.inf, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
PARTS = {
    "affine": ("weight", "bias"),
    "threshold": ("threshold",),
    "after": ("scale", "shift"),
    "gate": ("gate_weight", "gate_bias"),
    "renorm": ("to_mean", "to_std", "bounds"),
    "weight": ("weight",),
    "bias": ("bias",),
}


@dataclass(frozen=True)
class Case:
    size: tuple[int, int, int, int] = (4, 6, 5, 5)
    rows: int = 1
    groups: int = 6
    parts: str = "affine"
    activation: str = "relu"
    centered: bool = True
    fixed: bool = False
    loose: bool = False
    dtype: str = "float32"
    parts_dtype: str = "float32"
    offset: float = 0.5
    format: str = "contiguous"

    def __str__(self) -> str:
        others = (f"{key}={value}" for key, value in vars(self).items() if value != getattr(Case, key))
        return ",".join(others).replace(" ", "") or "default"

    @property
    def low_precision(self) -> bool:
        return self.dtype != "float32"


def sharing(N: int, C: int) -> Iterator[tuple[int, int]]:
    """Rows and groups of every kind."""
    for rows in sorted({1, max(N // 2, 1), N}):
        for groups in sorted({1, min(4, C), C}):
            yield rows, groups


SIZES = [(4, 6, 3, 5), (2, 6, 4, 8), (6, 5, 1, 1), (1, 6, 4, 4), (2, 3, 1, 7), (4, 1, 6, 3)]
FLAT = [
    *(Case(size, rows, groups) for size in SIZES for rows, groups in sharing(*size[:2])),
    *(Case(activation=activation, groups=3) for activation in ACTIVATIONS),
    *(Case(parts=parts, groups=3) for parts in ("", "weight", "bias")),
    Case(rows=4, parts="affine threshold", activation="none", centered=False),
    Case((3, 5, 2, 3), 3, 5, "affine threshold", "none", centered=False, loose=True),
    Case(rows=2, groups=4, parts="affine threshold", activation="none"),
    Case(rows=2, parts="threshold after", activation="none", centered=False),
    Case(rows=1, parts="affine renorm"),
    Case(rows=2, parts="affine renorm", activation="none"),
    Case(rows=2, parts="renorm", loose=True),
    Case(rows=1, parts="affine gate"),
    Case(rows=2, groups=4, parts="affine gate"),
    Case(rows=4, parts="gate", activation="none"),
    Case((6, 5, 1, 1), 2, 5, "affine gate"),
    Case(parts="affine gate", fixed=True),
    Case(parts="affine", fixed=True),
    Case(rows=4, groups=1, parts="", fixed=True, activation="none"),
    Case(rows=4, groups=1, parts="affine after", activation="relu6"),
    Case(rows=2, groups=4, parts="affine after", activation="none", loose=True),
    Case((4, 6, 9, 7), 2, 6, offset=1000.0),
    Case((4, 6, 9, 7), 2, 4, "affine gate", offset=1000.0),
    Case((2, 17, 3, 3), 1, 5, "affine"),
    *(
        Case(dtype=dtype, parts_dtype=own, rows=2, groups=groups, parts=parts, activation=activation)
        for dtype, own in (("bfloat16", "float32"), ("float16", "float32"), ("bfloat16", "bfloat16"))
        for parts, activation, groups in (
            ("affine", "relu", 6), ("affine threshold", "none", 3), ("affine gate after", "relu6", 6),
            ("affine renorm", "relu", 6),
        )
    ),
]  # fmt: skip
CASES = [replace(case, format=name) for name in FORMATS for case in FLAT]


def covering(cases: list[Case]) -> list[Case]:
    """A few of them: every value of every field is in one."""
    found, left = list[Case](), {item for case in cases for item in vars(case).items()}
    while left:
        found.append(max(cases, key=lambda case: len(left & vars(case).items())))
        left -= vars(found[-1]).items()
    return found


# Large enough for many spans, and for more programs than a device runs at once.
LARGE = [
    Case(size, rows, groups, parts, dtype=dtype, format=name)
    for size in ((8, 64, 57, 56), (32, 128, 14, 14), (64, 96, 7, 7))
    for rows, groups, parts in ((1, size[1], "affine"), (size[0], 32, "affine"), (1, 16, ""), (1, size[1], "gate"))
    for dtype in ("float32", "bfloat16")
    for name in FORMATS
]


def values(case: Case, device: str) -> tuple[Tensor, Tensor, Parts, tuple[Tensor, Tensor] | None, Shape]:
    """x, dy, parts, given statistics, and the shape of a case."""
    N, C, H, W = case.size
    random = torch.Generator().manual_seed(sum(case.size) + case.rows + 7 * case.groups)
    dtype, own = getattr(torch, case.dtype), getattr(torch, case.parts_dtype)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=random)

    x = (draw(N, C, H, W) + case.offset * (1 + draw(N, C, 1, 1) / 1000)).to(dtype)
    dy = draw(N, C, H, W).to(dtype)
    every = {
        "weight": 1 + 0.3 * draw(C), "bias": 0.3 * draw(C), "threshold": 0.3 * draw(C), "scale": 1 + 0.3 * draw(C),
        "shift": draw(C), "gate_weight": draw(C) / (1 + case.offset), "gate_bias": draw(C),
        "to_mean": case.offset + 0.3 * draw(C), "to_std": 1 + 0.2 * draw(C),
    }  # fmt: skip
    parts = {key: every[key].to(own).to(device) for kind in case.parts.split() for key in PARTS[kind] if key in every}
    if "renorm" in case.parts:
        parts["bounds"] = torch.tensor([math.inf, math.inf] if case.loose else [1.1, 0.2], device=device)
    given = None
    if case.fixed:
        given = (case.offset + 0.1 * draw(case.rows, case.groups)).to(device), draw(case.rows, case.groups).square()
        given = given[0], (given[1] + 0.5).to(device)
    low, high = CLIPS[case.activation]
    eps: Any = torch.tensor(1e-3, device=device) if case.loose else 1e-3
    shape = Shape(case.rows, case.groups, eps, case.centered, low, high)
    memory_format = FORMATS[case.format]
    x, dy = (value.to(device).contiguous(memory_format=memory_format) for value in (x, dy))
    return x, dy, Parts(**parts), given, shape


def reference(
    x: Tensor, parts: Parts, given: Any, shape: Shape, eps: Tensor, activation: nn.Module | None, whole: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and var in plain PyTorch; without what comes behind the affine part unless ``whole``."""
    pairs: dict[str, Any] = {"threshold": parts.threshold}
    if parts.scale is not None and parts.shift is not None:
        pairs["after"] = plain.After(parts.scale, parts.shift)
    if not whole:
        pairs, activation = {}, None
    if parts.gate_weight is not None and parts.gate_bias is not None:
        pairs["gate"] = plain.Gate(parts.gate_weight, parts.gate_bias)
    if given is not None:
        y = plain.normalize(x, *given, eps, parts.weight, parts.bias, activation, **pairs)
        return y, *given
    if parts.to_mean is not None and parts.to_std is not None and parts.bounds is not None:
        pairs["renorm"] = plain.Renorm(parts.to_mean, parts.to_std, parts.bounds)
    return plain.standardize(
        x, shape.rows, shape.groups, eps, parts.weight, parts.bias, activation, centered=shape.centered, **pairs
    )


def compare(case: Case, device: str = "cpu") -> None:
    """Raise AssertionError where the kernels and plain PyTorch in float64 part ways."""
    x, dy, parts, given, shape = values(case, device)
    exact = x.double().requires_grad_()
    exact_parts = Parts(*(None if part is None else part.double().requires_grad_() for part in parts))
    exact_given = None if given is None else (given[0].double(), given[1].double())
    eps = torch.full((), float(shape.eps), dtype=torch.float64, device=device, requires_grad=True)
    activation = ACTIVATIONS[case.activation]
    z = reference(exact, exact_parts, exact_given, shape, eps, activation, whole=False)[0].detach()
    for bound in (shape.low, shape.high, parts.threshold):  # where float32 may round to the other side
        if bound is not None:
            edge = bound[:, None, None].double() if isinstance(bound, Tensor) else bound
            dy = dy.masked_fill((z - edge).abs() < 1e-3, 0.0)
    want, mean, var = reference(exact, exact_parts, exact_given, shape, eps, activation)
    want.backward(dy.double())

    y, saved = cuda.forward(x, shape, parts, given)
    dx, found, dvar = cuda.backward(dy, x, shape, parts, saved, case.fixed, True, True)
    assert y.stride() == x.stride()
    assert y.dtype == x.dtype
    close("y", y, want)
    close("mean", cuda.moments(saved, shape)[0], mean)
    close("var", cuda.moments(saved, shape)[1], var)
    assert dx is not None
    assert dx.stride() == x.stride()
    close("dx", dx, exact.grad)
    rest = iter(found)
    for name, part, right in zip(Parts._fields[:7], parts, exact_parts, strict=False):
        if part is not None and right is not None:
            got = next(rest)
            assert got.dtype == part.dtype
            assert got.shape == part.shape
            close(f"d{name}", got, right.grad)
    assert next(rest, None) is None
    assert dvar is not None
    close("dvar", dvar.sum(), eps.grad)


def close(name: str, got: Tensor, want: Tensor | None) -> None:
    assert want is not None
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(got.dtype, 0.0)
    if got.device.type == "cpu":
        rounding *= 2  # the interpreter cuts off instead of rounding
    want = want.detach()
    apart, scale = (got.double() - want).abs(), float(want.abs().max())
    allowed = rounding * want.abs() + 2e-5 * max(1.0, scale)
    assert bool((apart <= allowed).all()), f"{name}: off by {float(apart.max()):.3g}, scale {scale:.3g}"


def ties_go_where_they_go_in_plain_pytorch(device: str = "cpu") -> None:
    x = torch.tensor([-1.0, 0.0, 0.5, 6.0, 7.0, math.nan], device=device).reshape(1, 2, 1, 3)
    dy = torch.ones_like(x)
    given = torch.zeros(1, 2, device=device), torch.ones(1, 2, device=device)
    cases: list[tuple[Parts, str, Any]] = [
        (Parts(), "relu", [0, 0, 1, 1, 1]),
        (Parts(), "relu6", [0, 0, 1, 0, 0]),
        (Parts(threshold=torch.tensor([0.5, 6.0], device=device)), "none", [0, 0, 0, 0, 1]),
    ]
    for parts, activation, passes in cases:
        shape = Shape(1, 2, 0.0, True, *CLIPS[activation])
        y, saved = cuda.forward(x, shape, parts, given)
        want = reference(x, parts, given, shape, torch.zeros((), device=device), ACTIVATIONS[activation])[0]
        torch.testing.assert_close(y, want, equal_nan=True)
        dx, found, _ = cuda.backward(dy, x, shape, parts, saved, True, True, False)
        assert dx is not None
        assert dx.flatten().tolist()[:5] == passes, activation
        if parts.threshold is not None:
            assert found[-1][0] == 3.0


def a_far_mean_costs_no_digits(device: str = "cpu") -> None:
    """At a mean of 1000 standard deviations the error is no more than twice that of nn.BatchNorm2d."""
    random = torch.Generator().manual_seed(0)
    for memory_format in FORMATS.values():
        x = (1000 + torch.randn((8, 4, 24, 24), generator=random)).to(device).contiguous(memory_format=memory_format)
        exact = nn.BatchNorm2d(4, device=device, dtype=torch.float64)(x.double())
        torchs = nn.BatchNorm2d(4, device=device)(x)
        ours, _ = cuda.forward(x, Shape(1, 4, 1e-5, True, -math.inf, math.inf), Parts())
        error = float((ours - exact).detach().abs().max())
        assert error <= 2 * float((torchs - exact).detach().abs().max())
        assert error <= 1e-5


EDGES = [ties_go_where_they_go_in_plain_pytorch, a_far_mean_costs_no_digits]


def interpret(name: str) -> int:
    """Compare the cases of a memory format, or a few of both, in the interpreter; returns how many failed."""
    # Small tiles, so that small tensors have several chunks, spans and blocks of everything.
    cuda.TILE, cuda.LONGEST, cuda.WIDEST, cuda.FEW = 128, 16, 4, 1
    cuda.ENTRIES, cuda.ONE_GROUP, cuda.FINISH = 64, 8, (4, 4)
    chosen = covering(CASES) if name == "few" else [case for case in CASES if case.format == name]
    checks = {str(case): functools.partial(compare, case) for case in chosen}
    checks |= {edge.__name__: functools.partial(edge, "cpu") for edge in EDGES}
    failed = 0
    for title, check in checks.items():
        try:
            check()
        except Exception as error:
            failed += 1
            print(f"{title}: {type(error).__name__}: {error}")
    print(f"{len(checks)} compared, {failed} failed")
    return failed


@pytest.mark.parametrize("name", ["few", *(pytest.param(name, marks=pytest.mark.slow) for name in FORMATS)])
def test_kernels_equal_plain_pytorch_in_the_interpreter(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, name],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def compiled(case: Case, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every kernel that a case runs, compiled for an H100 from the arguments it is given, by name."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    kernels: dict[str, Any] = {}
    types = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}

    def record(kernel: Any, programs: int, *arguments: Any, **flags: int) -> None:
        assert 0 < programs < 2**31
        signature, constants = dict.fromkeys(flags, "constexpr"), dict[str, Any](flags)
        for name, value in zip(kernel.arg_names, arguments, strict=False):
            if value is None:
                signature[name], constants[name] = "constexpr", None
            elif isinstance(value, Tensor):
                signature[name] = "*" + types[value.dtype]
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32" if value < 2**31 else "i64"
        places = {(i,): [["tt.divisibility", 16]] for i, value in enumerate(arguments) if isinstance(value, Tensor)}
        signature = {name: signature[name] for name in kernel.arg_names}
        source = ASTSource(kernel, signature, constants, places)
        kernels[kernel.__name__] = compile(
            source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True}
        )  # fmt: skip

    monkeypatch.setattr(cuda, "launch", record)
    x, _, parts, given, shape = values(replace(case, size=(1, case.size[1], 1, 1)), "meta")
    x = torch.empty(case.size, device="meta", dtype=x.dtype, memory_format=FORMATS[case.format])
    _, saved = cuda.forward(x, shape, parts, given)
    cuda.backward(x, x, shape, parts, saved, case.fixed, True, True)
    return kernels


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        *(
            Case((8, 64, 56, 56), 1, 64, parts, dtype=dtype, format=name)
            for dtype in ("float32", "bfloat16")
            for name in FORMATS
            for parts in ("affine", "affine threshold", "affine gate after")
        ),
        Case((8, 64, 7, 7), 8, 32, "affine", dtype="float16"),
        Case((8, 64, 1, 1), 1, 64, "affine renorm", dtype="bfloat16", parts_dtype="bfloat16", loose=True),
        Case((8, 64, 14, 14), 1, 5, "affine", fixed=True),
        # More values, and more pixels, than 32 bits count.
        Case((2**17, 64, 256, 256), 1, 64, "affine", format="channels_last"),
        Case((2**17, 64, 256, 256), 1, 64, "affine"),
    ],
    ids=str,
)
def test_the_compiler_takes_the_kernels(case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = compiled(case, monkeypatch)
    given_only = {"settle", "apply", "sums", "resolve", "back"}
    assert kernels.keys() == given_only if case.fixed else given_only | {"moments"}
    assert all(kernel.asm["cubin"] for kernel in kernels.values())
    if case.size[2:] == (56, 56):  # what lies side by side is read and written 16 bytes at a time
        for name in ("moments", "apply", "sums", "back"):
            assert re.search(r"ld\.global[.\w:]*\.v4\.b32", kernels[name].asm["ptx"]), name
        for name in ("apply", "back"):
            assert re.search(r"st\.global[.\w:]*\.v4\.b32", kernels[name].asm["ptx"]), name


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=str)
def test_kernels_equal_plain_pytorch_on_the_device(case: Case) -> None:
    compare(case, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("edge", EDGES)
def test_edges_on_the_device(edge: Callable[[str], None]) -> None:
    edge("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("case", [LARGE[0], LARGE[-1]], ids=str)
def test_two_runs_agree_to_the_bit_and_so_does_a_graph(case: Case) -> None:
    x, dy, parts, given, shape = values(case, "cuda")

    def step() -> list[Tensor]:
        y, saved = cuda.forward(x, shape, parts, given)
        dx, found, dvar = cuda.backward(dy, x, shape, parts, saved, case.fixed, True, True)
        assert dx is not None
        assert dvar is not None
        return [y, *cuda.moments(saved, shape), dx, *found, dvar]

    eager = [value.clone() for value in step()]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for value in captured:
        value.zero_()
    graph.replay()
    for again, first in zip(captured, eager, strict=True):
        assert torch.equal(again, first)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMATS)
def test_more_values_than_32_bits_count(name: str) -> None:
    size = (2**31 // (64 * 128 * 128) + 2, 64, 128, 128)
    if torch.cuda.mem_get_info()[0] < 10 * math.prod(size):
        pytest.skip("needs four bfloat16 tensors of more than 2^31 values")
    x = torch.empty(size, device="cuda", dtype=torch.bfloat16, memory_format=FORMATS[name]).normal_()
    shape = Shape(1, 64, 1e-5, True, 0.0, math.inf)
    y, saved = cuda.forward(x, shape, Parts())
    mean, var = cuda.moments(saved, shape)
    torch.testing.assert_close(var, torch.ones_like(var), atol=1e-2, rtol=0.0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-2, rtol=0.0)
    for here in (slice(0, 1), slice(-1, None)):
        torch.testing.assert_close(y[here], plain.normalize(x[here], mean, var, 1e-5, None, None, nn.ReLU()))
    dx = cuda.backward(x, x, shape, Parts(), saved, False, True, False)[0]
    assert dx is not None
    assert float(dx[-1].float().abs().max()) > 0


def milliseconds(work: Callable[[], Any], runs: int = 30) -> float:
    """The median of so many runs, by the device's clock."""
    for _ in range(5):
        work()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
    for start, stop in marks:
        start.record()
        work()
        stop.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(stop) for start, stop in marks)[runs // 2]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case",
    [
        Case(size, rows, groups, dtype=dtype, format=name)
        for dtype, size in (("float32", (64, 256, 56, 56)), ("bfloat16", (128, 256, 56, 56)))
        for name in FORMATS
        for rows, groups in ((1, 256), (size[0], 32), (1, 16))
    ],
    ids=str,
)
def test_bandwidth_against_a_copy(case: Case) -> None:
    """Forward 80 % of a copy's bandwidth, forward and backward 70 %, counting 3 and 8 passes over the tensor."""
    x, dy, parts, given, shape = values(case, "cuda")
    other = torch.empty_like(x)
    one_pass = milliseconds(lambda: other.copy_(x)) / 2
    there = milliseconds(lambda: cuda.forward(x, shape, parts, given))
    _, saved = cuda.forward(x, shape, parts, given)
    back = milliseconds(lambda: cuda.backward(dy, x, shape, parts, saved, False, True, False))
    forth, both = 3 * one_pass / there, 8 * one_pass / (there + back)
    print(f"\n{case}: copy {x.nbytes / one_pass / 1e9:.2f} TB/s, forward {forth:.0%}, forward and backward {both:.0%}")
    assert forth >= 0.8
    assert both >= 0.7


if __name__ == "__main__":
    sys.exit(bool(interpret(*sys.argv[1:])))
