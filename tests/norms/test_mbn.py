"""mbn: mixtures of memory and batch against plain sums; the second forward of a step; what evaluation takes."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from norm_cases import C, gradients, make, pictures
from norm_cases import Case as Of
from torch import Tensor, nn
from torch.nn import functional as F

from normbench import cell as cells
from normbench import checkpoint, models, norms, train
from normbench.data import Description
from normbench.norms.mbn import MemorizedBatchNorm
from normbench.optimize import optimizer
from normbench.options import ArchOptions
from normbench.step import Step
from normbench.surgery import apply

f64 = torch.float64
CPU, HERE = torch.device("cpu"), Path(__file__).resolve()
EPS = 1e-5


class Net(nn.Module):
    """Two sites, dropout, and a norm that stays a BatchNorm."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.one, self.bn_one = nn.Conv2d(3, C, 3, bias=False), nn.BatchNorm2d(C)
        self.two, self.bn_two = nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C)
        self.drop, self.flat, self.fc = nn.Dropout(0.3), nn.BatchNorm1d(C), nn.Linear(C, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.bn_one(self.one(x))))
        x = torch.relu(self.bn_two(self.two(x)))
        return self.fc(self.flat(x.mean((2, 3))))


def net(dropout: float = 0.0, batch: int | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    made = apply(Net(), "mbn", batch=batch, **{"eta": 0.4, "memory": 2, **options}).double()
    made.drop.p = dropout
    return made


def units_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, MemorizedBatchNorm)]


def images(seed: int, count: int = 4) -> Tensor:
    return pictures(count, 3, 7, 6, seed=seed)


def steps(model: Any, seeds: range, lr: float = 0.05, count: int = 4) -> Tensor:
    """Training steps with the hooks; the last one's output."""
    update, hooks = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9), norms.step_hooks(model)
    for seed in seeds:
        update.zero_grad()
        x = images(seed, count)
        y = model(x)
        F.cross_entropy(y, torch.arange(count) % 3).backward()
        update.step()
        hooks.updated(lambda x=x: model(x))  # type: ignore[misc]
    return y.detach()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)


# ------------------------------------------------------------------------------------------------------- mixtures


@pytest.mark.parametrize("options", [{"eta": 1.0}, {"eta": 0.2, "eta_warmup": 9}], ids=["eta of 1", "warm-up"])
def test_it_is_batch_norm_in_training(options: dict[str, Any]) -> None:
    ours, theirs = norms.build("mbn", C, dtype=f64, **options), nn.BatchNorm2d(C, dtype=f64)
    for seed in range(3):
        x = pictures(4, C, 5, 3, seed=seed).requires_grad_()
        y, expected = ours(x), theirs(x)
        assert torch.allclose(y, expected, rtol=0, atol=1e-11)
        of_ours, of_theirs = gradients(y, x, *ours.parameters()), gradients(expected, x, *theirs.parameters())
        assert all(torch.allclose(g, h, rtol=1e-9, atol=1e-9) for g, h in zip(of_ours, of_theirs, strict=True))


def test_with_equal_weights_statistics_are_those_of_all_batches_together() -> None:
    """k of memory and this one."""
    k = 3
    unit = norms.build("mbn", C, memory=k, memory_decay=1.0, eta=1 / (k + 1), dtype=f64)
    seen = [pictures(4, C, 5, 3, seed=seed) + seed for seed in range(6)]
    for x in seen[:-1]:
        unit(x)
    mean, var = moments(torch.cat(seen[-(k + 1) :]))
    expected = (seen[-1] - mean[:, None, None]) / torch.sqrt(var + EPS)[:, None, None]
    assert torch.allclose(unit(seen[-1]), expected, rtol=0, atol=1e-11)
    mean, var = moments(torch.cat(seen[-k:]))
    expected = (seen[0] - mean[:, None, None]) / torch.sqrt(var + EPS)[:, None, None]
    assert torch.allclose(unit.eval()(seen[0]), expected, rtol=0, atol=1e-11), "evaluation: of the k of memory"


