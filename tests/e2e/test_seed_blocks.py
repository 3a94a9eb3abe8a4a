"""The code of the custom-training page, word for word, on a data set of a few pictures.

Only what surrounds the blocks is the test's: `path/to/dataset` is the tiny set, runs are cut to a
few epochs, and most blocks use a Medium of test size; one test runs the real one from a file in the
published layout.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.strategies import DDPStrategy

import rfdetr.config
import rfdetr.training
from rfdetr.config import RFDETRMediumConfig
from rfdetr.training import RFDETREMACallback, build_trainer
from rfdetr.weights import download
from rfdetr.weights.download import PUBLISHED
from rfdetr.weights.names import to_published

LAYOUTS = Path(__file__).parents[1] / "golden" / "layouts.json"

MODULE = """
from rfdetr.config import (
    RFDETRMediumConfig,
    TrainConfig,
)  # config classes live in rfdetr.config, not the top-level rfdetr namespace
from rfdetr.training import RFDETRModule

model_config = RFDETRMediumConfig(num_classes=10)
train_config = TrainConfig(
    dataset_dir="path/to/dataset",
    epochs=50,
    batch_size=4,
    grad_accum_steps=4,
    lr=1e-4,
    output_dir="output",
)

module = RFDETRModule(model_config, train_config)
"""

DATAMODULE = """
from rfdetr.training import RFDETRDataModule

datamodule = RFDETRDataModule(model_config, train_config)
"""

CLASS_NAMES = """
datamodule.setup("fit")
print(datamodule.class_names)  # e.g. ["cat", "dog", "person"]
"""

TRAINER = """
from rfdetr.training import build_trainer

trainer = build_trainer(train_config, model_config)
"""

OVERRIDES = """
trainer = build_trainer(
    train_config,
    model_config,
    fast_dev_run=2,  # run 2 batches per epoch for a smoke test
    accumulate_grad_batches=8,  # override TrainConfig.grad_accum_steps
    log_every_n_steps=10,
)
"""

WHAT_TRAIN_DOES = """
from rfdetr.training import RFDETRModule, RFDETRDataModule, build_trainer

module = RFDETRModule(model_config, train_config)
datamodule = RFDETRDataModule(model_config, train_config)
trainer = build_trainer(train_config, model_config)
trainer.fit(module, datamodule, ckpt_path=train_config.resume or None)
"""

FULL_RUN = """
from rfdetr.config import (
    RFDETRMediumConfig,
    TrainConfig,
)  # config classes live in rfdetr.config, not the top-level rfdetr namespace
from rfdetr.training import RFDETRModule, RFDETRDataModule, build_trainer

model_config = RFDETRMediumConfig(num_classes=10)
train_config = TrainConfig(
    dataset_dir="path/to/dataset",
    epochs=100,
    batch_size=4,
    grad_accum_steps=4,
    lr=1e-4,
    output_dir="output",
)

module = RFDETRModule(model_config, train_config)
datamodule = RFDETRDataModule(model_config, train_config)
trainer = build_trainer(train_config, model_config)

trainer.fit(module, datamodule)
"""

RESUME = """
trainer.fit(module, datamodule, ckpt_path="output/last.ckpt")
# or a legacy checkpoint:
trainer.fit(module, datamodule, ckpt_path="output/checkpoint.pth")
"""

CONVERT = """
from rfdetr.training import convert_legacy_checkpoint

convert_legacy_checkpoint("old_checkpoint.pth", "new_checkpoint.ckpt")
trainer.fit(module, datamodule, ckpt_path="new_checkpoint.ckpt")
"""

VALIDATE = """
trainer.validate(module, datamodule)
"""

PREDICT = """
predictions = trainer.predict(module, dataloaders=datamodule.val_dataloader())
"""

DDP = """
trainer = build_trainer(train_config, model_config, strategy="ddp", devices="auto")
"""

REPLACE_CALLBACKS = """
from pytorch_lightning.callbacks import LearningRateMonitor, ModelSummary
from rfdetr.training import build_trainer

extra_callbacks = [
    LearningRateMonitor(logging_interval="step"),
    ModelSummary(max_depth=3),
]

