"""COCO metrics after each validation epoch, of the live and the averaged weights in one pass over
the data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import nn

from rfdetr.evaluation.evaluator import CocoEvaluator
from rfdetr.evaluation.metrics import Metrics
from rfdetr.training.callbacks.averaging import averaged_model
from rfdetr.training.module import RFDETRModule, data_class_names
from rfdetr.training.processes import merge_evaluators

LIVE, EMA = "val/", "val/ema_"  # what the figures' names start with
TEST, TEST_EMA = "test/", "test/ema_"


class COCOEvalCallback(Callback):
    """Logs val/mAP_50_95, val/F1, ... after each validation pass, val/ema_* beside them, and test/*
    after a test.

    Of a segmentation model also the figures of masks, val/segm_mAP_50_95, val/ema_segm_mAP_50_95,
    ... `metrics` holds the last figures in full, by what their logged names start with ("val/",
    "val/ema_", "test/", "test/ema_").
    """

    def __init__(self, max_dets: int = 500, per_class: bool = True) -> None:
        self.max_dets = max_dets
        self.per_class = per_class
        self.metrics: dict[str, Metrics] = {}
        self._evaluators: dict[str, CocoEvaluator] = {}

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._start(trainer, pl_module, LIVE, EMA)

    def on_test_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._start(trainer, pl_module, TEST, TEST_EMA)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        live, *averaged = self._evaluators.values()
        live.update(outputs["results"], outputs["targets"])
        for evaluator in averaged:
            with trainer.precision_plugin.val_step_context():
                evaluator.update(pl_module.detect(batch, averaged_model(trainer)), batch[1])

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.on_validation_batch_end(trainer, pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._finish(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._finish(trainer, pl_module)

    def _start(self, trainer: Trainer, module: RFDETRModule, live: str, averaged: str) -> None:
        average = averaged_model(trainer)
        prefixes = [live] if average is None else [live, averaged]
        self._evaluators = {prefix: build_evaluator(module, self.max_dets) for prefix in prefixes}
        if average is not None:
            average.to(
                module.device
            )  # after fit, Lightning has taken the module alone off the device

    def _finish(self, trainer: Trainer, module: RFDETRModule) -> None:
        for prefix, evaluator in self._evaluators.items():
            self.metrics[prefix] = metrics = merge_evaluators(trainer, evaluator).compute()
            figures = metrics.logged(prefix, per_class=self.per_class and prefix in (LIVE, TEST))
            shown = {
                name: figures.pop(name)
                for name in [prefix + main_figure(module)]
                if name in figures
            }
            module.log_dict(shown, prog_bar=True)
            module.log_dict(figures)


def evaluate_loader(
    trainer: Trainer, module: RFDETRModule, loader: Iterable[Any], average: nn.Module | None = None
) -> list[Metrics]:
    """The figures of the module's weights on a loader, and of `average`'s, inside a run whose own
    loops are busy.

    The module's `evaluation_loss` then holds the loss of its weights.
    """
    count = 1 if average is None else 2
    evaluators = [build_evaluator(module, module.train_config.eval_max_dets) for _ in range(count)]
    was_training = module.training
    module.eval()
    module.evaluation_loss.reset()
    for batch in loader:
        moved = module.transfer_batch_to_device(batch, module.device, 0)
        with torch.inference_mode(), trainer.precision_plugin.test_step_context():
            evaluators[0].update(module.evaluate(moved)["results"], moved[1])
            for evaluator in evaluators[1:]:
                evaluator.update(module.detect(moved, average), moved[1])
    module.train(was_training)
    return [merge_evaluators(trainer, evaluator).compute() for evaluator in evaluators]


def build_evaluator(module: RFDETRModule, max_dets: int) -> CocoEvaluator:
    """An evaluator of boxes, and of masks if the model has them."""
    return CocoEvaluator(class_names(module), max_dets, masks=module.model_config.segmentation_head)


def main_figure(module: RFDETRModule) -> str:
    """The figure that says which weights are better."""
    return "segm_mAP_50_95" if module.model_config.segmentation_head else "mAP_50_95"


def class_names(module: RFDETRModule) -> list[str]:
    """The data's class names, or numbers where loaders were given without a datamodule."""
    names = data_class_names(module) or module.class_names
    return names or [str(label) for label in range(module.model_config.num_classes)]


def in_training(trainer: Any) -> bool:
    """Whether a validation pass belongs to fit, and is not its sanity check, whose figures mean
    nothing.
    """
    return trainer.state.fn == "fit" and not trainer.sanity_checking