def test_memory_is_in_order_and_weights_sum_to_1() -> None:
    unit = norms.build("mbn", C, memory=3, memory_decay=0.5, eta=0.3, dtype=f64)
    means: list[Tensor] = []
    for seed in range(6):
        m = min(seed, 3)
        alpha = unit._weights(torch.float64)
        assert alpha.flatten().tolist() == [0.0] * (3 - m) + [0.5 ** (m - 1 - i) for i in range(m)]
        ones, zeros = torch.ones(1, C, dtype=f64), torch.zeros(1, C, dtype=f64)
        unit_means = copy.deepcopy(unit)
        unit_means.mem_mean.fill_(1.0)
        mean, _ = unit_means._mix(ones, zeros, 0.3)
        assert torch.allclose(mean, ones), "a mean of 1 throughout has the mean 1"
        assert torch.allclose(unit_means.remembered()[0], ones * (m > 0) + ones * (m == 0))
        x = pictures(4, C, 5, 3, seed=seed)
        unit(x)
        means.append(moments(x)[0])
        assert unit.mem_count == min(seed + 1, 4)
        kept = torch.stack(means[-4:])
        assert torch.allclose(unit.mem_mean[-len(kept) :], kept, rtol=0, atol=1e-12)
        assert torch.equal(unit.mem_mean[: 4 - len(kept)], torch.zeros(4 - len(kept), C, dtype=f64))


def test_the_spread_of_the_means_counts_in_total_and_not_within() -> None:
    """A constant shift from batch to batch."""
    x, variances = pictures(4, C, 5, 3), {}
    for mode in ("total", "within"):
        unit = norms.build("mbn", C, memory=2, memory_decay=1.0, eta=0.5, var_mode=mode, dtype=f64)
        unit(x - 3), unit(x - 3)
        variances[mode] = unit._mix(*(value[None] for value in moments(x)), 0.5)[1][0]
    own = moments(x)[1]
    assert torch.allclose(variances["within"], own)
    assert torch.allclose(variances["total"], own + 9 * 0.5 * 0.5)


@pytest.mark.parametrize("batch", [None, 2])
def test_detached_statistics_have_no_gradient(batch: int | None) -> None:
    """The same outputs; the gradient of a scale and shift."""
    full, detached = (
        make(Of("mbn", {"eta": 0.4, "memory": 2, "grad_mode": mode}), batch=batch) for mode in ("full", "detach")
    )
    for seed in range(3):
        x = pictures(4, C, 5, 3, seed=seed).requires_grad_()
        y, expected = detached(x), full(x)
        assert torch.allclose(y, expected, rtol=0, atol=1e-12)
        slope = detached.weight[:, None, None] * (y - y.mean()).new_ones(y.shape)
        (got,), (of_full,) = gradients(y, x), gradients(expected, x)
        assert not torch.allclose(got, of_full)
    weights = torch.linspace(-1, 2, y.numel(), dtype=f64).view(y.shape).square()
    ratio = got / (weights * slope)
    by_worker = ratio.unflatten(0, (-1, batch or 4))
    assert torch.allclose(by_worker, by_worker[:, :1, :, :1, :1].expand_as(by_worker), rtol=1e-9)


def test_the_share_of_the_batch() -> None:
    share = {n: norms.build("mbn", C, memory=4).share(n) for n in (1, 8, 24)}
    assert share == {1: 1 / 5, 8: 1 / 5, 24: 0.75}
    unit = norms.build("mbn", C, eta=0.2, eta_warmup=2, dtype=f64)
    seen = []
    for seed in range(6):
        seen.append(unit.share(4))
        unit(pictures(4, C, 5, 3, seed=seed))
    assert seen == pytest.approx([1, 1, 1, 0.6, 0.2, 0.2])
    unit = norms.build("mbn", C)
    assert unit.warmup_steps() == 0
    unit.run_steps = 90
    assert unit.warmup_steps() == 3


# --------------------------------------------------------------------------------------------- the second forward


def test_without_an_update_the_second_forward_writes_what_the_first_did() -> None:
    twice, once = net(), net(double_forward=False)
    for seed in range(4):
        assert torch.allclose(steps(twice, range(seed, seed + 1), lr=0.0), steps(once, range(seed, seed + 1), lr=0.0))
        for ours, theirs in zip(units_of(twice), units_of(once), strict=True):
            for key, value in ours.named_buffers():
                assert torch.allclose(value, theirs.get_buffer(key), rtol=0, atol=1e-12)


