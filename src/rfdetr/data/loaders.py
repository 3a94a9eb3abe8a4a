"""Batches: which images in which order (`EpochSampler`), how they are joined (`collate`), by whom
(`build_loader`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from rfdetr.data.batches import NestedTensor
from rfdetr.data.dataset import DetectionDataset, SampleKey, Target, keyed_generator
from rfdetr.data.workers import outlive_signals, worker_context


class EpochSampler(Sampler[SampleKey]):
    """Keys (epoch, image) of one rank's share of an epoch; the order depends on (seed, epoch) only,
    not on workers.

    An epoch has `at_least` so many images where it is shuffled: a smaller set is repeated, each
    time in another order and with numbers that go on (see `DetectionDataset`). With `sizes`, which
    is called when an iteration starts and yields the size of each image from there on, keys are
    (epoch, image, size).

    Shuffled shares are made equal by repeating the first images, as training ranks must take the
    same number of steps; unshuffled (evaluation) shares hold every image once, unless `even` asks
    for equal ones or there are too few images for every rank to have one.
    """

    def __init__(  # noqa: PLR0913 - keyword-only: an order and a share of it
        self,
        length: int,
        *,
        shuffle: bool,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        even: bool = False,
        at_least: int = 0,
        sizes: Callable[[], Iterator[int]] | None = None,
    ) -> None:
        self.length = length
        self.total = max(length, at_least) if shuffle else length
        self.sizes = sizes
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self.skip = 0
        """Images at the start of the epoch's order, of all ranks, that the next iteration leaves
        out.
        """
        self.even = even or shuffle or length < world_size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of iterations to come; Lightning does so before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.share_after(0)

    def share_after(self, images: int) -> int:
        """How many images this rank has to take after the first `images` of the epoch's order."""
        spare = self.world_size - 1 - (0 if self.even else self.rank)
        return max(self.total - images + spare, 0) // self.world_size

    def __iter__(self) -> Iterator[SampleKey]:
        epoch, skip, self.skip = self.epoch, self.skip, 0
        order = np.arange(self.total)
        if self.shuffle:
            draw = keyed_generator(self.seed, epoch)
            order = np.concatenate(
                [first + draw.permutation(self.length) for first in order[:: self.length]]
            )
        sizes = self.sizes() if self.sizes else None
        start = skip + self.rank
        for position in range(
            start, start + self.share_after(skip) * self.world_size, self.world_size
        ):
            image = int(order[position % self.total])
            yield (epoch, image, next(sizes)) if sizes else (epoch, image)


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[NestedTensor, list[Target]]:
    """Join images of one size to a uint8 batch (B, 3, size, size) without padding; targets stay a
    list.
    """
    images, targets = zip(*samples, strict=True)
    return NestedTensor(torch.stack(images)), list(targets)


class ResumableLoader(DataLoader[Any]):
    """A loader whose first iteration after `load_state_dict` starts where another stood; nothing
    skipped is decoded.

    Its state counts images of the epoch's order, not batches, so that a run may go on with another
    batch size or number of processes. Lightning keeps the state of such loaders. It takes an
    `EpochSampler`.
    """

    _images = 0
    _start = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        start, self._start = self._start, 0
        return self._batches_from(start)

    def _batches_from(self, start: int) -> Iterator[Any]:
        self._images = start
        if isinstance(self.sampler, EpochSampler):
            self.sampler.skip = start
        for batch in super().__iter__():
            self._images += self.images_per_batch
            yield batch

    @property
    def images_per_batch(self) -> int:
        """Images of a full batch of every process together."""
        return (self.batch_size or 1) * (
            self.sampler.world_size if isinstance(self.sampler, EpochSampler) else 1
        )

    def batches_after(self, images: int) -> int:
        """How many batches an epoch has left whose first `images` images, over all processes, were
        taken.
        """
        if not isinstance(self.sampler, EpochSampler):
            return max(len(self) - images // self.images_per_batch, 0)
        share, size = self.sampler.share_after(images), self.batch_size or 1
        return share // size if self.drop_last else -(-share // size)

    def state_dict(self) -> dict[str, int]:
        """Images that all processes together were handed of this epoch, and of a batch."""
        return {"images": self._images, "batch": self.images_per_batch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._start = state_dict["images"]


def build_loader(
    dataset: DetectionDataset,
    sampler: EpochSampler,
    *,
    batch_size: int,
    num_workers: int = 0,
    pin_memory: bool = False,
    drop_last: bool = False,
) -> ResumableLoader:
    """A loader of (NestedTensor, targets) batches whose workers stay alive from one epoch to the
    next.
    """
    return ResumableLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        drop_last=drop_last,
        persistent_workers=num_workers > 0,
        worker_init_fn=outlive_signals,
        multiprocessing_context=worker_context() if num_workers > 0 else None,
    )
