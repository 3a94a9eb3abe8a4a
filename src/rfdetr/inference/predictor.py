"""The network with what prediction needs: its input size, labels, device, and one way from image to
detections.

Source -> upright uint8 -> one antialiased resize -> device -> normalise -> network -> postprocess
-> Detections. Resize and normalise are the functions that validation uses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from rfdetr.checks import check_count, check_share
from rfdetr.data.images import normalize, resize_square
from rfdetr.errors import InputError
from rfdetr.evaluation.drawing import import_supervision
from rfdetr.inference.masks import build_masks
from rfdetr.inference.packing import can_pack, pack_linears
from rfdetr.inference.sources import ImageSources, Loaded, load_images
from rfdetr.models.detector import Detector, DetectorOutput, detector_in
from rfdetr.models.postprocess import postprocess_outputs
from rfdetr.training.memory import keep_freed_memory

if TYPE_CHECKING:
    from supervision import Detections

T = TypeVar("T")
OnError: TypeAlias = Literal["raise", "skip"]


class Prediction(NamedTuple):
    """One image of a stream: where it came from (None: from memory), its pixels (H, W, 3) and what
    was found.

    `error` says why an image could not be read, where such images are skipped: then it has no
    pixels and no detections.
    """

    source: str | None
    image: np.ndarray
    detections: Detections
    error: str | None = None


class Predictor:
    """Runs `model` on images of any form. `labels` names logit indexes; an index without a name is
    never reported.

    Any number of threads may predict at once, and `optimize` meanwhile: a batch runs wholly before
    or after the change.
    """

    def __init__(
        self,
        model: Detector,
        *,
        resolution: int,
        num_select: int,
        labels: Mapping[int, str],
        device: torch.device,
    ) -> None:
        self.model = model.to(device).eval()
        self.resolution = resolution
        self.num_select = num_select
        self.labels = dict(labels)
        self.device = device
        keep_freed_memory()
        self._optimized: Callable[[Tensor], DetectorOutput] | None = None
        self._settings = torch.float32, False

    def predict(
        self,
        images: ImageSources,
        threshold: float = 0.5,
        batch_size: int = 4,
        on_error: OnError = "raise",
    ) -> list[Detections]:
        """Detections of every image, in order."""
        return [
            prediction.detections
            for prediction in self.stream(images, threshold, batch_size, on_error)
        ]

    def stream(
        self,
        images: ImageSources,
        threshold: float = 0.5,
        batch_size: int = 4,
        on_error: OnError = "raise",
    ) -> Iterator[Prediction]:
        """Predictions one by one. The next batch is read while the network runs; no more than two
        are in memory.
        """
        check_share("threshold", threshold)
        check_count("batch_size", batch_size)
        if on_error not in ("raise", "skip"):
            raise InputError(f'on_error {on_error!r}: expected "raise" or "skip"')
        loaded = load_images(images, skip=on_error == "skip")
        return self._stream(one_ahead(in_batches(loaded, batch_size)), threshold)

    def _stream(self, batches: Iterable[list[Loaded]], threshold: float) -> Iterator[Prediction]:
        for batch in batches:
            images = [image for _, image, error in batch if error is None]
            sizes = torch.tensor([image.shape[:2] for image in images])
            found = iter(self.detect(self.preprocess(images), sizes) if images else [])
            for name, image, error in batch:
                detections = (
                    self._unread(error)
                    if error is not None
                    else self.to_detections(next(found), threshold, image.shape[:2])
                )
                yield Prediction(name, image, detections, error)

    def _unread(self, error: str) -> Detections:
        empty = import_supervision().Detections.empty()
        empty.data["class_name"] = np.array([], dtype=str)
        empty.metadata["error"] = error
        return empty  # type: ignore[no-any-return]

    def optimize(self, dtype: torch.dtype, compiled: bool) -> None:
        """Predict with a private copy of the network, its weights as `dtype`, compiled if asked;
        float32, False undoes.

        What needs float32 (boxes, references, sampling locations, scores) the network itself
        computes in float32.
        """
        network = detector_in(self.model)
        if dtype != torch.float32:
            network = copy.deepcopy(network).to(dtype)
        if dtype == torch.bfloat16 and self.device.type == "cpu" and not compiled and can_pack():
            pack_linears(network)
        self._settings = dtype, compiled
        self._optimized = (
            torch.compile(network) if compiled else network if dtype != torch.float32 else None
        )

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the network itself; what it was optimised to cannot leave, and is
        made again.
        """
        return {**self.__dict__, "_optimized": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.optimize(*self._settings)

    def preprocess(self, images: list[np.ndarray]) -> Tensor:
        """Images (H, W, 3) uint8 of any sizes to the network's input (B, 3, S, S), uint8; `detect`
        normalises it.
        """
        return torch.stack([resize_square(image, self.resolution) for image in images])

    @torch.inference_mode()
    def detect(
        self, pixels: Tensor, sizes: Tensor, autocast: torch.dtype | None = None
    ) -> list[dict[str, Tensor]]:
        """Scores, labels and pixel boxes (mask logits too, where the network has masks) of each
        image, best first.

        Takes uint8 pixels (B, 3, S, S) and sizes (B, 2) of the original images. `autocast` is for a
        network that is not optimised otherwise.
        """
        optimized = self._optimized  # once: another thread may optimise
        network = self.model if optimized is None else optimized
        with torch.autocast(
            self.device.type, autocast, enabled=autocast is not None and optimized is None
        ):
            outputs = network(normalize(pixels.to(self.device)))
        return postprocess_outputs(outputs, sizes.to(self.device), self.num_select)

    def to_detections(
        self, found: dict[str, Tensor], threshold: float, size: tuple[int, int]
    ) -> Detections:
        """Named detections of at least `threshold`, as `supervision` holds them, in an image of
        (height, width).
        """
        values = {name: found[name].cpu().numpy() for name in ("scores", "labels", "boxes")}
        keep = (values["scores"] >= threshold) & np.isin(values["labels"], list(self.labels))
        class_id = values["labels"][keep]
        masks = found.get("mask_logits")
        return import_supervision().Detections(  # type: ignore[no-any-return]
            xyxy=values["boxes"][keep],
            mask=None if masks is None else build_masks(masks[torch.from_numpy(keep)], size),
            confidence=values["scores"][keep],
            class_id=class_id,
            data={
                "class_name": np.array(
                    [self.labels[label] for label in class_id.tolist()], dtype=str
                )
            },
        )


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
    """The named device, or the best there is; a name that cannot be computed on is a `ValueError`."""
    best = (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )
    try:
        device = torch.device(name or best)
        torch.zeros(
            1, device=device
        ).item()  # a device may have a name and not be here, or hold no data ("meta")
    except (RuntimeError, AssertionError) as error:
        count = torch.cuda.device_count()
        there = [
            "cpu",
            *(f"cuda:{i}" for i in range(count)),
            *["mps"] * torch.backends.mps.is_available(),
        ]
        raise InputError(
            f"device {name!r} cannot be used here; there is {', '.join(there)}"
        ) from error
    return device
