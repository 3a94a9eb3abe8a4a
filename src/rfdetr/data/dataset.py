"""Samples of an indexed split: decode, transform, target.

Random numbers are keyed by (seed, epoch, image) and not drawn from one sequence, so a sample does
not depend on which worker makes it, or on what was made before.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from rfdetr.config.fields import input_size
from rfdetr.data.augmentation.mixing import Size, View, compose, draw_masks
from rfdetr.data.augmentation.warp import Steps
from rfdetr.data.cache import ImageCache
from rfdetr.data.images import ImageError, decode_image
from rfdetr.data.index import DatasetIndex
from rfdetr.data.transforms import TrainTransform
from rfdetr.geometry.rle import pack_rles

SampleKey: TypeAlias = (
    "int | tuple[int, int] | tuple[int, int, Size | None] | tuple[int, int, Size | None, float]"
)
"""An image; an epoch and an image; then the height and width of its input, if they are its own, and
the share of the run that is over with the epoch."""

logger = logging.getLogger(__name__)

MOST_KEPT = 2**28
"""Bytes of decoded files that a loader process keeps while their tiles are asked for."""
_TRIES = 100  # images in a row that may be undecodable


class NestedTensor(NamedTuple):
    """Images (B, 3, H, W) and a bool mask (B, H, W), True where padded; None: no padding."""

    tensors: Tensor
    mask: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> NestedTensor:
        mask = None if self.mask is None else self.mask.to(device, non_blocking=non_blocking)
        return NestedTensor(self.tensors.to(device, non_blocking=non_blocking), mask)


class Target(dict[str, Tensor]):
    """Labels (n,), boxes (n, 4) cxcywh from 0 to 1, image_id and orig_size (height, width).

    Evaluation adds iscrowd (n,), area (n,) and boxes_xyxy (n, 4) in pixels of the original image,
    and, at the network's size, `tone` (2,) float32.
    With outlines there are masks (n, height, width) bool of the network input, and has_mask (n,),
    False where an object has no outline or one too small to show. Evaluation then adds rle_bytes
    and rle_offsets of the whole outlines (see `pack_rles`); an object without one has no bytes.
    An image that cannot be decoded has undecodable (2,): its number, and that of all images.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker sends arrays inside its message. Each tensor would take a file in shared memory
        # of its own, and the number of files that a process may have open is limited.
        return Target.from_arrays, ({name: tensor.numpy() for name, tensor in self.items()},)

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Target:
        """The target whose tensors share the memory of `arrays`."""
        return cls((name, torch.from_numpy(array)) for name, array in arrays.items())


def tone(image: Tensor) -> Tensor:
    """Brightness and sharpness (2,) float32 of a uint8 image (3, H, W), in gray levels: the mean,
    and the deviation of the Laplacian, which blur takes away and noise adds to.
    """
    gray = image.float().mean(0)
    around = gray[1:-1, :-2] + gray[1:-1, 2:] + gray[:-2, 1:-1] + gray[2:, 1:-1]
    return torch.stack([gray.mean(), (4 * gray[1:-1, 1:-1] - around).std(correction=0)])


