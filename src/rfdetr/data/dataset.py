"""Samples of an indexed split: decode, view, target. Randomness is keyed (seed, epoch, image), not
a sequence.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from rfdetr.data.images import ImageError, decode_image
from rfdetr.data.index import DatasetIndex
from rfdetr.data.transforms import Segmentations, View
from rfdetr.geometry.rle import pack_rles

ViewFunction: TypeAlias = Callable[
    [NDArray[np.uint8], NDArray[np.float32], np.random.Generator, Segmentations, int | None], View
]
SampleKey: TypeAlias = "int | tuple[int, int] | tuple[int, int, int]"
"""An image; an epoch and an image; or an epoch, an image and the size of its view in pixels."""

logger = logging.getLogger(__name__)

_TRIES = 100  # images in a row that may be undecodable


class Target(dict[str, Tensor]):
    """What is in an image: labels (n,), boxes (n, 4) relative cxcywh, image_id, orig_size (height,
    width).

    Evaluation adds iscrowd (n,), area (n,) and boxes_xyxy (n, 4) in pixels of the original. With
    outlines there are masks (n, size, size) bool of the network input and has_mask (n,), false
    where the outline is missing or too small; in evaluation also rle_bytes and rle_offsets (n +
    1,): compressed run lengths over the original, none for none. A worker sends it as bytes of one
    message: as tensors, each would take a shared-memory file, and systems run out of those.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_target, ({name: tensor.numpy() for name, tensor in self.items()},)


def _restore_target(arrays: dict[str, NDArray[Any]]) -> Target:
    return Target((name, torch.from_numpy(array)) for name, array in arrays.items())


def keyed_generator(seed: int, *key: int) -> np.random.Generator:
    """A generator for one purpose: the same key gives the same numbers, in whatever order and
    process it is asked.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Images (3, size, size) uint8 with their targets, by `SampleKey`; an image alone is that of
    epoch 0.

    The epoch and the size travel in the key, so workers that live through many epochs need no
    message when one ends. In a key with an epoch, images go on past the last: n + i of n images is
    image i in another view. Crowd boxes are in evaluation targets only.

    `forgiving`: an image that cannot be decoded is no error. Training gets the next one that can,
    in the order of the index, with its own objects; evaluation gets a gray image, so that its
    objects count as missed. The target then has `undecodable`: the number of the image, and of
    images in all.
    """

    def __init__(
        self,
        index: DatasetIndex,
        view: ViewFunction,
        *,
        seed: int = 0,
        evaluation: bool = False,
        forgiving: bool = False,
    ) -> None:
        self.index = index
        self.view = view
        self.seed = seed
        self.evaluation = evaluation
        self.forgiving = forgiving
        self._told: set[int] = set()  # images whose fault this process has logged

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Target]:
        if isinstance(key, int) and not 0 <= key < len(self.index):
            raise IndexError(f"image {key} of a split of {len(self.index)}")
        epoch, number, *sizes = (0, key) if isinstance(key, int) else key
        wanted = number % len(self.index)
        i, pixels, readable = self._decode(wanted)
        rows: Any = self.index.rows(i)
        if not self.evaluation:
            rows = np.arange(rows.start, rows.stop)[~self.index.crowd[rows]]
        outlines = self.index.outlines_of(i, rows)
        generator = keyed_generator(self.seed, epoch, number)
        view = self.view(
            pixels, self.index.boxes[rows], generator, outlines, sizes[0] if sizes else None
        )
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
        if self.index.outlines is not None:
            self._add_masks(target, view, [outlines[at] for at in np.flatnonzero(view.kept)])
        if not readable:
            target["undecodable"] = torch.tensor([wanted, len(self.index)])
        return view.image, target

    def _decode(self, i: int) -> tuple[int, NDArray[np.uint8], bool]:
        """An image's number and pixels; where it cannot be decoded and is forgiven, those that
        stand for it.
        """
        try:
            return i, decode_image(self.index.path(i)), True
        except (ImageError, OSError) as error:
            if not self.forgiving:
                raise
            if self.evaluation:
                if i not in self._told:
                    self._told.add(i)
                    logger.warning("%s; evaluated as a gray image", error)
                return i, np.full((*self.index.sizes[i], 3), 128, np.uint8), False
            for step in range(1, min(len(self.index), _TRIES)):
                other = (i + step) % len(self.index)
                with contextlib.suppress(ImageError, OSError):
                    pixels = decode_image(self.index.path(other))
                    if i not in self._told:  # once a process, not once an epoch
                        self._told.add(i)
                        logger.warning("%s; replaced by %s", error, self.index.path(other))
                    return other, pixels, False
            raise

    def _add_masks(self, target: Target, view: View, outlines: Segmentations) -> None:
        size = view.image.shape[-1]
        masks = np.zeros((len(outlines), size, size), np.bool_)
        for mask, outline in zip(masks, outlines, strict=True):
            if outline is not None:
                mask[:] = outline.bitmap(view.window, size)
        target["masks"] = torch.from_numpy(masks)
        target["has_mask"] = torch.from_numpy(masks.any((1, 2)))
        if self.evaluation:
            target.update(
                pack_rles([b"" if outline is None else outline.to_rle() for outline in outlines])
            )
