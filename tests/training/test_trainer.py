"""`build_trainer`: what the configuration becomes, what keywords override, precision, and noise."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.strategies import SingleDeviceStrategy

from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.training import (
    BestModelCallback,
    COCOEvalCallback,
    DropPathCallback,
    RFDETREarlyStopping,
    RFDETREMACallback,
    build_trainer,
)
from rfdetr.training import steps as steps_module
from rfdetr.training import trainer as trainer_module
from rfdetr.training.batch_size import AutoBatchSizeCallback
from rfdetr.training.callbacks import (
    DataViewsCallback,
    MemoryCallback,
    NonFiniteCallback,
    PaceCallback,
    PredictionImagesCallback,
    ResumeCallback,
    RunFilesCallback,
    UndecodableCallback,
)
from rfdetr.training.checkpoints import AtomicCheckpointIO
from rfdetr.training.steps import resolve_precision
from rfdetr.training.trainer import EpochProgressBar, quiet_lightning

ALWAYS = {
    *(COCOEvalCallback, NonFiniteCallback, PredictionImagesCallback, MemoryCallback),
    *(UndecodableCallback, DataViewsCallback, PaceCallback),
    *(RunFilesCallback, ResumeCallback, BestModelCallback),
}


@pytest.fixture
def build(
    tiny_model: Callable[..., ModelConfig], train_config: Callable[..., TrainConfig]
) -> Callable[..., Any]:
    def built(trainer: dict[str, Any] | None = None, amp: bool = True, **train: Any) -> Any:
        return build_trainer(train_config(**train), tiny_model(amp=amp), **(trainer or {}))

    return built


def kinds(trainer: Any) -> set[type]:
    return {
        type(callback)
        for callback in trainer.callbacks
        if type(callback).__module__.startswith("rfdetr")
    }


def test_the_configuration_is_wired(build: Callable[..., Any]) -> None:
    trainer = build(epochs=9, grad_accum_steps=3, clip_max_norm=0.2, eval_interval=4, amp=False)
    assert trainer.max_epochs == 9
    assert trainer.accumulate_grad_batches == 3
    assert trainer.gradient_clip_val == 0.2
    assert trainer.check_val_every_n_epoch == 4
    assert trainer.precision == "32-true"
    assert trainer.num_devices == 1
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    assert [type(logger).__mro__[1] for logger in trainer.loggers] == [CSVLogger]


def test_defaults_that_follow_from_others(build: Callable[..., Any]) -> None:
    assert build(clip_max_norm=0).gradient_clip_val is None
    # Else nothing would be evaluated.
    assert build(epochs=2, eval_interval=5).check_val_every_n_epoch == 2


def test_keywords_override(build: Callable[..., Any]) -> None:
    given = {
        "max_epochs": 3,
        "accumulate_grad_batches": 8,
        "log_every_n_steps": 10,
        "precision": "32-true",
    }
    trainer = build({**given, "logger": False})
    assert {name: getattr(trainer, name) for name in given} == given
    assert trainer.loggers == []


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({}, ALWAYS | {RFDETREMACallback}),
        ({"use_ema": False}, ALWAYS),
        ({"drop_path": 0.1}, ALWAYS | {RFDETREMACallback, DropPathCallback}),
        ({"early_stopping": True}, ALWAYS | {RFDETREMACallback, RFDETREarlyStopping}),
        ({"batch_size": "auto"}, ALWAYS | {RFDETREMACallback, AutoBatchSizeCallback}),
    ],
)
def test_callbacks_follow_the_configuration(
    build: Callable[..., Any], train: dict[str, Any], expected: set[type]
) -> None:
    assert kinds(build(**train)) == expected


def test_checkpointing_can_be_switched_off(build: Callable[..., Any]) -> None:
    without = ALWAYS - {BestModelCallback, ResumeCallback}
    assert kinds(build({"enable_checkpointing": False})) == without | {RFDETREMACallback}


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy"])
def test_sharded_strategies_go_without_averaging(build: Callable[..., Any], name: str) -> None:
    strategy = type(name, (SingleDeviceStrategy,), {})()  # the real ones need several GPUs
    with pytest.warns(UserWarning, match="EMA is off"):
        assert RFDETREMACallback not in kinds(build({"strategy": strategy}))


def test_tensorboard_is_logged_to_by_flag(build: Callable[..., Any]) -> None:
    pytest.importorskip("tensorboard")
    assert [type(logger) for logger in build(tensorboard=True).loggers][1:] == [TensorBoardLogger]


def test_no_progress_bar_where_nobody_watches(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "is_interactive", lambda: False)
    assert build(progress_bar=True).progress_bar_callback is None
    monkeypatch.setattr(trainer_module, "is_interactive", lambda: True)
    assert type(build(progress_bar=True).progress_bar_callback) is EpochProgressBar
    assert type(build(progress_bar="rich").progress_bar_callback) is RichProgressBar
    assert build(progress_bar=False).progress_bar_callback is None
    assert build({"enable_progress_bar": False}).progress_bar_callback is None
    own = TQDMProgressBar()
    assert build({"callbacks": own}).progress_bar_callback is own
    assert type(build({"callbacks": None}).progress_bar_callback) is EpochProgressBar


@pytest.mark.parametrize(
    ("amp", "accelerator", "capability", "fast_cpu", "expected"),
    [
        (False, "auto", (9, 0), True, "32-true"),
        (True, "auto", (8, 0), False, "bf16-mixed"),
        (True, "gpu", (7, 5), True, "16-mixed"),
        (True, "cpu", (9, 0), False, "32-true"),
        (True, "cpu", None, True, "bf16-mixed"),
        (True, "auto", None, True, "bf16-mixed"),
        (True, "auto", None, False, "32-true"),
        (True, "mps", None, True, "32-true"),
    ],
)
def test_precision_follows_the_device(
    monkeypatch: pytest.MonkeyPatch,
    amp: bool,
    accelerator: str,
    capability: tuple[int, int] | None,
    fast_cpu: bool,
    expected: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(steps_module, "has_fast_bfloat16", lambda: fast_cpu)
    assert resolve_precision(amp, accelerator) == expected


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="nothing else tells")
def test_the_probe_of_the_processor_says_what_the_system_says() -> None:
    flags = set(re.findall(r"\b(?:amx_tile|avx512_bf16)\b", Path("/proc/cpuinfo").read_text()))
    assert steps_module.has_fast_bfloat16() == bool(flags)


@pytest.mark.parametrize("probe", ["_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_either_instruction_set_is_fast_at_bfloat16(
    monkeypatch: pytest.MonkeyPatch, probe: str
) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == probe, raising=False)
    assert resolve_precision(True, "cpu") == "bf16-mixed"


def test_only_known_noise_is_held_back(caplog: pytest.LogCaptureFixture) -> None:
    source = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    with caplog.at_level(logging.INFO, source.name), quiet_lightning():
        source.info("Tip: buy something")
        source.info("No model summary")
        with pytest.warns(UserWarning, match="of interest"):
            warnings.warn(
                "You have overridden `transfer_batch_to_device` in `LightningModule`", stacklevel=1
            )
            warnings.warn("something of interest", stacklevel=1)
    assert [record.message for record in caplog.records] == ["No model summary"]
    source.info("Tip: again")
    assert len(caplog.records) == 2


@pytest.mark.scheduled
def test_evaluation_takes_the_precision_without_lightning() -> None:
    """Its import takes seconds, which an evaluation would wait for."""
    program = "import sys, rfdetr.training.steps; sys.exit('pytorch_lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


def test_a_torch_without_the_probes_has_no_fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert resolve_precision(True, "cpu") == "32-true"