trainer = build_trainer(
    train_config,
    model_config,
    callbacks=extra_callbacks,  # replaces the default callback list entirely
)
"""

EXTEND_CALLBACKS = """
trainer = build_trainer(train_config, model_config)
trainer.callbacks.extend(
    [
        LearningRateMonitor(logging_interval="step"),
    ]
)
trainer.fit(module, datamodule)
"""

LOGGER = """
from pytorch_lightning.loggers import NeptuneLogger  # hypothetical
from rfdetr.training import build_trainer

trainer = build_trainer(train_config, model_config)
trainer.loggers.append(NeptuneLogger(project="my-workspace/rf-detr"))
trainer.fit(module, datamodule)
"""


class SmallMedium(RFDETRMediumConfig):
    """The Medium in everything but its size."""

    encoder: Any = "dinov2_windowed_mini"
    out_feature_indexes: list[int] = [1, 3, 5]
    resolution: int = 64
    hidden_dim: int = 32
    dim_feedforward: int = 64
    dec_layers: int = 1
    num_queries: int = 10
    num_select: int = 10
    group_detr: int = 2
    pretrain_weights: str | None = None


class Recorder(Logger):
    """A logger that no flag of ours builds."""

    def __init__(self, project: str) -> None:
        super().__init__()
        self.project = project
        self.seen: set[str] = set()

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str:
        return "1"

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.seen |= set(metrics)


@pytest.fixture
def workplace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_tiny_coco: Callable[..., Path]
) -> Path:
    """An empty working directory with `path/to/dataset` in it."""
    place = tmp_path / "workplace"
    (place / "path" / "to").mkdir(parents=True)
    (place / "path" / "to" / "dataset").symlink_to(make_tiny_coco({"train": 2, "valid": 2}))
    monkeypatch.chdir(place)
    monkeypatch.setattr(rfdetr.training.RFDETRDataModule, "least_updates", 1)
    return place


@pytest.fixture
def run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """`run(blocks, namespace, epochs=n)` with the small Medium and no more than n epochs, in the
    namespace's names.
    """
    monkeypatch.setattr(rfdetr.config, "RFDETRMediumConfig", SmallMedium)

    def execute(
        blocks: list[str], namespace: dict[str, Any] | None = None, epochs: int = 1
    ) -> dict[str, Any]:
        def short(*args: Any, **kwargs: Any) -> pl.Trainer:
            return build_trainer(*args, **{"max_epochs": epochs, **kwargs})

        monkeypatch.setattr(rfdetr.training, "build_trainer", short, raising=False)
        names = {**(namespace or {}), "build_trainer": short}
        for block in blocks:
            exec(compile(block, "<custom training page>", "exec"), names)
        return names

    return execute


@pytest.fixture
def published_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the Medium's published layout, in the place and under the name of the published
    one.
    """
    shapes = json.loads(LAYOUTS.read_text())["RFDETRMediumConfig"]["state_dict"]
    generator = torch.Generator().manual_seed(0)
    model = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}
    content = {"model": model, "args": {"num_classes": 90, "resolution": 576}}
    monkeypatch.setenv("RFDETR_HOME", str(tmp_path / "home"))
    path = download.cache_dir() / "rf-detr-medium.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    file = PUBLISHED[path.name]._replace(
        md5=hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    )
    monkeypatch.setitem(PUBLISHED, path.name, file)
    return path


