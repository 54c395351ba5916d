"""cbn: statistics of steps moved to other weights, against autograd and snapshots; what is left out; networks."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from norm_cases import C, gradients, pictures
from torch import Tensor, nn
from torch.nn import functional as F

from normbench import models, norms
from normbench.errors import InputError
from normbench.norms import cbn
from normbench.norms.cbn import CrossIterationBatchNorm, Geometry, derivatives, dots
from normbench.options import ArchOptions
from normbench.surgery import apply

f64 = torch.float64
EPS = 1e-5
NOW: dict[str, Any] = {"burnin": 0}


def convolution(**options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    kernel = options.pop("kernel_size", 3)
    return nn.Conv2d(4, C, kernel, bias=options.pop("bias", False), dtype=f64, **options)


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded, with steps": {"padding": 1, "stride": 2},
    "one by one": {"kernel_size": 1},
    "of groups": {"groups": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": (2, 1)},
    "of another shape": {"kernel_size": (1, 3)},
    "reflected": {"padding": 1, "padding_mode": "reflect"},
    "same, in uneven parts": {"padding": "same", "kernel_size": (2, 4)},
    "with a bias": {"bias": True},
}
uneven = pytest.mark.filterwarnings("ignore:Using padding='same'")
every_convolution = pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)


class Net(nn.Module):
    """A convolution and its norm."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv, self.bn = convolution(**options), nn.BatchNorm2d(C, dtype=f64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


def applied(batch: int | None = None, options: dict[str, Any] | None = None, **more: Any) -> Any:
    return apply(Net(**(options or {})), "cbn", batch=batch, **{**NOW, **more})


def inputs(seed: int, images: int = 4) -> Tensor:
    return pictures(images, 4, 7, 6, seed=seed)


def move(net: Any, seed: int, by: float = 0.01) -> None:
    """Other weights, as after an update."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        net.conv.weight += by * torch.randn(net.conv.weight.shape, generator=generator, dtype=f64)


def raw(unit: Any, kernel: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """μ̂ and ν̂ of all slots."""
    unit.valid, kept = "official", unit.valid
    mean, var, _ = unit.history(kernel)
    unit.valid = kept
    return mean, var + mean**2


def moments_of(y: Tensor) -> tuple[Tensor, Tensor]:
    return y.mean((0, 2, 3)), y.square().mean((0, 2, 3))


# ------------------------------------------------------------------------------------------- where it is batch norm


@pytest.mark.parametrize("options", [{"window": 1}, {"window": 4, "burnin": 3}], ids=["a window of 1", "burn-in"])
def test_it_is_batch_norm(options: dict[str, Any]) -> None:
    """Outputs, gradients, running statistics; in evaluation too."""
    ours, theirs = norms.build("cbn", C, dtype=f64, **options), nn.BatchNorm2d(C, dtype=f64)
    for seed in range(3):
        x = pictures(4, C, 5, 3, seed=seed).requires_grad_()
        y, expected = ours(x), theirs(x)
        assert torch.allclose(y, expected, rtol=0, atol=1e-11)
        of_ours, of_theirs = gradients(y, x, *ours.parameters()), gradients(expected, x, *theirs.parameters())
        assert all(torch.allclose(g, h, rtol=1e-9, atol=1e-9) for g, h in zip(of_ours, of_theirs, strict=True))
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(ours.get_buffer(key), theirs.get_buffer(key))
    x = pictures(4, C, 5, 3, seed=9)
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), rtol=0, atol=1e-12)
    if ours.window > 1:
        assert not torch.allclose(ours.train()(x), theirs.train()(x)) or ours.window_count == 1
        assert ours.window_count == 1, "the window begins to fill where the burn-in ends"
        x = pictures(4, C, 5, 3, seed=10)
        assert not torch.allclose(ours(x), theirs(x))


def test_the_burn_in_is_a_tenth_of_the_run_where_it_is_not_given() -> None:
    unit = norms.build("cbn", C)
    assert unit.burnin_steps() == 8
    unit.run_steps = 250
    assert unit.burnin_steps() == 25
    assert norms.build("cbn", C, burnin=0).burnin_steps() == 0


def test_the_window_is_16_images_where_it_is_not_given() -> None:
    windows = {1: 8, 2: 8, 3: 6, 4: 4, 8: 2, 16: 1, 32: 1, None: 4}
    assert {batch: norms.build("cbn", C, batch=batch).window for batch in windows} == windows


def test_slots_written_during_the_burn_in_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where to read the count is to wait for a device, they are."""
    known, unknown = (norms.build("cbn", C, window=3, burnin=3, dtype=f64) for _ in range(2))
    monkeypatch.setattr(unknown, "_burns_in", lambda: False)
    for seed in range(8):
        x = pictures(4, C, 5, 3, seed=seed)
        assert torch.allclose(known(x), unknown(x), rtol=0, atol=1e-12)
    assert known.window_count == unknown.window_count - 3


