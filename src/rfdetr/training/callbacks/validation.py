"""COCO metrics after each validation epoch, and pictures of what was found.

The live and the averaged weights are judged in one pass over the data.
"""

# Lightning types its hooks for any module; these get ours.
# mypy: disable-error-code="override"

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from pytorch_lightning import Callback, Trainer
from torch import Tensor, nn

from rfdetr.data.images import IMAGENET_MEAN, IMAGENET_STD
from rfdetr.evaluation.drawing import draw_objects, side_by_side
from rfdetr.evaluation.evaluator import CocoEvaluator
from rfdetr.evaluation.metrics import Metrics
from rfdetr.evaluation.run import update_evaluators
from rfdetr.geometry.boxes import cxcywh_to_xyxy
from rfdetr.training.callbacks.averaging import averaged_model
from rfdetr.training.loggers import log_images, takes_images
from rfdetr.training.module import RFDETRModule, data_class_names
from rfdetr.training.processes import merge_evaluators

LIVE, EMA = "val/", "val/ema_"  # what the figures' names start with
SHARE = "val_share/"  # of early_eval_share
TEST, TEST_EMA = "test/", "test/ema_"
SIDE = 384
"""The longer one of each half of a picture for the loggers, in pixels."""
Objects: TypeAlias = Mapping[str, Tensor]  # a target, or the detections of an image


class COCOEvalCallback(Callback):
    """Logs val/mAP_50_95, val/F1, ... after each validation pass, and test/* after a test.

    val/ema_* are the figures of the averaged weights, val/segm_* and val/ema_segm_* those of masks.
    A run may validate its average alone (`eval_ema_only`), and then has no figures without ema_.
    `metrics` holds the last figures in full, by what their logged names start with: "val/",
    "val/ema_", "test/", "test/ema_". On a share of the images (`early_eval_share`) names start with
    val_share/, so that nothing compares them with those of all. `max_dets` detections per image and
    class are counted.
    """

    def __init__(self, max_dets: int = 500, per_class: bool = True) -> None:
        self.max_dets, self.per_class = max_dets, per_class
        self.metrics: dict[str, Metrics] = {}
        self._evaluators: dict[str, CocoEvaluator] = {}

    def on_validation_epoch_start(self, trainer: Trainer, module: RFDETRModule) -> None:
        prefixes = [f"{module.judging}/", f"{module.judging}/ema_"]
        module.judged = ()
        if (average := averaged_model(trainer)) is None:
            del prefixes[1]
        else:
            average.to(module.device)  # after fit, Lightning has taken only the module off it
            if in_training(trainer) and module.train_config.validates_average_alone:
                module.judged = (average,)
                del prefixes[0]
        self._evaluators = {p: build_evaluator(module, self.max_dets) for p in prefixes}

    def on_validation_batch_end(
        self, trainer: Trainer, module: RFDETRModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        first, *averaged = self._evaluators.values()
        first.update(outputs["results"], outputs["targets"])
        for evaluator in averaged:
            with trainer.precision_plugin.val_step_context():
                evaluator.update(module.detect(batch, averaged_model(trainer)), batch[1])

    def on_validation_epoch_end(self, trainer: Trainer, module: RFDETRModule) -> None:
        if trainer.sanity_checking:
            return
        module.judged = ()
        first = next(iter(self._evaluators))
        for prefix, evaluator in self._evaluators.items():
            self.metrics[prefix] = metrics = merge_evaluators(trainer, evaluator).compute()
            figures = metrics.logged(prefix, per_class=self.per_class and prefix == first)
            for name, value in figures.items():
                module.log(name, value, prog_bar=name == prefix + main_figure(module))

    on_test_epoch_start = on_validation_epoch_start  # type: ignore[assignment]
    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]
    on_test_epoch_end = on_validation_epoch_end  # type: ignore[assignment]


