"""`PredictingModel`: what predicts and can be evaluated, trained here or exported."""

from __future__ import annotations

import abc
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, TypeAlias

import torch

from rfdetr import compat
from rfdetr.checks import check_count, check_kind, check_share
from rfdetr.config import SegmentationTrainConfig, TrainConfig
from rfdetr.config.fields import as_classes, as_folders
from rfdetr.data.sources import ImageSources, in_batches, look_up
from rfdetr.data.video import Frame, read_frames
from rfdetr.errors import InputError, needs_extra
from rfdetr.inference.engines import open_artifact
from rfdetr.inference.predictor import OnError, Prediction, Predictor
from rfdetr.inference.slicing import Slicing, check_slicing
from rfdetr.inference.tracking import LEAST_FOLLOWED, Tracker
from rfdetr.weights.labels import are_numbers, renamed

if TYPE_CHECKING:
    from supervision import Detections

    from rfdetr.data.folders import Folders
    from rfdetr.evaluation.metrics import Metrics

Slice: TypeAlias = bool | int | tuple[int, int] | None
"""Of `predict`: tiles of the network's input, of so many pixels, of (height, width); None: none."""
LEAST_MERGED = 0.01
"""Score from which `evaluate` merges what tiles show: thousands of them have a long tail."""
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Kind(NamedTuple):
    """What `evaluate`, and a report of it, ask of a model."""

    variant: str | None
    """ "nano", "seg-mini", ...; None for a network of another design."""
    has_masks: bool
    num_classes: int
    is_named: bool
    """Whether anything gave its classes names."""
    amp: bool = True
    """Whether torch may choose lower precision, where it runs the network."""


