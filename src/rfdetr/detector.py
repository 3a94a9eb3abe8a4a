"""`RFDETR`, the public class: train on labelled images, evaluate, predict."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

from typing_extensions import Unpack

from rfdetr import compat
from rfdetr.checks import check_path
from rfdetr.config import ModelConfig, adds_masks_to, variant_name
from rfdetr.config.training import TrainSettings
from rfdetr.console import lines_shown, show_rows
from rfdetr.data.folders import Folders
from rfdetr.errors import InputError, needs_extra
from rfdetr.inference.predictor import best_device
from rfdetr.models.build import build_detector
from rfdetr.models.detector import Detector
from rfdetr.predicting import ExportedDetector, Kind, PredictingModel
from rfdetr.published import ModelContext, PublishedCalls
from rfdetr.weights.identify import config_from_checkpoint
from rfdetr.weights.labels import ClassNames, class_labels, given_names, renamed, repeated
from rfdetr.weights.load import load_pretrained, open_weights
from rfdetr.weights.names import to_published
from rfdetr.weights.reading import Checkpoint
from rfdetr.weights.start import Start


class RFDETR(PublishedCalls, PredictingModel):
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
    auto_resolution: ClassVar[bool] = False  # what train() takes where nobody has said a resolution

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

    @staticmethod
    def from_export(path: str | os.PathLike[str]) -> ExportedDetector:
        """The exported model of a .onnx, .xml or .pt2 file, or of the only one in a folder.

        It has `predict`, `predict_stream`, `evaluate` and `class_names`. Reading a .pt2 may run
        what is in it: open none that you would not run.
        """
        return ExportedDetector(path)

    def _build(
        self, settings: dict[str, Any], checkpoint: Checkpoint | None, given: list[str] | None
    ) -> None:
        restored, names, chosen = None, None, settings
        unchanged = settings.keys() <= {"pretrain_weights", "device"}
        # Whether a user or a file has said the size of the input; else train() may choose it.
        self._sized = "resolution" in settings or settings.get("pretrain_weights") is not None
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
        if checkpoint is not None and same_classes:
            self.trained_classes = checkpoint.args.get("classes")
            self.run_folder = checkpoint.path.parent
        self._use(network, file_names if same_classes else given)

    def _use(self, network: Detector, class_names: Sequence[str] | None) -> None:
        """Makes `network` the one that predicts."""
        config = self.model_config
        self._known_names = class_names
        labels = class_labels(class_names, config.num_classes)
        sizes: dict[str, Any] = {"resolution": config.resolution, "num_select": config.num_select}
        device = best_device(config.device)
        self.model = ModelContext(network, labels=labels, device=device, **sizes)

    @property
    def kind(self) -> Kind:
        """What its configuration says."""
        config = self.model_config
        named = self._known_names is not None
        counts = config.segmentation_head, config.num_classes
        return Kind(variant_name(config), *counts, named, config.amp)

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
        `resolution=(320, 480)` (height, width), or 384, trains at another size than the model's;
        "auto" takes the shape of the images, and more pixels for small objects: the plan says what
        and why. Where neither `train` nor the constructor has a resolution, a resumed run keeps its
        own, and Mini and SegMini take "auto".
        """
        of_training, of_model, of_trainer = compat.split_moved(settings)
        self.train_config_class.refuse_unknown(of_training, type(self).__name__)
        config = self.train_config_class(**of_training)
        open_size = not self._sized and "resolution" not in of_model
        if auto := of_model.get("resolution") == "auto" or (open_size and self.auto_resolution):
            of_model.pop("resolution", None)
        model_config = self.get_model_config(**of_model)
        if "device" in of_model:
            best_device(model_config.device)  # one that is not here is told at once
        Folders(config.dataset_dir, config.dataset_file)  # so is a wrong folder: before imports
        with needs_extra("train", "training"):
            from pytorch_lightning.callbacks import LambdaCallback

            from rfdetr.training import RFDETRDataModule, RFDETRModule, build_trainer
            from rfdetr.training.compiled import check_compiler
            from rfdetr.training.plan import run_summary, training_plan
            from rfdetr.training.processes import launched_settings
            from rfdetr.training.resume import (
                keep_settings,
                kept_resolution,
                recorded_args,
                settle_folder,
            )
            from rfdetr.training.run_folder import RunFolder
        if config.compile:  # a compiler that is missing is told before the data is read
            check_compiler(
                best_device("cpu" if config.accelerator == "cpu" else model_config.device).type
            )
        resumed = settle_folder(config)
        recorded = recorded_args(resumed) if resumed else {}
        if open_size and (own := kept_resolution(recorded, model_config)):
            auto, model_config = False, self.get_model_config(**of_model, resolution=own)
        datamodule = RFDETRDataModule(model_config, config, auto_resolution=auto)
        datamodule.setup("fit")
        keep_settings(config, recorded, datamodule.class_names)
        names = renamed(datamodule.class_names or [], config.class_names)
        of_model |= {"resolution": datamodule.model_config.resolution, "num_classes": len(names)}
        model_config = self.get_model_config(**of_model)
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
        self.model_config, self._start = model_config, Start(names, file=self._start.file)
        self._weights_file = RunFolder(config.output_dir).best("total")
        self._sized = True
        self.trained_classes, self.run_folder = config.classes, config.output_dir
        self._use(module.detector, names)
        summary = run_summary(trainer, time.monotonic() - started)
        if trainer.is_global_zero and summary:
            show_rows("Training finished", summary)


def _own_file(path: os.PathLike[str]) -> str:
    """A path object as text that is no published name: it is a file of the user's."""
    return os.path.abspath(os.path.expanduser(path))
