"""When a run has stopped improving."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rfdetr.training import RFDETREarlyStopping

LIVE, EMA = "val/mAP_50_95", "val/ema_mAP_50_95"


def evaluations_until_stop(
    callback: RFDETREarlyStopping, scores: list[dict[str, float]], masks: bool = False
) -> int | None:
    module = SimpleNamespace(model_config=SimpleNamespace(segmentation_head=masks))
    for count, figures in enumerate(scores, 1):
        metrics = {name: torch.tensor(value) for name, value in figures.items()}
        trainer: Any = SimpleNamespace(
            callback_metrics=metrics,
            state=SimpleNamespace(fn="fit"),
            sanity_checking=False,
            should_stop=False,
        )
        callback.on_validation_end(trainer, module)
        if trainer.should_stop:
            return count
    return None


@pytest.mark.parametrize(
    ("live", "ema", "use_ema", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], None, False, None),
        ([0.5, 0.4, 0.4], None, False, 3),
        ([0.5, 0.505, 0.509, 0.6], None, False, 3),  # rises of less than min_delta do not count
        ([0.5, 0.4, 0.6, 0.6, 0.6], None, False, 5),  # the count starts anew
        ([0.5, 0.4, 0.3], [0.1, 0.6, 0.7], False, None),  # the better of both
        ([0.5, 0.6, 0.7], [0.4, 0.4, 0.4], True, 3),
    ],
)
def test_patience_counts_evaluations_without_a_rise(
    live: list[float], ema: list[float] | None, use_ema: bool, expected: int | None
) -> None:
    scores = [{LIVE: score} for score in live]
    for row, score in zip(scores, ema or [], strict=False):
        row[EMA] = score
    callback = RFDETREarlyStopping(patience=2, min_delta=0.01, use_ema=use_ema)
    assert evaluations_until_stop(callback, scores) == expected


def test_patience_goes_on_after_a_resume() -> None:
    first, second = RFDETREarlyStopping(patience=2), RFDETREarlyStopping(patience=2)
    assert evaluations_until_stop(first, [{LIVE: 0.5}, {LIVE: 0.5}]) is None
    second.load_state_dict(first.state_dict())
    assert evaluations_until_stop(second, [{LIVE: 0.5}]) == 1


def test_of_a_segmentation_model_the_masks_are_watched() -> None:
    rising, still = {LIVE: 0.5, "val/segm_mAP_50_95": 0.1}, {LIVE: 0.9, "val/segm_mAP_50_95": 0.1}
    assert (
        evaluations_until_stop(RFDETREarlyStopping(patience=2), [rising, still, still], masks=True)
        == 3
    )
    assert evaluations_until_stop(RFDETREarlyStopping(patience=2), [rising, still, still]) is None
