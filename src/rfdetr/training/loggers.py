"""Where figures and pictures go: metrics.csv always, TensorBoard, Weights & Biases and MLflow where
asked for.

A logger serves the run: one that fails is reported once, and the run goes on without it.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger

from rfdetr.config import TrainConfig
from rfdetr.errors import MissingPackageError
from rfdetr.training.records import RunLogger

logger = logging.getLogger(__name__)

DEFAULT_PROJECT = "rfdetr"
_CALLS = (
    "log_metrics",
    "log_hyperparams",
    "log_graph",
    "log_image",
    "save",
    "finalize",
    "after_save_checkpoint",
)


def build_loggers(config: TrainConfig) -> list[Logger]:
    """The loggers of a run, metrics.csv first."""
    loggers: list[Logger] = [RunLogger(config.output_dir)]
    others = (
        ("tensorboard", config.tensorboard, _tensorboard),
        ("wandb", config.wandb, _wandb),
        ("mlflow", config.mlflow, _mlflow),
    )
    for name, wanted, build in others:
        if wanted:
            try:
                loggers.append(build(config))
            except ModuleNotFoundError as error:
                raise MissingPackageError(
                    f"{name}=True needs {name}: pip install 'rfdetr-finetune[{name}]'"
                ) from error
    return loggers


def _tensorboard(config: TrainConfig) -> Logger:
    return TensorBoardLogger(
        config.output_dir, name="tensorboard", version="", default_hp_metric=False
    )


def _wandb(config: TrainConfig) -> Logger:
    from pytorch_lightning.loggers import WandbLogger

    return WandbLogger(
        name=config.run, project=config.project or DEFAULT_PROJECT, save_dir=config.output_dir
    )


def _mlflow(config: TrainConfig) -> Logger:
    folder = config.output_dir.absolute()
    places: dict[str, Any] = {"tracking_uri": os.environ.get("MLFLOW_TRACKING_URI")}
    if not places["tracking_uri"]:  # left to itself, MLflow would write to the working directory
        folder.mkdir(parents=True, exist_ok=True)
        places = {
            "tracking_uri": f"sqlite:///{folder / 'mlflow.db'}",
            "artifact_location": (folder / "mlflow").as_uri(),
        }
    return MLFlowLogger(
        experiment_name=config.project or DEFAULT_PROJECT, run_name=config.run, **places
    )


def guard(loggers: list[Logger]) -> None:
    """Turns the failures of loggers into one warning each; one that cannot even start leaves the
    list.
    """
    for run_logger in list(loggers):
        if hasattr(run_logger, "_rfdetr_failed"):
            continue
        try:
            _ = getattr(
                run_logger, "experiment", None
            )  # creates it, here and not in the middle of Lightning's start
        except Exception as error:  # noqa: BLE001 - whatever a service or its client may raise
            logger.warning(
                "%s cannot start, the run goes on without it: %s", type(run_logger).__name__, error
            )
            loggers.remove(run_logger)
            continue
        run_logger._rfdetr_failed = False  # type: ignore[attr-defined]
        for name in _CALLS:
            if hasattr(run_logger, name):
                setattr(
                    run_logger,
                    name,
                    functools.partial(_quietly, run_logger, getattr(run_logger, name)),
                )


def _quietly(run_logger: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - as above
        if not getattr(run_logger, "_rfdetr_failed", False):
            run_logger._rfdetr_failed = True
            kind = type(run_logger).__name__
            logger.warning(
                "%s failed, the run goes on (said once): %s: %s", kind, type(error).__name__, error
            )


def takes_images(run_logger: Logger) -> bool:
    """Whether a logger has a way to take pictures: TensorBoard's, MLflow's or a `log_image(key,
    images, step=)`.
    """
    return hasattr(run_logger, "log_image") or isinstance(
        run_logger, TensorBoardLogger | MLFlowLogger
    )


def log_images(run_logger: Any, key: str, images: Sequence[Image.Image], step: int) -> None:
    """Hands pictures to a logger that `takes_images`; its failure is a warning."""

    def send() -> None:
        import numpy as np

        if hasattr(run_logger, "log_image"):
            run_logger.log_image(key, list(images), step=step)
            return
        for number, image in enumerate(images):
            if isinstance(run_logger, MLFlowLogger):
                place = f"{key}/step{step:07d}-{number}.png"
                run_logger.experiment.log_image(run_logger.run_id, image, artifact_file=place)
            else:
                run_logger.experiment.add_image(
                    f"{key}/{number}", np.asarray(image), step, dataformats="HWC"
                )

    _quietly(run_logger, send)
