"""Stochastic depth that fades out over the run."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback


class DropPathCallback(Callback):
    """Anneals the encoder's drop-path rate linearly from `rate` to 0 over the run's optimizer
    steps.

    Early training profits from the noise; the last steps train the network that will be used, with
    all its blocks.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        done = trainer.global_step / max(pl_module.total_steps, 1)
        pl_module.detector.set_drop_path(self.rate * max(1 - done, 0.0))
