"""When a run has stopped improving."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rfdetr.training import RFDETREarlyStopping

LIVE, EMA, MASKS = "val/mAP_50_95", "val/ema_mAP_50_95", "val/segm_mAP_50_95"
SHORT = {"limit_train_batches": 1, "limit_val_batches": 1, "logger": False}


def epochs_until_stop(
    make_scripted: Callable[..., Any],
    scores: list[dict[str, float]],
    use_ema: bool = False,
    train: dict[str, Any] | None = None,
    **model: Any,
) -> int:
    """The epochs that a run with these figures takes, at most as many as there are."""
    stopping = RFDETREarlyStopping(patience=2, min_delta=0.01, use_ema=use_ema)
    settings = {**SHORT, "callbacks": [stopping], "enable_checkpointing": False}
    run = make_scripted(scores, trainer=settings, epochs=len(scores), model=model, **(train or {}))
    return int(run.fit().trainer.current_epoch)


@pytest.mark.parametrize(
    ("live", "ema", "use_ema", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], None, False, 4),
        ([0.5, 0.4, 0.4, 0.6], None, False, 3),
        ([0.5, 0.505, 0.509, 0.6], None, False, 3),  # rises of less than min_delta do not count
        ([0.5, 0.4, 0.6, 0.6, 0.6, 0.9], None, False, 5),  # the count starts anew
        ([0.5, 0.4, 0.3, 0.2], [0.1, 0.6, 0.7, 0.8], False, 4),  # the better of both
        ([0.5, 0.6, 0.7, 0.8], [0.4, 0.4, 0.4, 0.4], True, 3),
    ],
)
def test_patience_counts_evaluations_without_a_rise(
    make_scripted: Callable[..., Any],
    live: list[float],
    ema: list[float] | None,
    use_ema: bool,
    expected: int,
) -> None:
    scores = [{LIVE: score} for score in live]
    for row, score in zip(scores, ema or [], strict=False):
        row[EMA] = score
    assert epochs_until_stop(make_scripted, scores, use_ema) == expected


def test_skipped_epochs_do_not_count(make_scripted: Callable[..., Any]) -> None:
    scores = [{LIVE: score} for score in (0.9, 0.1, 0.2, 0.2, 0.2, 0.2)]
    assert epochs_until_stop(make_scripted, scores) == 3
    assert epochs_until_stop(make_scripted, scores, train={"skip_best_epochs": 1}) == 5


def test_recall_may_be_watched(make_scripted: Callable[..., Any]) -> None:
    scores = [{LIVE: score, "val/mAR": 0.5} for score in (0.1, 0.2, 0.3, 0.4)]
    assert epochs_until_stop(make_scripted, scores, train={"best_model_metric": "mar"}) == 3


def test_patience_goes_on_after_a_resume(make_scripted: Callable[..., Any]) -> None:
    scores = [{LIVE: 0.5}] * 5  # one evaluation of the five is a rise, and patience is 2
    settings = {"early_stopping": True, "early_stopping_patience": 2, "run_test": False}
    make_scripted(scores, trainer=SHORT, epochs=2, **settings).fit()
    resumed = make_scripted(scores, trainer=SHORT, epochs=5, **settings).fit(ckpt_path="last")
    assert resumed.trainer.current_epoch == 3


def test_of_a_segmentation_model_the_masks_are_watched(
    make_scripted: Callable[..., Any], add_outlines: Callable[[], None]
) -> None:
    scores = [{LIVE: live, MASKS: 0.1} for live in (0.5, 0.7, 0.9, 1.0)]
    assert epochs_until_stop(make_scripted, scores) == 4
    add_outlines()
    assert epochs_until_stop(make_scripted, scores, segmentation_head=True, amp=False) == 3
