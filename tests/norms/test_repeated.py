"""A call like one before it goes the short way: to the same bits, and only where nothing has changed."""

from __future__ import annotations

import copy
import inspect
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fused_cases import Allocations, both_formats, unit_of
from repeated_cases import assert_equal, inputs, late, step, the_long_way, tlu, warm, went_soon
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from normbench.errors import InputError
from normbench.norms import core, fused, population, repeated, running
from normbench.norms.call import After, Gate, Renorm

NAMES = ("bn", "ln", "in", "gn", "bgn", "frn", "brn", "gbn", "batch_group", "iebn", "proxy")


def takes_residual(unit: nn.Module) -> bool:
    return "residual" in inspect.signature(unit.forward).parameters


@both_formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("joined", [False, True], ids=["alone", "sum"])
@pytest.mark.parametrize("name", NAMES)
def test_calls_come_to_the_same_bits(
    name: str, joined: bool, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    given = inputs(memory_format, dtype)
    if joined and not takes_residual(unit_of(name)):
        pytest.skip(f"{name} takes no residual")
    unit = warm(name, given, joined)
    for _ in range(2):
        expected = late(copy.deepcopy(unit), given, joined)
        soon, found = step(unit, given, joined)
        assert soon
        assert_equal(found, expected)
        assert found["y"].stride() == expected["y"].stride()
        assert found["x"].stride() == expected["x"].stride()


@pytest.mark.parametrize("name", ["frn", "tlu"])
def test_parts_may_come_back_with_gaps(name: str) -> None:
    """From a hook on saved tensors: not as kernels read them."""
    given = inputs()
    unit = warm(tlu() if name == "tlu" else name, given)
    with torch.no_grad():
        unit.threshold.normal_(generator=torch.Generator().manual_seed(0))
    expected = late(copy.deepcopy(unit), given)

    def gaps(t: Tensor) -> Tensor:
        return t if t.dim() != 1 else torch.stack([t, t + 9], 1)[:, 0]

    for _ in range(3):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, gaps):
            soon, found = step(unit, given)
        assert soon
        assert_equal(found, expected)


