"""Architectures by name: plain models with nn.BatchNorm2d, which know nothing of normalizers.

    resnet8 resnet20 resnet32 resnet56           resnet_cifar.py      small pictures
    preresnet20 preresnet32 preresnet110         preresnet_cifar.py   the same, pre-activation
    resnetv2_50                                  resnetv2.py          large pictures, pre-activation
    reactnet18 reactnet_a                        reactnet.py          binary activations and weights
    any torchvision classifier by its name       zoo.py
    file.py:callable, package.module:callable    user.py              a net of one's own

Seed torch before ``build``: all weights are drawn from its global generator, whatever the normalizer put in later.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import nn

from normbench.errors import ConfigError, UnknownName
from normbench.models import user, zoo
from normbench.models.preresnet_cifar import PreResNet
from normbench.models.reactnet import ReActNet18, ReActNetA
from normbench.models.resnet_cifar import ResNet
from normbench.models.resnetv2 import ResNetV2
from normbench.models.stem import Unfilled, find_stem, to_cifar
from normbench.options import ArchOptions
from normbench.targets import is_target, load

__all__ = ["Resolved", "build", "names", "native_size", "outline", "resolve", "source_hash"]

OURS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(ResNet, depth) for depth in (8, 20, 32, 56)},
    **{f"preresnet{depth}": partial(PreResNet, depth) for depth in (20, 32, 110)},
    "resnetv2_50": ResNetV2,
    "reactnet18": ReActNet18,
    "reactnet_a": ReActNetA,
}


OPTIONS = ("aux", "phase", "size", "stem", "zero_init")


@dataclass(frozen=True)
class Resolved:
    """What an architecture comes to on pictures of a given size.

    stem: ``imagenet`` or ``cifar``; None where the net has no 7×7 stem. size: side in pixels that pictures are brought
    to before the net; None: as they are. aux: whether an auxiliary head is trained along.
    """

    stem: str | None
    size: int | None
    aux: bool


def names() -> list[str]:
    """Every name that ``build`` knows: ours, then torchvision's classifiers."""
    return [*OURS, *zoo.names()]


def native_size(name: str) -> int:
    """The side in pixels that a net was published at, for pictures that come in any size."""
    return zoo.needs(name).native


def source_hash(name: str) -> str | None:
    """SHA-256 of the file a user's own architecture comes from; None for ours and torchvision's."""
    return load(name, "architecture")[1] if is_target(name) else None


def resolve(options: ArchOptions, *, picture_size: int | None) -> Resolved:
    """What ``options`` come to for pictures of ``picture_size`` pixels a side (None: of any size, so the net's own).

    Checks all that can be without building: raises UnknownName for an unknown architecture or option of one,
    ConfigError for a stem, size, auxiliary head, phase or zero_init that this net does not have.
    """
    if is_target(options.name):
        user.check(options)
        # A user's net is what it is: only an explicit stem changes it.
        return Resolved(None if options.stem == "auto" else options.stem, options.size, aux=False)
    if options.options:
        raise UnknownName(f"option of {options.name}", next(iter(options.options)), OPTIONS)
    needs, stems = zoo.needs(options.name), _has_stem(options.name, options.zero_init, options.phase)
    size = needs.size(options, picture_size)
    side = size or picture_size or needs.native
    return Resolved(_stem(options, side, stems), size, needs.aux(options, side))


def build(options: ArchOptions, *, num_classes: int, picture_size: int | None) -> nn.Module:
    """The plain model, (N, 3, S, S) → (N, num_classes), with S the resolved size. Raises as ``resolve`` does.

    A model with an auxiliary head returns torchvision's named tuple in training.
    """
    resolved = resolve(options, picture_size=picture_size)
    if is_target(options.name):
        model = user.build(options, num_classes)
    else:
        heads = zoo.heads(options.name, resolved.aux)
        model = _plain(options.name, options.zero_init, options.phase, num_classes=num_classes, **heads)
    return to_cifar(model, options.name) if resolved.stem == "cifar" else model


def outline(options: ArchOptions, *, num_classes: int, picture_size: int | None) -> nn.Module:
    """The same model for its shapes only, in a tenth of the time: its weights are what memory held, none is drawn."""
    with torch.random.fork_rng(devices=[]), Unfilled():
        return build(options, num_classes=num_classes, picture_size=picture_size)


def _plain(name: str, zero_init: bool, phase: int | None, **arguments: object) -> nn.Module:
    if name in OURS:
        return OURS[name](**_zero_init(name, zero_init), **_phase(name, phase), **arguments)
    if name in zoo.names():
        _phase(name, phase)
        return zoo.build(name, zero_init, **arguments)
    near = difflib.get_close_matches(name, zoo.names(), n=3, cutoff=0.5)
    mend = "Any torchvision classifier goes by its name, a net of your own as file.py:callable."
    raise UnknownName("architecture", name, [*OURS, *near], mend)


def _zero_init(name: str, zero_init: bool) -> dict[str, bool]:
    if not zero_init:
        return {}
    if "zero_init" not in inspect.signature(OURS[name]).parameters:
        why = "its residual branches end with a convolution, so no norm can start at weight 0"
        raise ConfigError(f"arch.zero_init=true: {name} has no place for it: {why}; leave it false")
    return {"zero_init": True}


def _phase(name: str, phase: int | None) -> dict[str, int]:
    if phase is None:
        return {}
    if name not in OURS or "phase" not in inspect.signature(OURS[name]).parameters:
        have = ", ".join(own for own, net in OURS.items() if "phase" in inspect.signature(net).parameters)
        raise ConfigError(f"arch.phase={phase}: {name} has no phases; leave it out, or take one of {have}")
    return {"phase": phase}


@cache
def _has_stem(name: str, zero_init: bool, phase: int | None) -> bool:
    """Whether the net has a 7×7 stem. Also what finds an unknown name, a bad zero_init or phase."""
    heads = zoo.heads(name, aux=False, fresh=False)
    # fork_rng: a few nets draw outside their parameters, and what is cached here must not change what build draws.
    with torch.random.fork_rng(devices=[]), Unfilled():
        return find_stem(_plain(name, zero_init, phase, **heads)) is not None


def _stem(options: ArchOptions, side: int, has_stem: bool) -> str | None:
    if has_stem:
        return {"auto": "cifar" if side <= 64 else "imagenet"}.get(options.stem, options.stem)
    if options.stem != "auto":
        why = f"{options.name} has no 7×7 stem with stride 2 to choose for"
        raise ConfigError(f"arch.stem={options.stem}: {why}; leave arch.stem=auto, or take a net such as resnet50")
    return None