@pytest.mark.slow
def test_the_medium_model_from_its_published_file(
    published_medium: Path,
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Two images of full size are not repeated to an update of sixteen.
    monkeypatch.setattr(rfdetr.training.RFDETRDataModule, "least_updates", 0)
    names: dict[str, Any] = {}
    for block in (MODULE, DATAMODULE, CLASS_NAMES, TRAINER, OVERRIDES):
        exec(compile(block, "<custom training page>", "exec"), names)
    assert capsys.readouterr().out == "['blue', 'green', 'red']\n"
    trainer = names["trainer"]
    assert (trainer.fast_dev_run, trainer.accumulate_grad_batches, trainer.log_every_n_steps) == (
        2,
        8,
        10,
    )
    loaded = to_published(names["module"].model.state_dict())["query_feat.weight"]
    assert torch.equal(loaded, torch.load(published_medium)["model"]["query_feat.weight"])

    before = names["module"].model.class_head.bias.detach().clone()
    trainer.fit(
        names["module"], names["datamodule"], ckpt_path=names["train_config"].resume or None
    )
    assert trainer.global_step == 1
    assert not torch.equal(names["module"].model.class_head.bias, before)
    assert not (workplace / "output").exists()


@pytest.mark.slow
def test_a_full_run_is_resumed_validated_and_used(
    run: Callable[..., dict[str, Any]], workplace: Path
) -> None:
    names = run([FULL_RUN])
    legacy = {"model": to_published(names["module"].model.state_dict()), "epoch": 1}
    torch.save(legacy, workplace / "output" / "checkpoint.pth")
    names = run([MODULE, DATAMODULE, TRAINER, RESUME], names, epochs=3)
    assert names["trainer"].current_epoch == 3
    records = (workplace / "output" / "log.txt").read_text().splitlines()
    assert [json.loads(record)["epoch"] for record in records] == [0, 1, 2]

    names = run([VALIDATE], names)
    assert {"val/mAP_50_95", "val/mAP_50", "val/F1", "val/AP/red"} <= set(
        names["trainer"].callback_metrics
    )
    names = run([PREDICT], names)
    assert [len(batch) for batch in names["predictions"]] == [2]
    assert set(names["predictions"][0][0]) == {"scores", "labels", "boxes"}


@pytest.mark.scheduled
def test_the_page_is_one_notebook(
    run: Callable[..., dict[str, Any]], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block of Python in the page's order, in one session; a run's files are where the page
    says.
    """
    monkeypatch.setattr("pytorch_lightning.loggers.NeptuneLogger", Recorder, raising=False)
    output = workplace / "output"
    names = run(
        [MODULE, WHAT_TRAIN_DOES, MODULE, DATAMODULE, CLASS_NAMES, TRAINER, OVERRIDES, FULL_RUN]
    )
    assert names["trainer"].current_epoch == 1
    for path in (output / "checkpoint.pth", workplace / "old_checkpoint.pth"):
        torch.save({"model": to_published(names["module"].model.state_dict()), "epoch": 0}, path)
    names = run([RESUME, CONVERT, VALIDATE, PREDICT, DDP, REPLACE_CALLBACKS], names)
    assert not [c for c in names["trainer"].callbacks if type(c).__module__.startswith("rfdetr")]
    names = run([EXTEND_CALLBACKS], names)
    assert any(name.startswith("lr-AdamW/head") for name in names["trainer"].callback_metrics)
    names = run([LOGGER], names)
    assert names["trainer"].current_epoch == 1
    runs = [
        output,
        *(output / f"run-{number}" for number in (1, 2, 3)),
    ]  # four new runs in one session
    for folder in runs:
        assert (folder / "checkpoint_best_total.pth").exists() and (folder / "last.ckpt").exists()
    assert not (output / "run-4").exists()
    assert (output / "checkpoint.pth").exists()


def test_train_in_three_objects(run: Callable[..., dict[str, Any]], workplace: Path) -> None:
    names = run([MODULE, WHAT_TRAIN_DOES])
    assert names["trainer"].current_epoch == 1
    assert (workplace / "output" / "checkpoint_best_total.pth").exists()


def test_a_logger_of_ones_own_gets_every_key(
    run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytorch_lightning.loggers.NeptuneLogger", Recorder, raising=False)
    names = run([MODULE, DATAMODULE, LOGGER])
    (recorder,) = (logger for logger in names["trainer"].loggers if isinstance(logger, Recorder))
    assert {
        "train/loss",
        "train/loss_bbox",
        "val/loss",
        "val/mAP_50_95",
        "val/F1",
        "val/ema_mAP_50_95",
    } <= recorder.seen


def test_a_strategy_is_an_argument_of_the_trainer(run: Callable[..., dict[str, Any]]) -> None:
    names = run([MODULE, DDP])
    assert isinstance(names["trainer"].strategy, DDPStrategy)
    assert [
        callback
        for callback in names["trainer"].callbacks
        if isinstance(callback, RFDETREMACallback)
    ]
