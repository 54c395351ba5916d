"""Pictures read from disk at every epoch: a DataLoader with torchvision.transforms.v2, as ImageNet is trained.

Training: random resized crop (8 to 100 % of the area) and mirroring. Evaluation: shorter side to size · 256/224,
centre crop. Normalised with ImageNet's mean and standard deviation, on the device. A picture's draws come from
(seed, epoch, its index) alone, so they are the same for any number of loader processes and any batch. Which decoder
and which resizing is ``data.decoder``: see view.py.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from normbench.data import share
from normbench.data.arrays import fit
from normbench.data.description import Description
from normbench.data.files import cores
from normbench.data.listing import Listing
from normbench.data.packs import Shelf
from normbench.data.view import View, decoded_on, views
from normbench.errors import DataError

# The side of ImageNet pictures where neither the data nor the net asks for one.
SIZE = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# What a loader process is asked for: (position in the listing, seed of its draws).
Wanted = tuple[int, int]


@dataclass
class Files(Dataset[tuple[Any, int] | str]):
    """What ``view`` makes of picture i, and its label; a message (str) where it cannot be read or decoded."""

    shelf: Shelf
    labels: np.ndarray
    view: View

    def __len__(self) -> int:
        return len(self.shelf)

    def __getitem__(self, wanted: Wanted) -> tuple[Any, int] | str:
        i, seed = wanted
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which seeds the GPU's generators too, the network's: and takes 0.14 ms to do it.
            torch.default_generator.manual_seed(seed)
            try:
                return self.view(self.shelf.read(i), self.shelf.where(i)), int(self.labels[i])
            except DataError as error:
                return str(error)  # an exception would come out of a loader process as a page of traceback


class Batches(Sampler[list[Wanted]]):
    """What the loader asks for next; set before every pass, so that the loader's processes live on between passes."""

    def __init__(self) -> None:
        self.batches: Sequence[list[Wanted]] = []

    def __iter__(self) -> Iterator[list[Wanted]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def collate(samples: list[tuple[Any, int] | str]) -> tuple[Any, Tensor] | str:
    """uint8 (B, 3, size, size), or what is still to be decoded, and int64 (B,); the first message if there is one."""
    for sample in samples:
        if isinstance(sample, str):
            return sample
    x, y = zip(*samples, strict=True)
    return torch.stack(x) if isinstance(x[0], Tensor) else list(x), torch.tensor(y)


class Streamed:
    """See ``Pictures``.

    train_at, test_at: positions of the pictures trained and evaluated on; the latter lie in the training set where
    ``description.split`` is ``valid``.
    crop: side in pixels that pictures are cropped to.  size: that they are handed out at (None: as cropped).
    loaders: processes that decode; None: one per core, shared out among the ranks; 0: this process.
    decoder: see view.py.
    """

    def __init__(
        self,
        listing: Listing,
        description: Description,
        train_at: np.ndarray,
        test_at: np.ndarray,
        *,
        crop: int | None,
        size: int | None,
        loaders: int | None,
        decoder: str,
        device: torch.device | str,
    ) -> None:
        self.description, self.num_classes = description, len(description.classes)
        self.size, self.device = size, torch.device(device)
        crop = crop or size or SIZE
        tree = listing.tree
        held_out = description.split == "valid"
        names, labels = (tree.train, tree.train_y) if held_out else (tree.test, tree.test_y)
        self.train_at = train_at
        self.count = len(test_at)
        seen = [names[i] for i in test_at]
        train, test = views(decoder, crop)
        self.loaders = loaders
        self.training = self.loader(Files(listing.shelf(tree.train), tree.train_y, train))
        self.testing = self.loader(Files(listing.shelf(seen), labels[test_at] % self.num_classes, test))
        self.mean = torch.tensor(MEAN).mul(255).view(1, 3, 1, 1).to(device)
        self.std = torch.tensor(STD).mul(255).view(1, 3, 1, 1).to(device)

    def loader(self, files: Files) -> DataLoader[Any]:
        """Reads ``files`` in the batches of its own ``Batches``; its processes start at the first pass and stay."""
        workers = cores() if self.loaders is None else self.loaders
        return DataLoader(
            files,
            batch_sampler=Batches(),
            num_workers=workers,
            collate_fn=collate,
            generator=torch.Generator(),  # else every pass takes a draw from the one the network draws from
            pin_memory=self.device.type == "cuda",
            persistent_workers=workers > 0,
            multiprocessing_context=context() if workers else None,
        )

    def train_steps(self, batch: int) -> int:
        """Whole batches in one epoch."""
        return self.description.train // batch

    def train(
        self, *, seed: int, epoch: int, batch: int, start: int = 0, rank: int = 0, ranks: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Pictures.train``. Raises ConfigError as share.of_epoch(), DataError for a picture that is damaged."""
        places = share.of_epoch(self.description, batch=batch, start=start, rank=rank, ranks=ranks)
        generator = np.random.default_rng(np.random.SeedSequence([seed, epoch]))
        order = generator.permutation(len(self.train_at))
        # One seed per picture, not per place in the order.
        seeds = generator.integers(0, 2**63 - 1, len(self.train_at))
        at, draws = self.train_at[order][places].tolist(), seeds[order][places].tolist()
        wanted = [list(zip(*pair, strict=True)) for pair in zip(at, draws, strict=True)]
        yield from self.batches(self.training, wanted, ranks)

    def test(self, batch: int, *, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Pictures.test``. Raises DataError for a picture that is damaged."""
        wanted = [(i, 0) for i in range(self.count)]
        batches = [wanted[i : i + batch] for i in range(0, self.count, batch)]
        yield from self.batches(self.testing, share.of_batches(batches, rank, ranks), ranks)

    def look(self, at: np.ndarray, batch: int, *, training: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """See ``Look``. Raises DataError for a picture that is damaged."""
        loader = self.testing
        if training:
            files, shown = self.training.dataset, self.testing.dataset
            assert isinstance(files, Files)
            assert isinstance(shown, Files)
            loader = self.loader(Files(files.shelf, files.labels % self.num_classes, shown.view))
            at = self.train_at[at]
        wanted = [(int(i), 0) for i in at]
        yield from self.batches(loader, [wanted[i : i + batch] for i in range(0, len(wanted), batch)], 1)

    def batches(
        self, loader: DataLoader[Any], wanted: Sequence[list[Wanted]], ranks: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches ``wanted``, on the device and normalised. Raises DataError for a damaged picture."""
        if not wanted:
            return  # and no process is started for it
        sampler = loader.batch_sampler
        assert isinstance(sampler, Batches)
        sampler.batches = wanted
        if self.loaders is None:
            loader.num_workers = max(1, cores() // ranks)  # counts at the first pass, which starts them
        for found in loader:
            if isinstance(found, str):
                raise DataError(found)
            x, y = found
            if not isinstance(x, Tensor):
                x = decoded_on(self.device, x)
            yield self.normalised(x.to(self.device, non_blocking=True)), y.to(self.device, non_blocking=True)

    def normalised(self, x: Tensor) -> Tensor:
        """uint8 (B, 3, crop, crop) as float32 (B, 3, H, W) at ``size``."""
        x = x.float()
        if self.size is not None:
            x = fit(x, self.size)
        return (x - self.mean).div_(self.std)


def context() -> multiprocessing.context.BaseContext:
    """How loader processes start: from a clean process where the system has that, never by forking a busy one.

    A process that has run parallel kernels, or has a display thread, must not be forked: a child may wait for ever on
    a lock whose holder was left behind.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    clean = multiprocessing.get_context("forkserver")
    clean.set_forkserver_preload([__name__])  # torch is imported once, not in every loader: seconds each
    return clean
