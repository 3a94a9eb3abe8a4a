"""Batches: which images in which order (`EpochSampler`), how they are joined (`collate`), by whom (`build_loader`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from rfdetr.data.dataset import DetectionDataset, Target, keyed_generator
from rfdetr.geometry.nested import NestedTensor


class EpochSampler(Sampler[tuple[int, int]]):
    """Keys (epoch, image) of one rank's share of an epoch; the order depends on (seed, epoch) only, not on workers.

    Shuffled shares are made equal by repeating the first images, as training ranks must take the same number of steps;
    unshuffled (evaluation) shares hold every image once.
    """

    def __init__(
        self, length: int, *, shuffle: bool, seed: int = 0, epoch: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.length = length
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of iterations to come; Lightning does so before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        spare = self.world_size - 1 if self.shuffle else self.world_size - 1 - self.rank
        return (self.length + spare) // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        order = range(self.length)
        if self.shuffle:
            order = keyed_generator(self.seed, epoch).permutation(self.length).tolist()
        for position in range(self.rank, self.rank + len(self) * self.world_size, self.world_size):
            yield epoch, order[position % self.length]


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[NestedTensor, list[Target]]:
    """Join images of one size to a uint8 batch (B, 3, size, size) without padding; targets stay a list."""
    images, targets = zip(*samples, strict=True)
    return NestedTensor(torch.stack(images)), list(targets)


def build_loader(
    dataset: DetectionDataset,
    sampler: EpochSampler,
    *,
    batch_size: int,
    num_workers: int = 0,
    pin_memory: bool = False,
    drop_last: bool = False,
) -> DataLoader[Any]:
    """A loader of (NestedTensor, targets) batches whose workers stay alive from one epoch to the next."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        drop_last=drop_last,
        persistent_workers=num_workers > 0,
    )
