"""One way from image to detections, by the network in torch or by another engine.

The life of a request, `RFDETR.predict("cats/*.jpg")`:

    look_up(images)                 data/sources.py: what is meant; asks the file system once
    load_images -> Loaded           data/sources.py: decoded, upright, uint8 RGB (H, W, 3)
    in_batches, one_ahead           a thread reads the next batch while the network runs
    preprocess -> (B, 3, S, S)      one antialiased resize to the network's input, still uint8
    detect -> {"scores", ...}       the engine (normalise, network), boxes in pixels, best first
    to_detections -> Detections     above the threshold, of named classes, with full-size masks

Resize, normalisation and post-processing are the functions that validation uses, so that the same
file gives bit-identical tensors in both.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rfdetr.checks import check_count, check_kind, check_share, shown
from rfdetr.config.fields import input_size
from rfdetr.data.images import normalize, resize
from rfdetr.data.sources import (
    ImageSources,
    Loaded,
    Request,
    in_batches,
    load_images,
    look_up,
    one_ahead,
)
from rfdetr.errors import InputError, InputTypeError
from rfdetr.geometry.detections import import_supervision
from rfdetr.inference.engines import Engine, Outputs
from rfdetr.inference.masks import as_image_has, build_masks
from rfdetr.inference.packing import can_pack, pack_linears
from rfdetr.inference.slicing import HAS_A_SAY, Find, Slicing, find_in_tiles
from rfdetr.models.detector import (
    Detector,
    DetectorOutput,
    detector_in,
    postprocess,
)

if TYPE_CHECKING:
    from supervision import Detections

OnError: TypeAlias = Literal["raise", "skip"]


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

    def stream(  # noqa: PLR0913 - the first four are the published ones
        self,
        images: ImageSources | Request,
        threshold: float = 0.5,
        batch_size: int = 4,
        on_error: OnError = "raise",
        *,
        shape: Sequence[int] | None = None,
        thresholds: Mapping[str, float] | None = None,
        slicing: Slicing | None = None,
    ) -> Iterator[Prediction]:
        """Predictions one by one; the next batch is read while the network runs.

        No more than two batches are in memory; an image that is sliced is a batch of its own, and
        its tiles go to the network `batch_size` at a time. Images that cannot be read are errors,
        or with `on_error="skip"` predictions without detections. `shape` is the network's input
        (height, width), its resolution if None. `thresholds` by class name go before `threshold`.
        """
        least = self.thresholds_by_label(check_share("threshold", threshold), thresholds or {})
        check_count("batch_size", batch_size)
        if on_error not in ("raise", "skip"):
            raise InputError(f'on_error {on_error!r}: expected "raise" or "skip"')
        size = self.size if shape is None else self.check_shape(shape)
        loaded = load_images(look_up(images), skip=on_error == "skip")
        alone = None if slicing is None else lambda one: not slicing.fits(one.image)
        find = self.finder(size, least * HAS_A_SAY, slicing, batch_size)
        return self._run(one_ahead(in_batches(loaded, batch_size, alone)), least, find)

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
        self,
        batches: Iterable[list[Loaded]],
        least: NDArray[Any],
        find: Find,
    ) -> Iterator[Prediction]:
        for batch in batches:
            images = [image for _, image, error in batch if error is None]
            found = iter(find(images) if images else [])
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

        Takes uint8 `pixels` (B, 3, H, W) and `sizes` (B, 2) of the original images (height, width).
        `autocast` is for a network that is not optimised otherwise.
        """
        engine = self.engine(autocast)
        boxes, logits, masks = engine(pixels)
        return postprocess(logits, boxes, sizes.to(engine.device), self.num_select, masks)

    def finder(
        self,
        size: tuple[int, int],
        least: float | NDArray[Any] = 0.0,
        slicing: Slicing | None = None,
        batch_size: int = 4,
        autocast: torch.dtype | None = None,
    ) -> Find:
        """What finds objects in images (H, W, 3), as `detect` has them; in tiles, `batch_size` at a
        time, where `slicing` says so. One that is sliced is to come alone, and of it only what
        scores `least` (of all, or by label) is merged.
        """

        def find(images: list[np.ndarray]) -> list[dict[str, Any]]:
            sizes = torch.tensor([image.shape[:2] for image in images])
            return self.detect(self.preprocess(images, size), sizes, autocast)

        def find_sliced(images: list[np.ndarray]) -> list[dict[str, Any]]:
            if slicing is None or slicing.fits(images[0]):
                return find(images)
            return [find_in_tiles(images[0], slicing, find, reported, batch_size)]

        def reported(scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.bool_]:
            return self._reported(scores, labels, least)

        return find_sliced

    def _reported(
        self, scores: NDArray[Any], labels: NDArray[Any], least: float | NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Which detections have a class with a name and at least the score `least`, by label."""
        named = np.isin(labels, list(self.labels))
        limits = least if isinstance(least, float) else least[np.where(named, labels, 0)]
        reported: NDArray[np.bool_] = (scores >= limits) & named
        return reported

    def to_detections(
        self, found: dict[str, Any], threshold: float | NDArray[Any], size: tuple[int, int]
    ) -> Detections:
        """Detections of at least `threshold` (of all, or by label), of named classes, in an image
        of (height, width).
        """
        scores, labels, boxes = (found[k].cpu().numpy() for k in ("scores", "labels", "boxes"))
        keep = self._reported(scores, labels, threshold)
        masks, logits = found.get("masks"), found.get("mask_logits")
        if masks is not None:
            masks = as_image_has(masks[keep])
        elif logits is not None:
            masks = build_masks(logits[torch.from_numpy(keep)], size)
        return import_supervision().Detections(  # type: ignore[no-any-return]
            xyxy=boxes[keep],
            mask=masks,
            confidence=scores[keep],
            class_id=labels[keep],
            data=self.data_of(labels[keep].tolist(), size),
        )

    def data_of(self, labels: Sequence[int], size: tuple[int, int]) -> dict[str, np.ndarray]:
        """What `Detections.data` holds of each object: its class's name, the image's size."""
        names = np.array([self.labels[label] for label in labels], dtype=str)
        shapes = np.tile(np.array(size, dtype=np.int64), (len(labels), 1))
        return {"class_name": names, "source_shape": shapes}


class TorchEngine(NamedTuple):
    """A network in torch, under `autocast` if that is given."""

    network: nn.Module
    device: torch.device
    autocast: torch.dtype | None = None
    name: str = "torch"

    @property
    def patch_size(self) -> int:
        return detector_in(self.network).encoder.patch_size

    def check_size(self, height: int, width: int) -> None:
        encoder = detector_in(self.network).encoder
        encoder.grid_of(torch.empty(1, 3, height, width, device="meta"))

    def __call__(self, pixels: Tensor) -> Outputs:
        enabled = self.autocast is not None
        with torch.autocast(self.device.type, self.autocast, enabled=enabled):
            outputs: DetectorOutput = self.network(normalize(pixels.to(self.device)))
        return outputs.result()


class NetworkPredictor(Predictor):
    """Predicts with `model`, or with what it is optimised to.

    Threads may predict while `optimize` runs: a batch runs wholly before or after the change.
    """

    def __init__(
        self,
        model: Detector,
        *,
        resolution: int | tuple[int, int],
        num_select: int,
        labels: Mapping[int, str],
        device: torch.device,
    ) -> None:
        self.model = model.to(device).eval()
        self.resolution = resolution
        self.own_device = device
        self._optimized: Engine | None = None
        self._settings: tuple[torch.dtype, bool] | None = (torch.float32, False)
        """What `optimize` made it with; None for an engine of `use`."""
        self.converted = False
        """Whether `optimize` has changed the network itself."""
        size = input_size(resolution)
        super().__init__(self.engine(), size=size, num_select=num_select, labels=labels)

    def engine(self, autocast: torch.dtype | None = None) -> Engine:
        return self._optimized or TorchEngine(self.model, self.own_device, autocast)

    def optimize(self, dtype: torch.dtype, compiled: bool, in_place: bool = False) -> None:
        """Predict with a private copy of the network, its weights as `dtype`, compiled if asked.

        (torch.float32, False) undoes it. What needs float32 (boxes, references, sampling locations,
        scores) the network itself computes in float32. With `in_place`, the network itself is
        converted, for good.
        """
        network: Any = detector_in(self.model)
        if in_place:
            network = self.model = network.to(dtype)
            self.converted = True
        elif dtype != torch.float32:
            network = copy.deepcopy(network).to(dtype)
        packs = dtype == torch.bfloat16 and self.device.type == "cpu"
        if packs and not compiled and not in_place and can_pack():
            pack_linears(network)
        self._settings = dtype, compiled
        changed: Any = torch.compile(network) if compiled else network
        is_plain = dtype == torch.float32 and not compiled
        self._optimized = None if is_plain else TorchEngine(changed, self.own_device)

    def use(self, engine: Engine) -> None:
        """Predict with `engine`, which was made of the network, until `optimize` is called."""
        self._settings = None
        self._optimized = engine

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: an optimised network cannot leave, and is made again there. An
        engine of another runtime can.
        """
        return {**self.__dict__, "_optimized": None} if self._settings else self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._settings:
            self.optimize(*self._settings)


def keep_freed_memory() -> None:
    """Has glibc keep the memory that one prediction frees for the next one.

    It gives freed blocks back to the system until it has seen one as large as its upper limit, 32
    MiB, come and go. The page faults of getting them again are a tenth of a prediction on CPUs.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def best_device(name: str | None) -> torch.device:
    """The named device, or the best there is; `InputError` for one that cannot be computed on."""
    has_mps = torch.backends.mps.is_available()
    best = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name or best)
        torch.zeros(1, device=device).item()  # it may not be here, or hold no data ("meta")
    except (RuntimeError, AssertionError) as error:
        gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        there = ", ".join(["cpu", *gpus, *["mps"] * has_mps])
        raise InputError(f"device {name!r} cannot be used here; there is {there}") from error
    return device