def test_the_newest_of_memory_is_that_of_a_forward_under_the_new_weights() -> None:
    """From the memory before the step, at every site, whose input depends on the sites before it."""
    model = net()
    steps(model, range(3))
    before = {key: value.clone() for key, value in model.named_buffers()}
    steps(model, range(3, 4))
    alone = copy.deepcopy(model)
    for key, value in alone.named_buffers():
        value.copy_(before[key])
    with torch.no_grad():
        alone(images(3))
    for ours, theirs in zip(units_of(model), units_of(alone), strict=True):
        assert torch.allclose(ours.mem_mean, theirs.mem_mean, rtol=0, atol=1e-12)
        assert torch.allclose(ours.mem_var, theirs.mem_var, rtol=0, atol=1e-12)
        assert (ours.mem_count, ours.num_batches_tracked) == (theirs.mem_count, theirs.num_batches_tracked)
    once = net(double_forward=False)
    steps(once, range(4))
    assert not torch.allclose(units_of(once)[0].mem_mean, units_of(model)[0].mem_mean)


def test_a_loop_without_hooks_keeps_the_first_forwards() -> None:
    hooked, bare = net(double_forward=False), net()
    steps(hooked, range(2), lr=0.0)
    for seed in range(2):
        bare(images(seed))
    for ours, theirs in zip(units_of(bare), units_of(hooked), strict=True):
        assert torch.equal(ours.mem_mean, theirs.mem_mean)


def cell_of(**keys: Any) -> cells.Cell:
    options = {"name": "mbn", "memory": 2, "eta": 0.4, **keys.pop("options", {})}
    recipe = {"name": "t", "epochs": 1, "base_lr": 0.05, "base_batch": 8, "schedule": "constant"}
    config = {"arch": {"name": f"{HERE}:Net"}, "data": {"name": "digits"}, "recipe": recipe, "norm": options}
    return cells.make({**config, "batch": 2, "workers": 2, **keys})


@pytest.mark.parametrize("keys", [{}, {"chunk": 1}], ids=["together", "by chunks"])
def test_the_second_forward_changes_memory_alone(keys: dict[str, Any]) -> None:
    """Not parameters, gradients, the optimizer's state, other norms' statistics or the random state; the same draws."""
    description = Description("made", tuple("0123456789"), 80, 10, "test", 8, 8, 3, False, "f")
    found = []
    for double_forward in (True, False):
        cell = cell_of(options={"double_forward": double_forward}, **keys)
        model = train.prepare(cell, description, CPU).train()
        update = optimizer(model, cell.recipe, 0.1)
        step = Step(cell, model, model, update, CPU)
        torch.manual_seed(1)
        kept: list[Tensor] = []
        model.get_submodule("drop").register_forward_hook(
            lambda _m, x, y, kept=kept: kept.append((y == 0) & (x[0] != 0))
        )
        step(images(0).float(), torch.arange(4), 0.1)
        found.append((model, update, torch.get_rng_state(), kept))
    (ours, update, state, draws), (theirs, other, expected_state, _) = found
    assert torch.equal(state, expected_state)
    memory = [key for key in ours.state_dict() if ".mem_" in key and "count" not in key]
    for key, value in ours.state_dict().items():
        same = torch.equal(value, theirs.state_dict()[key])
        assert same is not (key in memory), key
    assert ours.get_submodule("flat").num_batches_tracked == 2 // keys.get("chunk", 2), "once a forward, not twice"
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, q.grad)
    assert checkpoint.digest(update.state_dict()) == checkpoint.digest(other.state_dict())
    half = len(draws) // 2
    agree = [(a == b).float().mean() for a, b in zip(draws[:half], draws[half:], strict=True)]
    assert min(agree) > 0.95, "the same places are dropped, but where the sign of what comes in changed"


