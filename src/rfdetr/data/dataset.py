"""Samples of an indexed split: decode, view, target. Randomness is keyed (seed, epoch, image), not a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from rfdetr.data.images import decode_image
from rfdetr.data.index import DatasetIndex
from rfdetr.data.transforms import View

ViewFunction: TypeAlias = Callable[[NDArray[np.uint8], NDArray[np.float32], np.random.Generator], View]
SampleKey: TypeAlias = "int | tuple[int, int]"


class Target(dict[str, Tensor]):
    """What is in an image: labels (n,), boxes (n, 4) relative cxcywh, image_id, orig_size (height, width).

    Evaluation adds iscrowd (n,), area (n,) and boxes_xyxy (n, 4) in pixels of the original. A worker sends it as bytes
    of one message: as tensors, each would take a shared-memory file, and systems run out of those.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_target, ({name: tensor.numpy() for name, tensor in self.items()},)


def _restore_target(arrays: dict[str, NDArray[Any]]) -> Target:
    return Target((name, torch.from_numpy(array)) for name, array in arrays.items())


def keyed_generator(seed: int, *key: int) -> np.random.Generator:
    """A generator for one purpose: the same key gives the same numbers, in whatever order and process it is asked."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Images (3, size, size) uint8 with their targets, by (epoch, image) or by image, which means epoch 0.

    The epoch travels in the key, so workers that live through many epochs need no message when one ends. Crowd boxes
    are in evaluation targets only.
    """

    def __init__(self, index: DatasetIndex, view: ViewFunction, *, seed: int = 0, evaluation: bool = False) -> None:
        self.index = index
        self.view = view
        self.seed = seed
        self.evaluation = evaluation

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Target]:
        epoch, i = (0, key) if isinstance(key, int) else key
        if not 0 <= i < len(self.index):
            raise IndexError(f"image {i} of a split of {len(self.index)}")
        pixels = decode_image(self.index.path(i))
        rows: Any = self.index.rows(i)
        if not self.evaluation:
            rows = np.arange(rows.start, rows.stop)[~self.index.crowd[rows]]
        view = self.view(pixels, self.index.boxes[rows], keyed_generator(self.seed, epoch, i))
        target = Target(
            labels=torch.from_numpy(self.index.labels[rows][view.kept]),
            boxes=torch.from_numpy(view.boxes_cxcywh),
            image_id=torch.tensor(int(self.index.image_ids[i])),
            orig_size=torch.tensor(pixels.shape[:2]),
        )
        if self.evaluation:
            target["iscrowd"] = torch.from_numpy(self.index.crowd[rows][view.kept])
            target["area"] = torch.from_numpy(self.index.areas[rows][view.kept])
            target["boxes_xyxy"] = torch.from_numpy(self.index.boxes[rows][view.kept])
        return view.image, target
