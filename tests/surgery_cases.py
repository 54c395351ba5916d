"""Models of one's own for the tests of the surgery, and what shows that a model was left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 64  # of the pictures


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Fails if anything about ``model`` changes inside."""
    before, state = snapshot(model), {key: value.clone() for key, value in model.state_dict().items()}
    yield
    after = snapshot(model)
    assert list(before) == list(after)
    for name, attributes in before.items():
        assert attributes.keys() == after[name].keys()
        for key, value in attributes.items():
            now = after[name][key]
            assert value == now if isinstance(value, dict | int) else value is now, (name, key)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def snapshot(model: nn.Module) -> dict[str, dict[str, object]]:
    """Every attribute of every module; registries (parameters, children, hooks) by the identity of what is in them."""
    kept = {}
    for name, module in model.named_modules():
        attributes = vars(module)
        registries = {key: {k: id(v) for k, v in d.items()} for key, d in attributes.items() if isinstance(d, dict)}
        kept[name] = {"itself": id(module), **attributes, **registries}
    return kept


def outputs(model: nn.Module, x: Tensor, *, training: bool) -> tuple[Tensor, ...]:
    """The model's outputs as a tuple, its random draws and running statistics from the same start each time."""
    torch.manual_seed(1)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.no_grad():
        y = model.train(training)(x)
    for buffer, before in buffers:
        buffer.copy_(before)
    return y if isinstance(y, tuple) else (y,)


class Small(nn.Module):
    """Convolution, BatchNorm, ReLU, twice, and a head."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8, **options)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8, **options)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x)).relu()
        return self.fc(x.mean((2, 3)))


class Branching(Small):
    """Cannot be traced: which way it goes depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        return super().forward(x)


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def same(left: nn.Module, right: nn.Module, x: Tensor = X) -> None:
    for training in (True, False):
        for l, r in zip(outputs(left, x, training=training), outputs(right, x, training=training), strict=True):  # noqa: E741
            torch.testing.assert_close(l, r, rtol=1e-4, atol=1e-5)
