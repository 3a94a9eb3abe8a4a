"""The network with what prediction needs: its input size, labels, device, and one way from image to detections.

Source -> upright uint8 -> one antialiased resize -> device -> normalise -> network -> postprocess -> Detections. Resize
and normalise are the functions that validation uses.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from rfdetr.data.images import normalize, resize_square
from rfdetr.inference.sources import ImageSources, expand, load_image, source_name
from rfdetr.models.detector import Detector, DetectorOutput
from rfdetr.models.postprocess import postprocess

if TYPE_CHECKING:
    from supervision import Detections

T = TypeVar("T")


class Prediction(NamedTuple):
    """One image of a stream: where it came from (None: from memory), its pixels (H, W, 3) and what was found."""

    source: str | None
    image: np.ndarray
    detections: Detections


class Predictor:
    """Runs `model` on images of any form. `labels` names logit indexes; an index without a name is never reported."""

    def __init__(
        self, model: Detector, *, resolution: int, num_select: int, labels: Mapping[int, str], device: torch.device
    ) -> None:
        self.model = model.to(device).eval()
        self.resolution = resolution
        self.num_select = num_select
        self.labels = dict(labels)
        self.device = device
        self._network: Callable[[Tensor], DetectorOutput] = self.model
        self._dtype = torch.float32

    def predict(self, images: ImageSources, threshold: float = 0.5, batch_size: int = 4) -> list[Detections]:
        """Detections of every image, in order."""
        return [prediction.detections for prediction in self.stream(images, threshold, batch_size)]

    def stream(self, images: ImageSources, threshold: float = 0.5, batch_size: int = 4) -> Iterator[Prediction]:
        """Predictions one by one. The next batch is read while the network runs; no more than two are in memory."""
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold {threshold} is no confidence: expected 0 to 1")
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: expected 1 or more")
        loaded = ((source_name(source), load_image(source)) for source in expand(images))
        return self._stream(one_ahead(in_batches(loaded, batch_size)), threshold)

    def _stream(self, batches: Iterable[list[tuple[str | None, np.ndarray]]], threshold: float) -> Iterator[Prediction]:
        for batch in batches:
            images = [image for _, image in batch]
            found = self.detect(self.preprocess(images), torch.tensor([image.shape[:2] for image in images]))
            for (name, image), detection in zip(batch, found, strict=True):
                yield Prediction(name, image, self.to_detections(detection, threshold))

    def optimize(self, dtype: torch.dtype, compiled: bool) -> None:
        """Predict with a private copy of the network, its weights as `dtype`, compiled if asked; float32, False undoes.

        What needs float32 (boxes, references, sampling locations, scores) the network itself computes in float32.
        """
        changed = copy.deepcopy(self.model).to(dtype) if dtype != torch.float32 else self.model
        self._network = torch.compile(changed) if compiled else changed
        self._dtype = dtype

    def preprocess(self, images: list[np.ndarray]) -> Tensor:
        """Images (H, W, 3) uint8 of any sizes to the network's input (B, 3, S, S), uint8; `detect` normalises it."""
        return torch.stack([resize_square(image, self.resolution) for image in images])

    @torch.inference_mode()
    def detect(self, pixels: Tensor, sizes: Tensor, autocast: torch.dtype | None = None) -> list[dict[str, Tensor]]:
        """Scores, labels and pixel boxes (masks too, where the network has them) of each image, best first.

        Takes uint8 pixels (B, 3, S, S) and sizes (B, 2) of the original images. `autocast` is for a network that is not
        optimised otherwise.
        """
        images = normalize(pixels.to(self.device)).to(self._dtype)
        enabled = autocast is not None and self._network is self.model
        with torch.autocast(self.device.type, autocast, enabled=enabled):
            outputs = self._network(images)
        masks = None if outputs.masks is None else outputs.masks.mask_logits(len(outputs.logits) - 1)
        return postprocess(outputs.logits[-1], outputs.boxes[-1], sizes.to(self.device), self.num_select, masks)

    def to_detections(self, found: dict[str, Tensor], threshold: float) -> Detections:
        """Named detections of at least `threshold`, as `supervision` holds them."""
        values = {name: value.cpu().numpy() for name, value in found.items()}
        keep = (values["scores"] >= threshold) & np.isin(values["labels"], list(self.labels))
        class_id = values["labels"][keep]
        return _detections_class()(
            xyxy=values["boxes"][keep],
            mask=values["masks"][keep] if "masks" in values else None,
            confidence=values["scores"][keep],
            class_id=class_id,
            data={"class_name": np.array([self.labels[label] for label in class_id.tolist()], dtype=str)},
        )


@functools.cache
def _detections_class() -> type[Detections]:
    """Imported at the first prediction (half a second); without OpenCV it is complete for us, so it need not warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="OpenCV")
        from supervision import Detections
    return Detections


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


def best_device(name: str | None) -> torch.device:
    """The named device, or the best there is."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(name)