def keyed_generator(seed: int, *key: int) -> np.random.Generator:
    """A generator for one purpose: the same key gives the same numbers, in any order or process."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


@dataclass(eq=False, repr=False)
class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Images (3, height, width) uint8 and targets, by `SampleKey`; an image alone is of epoch 0.

    The epoch and the size travel in the key, so workers that live through many epochs need no
    message when one ends. In a key with an epoch, numbers go on past the last image: n + i of n
    images is image i, transformed in another way. Where there are `sizes` (height, width), an image
    draws its own of these instead. Crowd boxes are in `evaluation` targets only; masks only with
    `masks`, for an index with outlines.

    `mixing` steps make a sample of several images. Which, and what is drawn for them, depends on
    the sample's key too; the images of tiles are parts of one file.

    With `forgiving`, an image that cannot be decoded is no error. Training gets the next one that
    can, in the order of the index, with its own objects; evaluation gets a gray image, so that its
    objects count as missed. The target then has `undecodable`.
    """

    index: DatasetIndex
    transform: TrainTransform
    _: KW_ONLY
    seed: int = 0
    sizes: Sequence[tuple[int, int]] = ()
    mixing: Steps = field(default_factory=dict)
    masks: bool = True
    evaluation: bool = False
    forgiving: bool = False
    cache: ImageCache | None = None  # of the files
    _files: dict[int, NDArray[np.uint8]] = field(default_factory=dict, init=False)  # latest last
    _told: set[int] = field(default_factory=set, init=False)  # images this process has warned of

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Target]:
        if isinstance(key, int) and not 0 <= key < len(self):
            raise IndexError(f"image {key} of a split of {len(self)}")
        given: Any = (0, key) if isinstance(key, int) else key
        given = (*given, *(None, 0.0)[len(given) - 2 :])
        epoch, number, size, progress = given
        wanted = number % len(self)
        i, pixels, readable = self._decode(wanted)
        if self.sizes:  # a generator of its own: crop and colours are as without
            draw = keyed_generator(self.seed, epoch, number, 1)
            size = self.sizes[int(draw.integers(len(self.sizes)))]
        generator = keyed_generator(self.seed, epoch, number)
        if self.mixing:

            def view_of(k: int, size: Size, drawn: bool) -> View:
                if k == 0:
                    return self._view(i, pixels, generator, size)[0]
                draw = keyed_generator(self.seed, epoch, number, 2 + k)
                other, its_pixels, _ = self._decode(self._partner(i, draw))
                return self._view(other, its_pixels, draw, size, drawn)[0]

            draw = keyed_generator(self.seed, epoch, number, 2)
            size = input_size(size or self.transform.size)
            view, rows = compose(view_of, self.mixing, draw, size, progress), np.empty(0, np.int64)
        else:
            view, rows = self._view(i, pixels, generator, size)
        target = Target(
            labels=torch.from_numpy(view.labels),
            boxes=torch.from_numpy(view.boxes_cxcywh),
            image_id=torch.tensor(int(self.index.image_ids[i])),
            orig_size=torch.tensor(pixels.shape[:2]),
        )
        if self.evaluation:
            self._add_truth(target, view.image, i, rows)
        if view.masks is not None:
            target["masks"] = torch.from_numpy(view.masks)
            target["has_mask"] = torch.from_numpy(view.masks.any((1, 2)))
        if not readable:
            target["undecodable"] = torch.tensor([wanted, len(self)])
        return view.image, target

    def _view(
        self,
        image: int,
        pixels: NDArray[np.uint8],
        generator: np.random.Generator,
        size: Size | None,
        drawn: bool = True,
    ) -> tuple[View, NDArray[np.int64]]:
        """A transformed image, its masks `drawn` where targets have them, and the rows of the index
        of which its objects are.
        """
        index = self.index
        rows = np.arange(*index.offsets[image : image + 2])
        if not self.evaluation:
            pixels = self._without_slivers(pixels, rows)
            rows = rows[~index.crowd[rows]]
        given = index.outlines_of(image, rows)
        shown = self.transform(pixels, index.boxes[rows], generator, given, size)
        rows, masks, outlines = rows[shown.kept], None, shown.outlines_of(given) if given else ()
        if index.outlines is not None and drawn and self.masks and not self.transform.own_size:
            height, width = shown.image.shape[-2:]
            masks = draw_masks(outlines, shown.crop, (height, width))
        objects = shown.boxes_cxcywh, index.labels[rows], masks
        return View(shown.image, *objects, outlines, shown.crop), rows

    def _partner(self, image: int, generator: np.random.Generator) -> int:
        """Another image to mix with one; of a tile another one of its file, which is decoded."""
        first, count = 0, len(self)
        if (tiles := self.index.tiles) is not None:
            ends = np.searchsorted(tiles.files, tiles.files[image] + np.array([0, 1])).tolist()
            if ends[1] - ends[0] > 1:
                first, count = ends[0], ends[1] - ends[0]
        step = 1 + int(generator.integers(max(count - 1, 1)))
        return first + (image - first + step) % count

    def _add_truth(self, target: Target, image: Tensor, i: int, rows: NDArray[np.int64]) -> None:
        """What evaluation asks for beside, of image `i` and its `rows`."""
        index = self.index
        columns = {"iscrowd": index.crowd, "area": index.areas, "boxes_xyxy": index.boxes}
        target.update((name, torch.from_numpy(values[rows])) for name, values in columns.items())
        if not self.transform.own_size:
            target["tone"] = tone(image)
        if index.outlines is not None:
            outlines = index.outlines_of(i, rows)
            target.update(pack_rles([outline.to_rle() if outline else b"" for outline in outlines]))

    def _decode(self, wanted: int) -> tuple[int, NDArray[np.uint8], bool]:
        """Number and pixels of an image, True; or of what stands for it, False."""
        try:
            return wanted, self._pixels_of(wanted), True
        except (ImageError, OSError) as error:
            if not self.forgiving or (found := self._stand_in(wanted)) is None:
                raise
            i, pixels, as_what = found
            if wanted not in self._told:  # once a process, not once an epoch
                self._told.add(wanted)
                logger.warning("%s; %s", error, as_what)
            return i, pixels, False

    def _stand_in(self, wanted: int) -> tuple[int, NDArray[np.uint8], str] | None:
        """Number and pixels to take for an undecodable image, and how to say so."""
        if self.evaluation:
            gray = np.full((*self.index.sizes[wanted], 3), 128, np.uint8)
            return wanted, gray, "evaluated as a gray image"
        for step in range(1, min(len(self), _TRIES)):
            i = (wanted + step) % len(self)
            with contextlib.suppress(ImageError, OSError):
                return i, self._pixels_of(i), f"replaced by {self.index.path(i)}"
        return None

    def _pixels_of(self, image: int) -> NDArray[np.uint8]:
        """An image, or its part of a file. Files of tiles are kept, since the sampler asks for the
        tiles of a few of them at a time.
        """
        tiles = self.index.tiles
        if tiles is None:
            return self._decoded(image, image)
        file = int(tiles.files[image])
        whole = self._files.pop(file, None)
        self._files[file] = self._decoded(image, file) if whole is None else whole
        while len(self._files) > 1 and sum(v.nbytes for v in self._files.values()) > MOST_KEPT:
            del self._files[next(iter(self._files))]
        return self.index.shown_of(image, self._files[file])

    def _decoded(self, image: int, file: int) -> NDArray[np.uint8]:
        source = self.index.file(image)
        if self.cache is None:
            return decode_image(source)
        return self.cache.get(file, lambda: decode_image(source))

    def _without_slivers(self, pixels: NDArray[np.uint8], rows: NDArray[np.int64]) -> Any:
        """A copy in which what is hardly to be seen of cut objects is gray, but for what shows
        others; the image itself where there is nothing of that.
        """
        tiles = self.index.tiles
        if tiles is None or not tiles.slivers[rows].any():
            return pixels
        hidden = np.zeros(pixels.shape[:2], np.bool_)
        order = rows[np.argsort(~tiles.slivers[rows], kind="stable")]  # slivers first
        for row in order.tolist():
            (left, top), (right, bottom) = self.index.boxes[row].reshape(2, 2).round().astype(int)
            hidden[top:bottom, left:right] = tiles.slivers[row]
        return np.where(hidden[..., None], np.uint8(128), pixels)


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[NestedTensor, list[Target]]:
    """Stack images (3, height, width) to a batch (B, 3, H, W) uint8; targets stay a list.

    Smaller images are padded at the right and at the bottom to the largest height and the largest
    width, and their masks too.
    """
    images, targets = zip(*samples, strict=True)
    sizes = {image.shape[-2:] for image in images}
    if len(sizes) == 1:
        return NestedTensor(torch.stack(images)), list(targets)
    height, width = map(max, zip(*sizes, strict=True))

    def padded(values: Tensor, value: int = 0) -> Tensor:
        more = width - values.shape[-1], height - values.shape[-2]
        return F.pad(values, (0, more[0], 0, more[1]), value=value)

    padding = torch.stack([padded(torch.zeros(i.shape[-2:]).bool(), True) for i in images])
    for target in targets:
        if "masks" in target:
            target["masks"] = padded(target["masks"])
    return NestedTensor(torch.stack([padded(image) for image in images]), padding), [*targets]