# ----------------------------------------------------------------------------------------- pooling of equal weights


@pytest.mark.parametrize("rho", [1.0, 0.0])
@pytest.mark.parametrize("batch", [None, 2])
def test_with_weights_that_stand_still_statistics_are_those_of_all_steps_together(
    batch: int | None, rho: float
) -> None:
    """Each worker's own of now, and all workers' of the steps before, from the third step on the last three."""
    net, seen = applied(window=3, batch=batch, rho=rho), []
    for seed in range(5):
        x = inputs(seed)
        y, before = net(x), net.conv(x).detach()
        for own, mine in zip(before.split(batch or 4), y.split(batch or 4), strict=True):
            steps = [moments_of(own), *(_mean_of_workers(step, batch or 4) for step in seen[-2:])]
            mean, square = (torch.stack(values).mean(0) for values in zip(*steps, strict=True))
            var = square - mean**2
            expected = (own - mean[:, None, None]) / torch.sqrt(var + EPS)[:, None, None]
            assert torch.allclose(mine, expected.relu(), rtol=0, atol=1e-10)
        seen.append(before)


def _mean_of_workers(y: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    mean, square = zip(*(moments_of(own) for own in y.split(batch)), strict=True)
    return torch.stack(mean).mean(0), torch.stack(square).mean(0)


def test_without_strength_it_is_naive_pooling_whatever_the_weights_do() -> None:
    naive, alone = applied(window=3, rho=0.0), norms.build("cbn", C, window=3, dtype=f64, **NOW)
    for seed in range(4):
        x = inputs(seed)
        assert torch.allclose(naive(x), alone(naive.conv(x)).relu(), rtol=0, atol=1e-12)
        move(naive, seed)
    assert "window_slope" not in naive.bn.state_dict()


# ------------------------------------------------------------------------------------------------------ derivatives


@uneven
@every_convolution
@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_closed_forms_are_autograds_derivatives(options: dict[str, Any], shift: float) -> None:
    conv, x = convolution(**options), inputs(0)
    y = conv(x)
    centre = torch.full((C,), shift, dtype=f64)
    mean, square = y.mean((0, 2, 3)), (y - shift).square().mean((0, 2, 3))
    of_mean = torch.stack([torch.autograd.grad(mean[c], conv.weight, retain_graph=True)[0][c] for c in range(C)])
    (of_square,) = torch.autograd.grad(square.sum(), conv.weight)
    geometry = Geometry.of(conv)
    patch, slope = derivatives(y.detach(), centre, x, conv.weight.shape, geometry)
    assert patch.shape == (4, *conv.kernel_size), "the same for all channels of a group"
    every = patch.view(geometry.groups, 1, -1).expand(-1, C // geometry.groups, -1).reshape(conv.weight.shape)
    assert torch.allclose(every, of_mean, rtol=0, atol=1e-12)
    assert torch.allclose(slope.view_as(of_square), of_square, rtol=0, atol=1e-12)
    kernel = torch.randn_like(conv.weight)
    for dot, derivative in zip(
        dots(kernel, patch[None], slope[None], geometry.groups), (of_mean, of_square), strict=True
    ):
        assert torch.allclose(dot[0], (derivative * kernel).sum((1, 2, 3)), rtol=0, atol=1e-12)


@uneven
@every_convolution
@pytest.mark.parametrize("rho", [1.0, 0.5])
def test_statistics_are_moved_as_by_snapshots_of_the_weights(options: dict[str, Any], rho: float) -> None:
    """μ_j + ρ ⟨∂μ_j/∂w, w − w_j⟩, and ν alike, by autograd at the old weights, over five steps of updates."""
    net = applied(options=options, window=4, rho=rho)
    snapshots = []
    for seed in range(5):
        x = inputs(seed)
        mean, square = moments_of(net.conv(x))
        of_mean, of_square = (
            torch.autograd.grad(v.sum(), net.conv.weight, retain_graph=True)[0] for v in (mean, square)
        )
        snapshots.append((mean.detach(), square.detach(), of_mean, of_square, net.conv.weight.detach().clone()))
        net(x)
        move(net, seed)
    means, squares = raw(net.bn, net.conv.weight)
    for step, (mean, square, of_mean, of_square, weight) in enumerate(snapshots[2:], start=2):
        change = net.conv.weight.detach() - weight
        slot = step % 3
        assert torch.allclose(means[slot], mean + rho * (of_mean * change).sum((1, 2, 3)), rtol=0, atol=1e-12)
        assert torch.allclose(squares[slot], square + rho * (of_square * change).sum((1, 2, 3)), rtol=0, atol=1e-12)


def test_a_batch_seen_again_after_an_update() -> None:
    """Its mean is exact, as it is linear in w; its square is too low by the mean square of what changed."""
    net, x = applied(window=2), inputs(0)
    net(x)
    before = net.conv(x)
    move(net, 1, by=0.3)
    after = net.conv(x)
    mean, square = raw(net.bn, net.conv.weight)
    true_mean, true_square = moments_of(after)
    assert torch.allclose(mean[0], true_mean, rtol=0, atol=1e-12)
    gap = (after - before).square().mean((0, 2, 3))
    assert gap.min() > 0.1
    assert torch.allclose(true_square - square[0], gap, rtol=0, atol=1e-11)


@pytest.mark.parametrize("options", [{"valid": "official"}, {"valid": "paper", "eps_outside": True}], ids=str)
@pytest.mark.parametrize("batch", [None, 2])
def test_steps_are_the_plain_formula_in_the_gradients_too(batch: int | None, options: dict[str, Any]) -> None:
    """Of the convolution's weight as well: nothing flows through the earlier steps."""
    net = applied(window=3, batch=batch, **options)
    with torch.no_grad():
        net.bn.weight.uniform_(0.5, 1.5), net.bn.bias.uniform_(-1, 1)
    for seed in range(4):
        means, squares = raw(net.bn, net.conv.weight)
        filled = slice(0, min(seed, 2))
        old = {"means": means[filled], "squares": squares[filled]} if seed else {}
        x = inputs(seed)
        y = cbn.reference(net.conv(x), net.bn.weight, net.bn.bias, batch=batch, **old, **options).relu()
        expected = gradients(y, *net.parameters())
        got = net(x)
        assert torch.allclose(got, y, rtol=0, atol=1e-10)
        for g, h in zip(gradients(got, *net.parameters()), expected, strict=True):
            assert torch.allclose(g, h, rtol=1e-9, atol=1e-9)
        move(net, seed, by=0.05)


# --------------------------------------------------------------------------------------------- steps that are invalid


@pytest.mark.parametrize("valid", ["official", "paper"])
def test_a_variance_below_zero_is_left_out_or_raised_to_zero(valid: str) -> None:
    """In one channel alone."""
    unit = norms.build("cbn", C, window=2, valid=valid, affine=False, dtype=f64, **NOW)
    x = pictures(4, C, 5, 3, seed=1)
    unit(pictures(4, C, 5, 3))
    unit.window_square[0, 2] = (unit.window_mean[0, 2] - unit.window_shift[0, 2]) ** 2 - 3
    old_mean, old_square = unit.window_mean[0].clone(), raw(unit)[1][0]
    mean, square = moments_of(x)
    if valid == "paper":
        old_square = torch.maximum(old_square, old_mean**2)
        n = torch.full((C,), 2.0, dtype=f64)
    else:
        n = torch.full((C,), 2.0, dtype=f64).index_fill_(0, torch.tensor(2), 1.0)
    centre, squares = (mean + (n - 1) * old_mean) / n, (square + (n - 1) * old_square) / n
    y = unit(x)
    std = torch.sqrt(squares - centre**2 + EPS)
    assert torch.allclose(y, (x - centre[:, None, None]) / std[:, None, None], rtol=0, atol=1e-10)
    assert y.isfinite().all()


@pytest.mark.parametrize("valid", ["official", "paper"])
@pytest.mark.parametrize("eps_outside", [True, False])
def test_constant_maps_and_wild_weights_stay_finite(valid: str, eps_outside: bool) -> None:
    """No spread at all, then weights that jump by far more than a first-order step holds for."""
    net = applied(window=3, valid=valid, eps_outside=eps_outside).float()
    for seed, x in enumerate([torch.zeros(2, 4, 5, 5), torch.ones(2, 4, 5, 5), *(inputs(s).float() for s in range(4))]):
        net.zero_grad()
        y = net(x)
        y.square().sum().backward()
        assert y.isfinite().all()
        assert all(p.grad.isfinite().all() for p in net.parameters())
        with torch.no_grad():
            net.conv.weight.normal_(std=10.0**seed, generator=torch.Generator().manual_seed(seed))


def test_a_mean_far_above_the_spread_costs_no_digits() -> None:
    """ν − μ² in float32 would have none left: at 1000, 1e6 · 2⁻²⁴ is 0.06. Once the running mean is near."""
    exact, got = applied(window=3, options={"bias": True}), applied(window=3, options={"bias": True}).float()
    for net in (exact, got):
        with torch.no_grad():
            net.conv.bias += 1000
        net.bn.momentum = 0.9
    for seed in range(8):
        x, y = inputs(seed), got(inputs(seed).float())
        assert (exact(x) - y).abs().max() < (1e-3 if seed > 5 else 0.1)
        move(exact, seed)
        got.conv.weight.data.copy_(exact.conv.weight.data)


# -------------------------------------------------------------------------------------------------- what is kept


def test_nothing_kept_has_a_gradient_and_it_does_not_grow() -> None:
    net = applied(window=4)
    sizes = set()
    for step in range(100):
        net(inputs(step % 3)).sum().backward()
        buffers = list(net.bn.buffers())
        assert not any(buffer.requires_grad or buffer.grad_fn for buffer in buffers)
        sizes.add(sum(buffer.numel() for buffer in buffers))
    assert len(sizes) == 1
    slopes, patches = net.conv.weight.numel(), net.conv.weight[0].numel()
    assert sizes == {3 * (slopes + patches + 5 * C) + 2 * C + 2}


def test_evaluation_knows_the_running_statistics_alone() -> None:
    """Of this step's mean and unbiased variance, whatever the window is."""
    net, bn = applied(window=3), nn.BatchNorm2d(C, dtype=f64)
    for seed in range(4):
        net(inputs(seed)), bn(net.conv(inputs(seed)))
        move(net, seed)
    x = inputs(9)
    expected = bn.eval()(net.conv(x)).relu()
    net.eval()
    assert torch.allclose(net(x), expected, rtol=0, atol=1e-12)
    for key in (*cbn.SMALL, *cbn.DOTS, *cbn.SLOPES):
        net.bn.get_buffer(key).fill_(7.0)
    assert torch.allclose(net(x), expected, rtol=0, atol=1e-12)


def training(net: nn.Module, seeds: range, batch: int = 4) -> Tensor:
    update = torch.optim.SGD(net.parameters(), lr=0.05)
    for seed in seeds:
        update.zero_grad()
        y = net(inputs(seed, batch))
        y.square().mean().backward()
        update.step()
    return y.detach()


def test_a_stopped_network_goes_on_bit_for_bit() -> None:
    whole, first = (applied(window=4, batch=2, burnin=1) for _ in range(2))
    training(whole, range(6)), training(first, range(6))
    content = io.BytesIO()
    torch.save(first.state_dict(), content)
    content.seek(0)
    second = applied(window=4, batch=2, burnin=1)
    second.load_state_dict(torch.load(content, weights_only=True))
    assert torch.equal(training(second, range(6, 10)), training(whole, range(6, 10)))
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in whole.state_dict().items())


def test_copies_and_pickles_go_on_alike_and_apart() -> None:
    net = applied(window=3)
    training(net, range(4))
    twins = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    first, second = (training(twin, range(4, 7)) for twin in twins)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(first, second)
    assert torch.equal(first, training(net, range(4, 7)))


@pytest.mark.parametrize("options", [{}, {"groups": 2, "padding": 1}], ids=str)
def test_eight_workers_of_two_are_eight_networks_of_two(options: dict[str, Any]) -> None:
    """From the same start; what is kept is the mean of what each keeps."""
    net = applied(batch=2, window=3, options=options)
    training(net, range(4), batch=16)
    workers = [copy.deepcopy(net) for _ in range(8)]
    x = inputs(5, 16)
    apart = torch.cat([worker(images) for worker, images in zip(workers, x.split(2), strict=True)])
    assert torch.allclose(net(x), apart, rtol=0, atol=1e-12)
    for key, value in net.bn.named_buffers():
        kept = torch.stack([worker.bn.get_buffer(key) for worker in workers])
        assert torch.allclose(value.to(f64), kept.to(f64).mean(0), rtol=0, atol=1e-12)


# -------------------------------------------------------------------------------------------------------- networks


def test_a_unit_behind_no_plain_convolution_pools_without_compensation() -> None:
    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    plain = nn.Sequential(Own(4, C, 1), nn.BatchNorm2d(C), nn.ReLU(), nn.BatchNorm2d(C), nn.Conv2d(C, C, 1))
    net = apply(nn.Sequential(plain, nn.BatchNorm2d(C)), "cbn", **NOW)
    units = [module for module in net.modules() if isinstance(module, CrossIterationBatchNorm)]
    assert [unit.geometry is not None for unit in units] == [False, False, True]
    assert net(torch.randn(2, 4, 3, 3)).isfinite().all()


def test_a_unit_that_follows_a_convolution_wants_its_input_and_weight() -> None:
    net = applied(window=3)
    with pytest.raises(InputError, match=r"cbn: got x alone, expected the convolution's input and weight too"):
        net.bn(pictures(2, C, 3, 3))


def test_the_model_given_is_left_as_it_was() -> None:
    plain = Net()
    before, names = copy.deepcopy(plain.state_dict()), list(dict(plain.named_parameters()))
    net = apply(plain, "cbn", window=3, **NOW)
    assert net.conv is plain.conv
    assert list(dict(net.named_parameters())) == names
    training(copy.deepcopy(net), range(3))
    net(inputs(0))
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())