class PredictionImagesCallback(Callback):
    """Shows the first `count` validation images of each pass to the loggers that take pictures.

    Each is a pair: the truth on the left, on the right what is found with at least `threshold`.
    """

    def __init__(self, count: int = 4, threshold: float = 0.3) -> None:
        self.count, self.threshold = count, threshold

    def on_validation_batch_end(
        self, trainer: Trainer, module: RFDETRModule, outputs: Any, batch: Any, *at: int
    ) -> None:
        """`at` is the number of the batch, then that of its loader."""
        takers = [run_logger for run_logger in trainer.loggers if takes_images(run_logger)]
        counts = not (trainer.sanity_checking or trainer.fast_dev_run)  # type: ignore[attr-defined]
        if not (takers and counts and at[0] == 0 and trainer.is_global_zero):
            return
        names = class_names(module)
        samples = zip(batch[0].tensors, outputs["targets"], outputs["results"], strict=True)
        pairs = [self._pair(*sample, names) for sample in itertools.islice(samples, self.count)]
        for run_logger in takers:
            log_images(run_logger, "val/predictions", pairs, trainer.global_step)

    def _pair(
        self, pixels: Tensor, truth: Objects, found: Objects, names: Sequence[str]
    ) -> Image.Image:
        """The picture of an image (3, H, W), uint8 or normalised; each half has its shape."""
        if pixels.is_floating_point():
            mean, std = (pixels.new_tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
            pixels = (pixels * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
        height, width = pixels.shape[1:]
        size = round(SIDE * width / max(height, width)), round(SIDE * height / max(height, width))
        picture = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).resize(size)
        sides = torch.tensor(size * 2, device=pixels.device)
        kept = {name: values[found["scores"] >= self.threshold] for name, values in found.items()}
        kept["boxes"] = kept["boxes"] * (sides / truth["orig_size"].flip(0).repeat(2))
        there = {**truth, "boxes": cxcywh_to_xyxy(truth["boxes"]) * sides}
        shown = np.asarray(picture)
        return side_by_side(*(draw_objects(shown, half, names) for half in (there, kept)))


def evaluate_loader(
    trainer: Trainer, module: RFDETRModule, loader: Iterable[Any], average: nn.Module | None = None
) -> list[Metrics]:
    """Metrics of the module's weights on a loader, then of `average`'s if given, in one pass.

    For use inside a run whose own loops are busy. The module's `evaluation_loss` then holds the
    loss of its weights.
    """

    def detect(batch: Any, model: nn.Module | None) -> list[dict[str, Tensor]]:
        with torch.inference_mode(), trainer.precision_plugin.test_step_context():
            return module.detect(batch, model) if model else module.evaluate(batch)["results"]

    max_dets, was_training = module.train_config.eval_max_dets, module.training
    models = [None] if average is None else [None, average]
    judged = [(build_evaluator(module, max_dets), partial(detect, model=model)) for model in models]
    module.eval()
    module.evaluation_loss.reset()
    on_device = (module.transfer_batch_to_device(batch, module.device, 0) for batch in loader)
    update_evaluators(on_device, judged)
    module.train(was_training)
    return [merge_evaluators(trainer, evaluator).compute() for evaluator, _ in judged]


def build_evaluator(module: RFDETRModule, max_dets: int) -> CocoEvaluator:
    """An evaluator of boxes, and of masks if the model has them."""
    return CocoEvaluator(class_names(module), max_dets, masks=module.model_config.segmentation_head)


def main_figure(module: RFDETRModule) -> str:
    """The figure that says which weights are better, as `best_model_metric` has it."""
    if module.train_config.best_model_metric == "mar":
        return "mAR"
    return "segm_mAP_50_95" if module.model_config.segmentation_head else "mAP_50_95"


def class_names(module: RFDETRModule) -> list[str]:
    """The data's class names, or numbers where loaders were given without a datamodule."""
    names = data_class_names(module) or module.class_names
    return names or [str(label) for label in range(module.model_config.num_classes)]


def in_training(trainer: Trainer) -> bool:
    """Whether a validation pass is one of fit's, its sanity check not counted."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking
