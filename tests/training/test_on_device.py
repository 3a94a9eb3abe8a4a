"""A training step waits for its device twice, and leaves no tensor behind on the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tests.tiny import TINY
from tests.training.on_device import Device

from rfdetr.config import RFDETRMiniConfig
from rfdetr.data.images import _normalization, normalize
from rfdetr.losses.criterion import Criterion
from rfdetr.models.build import build_detector
from rfdetr.models.detector import postprocess_outputs
from rfdetr.training.callbacks.averaging import averaged_model


@pytest.fixture(autouse=True)
def _without_constants_of_other_devices() -> None:
    _normalization.cache_clear()


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_network_loss_and_detections_stay_on_the_device(masks: bool) -> None:
    config = RFDETRMiniConfig(**TINY, num_classes=3, segmentation_head=masks)
    detector = build_detector(config).train()
    images, sizes = torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.full((2, 2), 64)
    padding = (torch.arange(64) > 50).expand(2, 64, 64)
    targets = []
    for count in (3, 0):
        target = {"labels": torch.arange(count), "boxes": torch.full((count, 4), 0.4)}
        if masks:
            target["masks"] = torch.ones(count, 64, 64, dtype=torch.uint8)
            target["has_mask"] = torch.arange(count) > 0
        targets.append(target)
    device = Device()
    device.put([*detector.parameters(), images, sizes, padding])
    device.put(value for target in targets for value in target.values())
    functions, operators = device.watched()
    with functions, operators:
        outputs = detector(normalize(images), padding)
        losses = Criterion(group_detr=config.group_detr)(outputs, targets)
        torch.stack(list(losses.values())).sum().backward()
        found = postprocess_outputs(outputs, sizes, 10)
    assert device.mixed == []
    assert device.waits == ["matcher.match"]
    assert all(device.has(value) for one in found for value in one.values())
    assert all(device.has(p.grad) for p in detector.parameters() if p.grad is not None)


def test_what_waits_and_what_mixes_is_found() -> None:
    device, x = Device(), torch.arange(4.0)
    device.put([x])
    functions, operators = device.watched()
    with functions, operators:
        x[x > 1], x.nonzero(), x.unique(), float(x.sum()), x.tolist(), bool(x.all())
        assert len(device.waits) == 6
        x + x.cpu()
        x * torch.ones(4)
        x * 2 + torch.tensor(1.0)
    assert len(device.waits) == 7
    assert len(device.mixed) == 2


class Watched(pl.Callback):
    """Counts the waits of every batch, from its first hook to its last."""

    def __init__(self) -> None:
        self.device, self.counts, self.modes = Device(), [], ExitStack()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, _: int) -> None:
        (images, mask), targets = batch
        averaged = averaged_model(trainer)
        self.device.put([*module.parameters(), *averaged.parameters(), images, mask])
        self.device.put(value for target in targets for value in target.values())
        for mode in self.device.watched():
            self.modes.enter_context(mode)

    def on_train_batch_end(self, *_: Any) -> None:
        self.modes.close()
        self.counts.append(Counter(self.device.waits))
        self.device.waits.clear()


def test_an_update_waits_twice(make_run: Callable[..., Any]) -> None:
    run = make_run(trainer={"limit_val_batches": 0}, epochs=1, grad_accum_steps=1, run_test=False)
    watched = Watched()
    run.trainer.callbacks.append(watched)
    run.fit()
    assert watched.device.mixed == []
    assert watched.counts == [Counter({"matcher.match": 1, "nonfinite._all_finite": 1})] * 3
