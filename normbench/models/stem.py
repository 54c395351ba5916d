"""The 7×7 stem of an ImageNet net, and what stands in its place for small pictures.

imagenet: a 7×7 convolution of stride 2 and a max-pool of stride 2, so that a 32 px picture has 8 px left before the
first block. cifar: a 3×3 convolution of stride 1 and no max-pool.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from normbench.errors import ConfigError


class Unfilled(TorchFunctionMode):
    """Inside it models are made without initializing them: no random number is drawn, no memory touched.

    A meta device would do, but for the nets that compute with tensors while they are made, and its first random
    initialization imports a second's worth of compiler.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        in_place = func.__name__.endswith("_") and not func.__name__.endswith("__")
        if in_place and isinstance(target, nn.Parameter):
            return target
        return func(*args, **kwargs)


def find_stem(model: nn.Module) -> tuple[str, str] | None:
    """Names of the 7×7 stride-2 convolution a net begins with and of the first max-pool after it; None without them."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d)]
    if not layers or not _is_stem(layers[0][1]):
        return None
    pool = next((name for name, m in layers if isinstance(m, nn.MaxPool2d)), None)
    return (layers[0][0], pool) if pool else None


def to_cifar(model: nn.Module, name: str) -> nn.Module:
    """Change the stem of ``model`` for small pictures, in place. Raises ConfigError if it has no 7×7 stem."""
    found = find_stem(model)
    if found is None:
        raise ConfigError(f"arch.stem=cifar: {name} has no 7×7 stem with stride 2; leave arch.stem=auto")
    conv, pool = found
    model.set_submodule(conv, _three(model.get_submodule(conv)))  # type: ignore[arg-type]
    model.set_submodule(pool, nn.Identity())
    return model


def _is_stem(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.kernel_size == (7, 7) and layer.stride == (2, 2)


def _three(seven: nn.Conv2d) -> nn.Conv2d:
    """The 3×3 convolution in place of a 7×7 one.

    Its weights are the middle of those drawn for the 7×7, times 7/3: independent draws of the same kind, with the
    variance that every fan rule gives nine taps for forty-nine; and the rest of the net is the same with either stem.
    """
    three = nn.utils.skip_init(
        nn.Conv2d, seven.in_channels, seven.out_channels, 3, padding=1, bias=seven.bias is not None,
        device=seven.weight.device, dtype=seven.weight.dtype,
    )  # fmt: skip
    with torch.no_grad():
        three.weight.copy_(seven.weight[:, :, 2:5, 2:5] * (7 / 3))
        if three.bias is not None and seven.bias is not None:
            three.bias.copy_(seven.bias)
    return three
