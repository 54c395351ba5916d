"""How a picture file becomes what the network sees: which decoder, and what crops and resizes.

torchvision   the default: torchvision decodes JPEGs, Pillow all else and wherever torchvision will not (the same
              pixels: see decode.py); crop and resize on tensors, in whole numbers (see cut.py).
pillow        Pillow decodes, crops and resizes: the same cuts, and pixels that differ by at most one level of 255.
cuda          loader processes read and draw; the GPU decodes (nvJPEG), crops and resizes: the same cuts, and pixels
              that differ by some levels, since nvJPEG rounds and upsamples colour in its own way.

For each, the pixels are the same for any number of loader processes. What it is stands in the id of streamed cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2

from normbench.data import decode
from normbench.data.cut import Augmented, Centred, Cut
from normbench.data.picture import read


@dataclass(frozen=True)
class Waiting:
    """A picture and its cut, to be decoded elsewhere. picture: a JPEG's bytes, or pixels, uint8 (3, H, W)."""

    picture: bytes | Tensor
    name: str
    cut: Cut


# (bytes of a file, its name for messages) → uint8 (3, crop, crop), or what waits for the GPU. Raises DataError. What it
# draws comes from torch's generator.
View = Callable[[bytes, str], Tensor | Waiting]


def views(decoder: str, crop: int) -> tuple[View, View]:
    """To train with, and to evaluate with; both can be pickled."""
    if decoder == "pillow":
        return ByPillow(augment(crop)), ByPillow(centre(crop))
    if decoder == "cuda":
        return Later(Augmented(crop)), Later(Centred(crop))
    return OnTensors(Augmented(crop)), OnTensors(Centred(crop))


@dataclass(frozen=True)
class ByPillow:
    transform: v2.Transform

    def __call__(self, data: bytes, name: str) -> Tensor:
        x: Tensor = self.transform(read(data, name).convert("RGB"))
        return x


@dataclass(frozen=True)
class OnTensors:
    draw: Augmented | Centred

    def __call__(self, data: bytes, name: str) -> Tensor:
        x = decode.rgb(data, name)
        _, H, W = x.shape
        return self.draw(H, W)(x)


@dataclass(frozen=True)
class Later:
    draw: Augmented | Centred

    def __call__(self, data: bytes, name: str) -> Waiting:
        size = decode.jpeg_size(data)
        if size is not None:
            return Waiting(data, name, self.draw(*size))
        x = decode.rgb(data, name)
        _, H, W = x.shape
        return Waiting(x, name, self.draw(H, W))


def decoded_on(device: torch.device, waiting: list[Waiting]) -> Tensor:
    """uint8 (B, 3, crop, crop) on ``device``. Raises DataError for a picture that is damaged."""
    jpegs = [i for i, one in enumerate(waiting) if isinstance(one.picture, bytes)]
    files = [one.picture for one in waiting if isinstance(one.picture, bytes)]
    try:
        found = dict(zip(jpegs, decode.by_torchvision(files, device) if files else [], strict=True))
    except RuntimeError:  # of all, for one that the GPU will not take: each is decoded here, or said to be damaged
        found = {i: decode.rgb(data, waiting[i].name) for i, data in zip(jpegs, files, strict=True)}
    whole = [found.get(i, one.picture) for i, one in enumerate(waiting)]
    return torch.stack([one.cut(x.to(device)) for one, x in zip(waiting, whole, strict=True)])  # type: ignore[union-attr]


def augment(crop: int) -> v2.Transform:
    """The training transform: PIL picture to uint8 (3, crop, crop)."""
    return v2.Compose([v2.RandomResizedCrop(crop, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()])


def centre(crop: int) -> v2.Transform:
    """The evaluation transform: PIL picture to uint8 (3, crop, crop)."""
    return v2.Compose([v2.Resize(round(crop * 256 / 224), antialias=True), v2.CenterCrop(crop), v2.PILToTensor()])