# ----------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("var_mode", ["total", "within"])
def test_evaluation_does_not_know_the_batch(var_mode: str) -> None:
    model = net(var_mode=var_mode)
    steps(model, range(4))
    model.eval()
    x = images(9, 6)
    alone = torch.cat([model(image[None]) for image in x])
    assert torch.allclose(model(x), alone, rtol=0, atol=1e-12)
    assert torch.equal(model(x), model(x))
    loaded = net(var_mode=var_mode)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded.eval()(x), model(x))


def test_a_new_unit_evaluates_as_a_new_batchnorm() -> None:
    x = pictures(4, C, 5, 3)
    expected = nn.BatchNorm2d(C, dtype=f64).eval()(x)
    assert torch.allclose(norms.build("mbn", C, dtype=f64).eval()(x), expected, rtol=0, atol=1e-12)


def test_a_batchnorms_statistics_are_left_out_and_that_is_said() -> None:
    unit = norms.build("mbn", C)
    with pytest.warns(UserWarning, match=r"left out.*running_mean, running_var.*kept as they were: .*mem_mean"):
        unit.load_state_dict(nn.BatchNorm2d(C).state_dict())


# ------------------------------------------------------------------------------------------- runs, copies, networks


def test_a_stopped_network_goes_on_bit_for_bit() -> None:
    whole, first = net(eta_warmup=2), net(eta_warmup=2)
    for model in (whole, first):
        steps(model, range(5), lr=0.01)
    content = io.BytesIO()
    torch.save(first.state_dict(), content)
    content.seek(0)
    second = net(eta_warmup=2)
    second.load_state_dict(torch.load(content, weights_only=True))
    assert torch.equal(steps(second, range(5, 8)), steps(whole, range(5, 8)))
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in whole.state_dict().items())


def test_copies_and_pickles_go_on_alike_and_apart() -> None:
    model = net()
    steps(model, range(3))
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = (steps(twin, range(3, 6)) for twin in twins)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(first, second)
    assert torch.equal(first, steps(model, range(3, 6)))


def test_eight_workers_of_two_are_eight_networks_of_two() -> None:
    """From the same start; memory gets the mean of what each sees. In the second forward too."""
    model = net(batch=2).train()
    steps(model, range(3), count=16)
    model.flat.eval()
    workers = [copy.deepcopy(model) for _ in range(8)]
    x = images(5, 16)
    for again in (False, True):
        for each in (model, *workers):
            for unit in units_of(each):
                unit.again = again
        apart = torch.cat([worker(own) for worker, own in zip(workers, x.split(2), strict=True)])
        assert torch.allclose(model(x), apart, rtol=0, atol=1e-12)
        for site in ("bn_one", "bn_two"):
            for key, value in model.get_submodule(site).named_buffers():
                kept = torch.stack([worker.get_submodule(site).get_buffer(key) for worker in workers])
                assert torch.allclose(value.to(f64), kept.to(f64).mean(0), rtol=0, atol=1e-12)


def test_nothing_kept_has_a_gradient_and_it_does_not_grow() -> None:
    model, sizes = net(), set()
    for step in range(30):
        steps(model, range(step % 3, step % 3 + 1), lr=0.01)
        buffers = [buffer for unit in units_of(model) for buffer in unit.buffers()]
        assert not any(buffer.requires_grad or buffer.grad_fn for buffer in buffers)
        sizes.add(sum(buffer.numel() for buffer in buffers))
    assert sizes == {2 * (2 * 3 * C + 2)}


NETWORKS = {"resnet8": (8, 7), "resnet50": (16, 53), "inception_v3": (75, 94)}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_and_evaluate(name: str) -> None:
    size, sites = NETWORKS[name]
    torch.manual_seed(0)
    plain = models.build(ArchOptions(name), num_classes=4, picture_size=size)
    model = apply(plain, "mbn", batch=2).train()
    assert len(units_of(model)) == sites
    update, hooks = torch.optim.SGD(model.parameters(), lr=0.01), norms.step_hooks(model)
    for _ in range(2):
        x, y = torch.randn(4, 3, size, size), torch.tensor([0, 1, 2, 3])
        update.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        update.step()
        hooks.updated(lambda x=x: model(x))  # type: ignore[misc]
        assert loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert {int(unit.mem_count) for unit in units_of(model)} == {2}
    assert model.eval()(x).isfinite().all()
