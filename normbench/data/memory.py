"""Pictures in memory: one uint8 tensor on the device, cropped, mirrored and normalised there a batch at a time.

No worker processes and no Python per picture. What a batch costs at batch 2 is its number of operations, so the
training pictures are stored with their black border (zeros before normalisation, as torchvision's RandomCrop pads),
and one gather crops and mirrors: a position in the flat tensor is the picture's corner plus a template.

A step that is recorded (graph.py) takes its pictures from a ``Feed``, which finds its own place in the epoch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from normbench.data import share
from normbench.data.arrays import CHUNK, Arrays, fit
from normbench.data.description import Description


class InMemory:
    """See ``Pictures``.

    train_at, test_at: positions in ``arrays`` of the pictures trained and evaluated on; the latter lie in the
    training set where ``description.split`` is ``valid``.
    pad, flip: the augmentation.  size: side in pixels of what is handed out (None: as stored).
    """

    def __init__(
        self,
        arrays: Arrays,
        description: Description,
        train_at: np.ndarray,
        test_at: np.ndarray,
        *,
        pad: int,
        flip: bool,
        size: int | None,
        device: torch.device | str,
    ) -> None:
        held_out = description.split == "valid"
        test_x, test_y = (arrays.train_x, arrays.train_y) if held_out else (arrays.test_x, arrays.test_y)
        self.description, self.num_classes = description, len(description.classes)
        self.pad, self.flip, self.size, self.device = pad, flip, size, torch.device(device)
        self.train_x = bordered(arrays.train_x, train_at, pad).to(device)
        self.train_y = torch.from_numpy(arrays.train_y[train_at])
        self.test_x = bordered(test_x, test_at, 0).to(device)
        self.test_y = torch.from_numpy(test_y[test_at] % self.num_classes).to(device)  # without the domain
        # (x − μ) / σ as one product and one sum; a grey picture becomes three channels in the product.
        mean, std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (arrays.mean, arrays.std))
        self.scale = (1 / std).float().expand(1, 3, 1, 1).contiguous().to(device)
        self.shift = (-mean / std).float().expand(1, 3, 1, 1).contiguous().to(device)
        self.templates = templates(self.train_x, pad).to(device)

    def train_steps(self, batch: int) -> int:
        """Whole batches in one epoch."""
        return self.description.train // batch

    def train(
        self, *, seed: int, epoch: int, batch: int, start: int = 0, rank: int = 0, ranks: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Pictures.train``. Raises ConfigError as share.of_epoch()."""
        steps = self.steps(seed=seed, epoch=epoch, batch=batch, start=start, rank=rank, ranks=ranks)
        for corners, sides, y in zip(*(part.unbind() for part in steps), strict=True):
            yield self.cut(corners, sides), y

    def feed(self, images: int) -> Feed:
        """What a recorded step of so many pictures takes them from."""
        return Feed(self, images)

    def test(self, batch: int, *, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Pictures.test``."""
        batches = list(zip(self.test_x.split(batch), self.test_y.split(batch), strict=True))
        for x, y in share.of_batches(batches, rank, ranks):
            yield self.normalised(x), y

    def look(self, at: np.ndarray, batch: int, *, training: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Look``."""
        x, y, border = (self.train_x, self.train_y, self.pad) if training else (self.test_x, self.test_y, 0)
        H, W = self.test_x.shape[2:]
        for part in torch.from_numpy(at).split(batch):
            shown = x[part.to(x.device)][:, :, border : border + H, border : border + W]
            yield self.normalised(shown), y[part.to(y.device)].to(self.device) % self.num_classes

    def steps(
        self, *, seed: int, epoch: int, batch: int, start: int = 0, rank: int = 0, ranks: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What ``cut`` wants for each step from ``start`` on, and the labels, on the device: (steps, pictures) each.

        Raises ConfigError as share.of_epoch().
        """
        places = torch.from_numpy(share.of_epoch(self.description, batch=batch, start=start, rank=rank, ranks=ranks))
        order, corner, mirrored = self.draws(seed, epoch)
        used = order[places]
        corners, sides, y = (part[used].to(self.device) for part in (corner, mirrored, self.train_y))
        return corners, sides, y

    def cut(self, corners: Tensor, sides: Tensor) -> Tensor:
        """The pictures at ``corners`` of the flat ``train_x``, mirrored where ``sides`` is 1, normalised. (B,) each."""
        at = self.templates.index_select(0, sides).add_(corners.unsqueeze(1))
        H, W = self.test_x.shape[2:]
        flat = self.train_x.view(-1)
        return self.normalised(flat.index_select(0, at.view(-1)).view(len(corners), -1, H, W))

    def draws(self, seed: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """The epoch's order, and per picture (not per place in the order) the corner of its crop and its side.

        Drawn on the CPU from (seed, epoch) alone: the same for every batch size, normalizer and device.
        order: (N,) positions.  corner: (N,) positions in the flat ``train_x``.  side: (N,) 1 where mirrored.
        """
        N, C, H, W = self.train_x.shape
        generator = np.random.default_rng(np.random.SeedSequence([seed, epoch]))
        order = generator.permutation(N)
        top, left = generator.integers(0, 2 * self.pad + 1, (2, N))
        side = generator.integers(0, 2, N) if self.flip else np.zeros(N, dtype=np.int64)
        corner = np.arange(N) * (C * H * W) + top * W + left
        return torch.from_numpy(order), torch.from_numpy(corner), torch.from_numpy(side)

    def normalised(self, x: Tensor) -> Tensor:
        """uint8 (B, C, H, W) as float32 (B, 3, H, W) at ``size``, mean 0 and variance 1 over the training set."""
        if self.size is not None and x.shape[2:] != (self.size, self.size):
            x = fit(x.float(), self.size)
        return (x * self.scale).add_(self.shift)


class Feed:
    """The pictures of an epoch's steps, one step a call, from tensors that stay where they are.

    A call is made of operations on tensors alone and knows by a tensor which step it is, so it can be recorded and
    replayed: pictures and labels as those of ``InMemory.train``.
    """

    def __init__(self, pictures: InMemory, images: int) -> None:
        self.pictures, self.images = pictures, images
        self.epoch = pictures.steps(seed=0, epoch=0, batch=images)
        self.at = torch.zeros(1, dtype=torch.int64, device=pictures.device)

    def begin(self, *, seed: int, epoch: int, start: int) -> None:
        """Stand before step ``start`` of an epoch."""
        for part, new in zip(self.epoch, self.pictures.steps(seed=seed, epoch=epoch, batch=self.images), strict=True):
            part.copy_(new)
        self.at.fill_(start)

    def __call__(self) -> tuple[Tensor, Tensor]:
        corners, sides, y = (part.index_select(0, self.at).squeeze(0) for part in self.epoch)
        self.at.add_(1)
        return self.pictures.cut(corners, sides), y


def bordered(x: np.ndarray, at: np.ndarray, pad: int) -> Tensor:
    """The pictures ``at`` of uint8 (N, C, H, W), with ``pad`` black pixels on every side."""
    _, C, H, W = x.shape
    x = np.asarray(x)  # a memory map's own indexing is slower
    out = np.zeros((len(at), C, H + 2 * pad, W + 2 * pad), dtype=np.uint8)
    for start in range(0, len(at), CHUNK):
        part = at[start : start + CHUNK]
        run = slice(part[0], part[0] + len(part))
        together = np.array_equal(part, np.arange(run.start, run.stop))
        chosen = x[run] if together else x[part]  # a slice is not copied twice
        out[start : start + len(part), :, pad : pad + H, pad : pad + W] = chosen
    return torch.from_numpy(out)


def templates(bordered: Tensor, pad: int) -> Tensor:
    """Positions of a crop's pixels, counted from its corner: as it is, and mirrored. int64 (2, C·H·W)."""
    _, C, Hp, Wp = bordered.shape
    H, W = Hp - 2 * pad, Wp - 2 * pad
    channel, row = torch.arange(C).view(C, 1, 1) * (Hp * Wp), torch.arange(H).view(H, 1) * Wp
    straight = channel + row + torch.arange(W)
    return torch.stack([straight, straight.flip(2)]).view(2, -1)
