"""The CPU kernels against plain PyTorch: outputs, statistics and every gradient, and what precision and threads do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from normbench import norms
from normbench.norms import core, fused
from normbench.norms.call import Shape
from normbench.norms.cpu import plan, team

# Maps of one pixel: one image, odd channels, two pieces of work, groups of a tile or wider, which begin amid a tile.
ONES = [(1, 7, 1, 1), (2, 9, 1, 1), (5, 30, 1, 1), (18, 24, 1, 1), (3, 1260, 1, 1)]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
both_formats = pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
# Even and odd, one pixel, one image, maps of more than one block of sums, more channels than a tile.
SMALL = [(2, 8, 16, 16), (4, 6, 5, 3), (4, 6, 1, 1), (1, 6, 4, 4), (6, 33, 3, 7), (2, 3, 70, 70), (2, 700, 2, 1)]
# Enough values for two threads, even where these wait for each other: few columns, many channels, many columns. With
# the rows and groups to try: such that a thread takes groups from first to last, and such that all go through phases.
LARGE = {(2, 5, 120, 120): [(1, 5), (1, 2)], (3, 700, 8, 8): [(3, 4), (1, 700)], (512, 32, 3, 3): [(1, 1), (512, 32)]}
# The same for lanes, of which there are fewer groups than threads would want.
LARGE |= {(512, 7, 7, 7): [(1, 7), (1, 3)]}


# Small maps that are taken by lanes where all images are a row: two blocks of images and more channels than a run; maps
# that fill vectors; few channels at once, whose values are no power of two; as few images as channels may share.
LANES = [(34, 37, 2, 2), (17, 34, 4, 4), (18, 7, 10, 10), (16, 6, 5, 3)]


class Use(NamedTuple):
    """What of the family is used: the tensors beside x by name, and the rest as it is asked for."""

    tensors: tuple[str, ...] = ()  # the residual is a map, all others are one value a channel
    activation: type[nn.Module] | None = None
    centered: bool = True
    learned_eps: bool = False
    way: str = "standardize"  # or "measured", "channels" (measured by channel) or "given" statistics


AFFINE, GATE, AFTER = ("weight", "bias"), ("gate_weight", "gate_bias"), ("scale", "shift")
USES = {
    "bare": Use(),
    "relu": Use(activation=nn.ReLU),
    "affine": Use(AFFINE),
    "affine-relu": Use(AFFINE, nn.ReLU),
    "affine-relu6": Use(AFFINE, nn.ReLU6),
    "weight-alone": Use(("weight",), nn.ReLU),
    "bias-alone": Use(("bias",), nn.ReLU),
    "threshold": Use((*AFFINE, "threshold")),
    "uncentered": Use(AFFINE, nn.ReLU, centered=False),
    "uncentered-threshold-eps": Use((*AFFINE, "threshold"), centered=False, learned_eps=True),
    "eps": Use(AFFINE, nn.ReLU, learned_eps=True),
    "after": Use((*AFFINE, *AFTER), nn.ReLU),
    "threshold-after": Use((*AFFINE, "threshold", *AFTER)),
    "gate": Use((*AFFINE, *GATE), nn.ReLU, way="measured"),
    "gate-without-affine": Use(GATE),
    "gate-threshold-after": Use((*AFFINE, "threshold", *AFTER, *GATE)),
    "renorm": Use((*AFFINE, "renorm"), nn.ReLU, way="measured"),
    "renorm-without-affine": Use(("renorm",), way="measured"),
    "measured": Use(AFFINE, nn.ReLU6, way="measured"),
    "measured-by-channel": Use(AFFINE, nn.ReLU, way="channels"),
    "given": Use(AFFINE, nn.ReLU, way="given"),
    "residual": Use(("residual",)),
    "residual-relu": Use((*AFFINE, "residual"), nn.ReLU),
    "residual-relu6": Use((*AFFINE, "residual"), nn.ReLU6),
    "residual-uncentered-eps": Use((*AFFINE, "residual"), nn.ReLU, centered=False, learned_eps=True),
    "residual-gate": Use((*AFFINE, *GATE, "residual"), nn.ReLU),
    "residual-renorm": Use((*AFFINE, "renorm", "residual"), nn.ReLU),
    "residual-given": Use((*AFFINE, "residual"), nn.ReLU, way="given"),
    "given-gate-threshold": Use((*AFFINE, "threshold", *GATE), way="given"),
}


class Case:
    """A use at one shape, with its tensors drawn at random; ``run`` gives all that comes of it."""

    def __init__(
        self, use: Use, shape: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype = torch.float64
    ) -> None:
        self.use, self.dtype = use, dtype
        self.generator = torch.Generator().manual_seed(0)
        C = shape[1]
        self.x = (self.draw(*shape) * 2 + 1).contiguous(memory_format=memory_format).requires_grad_()
        self.dy = self.draw(*shape).contiguous(memory_format=memory_format)
        # The residual lies in memory as it is drawn, whatever x's format is.
        shapes = {name: shape if name == "residual" else (C,) for name in use.tensors if name != "renorm"}
        self.parts = {name: self.draw(*size).requires_grad_() for name, size in shapes.items()}
        self.eps: Any = 1e-3
        if use.learned_eps:
            self.eps = torch.tensor(1e-3, dtype=dtype, requires_grad=True)
        self.renorm = None
        if "renorm" in use.tensors:
            bounds = torch.tensor([1.5, 0.7], dtype=torch.float64)
            self.renorm = core.Renorm(self.draw(C), self.draw(C).abs() + 1, bounds)

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def run(self, rows: int, groups: int) -> dict[str, Tensor]:
        """y, the statistics, and the gradients of all tensors, by name."""
        y, found = self.forward(rows, groups)
        learned = {"x": self.x, **self.parts, **({"eps": self.eps} if self.use.learned_eps else {})}
        slopes = torch.autograd.grad(y, list(learned.values()), self.dy)
        return {"y": y.detach(), **found, **{f"d{name}": slope for name, slope in zip(learned, slopes, strict=True)}}

    def forward(self, rows: int, groups: int) -> tuple[Tensor, dict[str, Tensor]]:
        use, part = self.use, self.parts.get
        activation = None if use.activation is None else use.activation()
        affine = (self.eps, part("weight"), part("bias"), activation)
        gate = core.Gate(*(self.parts[name] for name in GATE)) if "gate_weight" in self.parts else None
        after = core.After(*(self.parts[name] for name in AFTER)) if "scale" in self.parts else None
        if use.way == "given":
            mean, var = self.draw(rows, groups), self.draw(rows, groups).square() + 0.1
            more = {"threshold": part("threshold"), "gate": gate, "residual": part("residual")}
            return core.normalize(self.x, mean, var, *affine, **more), {}
        if use.way in ("measured", "channels"):
            by_channel = use.way == "channels"
            y, found = core.measured(
                self.x, rows, groups, *affine, renorm=self.renorm, gate=gate, by_channel=by_channel
            )
            return y, dict(zip(("mean", "var"), found.tensors(), strict=True))
        y = core.standardize(
            self.x, rows, groups, *affine, centered=use.centered, threshold=part("threshold"), gate=gate, after=after,
            renorm=self.renorm, residual=part("residual"),
        )  # fmt: skip
        return y, {}

    def by_hand(self, rows: int, groups: int) -> dict[str, Tensor]:
        """The same in plain PyTorch."""
        self.generator.manual_seed(1)
        with fused.unfused():
            return self.run(rows, groups)

    def by_kernels(self, rows: int, groups: int, threads: int = 1) -> dict[str, Tensor]:
        self.generator.manual_seed(1)
        torch.set_num_threads(threads)
        return self.run(rows, groups)

    def ways(self) -> list[tuple[int, int]]:
        """Rows and groups to try."""
        N, C = self.x.shape[:2]
        groups = {C} if self.renorm is not None else {1, 2, min(4, C), C - 1, C}
        rows = {1, N} if N % 2 else {1, N // 2, N}
        return [(R, G) for R in sorted(rows) for G in sorted(groups)]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, words: object) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1.0, value.abs().max().item())
        error = (got[name] - value).abs().max().item() / scale
        assert error <= tolerance, f"{name} is off by {error:.1e} of its scale with {words}"


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], words: object) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), f"{name} differs with {words}"


def the_kernels_are_asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fills with a word for every forward and backward of theirs."""
    asked: list[str] = []
    cpu = fused._cpu()
    assert cpu is not None
    for name in ("forward", "backward"):
        kernel: Callable[..., Any] = getattr(cpu, name)

        def noted(*given: Any, name: str = name, kernel: Callable[..., Any] = kernel, **options: Any) -> Any:
            asked.append(name)
            return kernel(*given, **options)

        monkeypatch.setattr(cpu, name, noted)
    return asked


