"""What every unit promises, over the registry."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from norm_cases import CASES, IN_ONE, SPEAKS, TAKEN, C, Case, build, make, pictures, splits
from torch import nn

from normbench import norms
from normbench.errors import InputError

every_case = pytest.mark.parametrize("case", CASES, ids=str)
both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@every_case
@both_modes
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gives_the_shape_and_dtype_it_got_and_finite_gradients(case: Case, training: bool, dtype: torch.dtype) -> None:
    for unit_dtype in {dtype, torch.promote_types(dtype, torch.float32)}:
        unit = make(case, dtype=unit_dtype, activation=nn.ReLU()).train(training)
        x = pictures(4, C, 5, 3, dtype=dtype).requires_grad_()
        y = unit(x)
        assert y.shape == x.shape
        assert y.dtype == dtype
        y.float().square().sum().backward()
        for tensor in (y, x.grad, *(p.grad for p in unit.parameters())):
            assert tensor is not None
            assert tensor.isfinite().all()


@every_case
@both_modes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_input_has_float32_statistics(case: Case, training: bool, dtype: torch.dtype) -> None:
    """On values whose squares overflow float16, and whose mean is far above their spread."""
    x = (pictures(4, C, 8, 8) * 50 + 1000).to(dtype)
    exact = make(case).train(training)(x.double())
    got = make(case, dtype=torch.float32).train(training)(x)
    span = exact.abs().max()
    assert (got.double() - exact).abs().max() <= 2 * torch.finfo(dtype).eps * span


@every_case
def test_float32_survives_a_mean_far_above_the_spread(case: Case) -> None:
    x = pictures(4, C, 8, 8).float() + 1000
    exact, got = make(case)(x.double()), make(case, dtype=torch.float32)(x)
    assert (got - exact).abs().max() < 1e-3 * max(1, exact.abs().max() / 20)  # evonorm's outputs keep the mean


@every_case
@both_modes
def test_a_float64_unit_computes_in_float64(case: Case, training: bool) -> None:
    """A unit made in float32 and converted is as exact as one made in float64: no constant is left behind."""
    late = make(case, dtype=torch.float32).double().train(training)
    early = make(case).train(training)
    early.load_state_dict(late.state_dict())
    x = pictures(4, C, 5, 3)
    assert torch.allclose(late(x), early(x), rtol=0, atol=1e-13)


@every_case
@both_modes
def test_a_rerun_and_copies_give_the_same(case: Case, training: bool) -> None:
    x = pictures(4, C, 5, 3)
    unit = make(case, activation=nn.ReLU())
    unit(x)
    unit.train(training)
    expected = copy.deepcopy(unit)(x)
    for twin in (copy.deepcopy(unit), pickle.loads(pickle.dumps(unit)), unit):
        assert norms.is_unit(twin)
        assert torch.equal(twin(x), expected)


@every_case
def test_state_goes_there_and_back(case: Case) -> None:
    x = pictures(4, C, 5, 3)
    trained = make(case)
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    trained(x)
    for state in (trained.state_dict(), before):
        for fresh in (build(case, dtype=torch.float64), make(case).train()):
            fresh.load_state_dict(state)
            assert fresh.state_dict().keys() == state.keys()
            assert all(torch.equal(value, state[key]) for key, value in fresh.state_dict().items())
    trained.load_state_dict(before)
    assert trained.state_dict().keys() == before.keys()
    assert trained(x).isfinite().all()


@every_case
def test_a_loaded_unit_evaluates_as_the_one_that_was_saved(case: Case) -> None:
    x = pictures(4, C, 5, 3)
    trained = make(case)
    for _ in range(3):
        trained(x)
    loaded = build(case, dtype=torch.float64)
    loaded.load_state_dict(trained.state_dict())
    assert torch.equal(loaded.eval()(x), trained.eval()(x))


@every_case
@both_modes
def test_runs_under_autocast(case: Case, training: bool) -> None:
    unit = make(case, dtype=torch.float32).train(training)
    x = pictures(4, C, 8, 8, dtype=torch.bfloat16)
    outside = copy.deepcopy(unit)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = unit(x)
    assert inside.dtype == torch.bfloat16
    assert torch.equal(inside, outside)


@every_case
@both_modes
@pytest.mark.parametrize("batch", [None, 2])
def test_memory_format_and_strides_do_not_matter(case: Case, training: bool, batch: int | None) -> None:
    unit = make(case, batch=batch).train(training)
    unit(pictures(4, C, 5, 3))
    x = pictures(4, C, 5, 3)
    expected = copy.deepcopy(unit)(x)
    last = copy.deepcopy(unit)(x.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(last, expected, atol=1e-12)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(copy.deepcopy(unit)(x.transpose(2, 3).contiguous().transpose(2, 3)), expected)
    every_other = torch.stack([x, -x], dim=1).flatten(0, 1)[::2]
    torch.testing.assert_close(copy.deepcopy(unit)(every_other), expected)


@every_case
@both_modes
@pytest.mark.parametrize("shape", [(1, C, 4, 3), (4, C, 1, 1), (1, C, 1, 1), (3, C, 1, 7)], ids=str)
def test_takes_one_image_and_one_pixel(case: Case, training: bool, shape: tuple[int, ...]) -> None:
    if training and not splits(case, shape[0]):
        shape = (4, *shape[1:])
    x = pictures(*shape).requires_grad_()
    y = make(case).train(training)(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("case", [case for case in CASES if case.options], ids=str)  # the others: tests/check
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiles_without_a_break(case: Case, training: bool) -> None:
    if training and norms.get(case.name).own_gradient:
        pytest.skip("a backward that keeps state is not for compiled graphs, and its cells are skipped")
    torch.compiler.reset()
    unit = make(case, batch=2, activation=nn.ReLU()).train(training)
    x = pictures(4, C, 5, 3)
    expected = copy.deepcopy(unit)(x)
    assert torch.allclose(torch.compile(unit, fullgraph=True, backend="eager")(x), expected, atol=1e-12)


@every_case
def test_a_batchnorm_checkpoint_loads_and_what_is_left_out_is_said(case: Case) -> None:
    batchnorm = nn.BatchNorm2d(C, dtype=torch.float64)
    with torch.no_grad():
        batchnorm.weight.copy_(torch.arange(C))
        batchnorm.bias.copy_(-torch.arange(C))
    batchnorm(pictures(4, C, 5, 3))
    state = batchnorm.state_dict()
    unit = make(case, activation=nn.ReLU())
    unit(pictures(4, C, 5, 3))
    taken = TAKEN.get(case.name, ()) if case.name != "bgn" or len(unit.running_mean) == C else ()
    left = [key for key in state if key not in taken and (key != "bias" or unit.bias is None) and key != "weight"]
    new = unit.state_dict().keys() - state.keys()
    before = {key: value.clone() for key, value in unit.state_dict().items()}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        unit.load_state_dict(state, strict=True)
    assert torch.equal(unit.weight, batchnorm.weight)
    assert unit.bias is None or torch.equal(unit.bias, batchnorm.bias)
    assert "running_mean" in state, "the caller's state is left as it was"
    for key in taken:
        own = getattr(unit, key)
        assert torch.equal(own, state[key].to(own.dtype).expand_as(own)), "of every domain, where there are some"
    kept = before.keys() - {"weight", "bias", *taken}
    assert all(torch.equal(unit.state_dict()[key], before[key]) for key in kept)
    assert len(said) == bool(left or new)
    text = " ".join(str(warning.message) for warning in said)
    assert ("left out" in text) is bool(left)
    assert all(key in text.partition("kept as they were: ")[0] for key in left)
    assert all(key in text.partition("kept as they were: ")[2] for key in new)


def test_a_load_warns_once_for_a_whole_model() -> None:
    plain = nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C), nn.BatchNorm2d(C))
    model = nn.Sequential(nn.Conv2d(3, C, 1), norms.build("gn", C, num_groups=2), norms.build("frn", C))
    for _ in range(2):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model.load_state_dict(plain.state_dict())
        assert len(said) == 1
        assert "1.running_mean" in str(said[0].message)


@every_case
def test_affine_false_is_the_formula_alone(case: Case) -> None:
    bare, full = build(case, affine=False, dtype=torch.float64), build(case, dtype=torch.float64)
    x = pictures(4, C, 5, 3)
    assert bare.weight is None
    assert bare.bias is None
    assert torch.allclose(bare(x), full(x), atol=1e-13)
    assert bare(x.float()).dtype == torch.float32


@every_case
@pytest.mark.parametrize("affine", [True, False])
def test_what_works_in_place_leaves_the_input_alone(case: Case, affine: bool) -> None:
    """In the unit, or behind it."""
    for activation in (nn.SiLU(inplace=True), None):
        unit = norms.build(case.name, C, affine=affine, activation=activation, dtype=torch.float64, **case.options)
        x = pictures(4, C, 5, 3)
        before = x.clone()
        unit(x).relu_()
        assert torch.equal(x, before)


@every_case
@both_modes
def test_torch_func_can_differentiate(case: Case, training: bool) -> None:
    unit, x = make(case).eval(), pictures(4, C, 5, 3)
    unit(x)
    unit.train(training and not norms.get(case.name).train_eval_differ)
    values = dict(unit.named_parameters())
    loss = lambda p, x: torch.func.functional_call(unit, p, (x,)).square().sum()  # noqa: E731
    got = torch.func.grad(loss, argnums=1)(values, x)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(loss(values, x), x)
    torch.testing.assert_close(got, expected)


@every_case
def test_a_batchnorm_checkpoint_without_statistics_or_their_count_loads(case: Case) -> None:
    """With track_running_stats=False there are none, and torch before 0.4.1 did not count."""
    old = nn.BatchNorm2d(C).state_dict()
    del old["num_batches_tracked"], old._metadata  # type: ignore[attr-defined]
    for state in (nn.BatchNorm2d(C, track_running_stats=False).state_dict(), old):
        state["weight"] = torch.arange(float(C))
        unit = norms.build(case.name, C, activation=nn.ReLU(), **case.options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            unit.load_state_dict(state)
            assert unit(pictures(4, C, 5, 3).float()).isfinite().all()
        assert torch.equal(unit.weight, state["weight"])


@every_case
def test_its_own_state_with_a_hole_is_an_error(case: Case) -> None:
    state = make(case, activation=nn.ReLU()).state_dict()
    for hole in state.keys() - {"num_batches_tracked"}:  # that one torch forgives too
        holed = copy.copy(state)
        del holed[hole]
        with pytest.raises(RuntimeError, match="Missing key"):
            make(case, activation=nn.ReLU()).load_state_dict(holed)


@every_case
def test_every_parameter_is_affine_or_extra(case: Case) -> None:
    unit = make(case, activation=nn.ReLU())
    affine, extra = norms.affine_parameters(unit), norms.extra_parameters(unit)
    assert [id(p) for p in affine] == [id(p) for p in (unit.weight, unit.bias) if p is not None]
    assert (unit.bias is None) is (case.name == "rms")
    assert {id(p) for p in (*affine, *extra)} == {id(p) for p in unit.parameters()}
    assert len(affine) + len(extra) == len(list(unit.parameters()))
    assert all(p.shape == (C,) for p in affine)


@every_case
def test_the_activation_follows(case: Case) -> None:
    """And after it nothing, or a scale and shift of every channel."""
    x = pictures(4, C, 5, 3)
    with_gelu, gelu = make(case, activation=nn.GELU())(x), nn.GELU()(make(case)(x))
    if case.name in IN_ONE:
        assert torch.equal(with_gelu, make(case, activation=nn.ReLU())(x)), "in the place of one as of the other"
        tanh = make(case, activation=nn.Tanh())
        expected = torch.tanh(x * tanh.weight[:, None, None] + tanh.bias[:, None, None])
        torch.testing.assert_close(tanh(x), expected)
    elif norms.get(case.name).own_activation:
        z, y = (t.transpose(0, 1).flatten(1) for t in (gelu, with_gelu))
        slope = (y - y.mean(1, keepdim=True)).norm(dim=1) / (z - z.mean(1, keepdim=True)).norm(dim=1)
        expected = (z - z.mean(1, keepdim=True)) * slope[:, None] + y.mean(1, keepdim=True)
        torch.testing.assert_close(y, expected)
    else:
        torch.testing.assert_close(with_gelu, gelu)
        assert make(case, activation=nn.ReLU(inplace=True))(x).min() >= 0
    x.requires_grad_()
    make(case, activation=nn.ReLU(inplace=True))(x).sum().backward()


@every_case
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, C, 4), r"3 axes, shape \(2, 6, 4\), expected \(N, C, H, W\) with C=6"),
        (torch.zeros(2, C + 1, 4, 4), "7 channels.*expected.*C=6"),
        (torch.zeros(2, C, 4, 4, dtype=torch.long), "int64, expected a floating-point tensor; convert"),
        (torch.zeros(0, C, 4, 4), r"an empty tensor, shape \(0, 6, 4, 4\)"),
        (torch.zeros(2, C, 0, 4), "an empty tensor"),
    ],
    ids=["axes", "channels", "integers", "no pictures", "no pixels"],
)
def test_bad_input_is_refused_in_words(case: Case, x: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=f"^{SPEAKS.get(case.name, case.name)}: got.*{message}"):
        make(case)(x)
