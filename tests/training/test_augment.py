"""Augmentation in a run: who gets which steps, when they rest, and exact resume."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.config.augment import STEPS
from rfdetr.data.augmentation.mixing import MIXING
from rfdetr.training import RFDETRDataModule
from rfdetr.training.callbacks.resume import RunStopped
from rfdetr.training.plan import training_plan
from rfdetr.training.verify import content_hashes

ALL = {name: 0.5 for name in STEPS}


def test_a_run_has_the_steps_of_its_configuration(make_run: Callable[..., Any]) -> None:
    run = make_run(augment="dense", epochs=4, multi_scale="per-sample")
    rows = dict(training_plan(run.module, run.datamodule, run.trainer))
    assert rows["augmentation"].startswith("dense: crop 0.5, horizontal_flip 0.5, hsv 0.3, mosaic")
    assert "augmentation" not in dict(training_plan(*make_run(output="plain")[:3]))
    dataset = run.datamodule.train_dataloader().dataset
    assert [*dataset.mixing] == ["mosaic", "copy_paste", "mixup"] and not dataset.masks
    assert [*dataset.transform.steps] == ["crop", "horizontal_flip", "hsv"]
    assert len({dataset[0, i][0].shape[-1] for i in range(6)}) > 1
    assert not run.datamodule.val_dataloader().dataset.mixing


def test_mixing_ends_with_the_share_of_epochs_or_of_time(make_run: Callable[..., Any]) -> None:
    run = make_run(augment="dense", epochs=4)
    run.datamodule.trainer = run.trainer
    shares = [next(iter(run.datamodule.train_dataloader().sampler))[3]]
    run.trainer.fit_loop.epoch_progress.current.completed = 2
    run.trainer.fit_loop.epoch_progress.current.processed = 2
    shares.append(next(iter(run.datamodule.train_dataloader().sampler))[3])
    run.trainer.strategy._lightning_module = run.module
    run.module.time_share = 0.9
    shares.append(next(iter(run.datamodule.train_dataloader().sampler))[3])
    assert shares == [0.25, 0.75, 0.9]
    assert len(next(iter(make_run(output="plain").datamodule.train_dataloader().sampler))) <= 3


def test_outlines_make_boxes_and_are_no_other_data(
    tiny_model: Callable[..., ModelConfig],
    train_config: Callable[..., TrainConfig],
    add_outlines: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A detection model reads them where they serve; what is odd about them is not told."""
    config = train_config(augment={"rotate": {"p": 1, "degrees": 40}})
    without = RFDETRDataModule(tiny_model(), config)
    without.setup("fit")
    assert without.index("train").outlines is not None  # none has one
    assert "outline-" not in caplog.text and "outlines-" not in caplog.text
    add_outlines()
    datamodules = [RFDETRDataModule(tiny_model(), one) for one in (config, train_config())]
    records = [datamodule.data_record() for datamodule in datamodules]
    assert records[0] == records[1] == without.data_record()
    assert datamodules[1].index("train").outlines is None
    key = (0, 3)
    assert not (
        datamodules[0].train_dataloader().dataset[key][1]["boxes"]  # type: ignore[index]
        == without.train_dataloader().dataset[key][1]["boxes"]  # type: ignore[index]
    ).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "augment", [ALL, pytest.param("strong", marks=pytest.mark.scheduled)], ids=["all", "strong"]
)
def test_a_run_with_augmentation_goes_on_exactly(
    make_run: Callable[..., Any], augment: Any
) -> None:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 1, "grad_accum_steps": 2,
                                "run_test": False, "augment": augment}  # fmt: skip
    exact = {"amp": False}
    whole = content_hashes(make_run(output="whole", model=exact, **settings).fit().output)

    def stop(trainer: Any, _: Any) -> None:
        if trainer.global_step == 4:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(RunStopped):
        make_run(model=exact, watch={"on_train_batch_end": stop}, **settings).fit()
    again = make_run(model=exact, **settings).fit(ckpt_path="last")
    assert content_hashes(again.output) == whole


def test_all_steps_are_known_to_one_side() -> None:
    assert set(MIXING) < set(STEPS)