class PredictingModel(abc.ABC):
    """Finds objects in images, and is measured on labelled ones."""

    if TYPE_CHECKING:

        @property
        def model(self) -> Predictor: ...

    trained_classes: Mapping[str, Sequence[str]] | None = None
    """The `classes` that it was trained with, where some were left out or merged."""
    run_folder: Path | None = None
    """Of its weights: what that run has kept back of train is the valid split to evaluate on."""

    @property
    @abc.abstractmethod
    def kind(self) -> Kind: ...

    @property
    def class_names(self) -> list[str]:
        """Names of the classes by the ids that `predict` gives; numbers where nothing gave names.

        Of a model trained here, `class_names[class_id]` is the object's class. The ids count the
        classes from 0 in ascending order of the category ids of train's COCO file, or as data.yaml
        has them (YOLO). A checkpoint keeps the order it was trained with. The published COCO models
        have COCO's category ids, 1 to 90 with gaps.
        """
        return list(self.model.labels.values())

    def folders(
        self, dataset_dir: Any, dataset_file: str = "roboflow", classes: Any = None
    ) -> Folders:
        """Labelled folders as this model was trained on such: with its `classes` unless others are
        given, and what its run has kept back of train as the valid split, where there is none.
        """
        from rfdetr.data.folders import Folders
        from rfdetr.training.run_folder import RunFolder

        known = classes is None
        taken = self.trained_classes if known else as_classes(classes)
        record = None if self.run_folder is None else RunFolder(self.run_folder).division
        folders = as_folders("dataset_dir", dataset_dir)
        return Folders(folders, dataset_file, taken, known=known, record=record)

    def evaluate(  # noqa: PLR0913 - what is evaluated, and how `predict` would
        self,
        dataset_dir: str | os.PathLike[str] | Sequence[Any] | Mapping[Any, float],
        split: str = "test",
        batch_size: int = 4,
        *,
        dataset_file: Literal["roboflow", "coco", "yolo"] = "roboflow",
        num_workers: int = 2,
        max_dets: int = 500,
        slice: Slice = None,
        slice_overlap: float = 0.2,
        slice_whole: bool = True,
        **settings: Any,
    ) -> Metrics:
        """Metrics on the "train", "valid" or "test" split of a labelled folder, in the precision of
        training, of an exported model in its own.

        A dict of figures by published name ("test/mAP_50_95", "val/F1"), and more as attributes.
        Classes are matched by name, and the model must know all of the data's; one trained with
        `classes` is measured on these, or on the `classes` given here, as `train` takes them. After
        `optimize_for_inference`, the optimised network is measured. With `slice`, images are looked
        at in tiles as by `predict` and judged as wholes; what scores below 0.01 is left out. Other
        `settings` are those of `train`, of which `resolution` and `class_names` (of the data's
        classes) have effect.
        """
        with needs_extra("train", "evaluation"):
            from rfdetr.evaluation.run import evaluate_split, labels_of
            from rfdetr.training.steps import resolve_precision
        from rfdetr.data.layout import SPLITS

        check_kind("split", split, str)
        counts = {"batch_size": batch_size, "num_workers": num_workers, "max_dets": max_dets}
        given, classes = settings.pop("class_names", None), settings.pop("classes", None)
        kind, device = self.kind, self.model.device.type
        fields = (SegmentationTrainConfig if kind.has_masks else TrainConfig).model_fields
        counts |= compat.of_evaluation(settings, device, fields)
        resolution = counts.pop("resolution", self.model.size)
        sides = resolution if isinstance(resolution, Sequence) else (resolution,) * 2
        size = self.model.check_shape(sides)
        for name, count in counts.items():
            check_count(name, count, least=0 if name == "num_workers" else 1)
        split = next((name for name, spellings in SPLITS.items() if split in spellings), split)
        folders = self.folders(dataset_dir, dataset_file, classes)
        index = folders.index(split, masks=kind.has_masks)
        names, known = renamed(index.class_names, given), self.model.labels
        index = replace(index, class_names=tuple(names))
        if not kind.is_named and len(names) == kind.num_classes:
            known = dict(enumerate(names))  # nothing said otherwise
        labels_in_data = labels_of(known, names)
        autocast = _AUTOCAST.get(resolve_precision(kind.amp, device))
        slicing = self._slicing(slice, slice_overlap, slice_whole, size)
        find = self.model.finder(size, LEAST_MERGED, slicing, counts["batch_size"], autocast)

        def detect(pixels: torch.Tensor, sizes: torch.Tensor) -> list[dict[str, Any]]:
            if slicing is None:
                found = self.model.detect(pixels, sizes, autocast)
            else:
                found = find([image.permute(1, 2, 0).numpy() for image in pixels])
            return [{**one, "labels": labels_in_data[one["labels"].cpu()]} for one in found]

        prefix = "val/" if split == "valid" else f"{split}/"
        own = slicing is not None
        metrics = evaluate_split(detect, index, size=size, **counts, own_size=own)
        return replace(metrics, prefix=prefix)

    def predict(  # noqa: PLR0913 - the first five are the published ones
        self,
        images: ImageSources,
        threshold: float = 0.5,
        shape: tuple[int, int] | None = None,
        patch_size: int | None = None,
        include_source_image: bool = True,
        *,
        batch_size: int = 4,
        on_error: OnError = "raise",
        thresholds: Mapping[str, float] | None = None,
        slice: Slice = None,
        slice_overlap: float = 0.2,
        slice_whole: bool = True,
    ) -> Detections | list[Detections]:
        """Objects found with at least `threshold` confidence, boxes in pixels; a list for several
        images.

        `images`: a path, an http(s) address, a PIL image, a NumPy array (height, width, 3) of RGB
        uint8 (or gray, or RGBA), a torch tensor (3, height, width) in [0, 1] or uint8; or several:
        a folder, a pattern, an iterable of these. An image stored rotated (EXIF) is turned upright
        first, PIL images too; boxes are in the upright image.

        An image that cannot be read is an error that says which ("image 3 of 7: ..."). With
        `on_error="skip"` it is logged as a warning, and its place in the list has no objects and
        the reason in `metadata["error"]`.

        `class_id` counts from 0 in ascending order of the training data's category ids (COCO), or
        as data.yaml has them (YOLO), as `class_names` says; `data["class_name"]` has the names,
        `data["source_shape"]` (n, 2) the image's height and width. `metadata["source_image"]` is
        the image (height, width, 3) uint8 RGB; `include_source_image=False` lets its memory go.

        `shape` is another (height, width) for the network to see, in place of its resolution:
        multiples of `patch_size`, which can only be the model's own, times its windows.
        `thresholds` {"cat": 0.4} go before `threshold` for the classes that they name.

        `slice` is for small objects in large images: each image is looked at in tiles of so many
        pixels, or of (height, width), or with True of the network's own input, and what several
        tiles show of an object is merged. Neighbours share at least `slice_overlap` of their sides:
        an object smaller than that is seen whole by one of them. `slice_whole` has the whole image
        looked at too, for objects larger than a tile. Images no larger than a tile are predicted as
        without.
        """
        self.model.check_patch_size(patch_size)
        request = look_up(images)
        how: dict[str, Any] = {"shape": shape, "include_source_image": include_source_image}
        how["thresholds"] = thresholds
        how["slicing"] = self._slicing(slice, slice_overlap, slice_whole, shape)
        found = self.model.predict(request, threshold, batch_size, on_error, **how)
        if not found:
            raise InputError("no images to predict: the list is empty")
        return found[0] if request.single else found

    def predict_stream(  # noqa: PLR0913 - those of `predict`
        self,
        images: ImageSources,
        threshold: float = 0.5,
        batch_size: int = 4,
        on_error: OnError = "raise",
        *,
        shape: tuple[int, int] | None = None,
        thresholds: Mapping[str, float] | None = None,
        slice: Slice = None,
        slice_overlap: float = 0.2,
        slice_whole: bool = True,
    ) -> Iterator[Prediction]:
        """`predict` one by one in constant memory: (source, image, detections, error) of each."""
        how: dict[str, Any] = {"shape": shape, "thresholds": thresholds}
        how["slicing"] = self._slicing(slice, slice_overlap, slice_whole, shape)
        return self.model.stream(images, threshold, batch_size, on_error, **how)

    def predict_film(
        self,
        film: str | int | os.PathLike[str],
        threshold: float = 0.5,
        *,
        every: int = 1,
        track: bool = True,
        batch_size: int = 1,
        **how: Any,
    ) -> Iterator[tuple[Frame, Detections]]:
        """Each `every`-th frame of a film, a stream ("rtsp://...") or a camera (0), and what is
        found in it, in constant memory (extra `[video]`).

        With `track`, objects have a number from 1 as `tracker_id` for as long as they are followed,
        and what belongs to no object yet is left out: ByteTrack, which goes on with an object at a
        lower confidence than `threshold` (`thresholds` by class), but starts none. `batch_size`
        frames are in memory and go to the network together: of a camera, all wait for the last one.
        `how` are keywords of `predict`.
        """
        by_label = self.model.thresholds_by_label(
            check_share("threshold", threshold), how.get("thresholds") or {}
        )
        tracker = Tracker(by_label) if track else None
        if tracker:
            threshold, how["thresholds"] = min(float(by_label.min()), LEAST_FOLLOWED), None
        how |= {"include_source_image": False, "batch_size": check_count("batch_size", batch_size)}
        for frames in in_batches(read_frames(film, every), batch_size):
            images: Any = [frame.image for frame in frames]
            several: Any = self.predict(images, threshold, **how)
            for frame, found in zip(frames, several, strict=True):
                yield frame, found if tracker is None else tracker.update(found)

    def _slicing(self, slice: Slice, overlap: float, whole: bool, shape: Any) -> Slicing | None:
        """The checked arguments as one value; True is the size of the network's input."""
        if slice is None or slice is False:
            return None
        own = self.model.size if shape is None else self.model.check_shape(shape)
        return check_slicing(slice, overlap, whole, own)


