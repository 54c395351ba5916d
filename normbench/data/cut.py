"""What a streamed picture becomes: a box of it, resized and cropped, on tensors. Drawn as torchvision draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2


@dataclass(frozen=True)
class Cut:
    """Of a picture the box (top, left, height, width), resized to ``size`` (height, width), of that the crop × crop
    pixels from (top, left) ``at`` on, mirrored if so. All in pixels.
    """

    box: tuple[int, int, int, int]
    size: tuple[int, int]
    at: tuple[int, int]
    crop: int
    mirrored: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """uint8 (3, H, W) → uint8 (3, crop, crop), contiguous."""
        top, left, height, width = self.box
        x = resized(x[:, top : top + height, left : left + width], self.size)
        top, left = self.at
        x = x[:, top : top + self.crop, left : left + self.crop]
        return x.flip(-1) if self.mirrored else x.contiguous()


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W) → uint8 (3, *size): bilinear, antialiased; torch computes it in integers on a CPU."""
    if x.shape[1:] == size:
        return x
    if x.device.type == "cpu":
        return F.interpolate(x[None], size, mode="bilinear", antialias=True)[0]
    return F.interpolate(x[None].float(), size, mode="bilinear", antialias=True)[0].round_().to(torch.uint8)


@dataclass(frozen=True)
class Augmented:
    """The training cut: 8 to 100 % of the area, an aspect of 3:4 to 4:3, mirrored half of the time."""

    crop: int

    def __call__(self, height: int, width: int) -> Cut:
        """Drawn from torch's generator."""
        picture = torch.empty(3, height, width, device="meta")  # torchvision asks a picture for its size
        box = v2.RandomResizedCrop(self.crop).make_params([picture])
        mirrored = bool(torch.rand(1) < 0.5)
        top, left, height, width = (int(box[key]) for key in ("top", "left", "height", "width"))
        return Cut((top, left, height, width), (self.crop, self.crop), (0, 0), self.crop, mirrored)


@dataclass(frozen=True)
class Centred:
    """The evaluation cut: shorter side to crop · 256/224, the centre of that."""

    crop: int

    def __call__(self, height: int, width: int) -> Cut:
        side = round(self.crop * 256 / 224)
        short = min(height, width)
        size = side * height // short, side * width // short
        at = round((size[0] - self.crop) / 2), round((size[1] - self.crop) / 2)
        return Cut((0, 0, height, width), size, at, self.crop)
