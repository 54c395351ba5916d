"""The shapes that enter the BatchNorms of a model, without computing anything."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]


def site_shapes(model: nn.Module, input_shape: Shape) -> dict[str, Shape]:
    """(C, H, W) entering every BatchNorm2d that the training forward calls, for pictures of ``input_shape`` (C, H, W).

    A BatchNorm that is called several times is given the smallest of its maps, where a statistic has the fewest values.
    Runs two pictures through a copy on the meta device, or, where the forward looks at values, through one on the CPU;
    raises what the model raises for a shape it cannot take.
    """
    try:
        return _run(_outline(model), input_shape, "meta")
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        return _run(copy.deepcopy(model).cpu(), input_shape, "cpu")


def _run(outline: nn.Module, input_shape: Shape, device: str) -> dict[str, Shape]:
    """The shapes that a training forward of two black pictures meets. The module given is spent."""
    outline.train()
    shapes: dict[str, Shape] = {}

    def note(name: str, x: Tensor) -> None:
        C, H, W = x.shape[1:]
        if name not in shapes or shapes[name][1] * shapes[name][2] > H * W:
            shapes[name] = (C, H, W)

    for name, module in outline.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
    dtype = next((p.dtype for p in outline.parameters() if p.is_floating_point()), None)
    with torch.no_grad():
        outline(torch.zeros(2, *input_shape, device=device, dtype=dtype))
    return shapes


def _outline(model: nn.Module) -> nn.Module:
    """A copy of the model with tensors that have a shape and no memory. Hooks that watch its forward stay behind."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    outline = copy.deepcopy(model, memo)
    for module in outline.modules():
        module._forward_hooks.clear()
    return outline
