"""Lightning's own features with our parts: limits, profilers, monitors, loaders of any origin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from pytorch_lightning.profilers import AdvancedProfiler, SimpleProfiler
from torch.utils.data import DataLoader, Dataset, IterableDataset

from rfdetr.training import RFDETRModelModule, RFDETRModule

SIZE = 64


class Count(Callback):
    """Batches of each kind that a run took."""

    def __init__(self) -> None:
        self.train = self.valid = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.train += 1

    def on_validation_batch_end(self, *_: Any) -> None:
        self.valid += 1


@pytest.mark.parametrize(
    # Six training images in batches of two, four validation images.
    (
        "keywords",
        "batches",
        "steps",
    ),
    [
        ({"fast_dev_run": 2}, (2, 2), 1),
        ({"limit_train_batches": 2, "limit_val_batches": 1}, (2, 1), 1),
        ({"limit_train_batches": 0.67, "limit_val_batches": 0.5}, (2, 1), 1),
        ({"overfit_batches": 1}, (1, 1), 1),
        ({"max_steps": 1}, (2, 0), 1),
        ({"accumulate_grad_batches": 1}, (3, 2), 3),
        ({"accumulate_grad_batches": 3}, (3, 2), 1),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_limits_of_the_trainer(
    make_run: Callable[..., Any], keywords: dict[str, Any], batches: tuple[int, int], steps: int
) -> None:
    count = Count()
    run = make_run(trainer={**keywords}, epochs=1)
    run.trainer.callbacks.append(count)
    run.fit()
    assert (count.train, count.valid) == batches
    assert run.trainer.global_step == steps


@pytest.mark.parametrize("kind", [SimpleProfiler, AdvancedProfiler])
def test_profilers_measure_our_hooks(
    make_run: Callable[..., Any], tmp_path: Path, kind: type[Any]
) -> None:
    profiler = kind(dirpath=tmp_path, filename="profile")
    make_run(trainer={"profiler": profiler, "max_steps": 1}).fit()
    assert (
        "[LightningModule]RFDETRModule.on_train_batch_start"
        in (tmp_path / "fit-profile.txt").read_text()
    )


def test_learning_rates_are_monitored_by_group(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=1)
    monitor = LearningRateMonitor(logging_interval="step")
    run.trainer.callbacks.append(monitor)
    run.fit()
    names = {group["name"] for group in run.trainer.optimizers[0].param_groups}
    assert {f"lr-AdamW/{name}" for name in names} == set(monitor.lrs)


def test_a_callback_of_ones_own_replaces_or_extends_the_stack(make_run: Callable[..., Any]) -> None:
    alone = Count()
    run = make_run(trainer={"callbacks": [alone]}, epochs=1).fit()
    ours = {type(c) for c in run.trainer.callbacks if type(c).__module__.startswith("rfdetr")}
    assert alone in run.trainer.callbacks and ours == {type(run.module.epoch_means)}
    assert alone.train == 3
    assert not run.output.joinpath("last.ckpt").exists()  # nothing of ours has acted
    beside = Count()
    run = make_run(epochs=1)
    run.trainer.callbacks.extend([beside])
    run.fit()
    assert beside.train == 3
    assert run.output.joinpath("last.ckpt").exists()


class Plain(Dataset[Any]):
    """Two images of a user's own, normalised floats, with what an evaluation needs to know of them
    and no more.
    """

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        pixels = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(i))
        boxes = torch.tensor([[0.5, 0.5, 0.25, 0.25]])
        return pixels, {"labels": torch.tensor([i]), "boxes": boxes, "image_id": torch.tensor(i)}


def stacked(samples: list[Any]) -> tuple[torch.Tensor, list[Any]]:
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets)


def test_plain_loaders_train_validate_test_and_predict(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=1)
    loader: Any = DataLoader(Plain(), batch_size=2, collate_fn=stacked)
    run.trainer.fit(run.module, train_dataloaders=loader, val_dataloaders=loader)
    assert run.trainer.global_step == 1
    (valid,) = run.trainer.validate(run.module, dataloaders=loader, verbose=False)
    assert {"val/loss", "val/mAP_50_95", "val/F1"} <= set(valid)
    (test,) = run.trainer.test(run.module, dataloaders=loader, verbose=False)
    assert {name.replace("test/", "val/") for name in test} <= set(valid)
    (found,) = run.trainer.predict(run.module, dataloaders=loader)
    (found_without_targets,) = run.trainer.predict(
        run.module, dataloaders=DataLoader([Plain()[i][0] for i in range(2)], batch_size=2)
    )
    for one, other in zip(found, found_without_targets, strict=True):
        assert torch.equal(one["boxes"], other["boxes"])
        assert float(one["boxes"].max()) <= SIZE


class Stream(IterableDataset[Any]):
    """Five images, of which nothing tells that they are five."""

    def __iter__(self) -> Any:
        return iter([Plain()[i % 2] for i in range(5)])


@pytest.mark.parametrize(
    ("limits", "steps"), [({}, 4), ({"max_steps": 3}, 3), ({"limit_train_batches": 2}, 2)]
)
def test_a_loader_without_a_length_trains(
    make_run: Callable[..., Any], limits: dict[str, Any], steps: int
) -> None:
    run = make_run(epochs=2, trainer=limits)
    loader: Any = DataLoader(Stream(), batch_size=2, collate_fn=stacked)
    run.trainer.fit(run.module, train_dataloaders=loader, val_dataloaders=loader)
    assert run.trainer.global_step == steps


def test_the_last_update_of_an_unknown_epoch_is_a_mean_over_its_batches(
    make_run: Callable[..., Any],
) -> None:
    """Five images are three batches, two an update: the last batch is an update of its own."""
    weights = []
    for data in (Stream(), list(Stream())):
        run = make_run(epochs=1, use_ema=False, trainer={"callbacks": [], "limit_val_batches": 0})
        run.trainer.fit(run.module, DataLoader(data, batch_size=2, collate_fn=stacked))  # type: ignore[arg-type]
        weights.append(run.module.detector.class_head.weight.detach().clone())
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)


def test_what_needs_the_length_of_an_epoch_says_so(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=2, lr_scheduler="cosine", warmup_epochs=1)
    with pytest.raises(
        ValueError, match=r"lr_scheduler='cosine' and warmup_epochs=1.0 must know: give"
    ):
        run.trainer.fit(run.module, DataLoader(Stream(), batch_size=2, collate_fn=stacked))


def test_our_loaders_validate_test_and_predict(make_run: Callable[..., Any]) -> None:
    run = make_run()
    (valid,) = run.trainer.validate(run.module, run.datamodule, verbose=False)
    (again,) = run.trainer.validate(
        run.module, dataloaders=run.datamodule.val_dataloader(), verbose=False
    )
    assert valid["val/mAP_50_95"] == again["val/mAP_50_95"]
    (test,) = run.trainer.test(
        run.module, dataloaders=run.datamodule.test_dataloader(), verbose=False
    )
    assert all(name.startswith("test/") for name in test)
    found = run.trainer.predict(run.module, dataloaders=run.datamodule.val_dataloader())
    assert [len(batch) for batch in found] == [2, 2]


def test_a_batch_of_another_kind_is_refused(make_run: Callable[..., Any]) -> None:
    run = make_run()
    with pytest.raises(TypeError, match="collate_fn"):
        run.trainer.predict(run.module, dataloaders=DataLoader([{"image": 1}], batch_size=1))


def test_the_model_of_the_module_is_the_plain_network(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=1)
    network = run.module.model
    assert not isinstance(network, pl.LightningModule)
    run.fit()
    assert run.module.model is network


def test_later_names_are_the_same_things() -> None:
    from rfdetr.assets.coco_classes import COCO_CLASSES

    assert RFDETRModelModule is RFDETRModule
    assert (len(COCO_CLASSES), COCO_CLASSES[1], COCO_CLASSES[90]) == (80, "person", "toothbrush")
