"""Where figures and pictures go: metrics.csv always, other loggers where they are asked for.

A logger serves the run: one that fails is reported once, and the run goes on without it.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from rfdetr.config import TrainConfig
from rfdetr.errors import needs_extra
from rfdetr.training.records import RunRecord

logger = logging.getLogger(__name__)

_CALLS = {"log_metrics", "log_hyperparams", "log_graph", "log_image", "save", "finalize"}
_CALLS.add("after_save_checkpoint")


class RunLogger(CSVLogger):
    """Lightning's way to a run's record: each row is on disk as soon as it is logged."""

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        super().__init__(os.fspath(output_dir), name="", version="")
        self.record = RunRecord(output_dir)

    @property
    def experiment(self) -> Any:
        return self.record

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        # In the order of names: that of Lightning is another where a resumed run validates again.
        row = {n: v.item() if isinstance(v, Tensor) else v for n, v in sorted(metrics.items())}
        self.record.append({**row, "step": step or 0})

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: config.yaml holds them."""

    def save(self) -> None:
        """Nothing: rows are saved as they come."""

    @rank_zero_only
    def finalize(self, _status: str) -> None:
        self.record.render()


def build_loggers(config: TrainConfig) -> list[Logger]:
    """The loggers of a run, metrics.csv first; `MissingPackageError` for one not installed."""
    loggers: list[Logger] = [RunLogger(config.output_dir)]
    for name in ("tensorboard", "wandb", "mlflow"):
        if getattr(config, name):
            with needs_extra(name, f"{name}=True"):
                loggers.append(_build(name, config))
    return loggers


def _build(name: str, config: TrainConfig) -> Logger:
    project = config.project or "rfdetr"
    if name == "tensorboard":
        return TensorBoardLogger(config.output_dir, name, version="", default_hp_metric=False)
    if name == "wandb":
        from pytorch_lightning.loggers import WandbLogger

        return WandbLogger(config.run, project=project, save_dir=config.output_dir)
    address, pictures = os.environ.get("MLFLOW_TRACKING_URI"), None
    if not address:  # left to itself, MLflow would write to the working directory
        folder = config.output_dir.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        address, pictures = f"sqlite:///{folder / 'mlflow.db'}", (folder / "mlflow").as_uri()
    return MLFlowLogger(project, config.run, address, artifact_location=pictures)


class TolerantLogger:
    """Stands for `run_logger` and shows its class and attributes, but of its failures only the
    first, as a warning.
    """

    def __init__(self, run_logger: Logger) -> None:
        self.run_logger = run_logger
        self.failed = False

    @classmethod
    def around(cls, run_logger: Any) -> TolerantLogger:
        """The logger's tolerant form, which may be itself."""
        return run_logger if type(run_logger) is cls else cls(run_logger)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.run_logger)  # so that isinstance() of Lightning and users finds it

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.run_logger, name)
        return functools.partial(self.attempt, value) if name in _CALLS else value

    def __reduce__(self) -> Any:
        return TolerantLogger, (self.run_logger,)

    def attempt(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of a call, or None where it fails."""
        try:
            return call(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever a service or its client may raise
            if not self.failed:
                said = (type(self.run_logger).__name__, type(error).__name__, error)
                logger.warning("%s failed, the run goes on (said once): %s: %s", *said)
            self.failed = True


def tolerate_logger_failures(loggers: list[Any]) -> None:
    """Puts a `TolerantLogger` in the place of each; one that cannot even start leaves the list."""
    for run_logger in list(loggers):
        try:
            getattr(run_logger, "experiment", None)  # else made in the middle of Lightning's start
        except Exception as error:  # noqa: BLE001 - as above
            kind = run_logger.__class__.__name__
            logger.warning("%s cannot start, the run goes on without it: %s", kind, error)
            loggers.remove(run_logger)
    loggers[:] = map(TolerantLogger.around, loggers)


def takes_images(run_logger: Logger) -> bool:
    """Whether a logger takes pictures: TensorBoard's, MLflow's, or by `log_image(key, images)`."""
    known = isinstance(run_logger, TensorBoardLogger | MLFlowLogger)
    return known or hasattr(run_logger, "log_image")


def log_images(run_logger: Any, key: str, images: Sequence[Image.Image], step: int) -> None:
    """Hands pictures to a logger that `takes_images`; its failure is a warning."""

    def send() -> Any:
        if hasattr(run_logger, "log_image"):
            return run_logger.log_image(key, list(images), step=step)
        for number, image in enumerate(images):
            if isinstance(run_logger, MLFlowLogger):
                place = f"{key}/step{step:07d}-{number}.png"
                run_logger.experiment.log_image(run_logger.run_id, image, artifact_file=place)
            else:
                name, pixels = f"{key}/{number}", np.asarray(image)
                run_logger.experiment.add_image(name, pixels, step, dataformats="HWC")

    TolerantLogger.around(run_logger).attempt(send)
