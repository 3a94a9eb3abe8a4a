"""`RFDETR`, the public class: train on labelled images, evaluate, predict."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from typing_extensions import Unpack

from rfdetr import compat
from rfdetr.checks import check_count, check_kind, check_path
from rfdetr.config import ModelConfig, adds_masks_to, variant_name
from rfdetr.config.training import TrainSettings
from rfdetr.console import lines_shown, show_rows
from rfdetr.errors import InputError, needs_extra
from rfdetr.inference.predictor import OnError, Prediction, best_device
from rfdetr.inference.sources import ImageSources, look_up
from rfdetr.models.build import build_detector
from rfdetr.models.detector import Detector
from rfdetr.published import ModelContext, PublishedCalls
from rfdetr.weights.identify import config_from_checkpoint
from rfdetr.weights.labels import ClassNames, class_labels, given_names, renamed, repeated
from rfdetr.weights.load import load_pretrained, open_weights
from rfdetr.weights.names import to_published
from rfdetr.weights.reading import Checkpoint
from rfdetr.weights.start import Start

if TYPE_CHECKING:
    from supervision import Detections

    from rfdetr.evaluation.metrics import Metrics

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class RFDETR(PublishedCalls):
    """A detector of your own design; the classes of `rfdetr.variants` are the published ones.

    Keywords are the fields of the variant's configuration, checked there: an unknown name is
    refused with the nearest known one. `pretrain_weights` is a published name (downloaded once), a
    checkpoint of this variant, or None for random weights. A checkpoint's classes, names and
    resolution are restored; what is given here wins over the file. (`num_queries` above the file's
    repeats its queries with noise, and `num_select` follows unless given.) `class_names` are the
    names by class id, or by the file's logits, counted from 0 or 1: {1: "cat", 2: "dog"}.
    """

    config_class: ClassVar[type[ModelConfig]] = ModelConfig
    classes: ClassVar[dict[type[ModelConfig], type[RFDETR]]] = {}  # of the configurations
    size: ClassVar[str | None] = None  # the published name of a variant, "rfdetr-nano"

    def __init_subclass__(cls, config: type[ModelConfig] | None = None) -> None:
        cls.config_class = config or cls.config_class
        cls.classes.setdefault(cls.config_class, cls)
        if name := variant_name(cls.config_class):
            cls.size = f"rfdetr-{name.removesuffix('-deprecated')}"

    def __init__(self, *, class_names: ClassNames | None = None, **settings: Any) -> None:
        settings = compat.absorb(settings, compat.MODEL)
        if "pretrain_weights" in settings:
            # Names alone, before a file is read: which values fit may depend on the file.
            self.config_class.refuse_unknown(settings)
            weights = settings["pretrain_weights"]
        else:
            weights = self.config_class(**settings).pretrain_weights
        if isinstance(weights, os.PathLike):
            settings["pretrain_weights"] = weights = _own_file(weights)
        first, names = given_names(class_names)
        self._build(settings, None if weights is None else open_weights(weights, first), names)

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike[str], *, class_names: ClassNames | None = None, **settings: Any
    ) -> RFDETR:
        """The detector of a file (or of a published name), as its own variant's class.

        `settings` and `class_names`, both as the constructor takes them, win over the file.
        """
        settings = compat.absorb(settings, compat.MODEL)
        first, names = given_names(class_names)
        name = path if isinstance(path, str) else _own_file(check_path("the checkpoint", path))
        checkpoint = open_weights(name, first)
        face = cls.classes.get(type(config_from_checkpoint(checkpoint)[0]), RFDETR)
        detector = face.__new__(face)
        detector._build({**settings, "pretrain_weights": name}, checkpoint, names)
        return detector

    def _build(
        self, settings: dict[str, Any], checkpoint: Checkpoint | None, given: list[str] | None
    ) -> None:
        restored, names, chosen = None, None, settings
        unchanged = settings.keys() <= {"pretrain_weights", "device"}
        if checkpoint is not None:
            restored, names = config_from_checkpoint(checkpoint)
            kind, wanted = type(restored), self.config_class
            if kind is not wanted and not adds_masks_to(kind, wanted):
                right, asked = self.classes.get(kind, RFDETR).__name__, type(self).__name__
                use = f"{right}(pretrain_weights=...) or RFDETR.from_checkpoint(...)"
                raise InputError(f"{checkpoint.path} holds an {right}, not an {asked}: use {use}")
            known = restored.model_dump(exclude={"pretrain_weights"})
            known["segmentation_head"] |= wanted.model_fields["segmentation_head"].default
            settings = {**known, **settings}
        self.model_config = self.config_class(**settings)
        num_classes, num_queries = self.model_config.num_classes, self.model_config.num_queries
        if restored and num_queries > restored.num_queries and "num_select" not in chosen:
            select = max(num_queries, restored.num_select)
            self.model_config = self.get_model_config(num_select=select)
        if given is not None and len(given) != num_classes:
            count = (
                f"class_names has {len(given)} names, but the model has num_classes={num_classes}"
            )
            raise InputError(f"{count}: name each class, or pass num_classes={len(given)}")
        network = build_detector(self.model_config)
        same_classes = restored is None or restored.num_classes == num_classes
        # Names of as many classes are new ones for the file's; of another number, the file's own.
        wanted_names = None if same_classes else given
        report = load_pretrained(network, self.model_config, checkpoint, wanted_names)
        file_names = given or names if same_classes else names
        if twice := repeated(file_names or ()):
            told = f"classes of one name: {', '.join(twice)}; evaluate() takes them as one class"
            warnings.warn(told, stacklevel=3)
        self._start = Start(file_names, to_published(network.state_dict()), report)
        self._weights_file = checkpoint.path if checkpoint and unchanged else None
        self._use(network, file_names if same_classes else given)

    def _use(self, network: Detector, class_names: Sequence[str] | None) -> None:
        """Makes `network` the one that predicts."""
        config = self.model_config
        self._known_names = class_names
        labels = class_labels(class_names, config.num_classes)
        sizes = {"resolution": config.resolution, "num_select": config.num_select}
        device = best_device(config.device)
        self.model = ModelContext(network, labels=labels, device=device, **sizes)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes by the ids that `predict` gives; numbers where nothing gave names.

        Of a model trained here, `class_names[class_id]` is the object's class. The ids count the
        classes from 0 in ascending order of the category ids of train's COCO file, or as data.yaml
        has them (YOLO). A checkpoint keeps the order it was trained with. The published COCO models
        have COCO's category ids, 1 to 90 with gaps.
        """
        return list(self.model.labels.values())

    @lines_shown()
    def train(self, **settings: Unpack[TrainSettings]) -> None:
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
        with needs_extra("train", "training"):
            from pytorch_lightning.callbacks import LambdaCallback

            from rfdetr.training import RFDETRDataModule, RFDETRModule, build_trainer
            from rfdetr.training.checkpoints import checkpoint_to_resume
            from rfdetr.training.plan import run_summary, training_plan
            from rfdetr.training.processes import launched_settings
            from rfdetr.training.resume import keep_settings
            from rfdetr.training.run_folder import RunFolder, default_folder

        of_training, of_model, of_trainer = compat.split_moved(settings)
        self.train_config_class.refuse_unknown(of_training, type(self).__name__)
        config = self.train_config_class(**of_training)
        model_config = self.get_model_config(**of_model)
        if "device" in of_model:
            best_device(model_config.device)  # one that is not here is told at once
        if "output_dir" not in config.model_fields_set and not config.overwrite:
            config.output_dir = default_folder(config.output_dir, config.resume)
        resumed = checkpoint_to_resume(config.resume, config.output_dir)
        if not config.overwrite:
            RunFolder(config.output_dir).refuse_to_overwrite(resumed)
        datamodule = RFDETRDataModule(model_config, config)
        datamodule.setup("fit")
        if resumed:
            keep_settings(config, resumed, datamodule.class_names)
        names = renamed(datamodule.class_names or [], config.class_names)
        model_config = self.get_model_config(**of_model, num_classes=len(names))
        weights = self._start.weights(to_published(self.weights()))
        module = RFDETRModule(model_config, config, weights, names)
        trainer = build_trainer(config, model_config, **{**launched_settings(), **of_trainer})

        def show_plan(*_: Any, **__: Any) -> None:  # last: it names the batch size that fits
            if trainer.is_global_zero:
                plan = training_plan(module, datamodule, trainer, module.changes, resumed)
                show_rows("Training plan", plan)

        # A checkpoint that does not fit is refused before.
        trainer.callbacks.append(LambdaCallback(on_fit_start=show_plan))  # type: ignore[attr-defined]
        started = time.monotonic()
        trainer.fit(module, datamodule, ckpt_path=resumed)
        self.model_config = model_config
        self._weights_file = RunFolder(config.output_dir).best("total")
        self._start = Start(names, file=self._start.file)
        self._use(module.detector, names)
        summary = run_summary(trainer, time.monotonic() - started)
        if trainer.is_global_zero and summary:
            show_rows("Training finished", summary)

    def evaluate(
        self,
        dataset_dir: str | os.PathLike[str],
        split: str = "test",
        batch_size: int = 4,
        *,
        dataset_file: Literal["roboflow", "coco", "yolo"] = "roboflow",
        num_workers: int = 2,
        max_dets: int = 500,
        **settings: Any,
    ) -> Metrics:
        """Metrics on the "train", "valid" or "test" split of a labelled folder, in the precision of
        training.

        A dict of figures by published name ("test/mAP_50_95", "val/F1"), and more as attributes.
        Classes are matched by name, and the model must know all of the data's. After
        `optimize_for_inference`, the optimised network is measured. Other `settings` are those of
        `train`, of which `resolution` and `class_names` (of the data's classes) have effect.
        """
        with needs_extra("train", "evaluation"):
            from rfdetr.evaluation.run import evaluate_split, labels_of
            from rfdetr.training.steps import resolve_precision
        from rfdetr.data.layout import SPLITS, find_splits, load_index

        check_kind("split", split, str)
        counts = {"batch_size": batch_size, "num_workers": num_workers, "max_dets": max_dets}
        given = settings.pop("class_names", None)
        fields = self.train_config_class.model_fields
        counts |= compat.of_evaluation(settings, self.model.device.type, fields)
        counts.setdefault("resolution", self.model_config.resolution)
        self.model.check_shape((counts["resolution"],) * 2)
        for name, count in counts.items():
            check_count(name, count, least=0 if name == "num_workers" else 1)
        split = next((name for name, spellings in SPLITS.items() if split in spellings), split)
        layout = find_splits(check_path("dataset_dir", dataset_dir), dataset_file)
        index = load_index(layout, split, masks=self.model_config.segmentation_head)
        names, known = renamed(index.class_names, given), self.model.labels
        index = replace(index, class_names=tuple(names))
        if self._known_names is None and len(names) == self.model_config.num_classes:
            known = dict(enumerate(names))  # nothing said otherwise
        labels_in_data = labels_of(known, names)
        autocast = _AUTOCAST.get(resolve_precision(self.model_config.amp, self.model.device.type))

        def detect(pixels: torch.Tensor, sizes: torch.Tensor) -> list[dict[str, torch.Tensor]]:
            found = self.model.detect(pixels, sizes, autocast=autocast)
            return [{**one, "labels": labels_in_data[one["labels"].cpu()]} for one in found]

        prefix = "val/" if split == "valid" else f"{split}/"
        return replace(evaluate_split(detect, index, **counts), prefix=prefix)

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
        """
        self.model.check_patch_size(patch_size)
        request = look_up(images)
        how: dict[str, Any] = {"shape": shape, "include_source_image": include_source_image}
        found = self.model.predict(request, threshold, batch_size, on_error, **how)
        if not found:
            raise InputError("no images to predict: the list is empty")
        return found[0] if request.single else found

    def predict_stream(
        self,
        images: ImageSources,
        threshold: float = 0.5,
        batch_size: int = 4,
        on_error: OnError = "raise",
        *,
        shape: tuple[int, int] | None = None,
    ) -> Iterator[Prediction]:
        """`predict` one by one in constant memory: (source, image, detections, error) of each."""
        return self.model.stream(images, threshold, batch_size, on_error, shape=shape)


def _own_file(path: os.PathLike[str]) -> str:
    """A path object as text that is no published name: it is a file of the user's."""
    return os.path.abspath(os.path.expanduser(path))