class ExportedDetector(PredictingModel):
    """What `RFDETR.from_export` gives: an artifact, which predicts like the model it was made of.

    The artifact's engine runs on the CPU, in the arithmetic that it was exported with, and takes
    images of one size: of a `shape` of `predict`, only its own is none that is refused.
    """

    model: Predictor

    def __init__(self, path: str | os.PathLike[str]) -> None:
        engine, self.metadata = open_artifact(path)
        size = self.metadata.input.height, self.metadata.input.width
        labels, select = self.metadata.classes, self.metadata.num_select
        self.model = Predictor(engine, size=size, num_select=select, labels=labels)

    @property
    def kind(self) -> Kind:
        """What its metadata says."""
        labels, has_masks = self.metadata.classes, self.metadata.task == "segment"
        variant = (self.metadata.variant or "").removeprefix("rfdetr-") or None
        return Kind(variant, has_masks, len(labels), not are_numbers(labels))

    def train(self, *_: Any, **__: Any) -> NoReturn:
        """Always `InputError`, as are the other calls that need the network itself."""
        raise InputError(
            "an exported model predicts and is evaluated, nothing else: train, export or optimise "
            "the checkpoint that it was made of, RFDETR.from_checkpoint(...)"
        )

    export = inference = optimize_for_inference = remove_optimized_model = train
