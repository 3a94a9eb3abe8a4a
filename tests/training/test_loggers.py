"""Loggers by flag, pictures for those that take them, and failures that stay theirs."""

from __future__ import annotations

import json
import logging
import pickle
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import Logger

from rfdetr.training import loggers as loggers_module
from rfdetr.training.loggers import (
    RunLogger,
    TolerantLogger,
    build_loggers,
    log_images,
    takes_images,
    tolerate_logger_failures,
)

TABLE = {  # of a detection model with averaged weights on a set with a test split
    "train/loss", "train/loss_ce", "train/loss_bbox", "train/loss_giou", "val/loss",
    "val/mAP_50_95", "val/mAP_50", "val/mAP_75", "val/mAR", "val/ema_mAP_50_95", "val/F1",
    "val/precision", "val/recall", "val/AP/red", "test/mAP_50_95", "test/F1",
}  # fmt: skip


class Recorder(Logger):
    """A user's logger, with whatever `fails` named broken."""

    def __init__(self, *fails: str) -> None:
        super().__init__()
        self.fails = fails
        self.seen: set[str] = set()
        self.pictures: list[Image.Image] = []
        self.settings: dict[str, Any] = {}

    name = "recorder"
    version = "1"

    @property
    def experiment(self) -> None:
        self._fail("experiment")

    def _fail(self, call: str) -> None:
        if call in self.fails:
            raise ConnectionError(f"no way to {call}")

    def log_hyperparams(self, params: dict[str, Any], *_: Any, **__: Any) -> None:
        self._fail("log_hyperparams")
        self.settings = params

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._fail("log_metrics")
        self.seen |= set(metrics)

    def log_image(self, key: str, images: list[Image.Image], step: int | None = None) -> None:
        self._fail("log_image")
        self.pictures += images

    def save(self) -> None:
        self._fail("save")

    def finalize(self, status: str) -> None:
        self._fail("finalize")


def test_an_appended_logger_gets_every_key_of_the_table_and_pictures(
    make_run: Callable[..., Any],
) -> None:
    run, recorder = make_run(epochs=1), Recorder()
    run.trainer.loggers.append(recorder)
    run.fit()
    assert recorder.seen >= TABLE
    assert [picture.size for picture in recorder.pictures] == [(774, 384)] * 2
    assert recorder.settings["train"]["batch_size"] == 2


def test_a_logger_that_fails_never_ends_a_run(
    make_run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(epochs=2)
    broken = Recorder("log_hyperparams", "log_metrics", "log_image", "save", "finalize")
    offline, fine = Recorder("experiment"), Recorder()
    run.trainer.loggers.extend([broken, offline, fine])
    with caplog.at_level(logging.WARNING, "rfdetr"):
        run.fit()
    assert run.trainer.current_epoch == 2
    assert fine.seen >= TABLE
    said = [
        record.getMessage() for record in caplog.records if record.name == loggers_module.__name__
    ]
    assert sorted(message.split(",")[0] for message in said) == [
        "Recorder cannot start",
        "Recorder failed",
    ]
    kept: list[Any] = run.trainer.loggers[1:]
    assert [one.fails for one in kept] == [broken.fails, fine.fails]
    assert all(isinstance(one, Recorder) for one in kept)


def test_a_failing_picture_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    broken = Recorder("log_image")
    assert takes_images(broken)
    log_images(broken, "val/predictions", [], 0)
    assert "no way to log_image" in caplog.text


def test_an_interrupt_is_no_failure() -> None:
    class Interrupted(Recorder):
        def save(self) -> None:
            raise KeyboardInterrupt

    loggers: list[Any] = [Interrupted()]
    tolerate_logger_failures(loggers)
    with pytest.raises(KeyboardInterrupt):
        loggers[0].save()


def test_a_tolerant_logger_passes_for_the_logger_itself(caplog: pytest.LogCaptureFixture) -> None:
    loggers: list[Any] = [Recorder("save"), Recorder()]
    for _ in range(2):  # each fit of a trainer does it
        tolerate_logger_failures(loggers)
    broken, fine = pickle.loads(pickle.dumps(loggers))
    assert type(fine) is TolerantLogger and isinstance(fine, Recorder)
    fine.log_metrics({"val/F1": 0.5})
    assert fine.seen == {"val/F1"} and not hasattr(fine, "absent")
    assert broken.save() is broken.save() is None
    assert caplog.text.count("Recorder failed, the run goes on (said once): ConnectionError") == 1


def test_metrics_csv_is_always_written(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=1)
    assert [type(logger) for logger in run.trainer.loggers] == [RunLogger]
    run.fit()
    assert set((run.output / "metrics.csv").read_text().partition("\n")[0].split(",")) >= TABLE


def test_tensorboard_gets_figures_and_pictures(make_run: Callable[..., Any]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_run(epochs=1, tensorboard=True).fit()
    assert isinstance(run.trainer.loggers[1], TensorBoardLogger)
    events = EventAccumulator(str(run.output / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= TABLE
    assert events.Tags()["images"] == ["val/predictions/0", "val/predictions/1"]


@pytest.mark.scheduled
def test_mlflow_writes_to_its_own_database(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = make_run(epochs=1, mlflow=True, project="cells", run="first")
    monkeypatch.chdir(run.output.parent)
    run.fit()
    assert isinstance(run.trainer.loggers[1], MLFlowLogger)
    with sqlite3.connect(run.output / "mlflow.db") as database:
        keys = {key for (key,) in database.execute("select distinct key from metrics")}
        assert database.execute("select name, status from runs").fetchall() == [
            ("first", "FINISHED")
        ]
        assert ("cells",) in database.execute("select name from experiments").fetchall()
    assert keys >= TABLE
    assert len(list((run.output / "mlflow").rglob("val/predictions/*.png"))) == 2
    assert not Path("mlruns").exists()


def test_wandb_logs_offline(make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    run = make_run(epochs=1, wandb=True, project="cells", run="first").fit()
    logger = run.trainer.loggers[1]
    assert isinstance(logger, WandbLogger)
    assert (logger.experiment.project, logger.experiment.name) == ("cells", "first")
    assert set(logger.experiment.summary.keys()) >= TABLE
    logger.experiment.finish()
    assert len(list(run.output.rglob("*.wandb"))) == 1
    assert len(list(run.output.rglob("media/images/val/*.png"))) == 2


def test_a_flag_without_its_package_says_what_to_install(
    train_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> Any:
        raise ModuleNotFoundError("wandb>=0.12.10")

    monkeypatch.setattr(loggers_module, "_build", missing)
    with pytest.raises(ImportError, match=r"rfdetr-finetune\[wandb\]"):
        build_loggers(train_config(wandb=True))


def test_no_pictures_without_somebody_to_take_them(make_run: Callable[..., Any]) -> None:
    run = make_run(trainer={"logger": False}, epochs=1).fit()
    assert json.loads((run.output / "log.txt").read_text())["epoch"] == 0