@both_formats
@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_the_kernels_do_what_plain_pytorch_does(
    shape: tuple[int, ...], use: Use, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one, half and all of the images a row of statistics, and one, two, uneven and all of the groups."""
    asked = the_kernels_are_asked(monkeypatch)
    case = Case(use, shape, memory_format)
    for rows, groups in case.ways():
        got, expected = case.by_kernels(rows, groups), case.by_hand(rows, groups)
        assert asked == ["forward", "backward"]
        asked.clear()
        assert_close(got, expected, 1e-10, f"{rows=}, {groups=}")
        assert got["y"].stride() == got["dx"].stride() == case.x.stride()


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("shape", LANES, ids=str)
def test_small_maps_go_by_lanes(shape: tuple[int, ...], use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all of the images a row of statistics, and for half of them."""
    N, C, H, W = shape
    one_by_one = "gate_weight" in use.tensors or (use.way == "given" and H * W > plan.LANES_GIVEN)
    assert plan.goes_by_lanes(H * W, N, own=False)
    case = Case(use, shape, torch.contiguous_format)
    read = the_layouts_that_are_asked_for(monkeypatch)
    for rows in (1, 2) if N % 2 == 0 else (1,):
        for groups in [1, 2, 3, C // 4, C] if case.renorm is None else [C]:
            got, expected = case.by_kernels(rows, groups), case.by_hand(rows, groups)
            assert_close(got, expected, 1e-10, f"{rows=}, {groups=}")
            if rows == 1:
                assert read[-1] == ("planes" if one_by_one else "small")


def the_layouts_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fills with the module of every kernel that a new plan is made of."""
    asked, kernel = list[str](), plan.compiler.kernel
    monkeypatch.setattr(plan, "plans", {})

    def noted(module: str, *of: str) -> Any:
        asked.append(module)
        return kernel(module, *of)

    monkeypatch.setattr(plan.compiler, "kernel", noted)
    return asked


@pytest.mark.parametrize("shape", LANES, ids=str)
def test_lanes_keep_digits_and_values_that_are_not_finite_apart(shape: tuple[int, ...]) -> None:
    """A mean far above the spread, and a channel that is not finite beside others."""
    case = Case(USES["affine-relu"], shape, torch.contiguous_format, torch.float32)
    case.x.data += 2000
    exact = Case(USES["affine-relu"], shape, torch.contiguous_format)
    exact.x.data = case.x.data.double()
    got, expected = case.by_kernels(1, shape[1]), exact.by_hand(1, shape[1])
    assert_close(got, expected, 1e-3, "a mean of 1000 times the spread")
    case.x.data[0, 2, 1, 1] = float("nan")
    broken = case.by_kernels(1, shape[1])
    others = [c for c in range(shape[1]) if c != 2]
    assert torch.isnan(broken["y"][:, 2]).all()
    assert torch.isnan(broken["dx"][:, 2]).all()
    for name in ("y", "dx"):
        assert torch.equal(broken[name][:, others], got[name][:, others])


@both_formats
@pytest.mark.parametrize("shape", [(2, 3, 12, 12), (8, 3, 2, 2), (2, 3, 1, 1)], ids=str)
def test_by_given_statistics_without_activation_nothing_is_cut_off(
    shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    """Not even what is infinite: a run that has diverged shows it."""
    x = torch.ones(shape).contiguous(memory_format=memory_format)
    x[0, 0, 0, 0], x[0, 1, 0, 0] = 3e38, -3e38
    x.requires_grad_()
    weight, bias = torch.full((3,), 2.0, requires_grad=True), torch.zeros(3, requires_grad=True)
    given = torch.zeros(1, 3), torch.ones(1, 3)

    def run() -> tuple[Tensor, ...]:
        y = core.normalize(x, *given, 0.0, weight, bias)
        return (y, *torch.autograd.grad(y.sum(), (x, weight, bias)))

    with fused.unfused():
        expected = run()
    assert expected[0].isinf().sum() == 2
    for got, value in zip(run(), expected, strict=True):
        assert torch.equal(got, value)


def goes_by_rows(case: Case, groups: int) -> bool:
    """Whether a call of the case's takes the kernels of rows, of one image each."""
    use = (case.use.way == "given", "gate_weight" in case.parts, case.renorm is not None, case.use.way == "channels")
    shape = Shape(case.x.shape[0], groups, 1e-3, case.use.centered, 0.0, 6.0)
    return plan.goes_by_rows(case.x, shape, plan.Use(*use))


@both_formats
@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("shape", ONES, ids=str)
def test_maps_of_one_pixel_by_statistics_of_each_image(
    shape: tuple[int, ...], use: Use, memory_format: torch.memory_format
) -> None:
    """In groups that divide the channels, and in some that do not; those of one value have no spread."""
    case = Case(use, shape, memory_format)
    N, C = shape[:2]
    if "threshold" in case.parts:  # where a group is one value, x̂ is 0 or the sign, and y may be at the threshold
        case.parts["threshold"].data += 0.01
    for groups in [1, 2, 3, C // 3, C] if case.renorm is None else [C]:
        got, expected = case.by_kernels(N, groups), case.by_hand(N, groups)
        assert_close(got, expected, 1e-10, f"{groups=}")
        assert got["y"].stride() == got["dx"].stride() == case.x.stride()
    simple = use.way in ("standardize", "measured") and not {"renorm", "gate_weight"} & set(use.tensors)
    assert goes_by_rows(case, C) == simple
    assert not goes_by_rows(case, C - 1)


@both_formats
@pytest.mark.parametrize("activation", [None, nn.ReLU, nn.ReLU6], ids=["none", "relu", "relu6"])
@pytest.mark.parametrize("centered", [True, False], ids=["centered", "uncentered"])
@pytest.mark.parametrize("shape", ONES, ids=str)
def test_maps_of_one_pixel_with_a_residual(
    shape: tuple[int, ...], centered: bool, activation: type[nn.Module] | None, memory_format: torch.memory_format
) -> None:
    case = Case(Use(AFFINE), shape, memory_format)
    case.parts["residual"] = case.draw(*shape).contiguous(memory_format=memory_format).requires_grad_()
    inputs = (case.x, *case.parts.values())

    def run(groups: int) -> dict[str, Tensor]:
        weight, bias, residual = case.parts.values()
        options: dict[str, Any] = {"centered": centered, "residual": residual}
        y = core.standardize(case.x, shape[0], groups, 1e-3, weight, bias, activation and activation(), **options)
        names = ("y", "dx", "dweight", "dbias", "dresidual")
        return dict(zip(names, (y, *torch.autograd.grad(y, inputs, case.dy)), strict=True))

    for groups in (1, 3, shape[1] // 3, shape[1]):
        got = run(groups)
        with fused.unfused():
            assert_close(got, run(groups), 1e-10, f"{groups=}")


@pytest.mark.parametrize("wanted", ["weight", "bias"])
def test_maps_of_one_pixel_whose_own_gradient_nobody_wants(wanted: str) -> None:
    case = Case(Use(AFFINE, nn.ReLU), (5, 30, 1, 1), torch.contiguous_format)
    for groups in (1, 3, 30):
        whole = case.by_kernels(5, groups)
        case.x.requires_grad_(False)
        y, _ = case.forward(5, groups)
        assert torch.equal(torch.autograd.grad(y, case.parts[wanted], case.dy)[0], whole[f"d{wanted}"])
        case.x.requires_grad_()


@pytest.mark.parametrize("use", ["affine-relu", "threshold-after", "uncentered"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_number_of_threads_changes_no_bit_of_maps_of_one_pixel(use: str, dtype: torch.dtype) -> None:
    case = Case(USES[use], (130, 520, 1, 1), torch.contiguous_format, dtype)
    assert case.x.numel() >= 2 * team.GRAIN
    for groups in (1, 4, 20, 520):
        alone = case.by_kernels(130, groups)
        for threads in (2, 3):
            assert_same(case.by_kernels(130, groups, threads), alone, f"{groups=}, {threads=}")


@both_formats
@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_two_threads_do_what_one_does_to_the_bit(
    shape: tuple[int, ...], use: Use, memory_format: torch.memory_format
) -> None:
    """And it is what plain PyTorch does."""
    case = Case(use, shape, memory_format)
    assert case.x.numel() >= plan.WHOLE
    for rows, groups in LARGE[shape]:
        groups = shape[1] if case.renorm is not None else groups
        alone = case.by_kernels(rows, groups)
        assert_close(alone, case.by_hand(rows, groups), 1e-10, f"{rows=}, {groups=}")
        for threads in (2, 3):
            assert_same(case.by_kernels(rows, groups, threads), alone, f"{rows=}, {groups=}, {threads=}")


@both_formats
@pytest.mark.parametrize("use", ["affine-relu", "threshold-after", "gate", "renorm"])
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_the_number_of_threads_changes_no_bit_of_float32(
    shape: tuple[int, ...], use: str, memory_format: torch.memory_format
) -> None:
    case = Case(USES[use], shape, memory_format, torch.float32)
    for rows, groups in LARGE[shape]:
        groups = shape[1] if case.renorm is not None else groups
        alone = case.by_kernels(rows, groups)
        for threads in (2, 3):
            assert_same(case.by_kernels(rows, groups, threads), alone, f"{rows=}, {groups=}, {threads=}")


@both_formats
@pytest.mark.parametrize("unbiased", [False, True], ids=["biased", "unbiased"])
@pytest.mark.parametrize("affine", [False, True], ids=["bare", "affine"])
@pytest.mark.parametrize("activation", [None, nn.ReLU, nn.ReLU6], ids=["none", "relu", "relu6"])
@pytest.mark.parametrize("shape", [*SMALL, (2, 5, 120, 120)], ids=str)
def test_the_kernels_of_positions_do_what_plain_pytorch_does_in_one_thread_and_in_two(
    shape: tuple[int, ...],
    activation: type[nn.Module] | None,
    affine: bool,
    unbiased: bool,
    memory_format: torch.memory_format,
) -> None:
    case = Case(Use(AFFINE if affine else ()), shape, memory_format)
    inputs = (case.x, *case.parts.values())

    def run() -> dict[str, Tensor]:
        affine = (case.parts.get("weight"), case.parts.get("bias"))
        y = core.positional(case.x, 1e-3, unbiased, *affine, activation and activation())
        return dict(zip(("y", "dx", "dweight", "dbias"), (y, *torch.autograd.grad(y, inputs, case.dy)), strict=False))

    alone = run()
    torch.set_num_threads(2)
    assert_same(run(), alone, "two threads")
    with fused.unfused():
        assert_close(alone, run(), 1e-10, "positions")


@both_formats
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_float32_is_float64_rounded(use: Use, memory_format: torch.memory_format) -> None:
    """Without a clip, whose side a rounding may change."""
    use = use._replace(activation=None)
    for shape in ((4, 6, 5, 3), (2, 70, 9, 9), (18, 70, 1, 1)):
        rounded, exact = (Case(use, shape, memory_format, dtype) for dtype in (torch.float32, torch.float64))
        if "threshold" in rounded.parts:
            for case in (rounded, exact):
                case.parts["threshold"].data.fill_(-100.0)
        for rows, groups in rounded.ways():
            got = {name: value.double() for name, value in rounded.by_kernels(rows, groups).items()}
            assert_close(got, exact.by_hand(rows, groups), 2e-5, f"{shape=}, {rows=}, {groups=}")


@both_formats
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_rerun_gives_the_same_bits(use: Use, memory_format: torch.memory_format) -> None:
    case = Case(use, (4, 6, 5, 3), memory_format, torch.float32)
    for rows, groups in case.ways():
        first = case.by_kernels(rows, groups)
        assert_same(case.by_kernels(rows, groups), first, f"{rows=}, {groups=}")


@both_formats
@pytest.mark.parametrize("use", ["affine-relu", "gate"])
def test_a_rerun_in_two_threads_gives_the_same_bits(use: str, memory_format: torch.memory_format) -> None:
    case = Case(USES[use], (2, 5, 120, 120), memory_format, torch.float32)
    first = case.by_kernels(1, 5, threads=2)
    for _ in range(3):
        assert_same(case.by_kernels(1, 5, threads=2), first, "two threads")


@both_formats
@pytest.mark.parametrize("name", ["bn", "brn", "gbn", "bgn", "iebn"])
def test_the_number_of_threads_changes_no_bit_of_the_running_statistics(
    name: str, memory_format: torch.memory_format
) -> None:
    x = torch.randn(4, 10, 64, 64, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=memory_format)
    kept = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        unit = norms.build(name, 10, batch=2, **({"num_groups": 5} if name == "bgn" else {}))
        if name == "gbn":
            unit.ghost_size = 1
        for step in range(2):
            unit(x + step)
        kept.append(dict(unit.named_buffers()))
    assert all(torch.equal(kept[1][key], value) for key, value in kept[0].items())


# Each with what torch has of its kind, and the unit's options.
PEERS: dict[str, tuple[Callable[[int], nn.Module], dict[str, Any]]] = {
    "bn": (nn.BatchNorm2d, {}),
    "brn": (nn.BatchNorm2d, {"r_max": 1.0, "d_max": 0.0}),
    "gbn": (nn.BatchNorm2d, {"ghost_size": 8}),
    "bgn": (nn.BatchNorm2d, {"num_groups": 12}),
    "batch_group": (nn.BatchNorm2d, {"num_groups": 12}),
    "iebn": (nn.BatchNorm2d, {}),
    "in": (lambda C: nn.InstanceNorm2d(C, affine=True), {}),
    "gn": (lambda C: nn.GroupNorm(3, C), {"num_groups": 3}),
    "ln": (lambda C: nn.GroupNorm(1, C), {}),
}


def errors(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, float]:
    """How far a float32 layer is from itself in float64: output and gradients, relative to the largest value."""
    exact = copy.deepcopy(layer).double()
    found = []
    for unit, values, slope in ((layer, x, dy), (exact, x.double(), dy.double())):
        values = values.detach().requires_grad_()
        y = unit(values)
        y.backward(slope)
        found.append({"y": y, "dx": values.grad, "dweight": unit.weight.grad, "dbias": unit.bias.grad})
    return {
        name: ((found[0][name].double() - value).abs().max() / value.abs().max()).item()
        for name, value in found[1].items()
    }


@both_formats
@pytest.mark.parametrize("name", PEERS)
def test_a_mean_a_thousand_times_the_spread_costs_no_more_than_twice_what_it_costs_torch(
    name: str, memory_format: torch.memory_format
) -> None:
    C = 12
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, C, 24, 24, generator=generator) + 1000
    x, dy = x.contiguous(memory_format=memory_format), torch.randn(x.shape, generator=generator)
    build, options = PEERS[name]
    ours, theirs = errors(norms.build(name, C, **options), x, dy), errors(build(C), x, dy)
    for key, error in ours.items():
        assert error <= 2 * theirs[key] + 2**-23, f"{key}: {ours} against torch's {theirs}"


@pytest.mark.parametrize("width", [6, 24, 96, 600])
def test_a_mean_a_thousand_times_the_spread_costs_no_more_where_maps_are_one_pixel(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    C = 3 * width
    x, dy = (torch.randn(8, C, 1, 1, generator=generator) for _ in range(2))
    unit = norms.build("gn", C, num_groups=3)
    ours, theirs = errors(unit, x + 1000, dy), errors(nn.GroupNorm(3, C), x + 1000, dy)
    for key, error in ours.items():
        assert error <= 2 * theirs[key] + 2**-23, f"{key}: {ours} against torch's {theirs}"


@pytest.mark.parametrize("eps", [1e-12, 1.0])
def test_the_gradient_of_a_value_that_is_a_group_has_all_its_digits(eps: float) -> None:
    """It is ε r³ γ dy, which as r (g − t² g) is left with none."""
    case = Case(Use(AFFINE, centered=False), (4, 6, 1, 1), torch.contiguous_format, torch.float32)
    case.eps = eps
    x, weight = case.x.detach().double(), case.parts["weight"].detach().double().view(-1, 1, 1)
    expected = eps * (x * x + eps) ** -1.5 * weight * case.dy
    torch.testing.assert_close(case.by_kernels(4, 6)["dx"].double(), expected, rtol=2e-6, atol=0)


@both_formats
def test_a_learned_eps_has_its_gradient_by_given_statistics_too(memory_format: torch.memory_format) -> None:
    case = Case(Use(AFFINE, learned_eps=True, way="given"), (4, 6, 5, 3), memory_format)
    assert_close(case.by_kernels(2, 3), case.by_hand(2, 3), 1e-10, "given statistics")


@both_formats
def test_a_gate_and_batch_renormalization_go_together(memory_format: torch.memory_format) -> None:
    case = Case(Use((*AFFINE, "renorm", *GATE), way="measured"), (4, 6, 5, 3), memory_format)
    assert_close(case.by_kernels(1, 6), case.by_hand(1, 6), 1e-10, "a gate and a renorm")
