"""Stopping when validation has stopped improving."""

from __future__ import annotations

import logging
import math
from typing import Any

from pytorch_lightning import Callback

from rfdetr.training.callbacks.validation import EMA, LIVE, in_training, main_figure

logger = logging.getLogger(__name__)


class RFDETREarlyStopping(Callback):
    """Ends training after `patience` evaluations in a row whose mAP (of masks if there are any)
    rose by less than `min_delta`.

    Watches the better of live and averaged weights, or the averaged ones alone (`use_ema`).
    """

    def __init__(self, patience: int = 10, min_delta: float = 0.001, use_ema: bool = False) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.prefixes = (EMA,) if use_ema else (LIVE, EMA)
        self.best = -math.inf
        self.waited = 0

    def setup(self, _trainer: Any, _pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self.best, self.waited = -math.inf, 0

    def on_fit_start(self, trainer: Any, *_: Any) -> None:
        if self.waited >= self.patience:  # resumed after its end
            trainer.should_stop = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        keys = [prefix + main_figure(pl_module) for prefix in self.prefixes]
        scores = [
            float(trainer.callback_metrics[key]) for key in keys if key in trainer.callback_metrics
        ]
        if not in_training(trainer) or not scores:
            return
        if max(scores) > self.best + self.min_delta:
            self.best, self.waited = max(scores), 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            trainer.should_stop = True
            logger.info(
                "stopping early: in %d evaluations mAP has not risen by more than %g above %.4f",
                *(self.waited, self.min_delta, self.best),
            )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict["best"], state_dict["waited"]
