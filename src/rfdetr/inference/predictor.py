"""An engine with what prediction needs, and one way from image to detections.

The life of a request, `RFDETR.predict("cats/*.jpg")`:

    look_up(images)                 sources.py: which images are meant; asks the file system once
    load_images -> Loaded           sources.py: decoded, upright, uint8 RGB (H, W, 3)
    in_batches, one_ahead           a thread reads the next batch while the network runs
    preprocess -> (B, 3, S, S)      one antialiased resize to the network's input, still uint8
    detect -> {"scores", ...}       the engine (normalise, network), boxes in pixels, best first
    to_detections -> Detections     above the threshold, of named classes, with full-size masks

Resize, normalisation and post-processing are the functions that validation uses, so that the same
file gives bit-identical tensors in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfdetr.checks import check_count, check_kind, check_share, shown
from rfdetr.data.images import resize
from rfdetr.errors import InputError, InputTypeError
from rfdetr.geometry.detections import import_supervision
from rfdetr.inference.engines import Engine
from rfdetr.inference.sources import ImageSources, Loaded, Request, load_images, look_up
from rfdetr.models.detector import full_size_masks, postprocess

if TYPE_CHECKING:
    from supervision import CompactMask, Detections

T = TypeVar("T")
OnError: TypeAlias = Literal["raise", "skip"]

DENSE_PIXELS = 2**21
"""Larger images than this (Full HD is just below) get their masks as run lengths."""


class Prediction(NamedTuple):
    """One image of a stream: path or address (None: from memory), pixels (H, W, 3), detections.

    `error` says why an image could not be read, where such images are skipped: then it has no
    pixels and no detections.
    """

    source: str | None
    image: np.ndarray
    detections: Detections
    error: str | None = None


class Predictor:
    """Runs an engine on images of any form. `labels` names logit indexes; others are never
    reported. `size` (height, width) is what images are resized to, unless a call says otherwise.

    Any number of threads may predict at once.
    """

    def __init__(
        self, engine: Engine, *, size: tuple[int, int], num_select: int, labels: Mapping[int, str]
    ) -> None:
        self._engine = engine
        self.size = size
        self.num_select = num_select
        self.labels = dict(labels)
        keep_freed_memory()

    def engine(self, autocast: torch.dtype | None = None) -> Engine:  # noqa: ARG002
        """What runs a batch. `autocast` is for an engine that has no arithmetic of its own."""
        return self._engine

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.engine().device

    def predict(
        self,
        images: ImageSources | Request,
        *args: Any,
        include_source_image: bool = False,
        **kwargs: Any,
    ) -> list[Detections]:
        """Detections of every image, in order; the other arguments are those of `stream`.

        With `include_source_image`, each has its pixels as `metadata["source_image"]`.
        """
        found = []
        for _, image, detections, error in self.stream(images, *args, **kwargs):
            if include_source_image and error is None:
                detections.metadata["source_image"] = image
            found.append(detections)
        return found

    def stream(
        self,
        images: ImageSources | Request,
        threshold: float = 0.5,
        batch_size: int = 4,
        on_error: OnError = "raise",
        *,
        shape: Sequence[int] | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> Iterator[Prediction]:
        """Predictions one by one; the next batch is read while the network runs.

        No more than two batches are in memory. Images that cannot be read are errors, or with
        `on_error="skip"` predictions without detections. `shape` is the network's input (height,
        width), its resolution if None. `thresholds` by class name go before `threshold`.
        """
        least = self.thresholds_by_label(check_share("threshold", threshold), thresholds or {})
        check_count("batch_size", batch_size)
        if on_error not in ("raise", "skip"):
            raise InputError(f'on_error {on_error!r}: expected "raise" or "skip"')
        size = None if shape is None else self.check_shape(shape)
        loaded = load_images(look_up(images), skip=on_error == "skip")
        return self._run(one_ahead(in_batches(loaded, batch_size)), least, size)

    def thresholds_by_label(
        self, threshold: float, thresholds: Mapping[str, float]
    ) -> NDArray[np.float32]:
        """(largest label + 2,) the least confidence by label: `threshold`, but for the classes that
        `thresholds` names. `InputError` for an unknown name, and for what is no share.
        """
        check_kind("thresholds", thresholds, Mapping)
        least = np.full(max(self.labels, default=0) + 2, threshold, np.float32)
        for name, value in thresholds.items():
            labels = [label for label, known in self.labels.items() if known == name]
            if not labels:
                known = ", ".join(self.labels.values())
                raise InputError(f"thresholds: no class {name!r}; this model knows {known}")
            least[labels] = check_share(f"thresholds[{name!r}]", value)
        return least

    def check_shape(self, shape: Sequence[int]) -> tuple[int, int]:
        """`shape` as (height, width); `InputError` where the network cannot take such an input."""
        if not isinstance(shape, Sequence) or len(shape) != 2:
            raise InputTypeError(f"shape is {shown(shape)}: expected (height, width)")
        height, width = (check_count(f"shape[{i}]", side) for i, side in enumerate(shape))
        self.engine().check_size(height, width)
        return height, width

    def check_patch_size(self, patch_size: int | None) -> None:
        """`InputError` for another than the network's own, or None."""
        own = self.engine().patch_size
        if patch_size not in (None, own):
            raise InputError(f"patch_size is {shown(patch_size)}: this model's is {own}")

    def _run(
        self, batches: Iterable[list[Loaded]], least: NDArray[Any], size: tuple[int, int] | None
    ) -> Iterator[Prediction]:
        for batch in batches:
            images = [image for _, image, error in batch if error is None]
            sizes = torch.tensor([image.shape[:2] for image in images])
            found = iter(self.detect(self.preprocess(images, size), sizes) if images else [])
            for name, image, error in batch:
                if error is None:
                    detections = self.to_detections(next(found), least, image.shape[:2])
                else:
                    detections = import_supervision().Detections.empty()
                    detections.data |= self.data_of([], (0, 0))
                    detections.metadata["error"] = error
                yield Prediction(name, image, detections, error)

    def preprocess(self, images: list[np.ndarray], size: tuple[int, int] | None = None) -> Tensor:
        """Images (H, W, 3) uint8 of any sizes to (B, 3, *size) uint8, which `detect` takes.

        `size` (height, width) is the predictor's if None.
        """
        return torch.stack([resize(image, size or self.size) for image in images])

    @torch.inference_mode()
    def detect(
        self, pixels: Tensor, sizes: Tensor, autocast: torch.dtype | None = None
    ) -> list[dict[str, Tensor]]:
        """What `postprocess` gives for each image, best first: scores, labels, pixel boxes, masks.

        Takes uint8 `pixels` (B, 3, S, S) and `sizes` (B, 2) of the original images (height, width).
        `autocast` is for a network that is not optimised otherwise.
        """
        engine = self.engine(autocast)
        boxes, logits, masks = engine(pixels)
        return postprocess(logits, boxes, sizes.to(engine.device), self.num_select, masks)

    def to_detections(
        self, found: dict[str, Tensor], threshold: float | NDArray[Any], size: tuple[int, int]
    ) -> Detections:
        """Detections of at least `threshold` (of all, or by label), of named classes, in an image
        of (height, width).
        """
        scores, labels, boxes = (found[k].cpu().numpy() for k in ("scores", "labels", "boxes"))
        named = np.isin(labels, list(self.labels))
        least = threshold if isinstance(threshold, float) else threshold[np.where(named, labels, 0)]
        keep = (scores >= least) & named
        masks = found.get("mask_logits")
        return import_supervision().Detections(  # type: ignore[no-any-return]
            xyxy=boxes[keep],
            mask=None if masks is None else build_masks(masks[torch.from_numpy(keep)], size),
            confidence=scores[keep],
            class_id=labels[keep],
            data=self.data_of(labels[keep].tolist(), size),
        )

    def data_of(self, labels: Sequence[int], size: tuple[int, int]) -> dict[str, np.ndarray]:
        """What `Detections.data` holds of each object: its class's name, the image's size."""
        names = np.array([self.labels[label] for label in labels], dtype=str)
        shapes = np.tile(np.array(size, dtype=np.int64), (len(labels), 1))
        return {"class_name": names, "source_shape": shapes}


def build_masks(mask_logits: Tensor, size: tuple[int, int]) -> NDArray[np.bool_] | CompactMask:
    """Masks (n, height, width) of an image: an array, for a large image a `CompactMask`.

    A CompactMask indexes, filters and draws like the array, which `numpy.asarray` makes of it.
    """
    parts = (part.cpu().numpy() for part in full_size_masks(mask_logits, size))
    if size[0] * size[1] <= DENSE_PIXELS or not len(mask_logits):
        return np.concatenate([np.zeros((0, *size), np.bool_), *parts])
    sv = import_supervision()
    compact = [sv.CompactMask.from_dense(part, sv.mask_to_xyxy(part), size) for part in parts]
    merged: CompactMask = sv.CompactMask.merge(compact)
    return merged


def keep_freed_memory() -> None:
    """Has glibc keep the memory that one prediction frees for the next one.

    It gives freed blocks back to the system until it has seen one as large as its upper limit, 32
    MiB, come and go. The page faults of getting them again are a tenth of a prediction on CPUs.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of `size` items; the last may be shorter."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made by a thread while the one before is in use."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        upcoming = pool.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = pool.submit(next, items, None)
            yield item
