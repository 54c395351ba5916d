"""bne: statistics by domain, distances between embeddings, and the ensemble that a network evaluates as."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from norm_cases import C, gradients, make, pictures
from norm_cases import Case as Of
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import normbench
from normbench import cell as cells
from normbench import norms, train
from normbench.data import Description
from normbench.errors import ConfigError, InputError
from normbench.meter import StoppedError
from normbench.models import build as build_model
from normbench.norms import bne
from normbench.optimize import optimizer
from normbench.options import ArchOptions
from normbench.step import Step

f64 = torch.float64
CPU = torch.device("cpu")


def unit(domains: int = 3, batch: int | None = None, told: list[int] | None = None) -> Any:
    made = make(Of("bne", {"domains": domains}), batch=batch)
    made.told = None if told is None else torch.tensor(told)
    return made


def net(domains: int = 3, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    plain = build_model(ArchOptions("resnet8"), num_classes=10, picture_size=8)
    return normbench.apply(plain.double(), "bne", domains=domains, **options)


def trained(domains: int = 3, steps: int = 3) -> nn.Module:
    """Its statistics are of pictures that differ in mean and spread by domain."""
    model = net(domains).train()
    hooks = norms.step_hooks(model)
    of = torch.arange(12) % domains
    for step in range(steps):
        x = torch.randn(12, 3, 8, 8, dtype=f64, generator=torch.Generator().manual_seed(step))
        hooks.pictures(of)
        model(x * (1 + of)[:, None, None, None] + of[:, None, None, None])
    return model


# ---------------------------------------------------------------------------------------------------------- the layer


def test_one_domain_is_batchnorm2d() -> None:
    ours, bn = unit(1), nn.BatchNorm2d(C, dtype=f64)
    bn.load_state_dict({k: v[0].to(bn.state_dict()[k].dtype) if "r" in k[:1] or "n" in k[:1] else v
                        for k, v in ours.state_dict().items()})  # fmt: skip
    x = pictures(4, C, 5, 3).requires_grad_()
    for _ in range(2):
        y, expected = ours(x), bn(x)
        torch.testing.assert_close(y, expected)
        for g, h in zip(gradients(y, x, *ours.parameters()), gradients(expected, x, *bn.parameters()), strict=True):
            torch.testing.assert_close(g, h)
    for key in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, key)[0], getattr(bn, key))
    assert ours.num_batches_tracked.tolist() == [2]
    torch.testing.assert_close(ours.eval()(x), bn.eval()(x))


@pytest.mark.parametrize("batch", [None, 4, 2])
def test_training_is_the_plain_formula(batch: int | None) -> None:
    of = [0, 2, 0, 0, 2, 2, 1, 2]
    ours, x = unit(3, batch, of), pictures(8, C, 5, 3).requires_grad_()
    y, expected = ours(x), bne.reference(x, ours.weight, ours.bias, batch=batch, of=of)
    torch.testing.assert_close(y, expected)
    for g, h in zip(gradients(y, x, *ours.parameters()), gradients(expected, x, *ours.parameters()), strict=True):
        torch.testing.assert_close(g, h)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_buffers_are_the_mean_of_what_each_workers_domains_would_have_kept(momentum: float | None) -> None:
    """Of a worker without a domain: what it had before."""
    of = torch.tensor([0, 2, 0, 0, 2, 2, 2, 2])
    ours, alone = unit(3, 4), [unit(3, None) for _ in range(2)]
    for each in (ours, *alone):
        each.momentum = momentum
    for seed in range(2):
        x = pictures(8, C, 5, 3, seed=seed)
        ours.told = of
        start = copy.deepcopy(ours.state_dict())
        ours(x)
        for each, part, own in zip(alone, x.split(4), of.split(4), strict=True):
            each.load_state_dict(start)
            each.told = own
            each(part)
            for d in range(3):
                bn = nn.BatchNorm2d(C, momentum=momentum, dtype=f64)
                for key, value in start.items():
                    if "running" in key or "num" in key:
                        bn.get_buffer(key).copy_(value[d])
                if seed == 0 and (own == d).any():  # whole numbers, so BatchNorm2d can count too
                    bn(part[own == d])
                    torch.testing.assert_close(each.running_var[d], bn.running_var)
                    torch.testing.assert_close(each.running_mean[d], bn.running_mean)
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            mean = torch.stack([each.state_dict()[key] for each in alone]).mean(0)
            torch.testing.assert_close(ours.state_dict()[key], mean)


def test_updating_a_domain_leaves_the_others_untouched() -> None:
    ours = unit(3, told=[1, 1, 1, 1])
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    ours(pictures(4, C, 5, 3))
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        value = ours.state_dict()[key]
        assert torch.equal(value[[0, 2]], before[key][[0, 2]])
        assert not torch.equal(value[1], before[key][1])


def test_half_precision_has_float32_statistics() -> None:
    of, x = [0, 1, 2, 0, 1, 2], pictures(6, C, 8, 8) * 50 + 1000
    low, exact = norms.build("bne", C, domains=3), norms.build("bne", C, domains=3, dtype=f64)
    low.told = exact.told = torch.tensor(of)  # type: ignore[assignment]
    y, expected = low(x.bfloat16()), exact(x.bfloat16().double())
    assert y.dtype == torch.bfloat16
    assert (y.double() - expected).abs().max() < 0.05
    torch.testing.assert_close(low.running_var.double(), exact.running_var, rtol=1e-4, atol=0)


@pytest.mark.parametrize("told", [None, [0, 1]])
def test_images_of_unknown_domains_are_refused_in_words(told: list[int] | None) -> None:
    for training in (True, False):
        with pytest.raises(InputError, match=r"bne: got (none|those of 2), expected the domains of 4 images.*data=dom"):
            unit(2, told=told).train(training)(pictures(4, C, 3, 3))


# ------------------------------------------------------------------------------------------------------ the distances


def test_the_distance_is_symmetric_zero_for_the_same_and_the_full_matrix_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    m, n = torch.randn(2, 5, dtype=f64, generator=generator)
    s, t = torch.rand(2, 5, dtype=f64, generator=generator) + 0.1
    found = bne.wasserstein(m, s, n, t)
    assert found == bne.wasserstein(n, t, m, s)
    assert bne.wasserstein(m, s, m, s) == 0
    assert found > 0
    assert bne.wasserstein(m, s, m, t) > 0

    def root(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T

    a, b = (s**2).diag(), (t**2).diag()
    between = root(root(a) @ b @ root(a))
    torch.testing.assert_close(found, (m - n).square().sum() + torch.trace(a + b - 2 * between))


def test_weights_add_up_to_one_and_the_place_itself_has_all() -> None:
    distance = torch.rand(4, 7, dtype=f64, generator=torch.Generator().manual_seed(0)) + 0.01
    w = bne.weights(distance)
    torch.testing.assert_close(w.sum(0), torch.ones(7, dtype=f64))
    torch.testing.assert_close(w, (1 / (distance + 1e-8)) / (1 / (distance + 1e-8)).sum(0))
    distance[2, 0] = 0
    assert bne.weights(distance)[2, 0] > 0.999


def test_an_image_at_a_domains_embedding_takes_that_branch() -> None:
    """A network of one unit, whose statistics are those of the image."""
    torch.manual_seed(0)
    model: Any = normbench.apply(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 5)), "bne", domains=2)
    only, x = model.get_submodule("0"), torch.randn(1, 3, 4, 4)
    only.running_mean[1], only.running_var[1] = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    p = model.eval()(x)
    y = (x - only.running_mean[1][:, None, None]) / torch.sqrt(only.running_var[1] + 1e-5)[:, None, None]
    torch.testing.assert_close(p, torch.log_softmax(model.get_submodule("2")(y.flatten(1)), 1), rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------------------- the network


def branches(model: nn.Module, x: Tensor, domains: int) -> tuple[Tensor, Tensor]:
    """Probabilities (D, N, K) and distances (D, N), one network of plain BatchNorms for each domain."""
    probabilities, distances = [], []
    for d in range(domains):
        plain = build_model(ArchOptions("resnet8"), num_classes=10, picture_size=8).double()
        state = {}
        for key, value in model.state_dict().items():
            own = "running" in key or "num_batches" in key
            state[key] = value[d].to(plain.state_dict()[key].dtype) if own else value
        plain.load_state_dict(state)
        total = torch.zeros(len(x), dtype=f64)

        def look(bn: Any, args: tuple[Tensor, ...], total: Tensor = total) -> None:
            mean, std = args[0].mean((2, 3)), args[0].var((2, 3), correction=0).sqrt()
            total += ((mean - bn.running_mean) ** 2 + (std - bn.running_var.sqrt()) ** 2).sum(1)

        for module in plain.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(look)
        with torch.no_grad():
            probabilities.append(plain.eval()(x).softmax(1))
        distances.append(total)
    return torch.stack(probabilities), torch.stack(distances)


def test_evaluation_weighs_the_branches_by_their_inverse_distances() -> None:
    model, x = trained(3).eval(), torch.randn(5, 3, 8, 8, dtype=f64) * 2 + 1
    p, distance = branches(model, x, 3)
    w = 1 / distance
    w = w / w.sum(0)
    assert w.std() > 0.01
    got = model(x)
    torch.testing.assert_close(got.exp(), (w[..., None] * p).sum(0))
    torch.testing.assert_close(got.exp().sum(1), torch.ones(5, dtype=f64))
    y = torch.tensor([0, 1, 2, 3, 4])
    torch.testing.assert_close(F.cross_entropy(got, y), -got[range(5), y].mean())
    torch.testing.assert_close(got[3:], model(x[3:]))


def test_the_same_statistics_in_all_domains_are_one_network() -> None:
    one, three = trained(1).eval(), net(3).eval()
    state = {
        key: value.expand(3, *value.shape[1:]).clone() if "running" in key or "num_batches" in key else value
        for key, value in one.state_dict().items()
    }
    three.load_state_dict(state)
    x = torch.randn(4, 3, 8, 8, dtype=f64)
    torch.testing.assert_close(three(x), torch.log_softmax(one(x), 1))


def test_with_one_domain_a_network_is_bns() -> None:
    model, x = trained(1), torch.randn(4, 3, 8, 8, dtype=f64)
    torch.manual_seed(0)
    plain = build_model(ArchOptions("resnet8"), num_classes=10, picture_size=8).double()
    bn = normbench.apply(plain, "bn")
    bn.load_state_dict({k: v[0].to(bn.state_dict()[k].dtype) if "running" in k or "num_b" in k else v
                        for k, v in model.state_dict().items()})  # fmt: skip
    for training in (True, False):
        torch.testing.assert_close(model.train(training)(x), bn.train(training)(x))


def test_copies_pickles_and_states_evaluate_alike() -> None:
    model, x = trained(3), torch.randn(4, 3, 8, 8, dtype=f64)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = net(3)
    other.load_state_dict(torch.load(file, weights_only=True))
    expected = model.eval()(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other):
        assert torch.equal(twin.eval()(x), expected)


def test_a_network_that_gives_no_logits_is_refused() -> None:
    model = normbench.apply(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "bne", domains=2)
    with pytest.raises(InputError, match=r"bne: got Tensor out of the network, expected logits"):
        model.eval()(torch.randn(2, 3, 4, 4))
    assert all(module.distances is None for module in model.modules() if norms.is_unit(module))  # type: ignore[attr-defined]


def test_a_batchnorm_checkpoint_is_every_domains() -> None:
    bn, ours = nn.BatchNorm2d(C, dtype=f64), unit(3)
    bn(pictures(4, C, 5, 3))
    ours.load_state_dict(bn.state_dict())
    assert torch.equal(ours.running_mean, bn.running_mean.expand(3, C))
    assert ours.num_batches_tracked.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("name", "side"), [("resnet50", 64), ("inception_v3", 299)])
def test_torchvisions_networks_train_and_evaluate(name: str, side: int) -> None:
    options = {"init_weights": False} if name == "inception_v3" else {}
    plain = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    model = normbench.apply(plain, "bne", domains=2, batch=2).train()
    hooks, update = norms.step_hooks(model), torch.optim.SGD(model.parameters(), 0.01)
    x, y = torch.randn(2, 3, side, side), torch.tensor([1, 2])
    for of in ([0, 1], [1, 1]):
        hooks.pictures(torch.tensor(of))
        update.zero_grad()
        out = model(x)
        loss = sum(F.cross_entropy(head, y) for head in ([out] if isinstance(out, Tensor) else list(out)))
        assert isinstance(loss, Tensor)
        assert loss.isfinite()
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        update.step()
    with torch.no_grad():
        assert model.eval()(x).exp().sum(1).tolist() == pytest.approx([1, 1], abs=1e-4)


# ----------------------------------------------------------------------------------------------------------- the step

DESCRIPTION = Description(
    "made", tuple("0123456789"), 48, 10, "test", 8, 8, 3, False, "f", domains=("photo", "sketch", "cartoon")
)


def cell(**keys: Any) -> cells.Cell:
    recipe = {"name": "t", "epochs": 1, "base_lr": 0.05, "base_batch": 8, "schedule": "constant"}
    base = {"arch": {"name": "resnet8"}, "data": {"name": "digits"}, "recipe": recipe, "norm": {"name": "bne"}}
    return cells.make({**base, "batch": 4, **keys})


def stepped(**keys: Any) -> dict[str, Tensor]:
    """What a network is after a step over 16 pictures of three domains."""
    made = cell(workers=4, **keys)
    model = train.prepare(made, DESCRIPTION, CPU).double().train()
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=f64)
    of = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2, 0, 1, 2, 0, 1, 1, 1, 0])
    y = torch.arange(16) % 10 + 10 * of
    step = Step(made, model, model, optimizer(model, made.recipe, 0.1), CPU, classes=DESCRIPTION.domain_classes)
    step(x, y, 0.1)
    return model.state_dict()


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_workers_run_a_chunk_at_a_time_are_the_same_step(chunk: int) -> None:
    """Though not every chunk has every domain."""
    whole, parts = stepped(), stepped(chunk=chunk)
    assert whole["bn1.running_mean"].shape == (3, 16)
    assert whole["bn1.num_batches_tracked"].tolist() == [0.75, 0.75, 0.5]
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-9, atol=1e-9)


def test_others_take_the_class_and_leave_the_domain() -> None:
    """A label of the third domain, 20 and above, is none of ten classes."""
    state = stepped(norm={"name": "bn"})
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("domains", [2, 4])
def test_another_number_of_domains_than_the_data_has_is_refused(domains: int) -> None:
    said = rf"norm.domains: got {domains}, but data=made is trained on 3 domains \(photo, sk"
    with pytest.raises(ConfigError, match=said):
        train.prepare(cell(norm={"name": "bne", "domains": domains}), DESCRIPTION, CPU)
    assert train.prepare(cell(norm={"name": "bne", "domains": 3}), DESCRIPTION, CPU).bn1.domains == 3


def test_domains_of_data_that_has_none_are_refused_before_anything_runs(sweep: Any, capsys: Any) -> None:
    assert sweep("norm=bne", "norm.domains=3", "batch=8", "steps=1") == 2
    assert "digits is trained on 1 domain; leave it out" in capsys.readouterr().err


class Made:
    """Pictures of three domains that depend on their number alone."""

    description, num_classes = DESCRIPTION, 10

    def train(self, *, seed: int, epoch: int, batch: int, start: int = 0, **_: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(start, self.train_steps(batch)):
            generator = torch.Generator().manual_seed(1000 * epoch + step)
            of = torch.randint(3, (batch,), generator=generator)
            yield torch.randn(batch, 3, 8, 8, generator=generator) + of[:, None, None, None], of * 10 + of

    def train_steps(self, batch: int) -> int:
        return self.description.train // batch

    def test(self, batch: int, **_: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3


class Notes:
    def step(self, *_: object) -> None: ...
    def row(self, *_: object) -> None: ...
    def right(self, *_: object) -> None: ...


class Stops:
    """Asks a run to stop at its fourth step."""

    def __init__(self) -> None:
        self.seen, self.stop, self.state = 0, False, {}

    def due(self, at_end: bool) -> bool:
        self.seen += not at_end
        self.stop = self.seen == 4
        return False

    def save(self, state: dict[str, Any]) -> None:
        self.state = copy.deepcopy(state)

    def trained(self, result: dict[str, Any]) -> bool:
        return True


def test_a_run_over_domains_goes_on_bit_for_bit() -> None:
    made, keep = cell(workers=2, chunk=1, steps=8, deterministic=True), Stops()
    nets = [train.prepare(made, DESCRIPTION, CPU) for _ in range(3)]
    whole = train.train(made, nets[0], Made(), CPU, Notes())
    with pytest.raises(StoppedError):
        train.train(made, nets[1], Made(), CPU, Notes(), keep)
    again = train.train(made, nets[2], Made(), CPU, Notes(), state=keep.state)
    assert (again["loss"], again["top1"]) == (whole["loss"], whole["top1"])
    for key, value in nets[0].state_dict().items():
        assert torch.equal(nets[2].state_dict()[key], value), key


def test_a_sweep_trains_every_norm_on_domains_and_bne_by_them(
    tmp_path: Path, sweep: Callable[..., int], results: Callable[..., list[dict[str, str]]]
) -> None:
    draws = np.random.default_rng(0)
    for d, domain in enumerate(("art", "photo", "sketch")):
        for split, count in (("train", 4), ("test", 2)):
            for label in ("ant", "bee"):
                folder = tmp_path / "set" / domain / split / label
                folder.mkdir(parents=True)
                for i in range(count):
                    picture = draws.integers(80 * d, 80 * d + 90, (8, 8)).astype(np.uint8)
                    Image.fromarray(picture).save(folder / f"{i}.png")
    data = ("data=domains", "data.root=set", "data.held_out=sketch")
    assert sweep("norm=bn,bne", *data, "batch=4", "workers=2", "chunk=1", "steps=4", "name=d") == 0
    rows = results("d")
    assert [(row["norm"], row["status"], row["eval_count"]) for row in rows] == [
        ("bn", "ok", "12"),
        ("bne", "ok", "12"),
    ]
    assert sweep("norm=bne", *data, "batch=4", "steps=2", "norm.domains=1", "name=e") == 2
