"""`RFDETR`: the public face. Train on a folder of labelled images, evaluate, predict; one class per
variant.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from rfdetr import config as configs
from rfdetr.checks import check_count, check_kind, check_path
from rfdetr.config import VARIANTS, ModelConfig, SegmentationTrainConfig, TrainConfig, adds_masks_to
from rfdetr.console import lines_shown, show_rows
from rfdetr.errors import InputError, MissingPackageError
from rfdetr.inference.predictor import OnError, Prediction, Predictor, best_device
from rfdetr.inference.sources import ImageSources, is_single
from rfdetr.models.build import build_detector
from rfdetr.models.detector import Detector, detector_in
from rfdetr.weights.adapt import load_weights
from rfdetr.weights.identify import config_from_checkpoint
from rfdetr.weights.labels import ClassNames, class_labels, given_names
from rfdetr.weights.load import resolve_weights
from rfdetr.weights.names import to_published
from rfdetr.weights.reading import Checkpoint, read_checkpoint

if TYPE_CHECKING:
    from supervision import Detections

    from rfdetr.evaluation.metrics import Metrics

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class RFDETR:
    """A detector of your own design; the variants below are the published ones.

    Keywords are the fields of the variant's configuration, checked there: an unknown name is
    refused with the nearest known one. `pretrain_weights` is a published name (downloaded once), a
    checkpoint of this variant, or None for random weights. A checkpoint's classes, names and
    resolution are restored; what is given here wins over the file. `class_names` are the names by
    class id, or by the file's logits, counted from 0 or 1: {1: "cat", 2: "dog"}.
    """

    config_class: ClassVar[type[ModelConfig]] = ModelConfig

    def __init__(self, *, class_names: ClassNames | None = None, **settings: Any) -> None:
        # The one place, with train(), where options travel as **settings: they go straight into a
        # strict configuration.
        if isinstance(settings.get("pretrain_weights"), os.PathLike):
            settings["pretrain_weights"] = _path_text(settings["pretrain_weights"])
        if "pretrain_weights" in settings:
            self.config_class.refuse_unknown(
                settings
            )  # before a file is read; what fits may depend on the file
            weights = settings["pretrain_weights"]
        else:
            weights = self.config_class(**settings).pretrain_weights
        first, names = given_names(class_names)
        self._build(
            settings,
            None if weights is None else read_checkpoint(resolve_weights(weights), first),
            names,
        )

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike[str], *, class_names: ClassNames | None = None, **settings: Any
    ) -> RFDETR:
        """The detector of a file (or of a published name), as its own variant's class.

        `settings` and `class_names`, both as the constructor takes them, win over the file.
        """
        first, names = given_names(class_names)
        name = path if isinstance(path, str) else _path_text(check_path("the checkpoint", path))
        checkpoint = read_checkpoint(resolve_weights(name), first)
        face = _face_of(type(config_from_checkpoint(checkpoint)[0]))
        detector = face.__new__(face)
        detector._build({**settings, "pretrain_weights": name}, checkpoint, names)
        return detector

    def _build(
        self, settings: dict[str, Any], checkpoint: Checkpoint | None, given: list[str] | None
    ) -> None:
        names = None
        if checkpoint is not None:
            restored, names = config_from_checkpoint(checkpoint)
            self._check_variant(checkpoint.path, type(restored))
            known = restored.model_dump(exclude={"pretrain_weights"})
            known["segmentation_head"] |= self.config_class.model_fields[
                "segmentation_head"
            ].default
            settings = {**known, **settings}
            names = names if settings["num_classes"] == restored.num_classes else None
        self.model_config = self.config_class(**settings)
        if given is not None and len(given) != self.model_config.num_classes:
            raise InputError(
                f"class_names has {len(given)} names, but the model has num_classes={self.model_config.num_classes}: "
                f"name each class, or pass num_classes={len(given)}"
            )
        network = build_detector(self.model_config)
        if checkpoint is not None:
            report = load_weights(
                network, checkpoint.model, self.model_config, source=str(checkpoint.path)
            )
            report.log(logger, checkpoint.path.name)
        self._random_tensors = (
            {*to_published(network.state_dict())} if checkpoint is None else {*report.fresh}
        )
        self._changes = (
            [] if checkpoint is None else report.changes()
        )  # to the file's weights, for the training plan
        self._use(network, given or names)

    def _check_variant(self, path: Path, found: type[ModelConfig]) -> None:
        if found is not self.config_class and not adds_masks_to(found, self.config_class):
            right = _face_of(found).__name__
            raise InputError(
                f"{path} holds an {right}, not an {type(self).__name__}: use {right}(pretrain_weights=...) or "
                "RFDETR.from_checkpoint(...)"
            )

    def _use(self, network: Detector, class_names: Sequence[str] | None) -> None:
        """Makes `network` the one that predicts."""
        config = self.model_config
        self._known_names = class_names
        self.model = Predictor(
            network,
            resolution=config.resolution,
            num_select=config.num_select,
            labels=class_labels(class_names, config.num_classes),
            device=best_device(config.device),
        )

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of the ids that `predict` gives; numbers where nothing
        gave names.

        Of a model trained here, `class_names[class_id]` is the object's class. The ids count the
        classes from 0 in ascending order of the category ids of train's COCO file, or as data.yaml
        has them (YOLO). A checkpoint keeps the order it was trained with. The published COCO models
        have COCO's category ids, 1 to 90 with gaps.
        """
        return list(self.model.labels.values())

    @lines_shown()
    def train(self, **settings: Any) -> None:
        """Fine-tunes on the labelled images of `dataset_dir`; keywords are the fields of
        `TrainConfig`.

        (For a segmentation model of `SegmentationTrainConfig`, and the images need outlines.)
        Starts from the present weights, takes classes and their names from the data, and ends with
        the best weights of the run: those in `output_dir`/checkpoint_best_total.pth. Prints a plan
        before, a line per epoch and a summary after. (The lines are log records: where the program
        has set up `logging`, they go there.) Without `output_dir`, a run goes to output, or to the
        first of output-2, output-3, ... without a run in it, and `resume="last"` goes on in the one
        with the newest last.ckpt. Under torchrun all its processes train together.
        """
        with _needs_extra("training"):
            from rfdetr.training import RFDETRDataModule, RFDETRModule, build_trainer
            from rfdetr.training.batch_size import resolve_batch_size
            from rfdetr.training.checkpoints import checkpoint_to_resume
            from rfdetr.training.plan import run_summary, training_plan
            from rfdetr.training.processes import launched_settings
            from rfdetr.training.run_folder import RunFolder, default_folder
            from rfdetr.training.trainer import nothing_left

        config_class = (
            SegmentationTrainConfig if self.model_config.segmentation_head else TrainConfig
        )
        config_class.refuse_unknown(settings, type(self).__name__)
        train_config = config_class(**settings)
        if "output_dir" not in train_config.model_fields_set and not train_config.overwrite:
            train_config.output_dir = default_folder(train_config.output_dir, train_config.resume)
        resumed = checkpoint_to_resume(train_config.resume, train_config.output_dir)
        if not train_config.overwrite:
            RunFolder(train_config.output_dir).refuse_to_overwrite(resumed)
        datamodule = RFDETRDataModule(self.model_config, train_config)
        datamodule.setup("fit")
        names = datamodule.class_names or []
        model_config = _changed(self.model_config, num_classes=len(names))
        module = RFDETRModule(
            _changed(model_config, pretrain_weights=None, backbone_lora=False), train_config
        )
        weights = to_published(detector_in(self.model.model).state_dict())
        changes = list(self._changes)
        if learned := {name: weights[name] for name in weights if name not in self._random_tensors}:
            # Random ones are drawn again, from the run's seed.
            changes += load_weights(module.model, learned, model_config).changes()
        module.model_config = model_config
        module.choose_trained()
        trainer = build_trainer(train_config, model_config, **launched_settings())

        ended = resumed is not None and bool(
            nothing_left(resumed, trainer)
        )  # fit says why, and touches no file
        shown = trainer.is_global_zero and not ended
        if not ended:
            if trainer.world_size > 1:
                trainer.strategy.setup_environment()  # so that all agree on a batch size, before the plan names it
            resolve_batch_size(module, datamodule, trainer)
        if shown:
            plan = training_plan(module, datamodule, trainer, list(dict.fromkeys(changes)), resumed)
            show_rows("Training plan", plan)
        started = time.monotonic()
        trainer.fit(module, datamodule, ckpt_path=resumed)
        self.model_config = model_config
        self._random_tensors, self._changes = set(), []
        self._use(module.detector, names)
        if shown and (summary := run_summary(trainer)):
            show_rows(
                "Training finished", [*summary, ("time", _minutes(time.monotonic() - started))]
            )

    def evaluate(
        self,
        dataset_dir: str | os.PathLike[str],
        split: str = "test",
        batch_size: int = 4,
        *,
        dataset_file: Literal["roboflow", "coco", "yolo"] = "roboflow",
        num_workers: int = 2,
        max_dets: int = 500,
    ) -> Metrics:
        """Metrics on the "train", "valid" or "test" split of a labelled folder, in the precision of
        training.

        Classes are matched by name, and the model must know all of the data's. After
        `optimize_for_inference`, the optimised network is measured.
        """
        with _needs_extra("evaluation"):
            from rfdetr.evaluation.run import evaluate_split
            from rfdetr.training.precision import resolve_precision
        from rfdetr.data.layout import SPLITS, find_splits, load_index

        check_kind("split", split, str)
        check_count("batch_size", batch_size)
        check_count("num_workers", num_workers, least=0)
        check_count("max_dets", max_dets)
        split = next((name for name, spellings in SPLITS.items() if split in spellings), split)
        has_masks = self.model_config.segmentation_head
        index = load_index(
            find_splits(check_path("dataset_dir", dataset_dir), dataset_file),
            split,
            masks=has_masks,
        )
        labels_in_data = self._labels_in_data(index.class_names)
        autocast = _AUTOCAST.get(resolve_precision(self.model_config.amp, self.model.device.type))

        def detect(pixels: torch.Tensor, sizes: torch.Tensor) -> list[dict[str, torch.Tensor]]:
            found = self.model.detect(pixels, sizes, autocast=autocast)
            return [
                {**detection, "labels": labels_in_data[detection["labels"].cpu()]}
                for detection in found
            ]

        resolution = self.model_config.resolution
        return evaluate_split(
            detect,
            index,
            resolution=resolution,
            batch_size=batch_size,
            num_workers=num_workers,
            max_dets=max_dets,
        )

    def _labels_in_data(self, names: Sequence[str]) -> torch.Tensor:
        """Label in the data of each logit; a logit that names no class of the data gets the first
        label past them.
        """
        ids = {name: label for label, name in self.model.labels.items()}
        if self._known_names is None and len(names) == self.model_config.num_classes:
            ids = {name: label for label, name in enumerate(names)}  # nothing said otherwise
        if unknown := [name for name in names if name not in ids]:
            raise InputError(
                f"the data has classes the model does not know: {unknown}; it knows {self.class_names}"
            )
        table = torch.full((self.model_config.num_classes + 1,), len(names))
        table[[ids[name] for name in names]] = torch.arange(len(names))
        return table

    def predict(
        self,
        images: ImageSources,
        threshold: float = 0.5,
        batch_size: int = 4,
        on_error: OnError = "raise",
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
        as data.yaml has them (YOLO), as `class_names` says; `data["class_name"]` has the names.
        """
        found = self.model.predict(images, threshold, batch_size, on_error)
        if not found:
            raise InputError("no images to predict: the list is empty")
        return found[0] if is_single(images) else found

    def predict_stream(
        self,
        images: ImageSources,
        threshold: float = 0.5,
        batch_size: int = 4,
        on_error: OnError = "raise",
    ) -> Iterator[Prediction]:
        """`predict` for any number of images in constant memory: (source, image, detections, error)
        one by one.
        """
        return self.model.stream(images, threshold, batch_size, on_error)

    def optimize_for_inference(
        self, dtype: str | torch.dtype = "bfloat16", compile: bool = False
    ) -> None:
        """Predict from now on with a private copy of the network, its weights as `dtype`; `compile`
        runs torch.compile.

        With bfloat16, confidences move by some thousandths. `optimize_for_inference("float32")`
        undoes it, and so does `train`.
        """
        wanted = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if wanted is None or wanted not in _DTYPES.values():
            raise InputError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
        self.model.optimize(wanted, compile)


class RFDETRMini(RFDETR):
    """Under 3 M parameters, 256 pixels; its weights come with the package."""

    config_class = configs.RFDETRMiniConfig


class RFDETRNano(RFDETR):
    """30.5 M parameters, 384 pixels."""

    config_class = configs.RFDETRNanoConfig


class RFDETRSmall(RFDETR):
    """32.1 M parameters, 512 pixels."""

    config_class = configs.RFDETRSmallConfig


class RFDETRMedium(RFDETR):
    """33.7 M parameters, 576 pixels."""

    config_class = configs.RFDETRMediumConfig


class RFDETRLarge(RFDETR):
    """33.9 M parameters, 704 pixels."""

    config_class = configs.RFDETRLargeConfig


class RFDETRBase(RFDETR):
    """The first published model, 560 pixels."""

    config_class = configs.RFDETRBaseConfig


class RFDETRLargeDeprecated(RFDETR):
    """The first published large model, 560 pixels."""

    config_class = configs.RFDETRLargeDeprecatedConfig


class RFDETRSegMini(RFDETR):
    """Instance segmentation, 3 M parameters, 256 pixels; weights come with the package."""

    config_class = configs.RFDETRSegMiniConfig


class RFDETRSegNano(RFDETR):
    """Instance segmentation, 312 pixels."""

    config_class = configs.RFDETRSegNanoConfig


class RFDETRSegSmall(RFDETR):
    """Instance segmentation, 384 pixels."""

    config_class = configs.RFDETRSegSmallConfig


class RFDETRSegMedium(RFDETR):
    """Instance segmentation, 432 pixels."""

    config_class = configs.RFDETRSegMediumConfig


class RFDETRSegLarge(RFDETR):
    """Instance segmentation, 504 pixels."""

    config_class = configs.RFDETRSegLargeConfig


class RFDETRSegXLarge(RFDETR):
    """Instance segmentation, 624 pixels."""

    config_class = configs.RFDETRSegXLargeConfig


class RFDETRSeg2XLarge(RFDETR):
    """Instance segmentation, 768 pixels."""

    config_class = configs.RFDETRSeg2XLargeConfig


class RFDETRSegPreview(RFDETR):
    """The first published segmentation model, 432 pixels."""

    config_class = configs.RFDETRSegPreviewConfig


FACES: dict[str, type[RFDETR]] = {
    name: next(face for face in RFDETR.__subclasses__() if face.config_class is config)
    for name, config in VARIANTS.items()
}
"""The class of each variant, by short name."""


def _face_of(config_class: type[ModelConfig]) -> type[RFDETR]:
    return next((face for face in FACES.values() if face.config_class is config_class), RFDETR)


def _changed(config: ModelConfig, **changes: Any) -> ModelConfig:
    return type(config)(**{**config.model_dump(), **changes})


def _path_text(path: os.PathLike[str]) -> str:
    """A path object is a file of the user's, never a published name."""
    return os.path.abspath(os.path.expanduser(path))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"


@contextlib.contextmanager
def _needs_extra(what: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{what} needs {error.name}: pip install 'rfdetr-finetune[train]'"
        ) from error
