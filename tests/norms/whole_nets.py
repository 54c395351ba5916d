"""Whole networks with a method in them, for the tests of single methods."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normbench import models, norms
from normbench.options import ArchOptions
from normbench.surgery import apply

NETS = {"resnet8": 8, "resnet50": 32, "inception_v3": 75}


def net(name: str, seed: int = 0) -> nn.Module:
    """One of NETS, as the runner builds it, for pictures of its side there."""
    torch.manual_seed(seed)
    options = ArchOptions(name, size=NETS[name] if name == "inception_v3" else None)
    return models.build(options, num_classes=10, picture_size=NETS[name])


def pictures_of(name: str, N: int = 4) -> Tensor:
    return torch.randn(N, 3, NETS[name], NETS[name], generator=torch.Generator().manual_seed(0))


def train(model: nn.Module, name: str, steps: int = 2, N: int = 4) -> Tensor:
    """Some steps of SGD with the method's hooks, on the same pictures; the loss of the last one."""
    hooks, x = norms.step_hooks(model), pictures_of(name, N)
    update = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        update.zero_grad()
        loss = F.cross_entropy(model(x), torch.arange(N))
        loss.backward()
        hooks.gradients()
        update.step()
        hooks.updated(lambda: model(x))
    assert all(p.isfinite().all() for p in model.parameters())
    return loss.detach()


def trained(name: str, norm: str, **options: object) -> nn.Module:
    """The network after two finite steps."""
    model = apply(net(name), norm, **options)
    assert train(model, name).isfinite()
    return model