def test_a_batchnorms_statistics_carry_over_and_its_count_is_the_burn_ins() -> None:
    plain = Net()
    plain(inputs(0)), plain(inputs(1))
    net = apply(plain, "cbn", window=3, burnin=2)
    assert torch.equal(net.bn.running_var, plain.bn.running_var)
    net(inputs(2))
    assert (net.bn.num_batches_tracked, net.bn.window_count) == (3, 1)


NETWORKS = {"resnet8": (8, 7), "resnet50": (16, 53), "inception_v3": (75, 94)}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_and_evaluate(name: str) -> None:
    """Two steps with a window of 3, each site behind a convolution."""
    size, sites = NETWORKS[name]
    torch.manual_seed(0)
    plain = models.build(ArchOptions(name), num_classes=4, picture_size=size)
    net = apply(plain, "cbn", batch=2, window=3, **NOW).train()
    units = [module for module in net.modules() if isinstance(module, CrossIterationBatchNorm)]
    assert len(units) == sites
    assert all(unit.geometry is not None for unit in units)
    update = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(2):
        x, y = torch.randn(4, 3, size, size), torch.tensor([0, 1, 2, 3])
        update.zero_grad()
        out = net(x)
        loss = sum(F.cross_entropy(head, y) for head in ([out] if isinstance(out, Tensor) else out))
        loss.backward()  # type: ignore[union-attr]
        update.step()
        assert loss.isfinite()  # type: ignore[union-attr]
        assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    assert {int(unit.window_count) for unit in units} == {2}
    assert net.eval()(x).isfinite().all()


def test_a_compiled_network_takes_the_same_steps() -> None:
    """Where counts are not read, so slots are written in the burn-in too."""
    torch.compiler.reset()
    eager, other = (applied(window=3, batch=2, burnin=2) for _ in range(2))
    compiled = torch.compile(other, fullgraph=True, backend="eager")
    for seed in range(5):
        x = inputs(seed)
        assert torch.allclose(compiled(x), eager(x), rtol=0, atol=1e-11)
        move(eager, seed), move(other, seed)