@pytest.mark.parametrize("wants", [(True, False), (False, True), (False, False)], ids=str)
def test_inputs_that_want_no_gradient(wants: tuple[bool, bool]) -> None:
    x, residual, dy = inputs()
    given = [x.detach().requires_grad_(wants[0]), residual.detach().requires_grad_(wants[1]), dy]
    unit = warm("bn", given, joined=True)
    expected = late(copy.deepcopy(unit), given, joined=True)
    assert_equal(step(unit, given, joined=True)[1], expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_large_maps_are_shared_out(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        given = inputs(shape=(8, 6, 64, 64))
        unit = warm("bn", given)
        expected = late(copy.deepcopy(unit), given)
        assert_equal(step(unit, given)[1], expected)
        torch.set_num_threads(3 - threads)  # another plan
        assert not step(unit, given)[0]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("options", [{"momentum": None}, {"batch": 2}, {"eps": 0.1}], ids=str)
def test_options_hold_the_second_time_too(options: dict[str, Any]) -> None:
    given = inputs()
    unit = warm("bn", given, **options)
    expected = late(copy.deepcopy(unit), given)
    assert_equal(step(unit, given)[1], expected)


def set_to(name: str, value: Any) -> Callable[[Any], None]:
    return lambda unit: setattr(unit, name, value)


def other_weight(unit: Any) -> None:
    unit.weight = nn.Parameter(torch.linspace(1, 2, 6))


def other_data(unit: Any) -> None:
    unit.weight.data = torch.linspace(1, 2, 6)


def sparse_data(unit: Any) -> None:
    unit.weight.data = torch.linspace(1, 2, 12)[::2]


def expanded_data(unit: Any) -> None:
    unit.weight.data = unit.weight.data[:1].expand(6)


def frozen(unit: Any) -> None:
    unit.weight.requires_grad_(False)


def watched(unit: Any) -> None:
    unit.activation.register_forward_hook(lambda module, args, y: y + 1)


def pruned(unit: Any) -> None:
    prune.l1_unstructured(unit, "weight", 0.5)  # type: ignore[no-untyped-call]


def parametrized(unit: Any) -> None:
    parametrize.register_parametrization(unit, "weight", nn.Softplus())


def another_class(unit: Any) -> None:
    unit.activation.__class__ = nn.Tanh


def another_module(unit: Any) -> None:
    unit.add_module("activation", nn.Tanh())


def moving_momentum(unit: Any) -> None:
    unit.momentum = torch.tensor(0.7)


def other_buffer(unit: Any) -> None:
    unit._buffers["running_mean"] = torch.ones(6, dtype=torch.float64)


def untracked(unit: Any) -> None:
    unit.running_mean = unit.running_var = unit.num_batches_tracked = None


CHANGES: dict[str, Callable[[Any], object]] = {
    "eps": set_to("eps", 0.5),
    "momentum": set_to("momentum", 0.7),
    "batch": set_to("batch", 2),
    "activation": set_to("activation", nn.ReLU6()),
    "no activation": set_to("activation", None),
    "slow activation": set_to("activation", nn.Tanh()),
    "evaluation": lambda unit: unit.eval(),
    "float64": lambda unit: unit.double(),
    **{f.__name__: f for f in (other_weight, other_data, sparse_data, expanded_data, frozen, watched)},
    **{
        f.__name__: f
        for f in (pruned, parametrized, another_class, another_module, moving_momentum, other_buffer, untracked)
    },
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_unit_counts_at_once(change: Callable[[Any], object]) -> None:
    unit = warm("bn", inputs())
    twin = copy.deepcopy(unit)
    change(unit)
    change(twin)
    given = inputs(dtype=next(unit.parameters()).dtype)
    for _ in range(3):
        expected = late(twin, given)
        assert_equal(step(unit, given)[1], expected)


@pytest.mark.parametrize(
    "given",
    [
        inputs(torch.channels_last),
        inputs(dtype=torch.float64),
        inputs(shape=(2, 6, 5, 5)),
        inputs(shape=(4, 6, 10, 10)),
        [t.detach()[:, :, ::2, ::2].requires_grad_() for t in inputs(shape=(4, 6, 10, 10))],
        [t.detach() for t in inputs()],
        [torch._neg_view(inputs()[0].detach()).requires_grad_(), *inputs()[1:]],
    ],
    ids=["layout", "type", "images", "size", "strides", "constant", "negated"],
)
def test_another_input_goes_its_own_way(given: list[Tensor]) -> None:
    unit = warm("bn", inputs())
    if given[0].dtype is torch.float64:
        unit.double()
    for _ in range(3):
        expected = late(copy.deepcopy(unit), given)
        assert_equal(step(unit, given)[1], expected)


def test_a_residual_that_comes_or_goes_or_lies_otherwise() -> None:
    given = inputs()
    unit = warm("bn", given, joined=True)
    otherwise = [given[0], inputs(torch.channels_last)[1], given[2]]
    for some, joined in ((given, False), (otherwise, True), (given, True), ([given[0], given[0], given[2]], True)):
        expected = late(copy.deepcopy(unit), some, joined)
        assert_equal(step(unit, some, joined)[1], expected)


def test_what_changes_all_the_time_is_not_made_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated, "KINDS", 3)
    unit, (x, *_) = warm("gn", inputs()), inputs()
    for _ in range(20):
        unit(x, x)
    assert [len(kinds) for kinds in repeated.readies.values()] == [1, 0]  # two tensors that are one
    for wants in itertools.product([True, False], repeat=2):
        for parameter, want in zip(unit.parameters(), wants, strict=True):
            parameter.requires_grad_(want)
        unit(x)
    assert [len(kinds) for kinds in repeated.readies.values()] == [3, 0]


def test_training_and_evaluation_take_turns() -> None:
    """What one is ready for does not drive out the other's."""
    unit, given = warm("gn", inputs()), inputs()
    for _ in range(2 * repeated.KINDS):
        with torch.inference_mode():
            unit(given[0])
        assert step(unit, given)[0]


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_what_is_asked_of_torch_meanwhile() -> None:
    """Modes in which a call is another: each time as it is the long way."""
    unit, x = warm("bn", inputs()), inputs()[0]
    for context in (torch.no_grad, torch.inference_mode, fused.unfused, lambda: torch.autocast("cpu")):
        twin = copy.deepcopy(unit)
        with context():
            with the_long_way():
                expected = twin(x)
            found = unit(x)
        assert torch.equal(found, expected)
        assert found.requires_grad == expected.requires_grad
        assert not (context is fused.unfused and went_soon(found))
    assert step(unit, inputs())[0]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="jvp"):  # a ready one would forget the tangent
            unit(dual)
    with population.gathering() as gathered:
        step(unit, inputs())
    assert unit in gathered.found
    traced = torch.jit.trace(unit, inputs()[0], check_trace=False)  # type: ignore[no-untyped-call]
    assert not torch.equal(traced(2 * x + 1), traced(x))  # what was traced is a computation, not its result


def test_a_mode_sees_what_it_would_have_seen() -> None:
    unit, x = unit_of("gn"), inputs()[0]
    with Allocations(x.numel()) as cold:
        unit(x)
    with Allocations(x.numel()) as again:
        unit(x)
    assert again.found == cold.found
    assert len(cold.found) == 1


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_a_transform_of_functions_goes_the_long_way() -> None:
    unit, x = warm("gn", inputs()), inputs()[0].detach()
    assert torch.allclose(torch.func.vmap(unit)(x[None])[0], unit(x), atol=1e-6)
    (gradient,) = torch.autograd.grad(unit(x.requires_grad_()).square().sum(), x)
    transformed = torch.func.grad(lambda x: unit(x).square().sum())(x.detach())
    assert torch.allclose(transformed, gradient, atol=1e-5)


def test_compiled_it_is_what_it_was() -> None:
    unit = warm("gn", inputs())
    given = inputs()
    explained = torch._dynamo.explain(unit)(given[0])  # type: ignore[no-untyped-call]
    assert explained.graph_count == 1
    assert explained.graph_break_count == 0


@pytest.mark.parametrize("name", ["gn", "frn", "iebn"])
def test_the_gradient_is_differentiable(name: str) -> None:
    unit = warm(name, inputs(dtype=torch.float64))
    x = inputs(dtype=torch.float64)[0]
    assert went_soon(unit(x))
    assert torch.autograd.gradgradcheck(unit, (x,))


def test_corrections_that_move_cannot_be_differentiated_twice() -> None:
    unit, (x, *_) = warm("brn", inputs()), inputs()
    y = unit(x)
    assert went_soon(y)
    with pytest.raises(InputError, match="cannot be differentiated twice"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_bounds_that_widen_from_step_to_step() -> None:
    given = inputs()
    unit = warm("brn", given, r_max=None, d_max=None, run_steps=100)
    outputs = []
    for step_ in (0, 3, 6, 90):
        unit.num_batches_tracked.fill_(step_)
        expected = late(copy.deepcopy(unit), given)
        soon, found = step(unit, given)
        assert soon
        assert_equal(found, expected)
        outputs.append(found["y"])
    assert len({tuple(y.flatten().tolist()) for y in outputs}) > 2


def test_what_is_corrected_towards_must_be_what_moves() -> None:
    """Else its tensors would be none that the call is known by."""
    x, weight, bias = inputs()[0].detach(), torch.ones(6), torch.zeros(6)
    unit = unit_of("brn")
    for mean in (torch.zeros(6), torch.ones(6), unit.running_mean.clone()):
        renorm = Renorm(mean, torch.ones(6), (2.0, 3.0))
        for track in (None, running.deviation(unit, 1)):
            once, again = (core.standardize(x, 1, 6, 1e-5, weight, bias, renorm=renorm, track=track) for _ in range(2))
            assert torch.equal(once, again)
    assert not any(repeated.readies.values())


def test_more_than_one_thing_beside_goes_the_long_way() -> None:
    x, ones = inputs()[0].detach(), torch.ones(6)
    gate, after = Gate(ones, ones), After(2 * ones, ones)
    for _ in range(3):
        y = core.standardize(x, 4, 6, 1e-5, ones, ones, gate=gate, after=after)
        with fused.unfused():
            assert torch.allclose(y, core.standardize(x, 4, 6, 1e-5, ones, ones, gate=gate, after=after), atol=1e-5)
    assert not repeated.readies


def test_a_graph_that_is_kept_gives_the_same_again() -> None:
    """Other forwards, and backwards, come in between."""
    x, _, dy = inputs()
    unit = warm("bn", inputs())
    y = unit(x)
    others = [unit(2 * x) for _ in range(3)]
    first = torch.autograd.grad(y, (x, unit.weight, unit.bias), dy, retain_graph=True)
    for other in others:
        other.sum().backward()
    for one, again in zip(first, torch.autograd.grad(y, (x, unit.weight, unit.bias), dy), strict=True):
        assert torch.equal(one, again)


@pytest.mark.parametrize("where", ["x", "weight"])
def test_an_edit_before_the_backward_is_noticed(where: str) -> None:
    given = inputs()
    unit = warm("bn", given)
    x = given[0].detach().clone().requires_grad_() * 1
    y = unit(x)
    assert went_soon(y)
    with torch.no_grad():
        (x if where == "x" else unit.weight).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_running_statistics_count_as_edited() -> None:
    unit = warm("bn", inputs())
    before = unit.running_mean._version
    unit(inputs()[0])
    assert unit.running_mean._version > before


def test_saved_tensors_and_gradients_may_come_back_another_way() -> None:
    unit = warm("bn", inputs())
    x, _, dy = inputs()

    def other_way(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    def gradients(dy: Tensor) -> tuple[Tensor, ...]:
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, other_way):
            y = unit(x)
        return torch.autograd.grad(y, (x, unit.weight), dy)

    for given in (dy.contiguous(memory_format=torch.channels_last), torch._neg_view(-dy), dy.expand_as(dy)):
        with the_long_way():
            expected = gradients(given)
        for one, other in zip(gradients(given), expected, strict=True):
            assert torch.equal(one, other)
    y = unit(x)
    assert torch.equal(torch.autograd.grad(y, x, torch._neg_view(-dy))[0], torch.autograd.grad(unit(x), x, dy)[0])


@pytest.mark.parametrize("which", ["x", "weight", "bias"])
def test_a_type_that_changes_between_forward_and_backward_is_an_error(which: str) -> None:
    unit = warm("bn", inputs())
    x, _, dy = inputs()
    y = unit(x)
    tensor = x if which == "x" else getattr(unit, which)
    tensor.data = tensor.data.double()
    with pytest.raises((InputError, RuntimeError)):
        y.backward(dy)


def test_nothing_of_a_step_is_kept_alive() -> None:
    unit = warm("bn", inputs())
    x, _, dy = inputs()
    y = unit(x)
    held = weakref.ref(x), weakref.ref(y)
    y.backward(dy)
    del x, y
    assert [ref() for ref in held] == [None, None]


def test_in_threads_at_once() -> None:
    given = inputs()
    unit = warm("gn", given)
    expected = late(unit, given)
    wrong: list[object] = []

    def work() -> None:
        x, _, dy = inputs()
        for _ in range(200):
            y = unit(x)
            (dx,) = torch.autograd.grad(y, x, dy)
            if not (torch.equal(y.detach(), expected["y"]) and torch.equal(dx, expected["x"])):
                wrong.append(y)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture
def other_guards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A torch whose guards take no such arguments."""
    monkeypatch.setattr("torch._C._dynamo.guards.TensorGuards", lambda *_: None)
    repeated.guards.cache_clear()
    yield
    repeated.guards.cache_clear()


@pytest.mark.usefixtures("other_guards")
def test_without_torchs_guards_every_call_goes_the_long_way() -> None:
    unit, given = unit_of("bn"), inputs()
    assert repeated.guards() is None
    assert [step(unit, given)[0] for _ in range(3)] == [False] * 3
