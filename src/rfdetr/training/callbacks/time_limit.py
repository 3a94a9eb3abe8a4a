"""The end of a run in its time: `minutes=`."""

# mypy: disable-error-code="override"

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer

from rfdetr.training import forecast
from rfdetr.training.callbacks.pace import PaceCallback, ends_update
from rfdetr.training.module import RFDETRModule

logger = logging.getLogger(__name__)

_LEAST = 0.1  # of an epoch that must still fit in for another one to begin


class TimeLimitCallback(PaceCallback):
    """Ends a run so that its last validation and its final evaluation are over after `minutes`.

    The clock runs from `fit` on; a resumed run goes on with the time that its checkpoint tells. The
    schedule follows the share of the time that is spent, where that is more than the share of the
    epochs (`RFDETRModule.time_share`). What the end will take is measured: the last validation
    pass, before the first one the evaluation of a batch. The last epoch may end after any update,
    is validated, and no other begins that could not have a tenth of its updates. Rank 0's clock
    decides for all.
    """

    may_end_early = True

    def __init__(self, output_dir: str | Path, minutes: float) -> None:
        self.minutes = minutes
        super().__init__(output_dir)

    def _start_anew(self) -> None:
        super()._start_anew()
        self._began, self._before = time.monotonic(), 0.0
        self.share = 0.0
        """Of the time for training that is spent."""
        self.over = False
        self.last_epoch = 1.0
        """How much of the last epoch was trained."""

    @property
    def spent(self) -> float:
        """Seconds that the run has had, those before it was resumed included."""
        return self._before + time.monotonic() - self._began

    @property
    def left(self) -> float:
        return max(60 * self.minutes - self.spent, 0.0)

    def on_fit_start(self, trainer: Trainer, module: RFDETRModule) -> None:
        super().on_fit_start(trainer, module)
        module.time_share = self.share
        if self.over:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, module: RFDETRModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        if not ends_update(trainer, batch_idx):
            return
        self._watch(trainer, module, self.update_seconds(module, largest=True))
        if self.over:
            self.last_epoch = (batch_idx + 1) / trainer.num_training_batches
            trainer.check_val_every_n_epoch = 1  # the last weights are judged too

    def on_train_epoch_end(self, trainer: Trainer, module: RFDETRModule) -> None:
        if self._pause and not self.over:  # validated; else the next update comes first
            self._take_validation(time.monotonic())
            whole = trainer.num_training_batches / trainer.accumulate_grad_batches
            updates = max(1.0, _LEAST * whole)
            self._watch(trainer, module, updates * self.update_seconds(module, largest=True))

    def state_dict(self) -> dict[str, Any]:
        state = {"seconds": self.spent, "share": self.share, "over": self.over}
        return {**state, "minutes": self.minutes, "validation": self.validation_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before, self.share = state_dict["seconds"], state_dict["share"]
        self.validation_seconds = state_dict["validation"]
        same = self.minutes <= state_dict["minutes"]
        self.over = state_dict["over"] and same
        if not same:  # the schedule goes back to where the longer time has it
            self.share *= state_dict["minutes"] / self.minutes

    def _watch(self, trainer: Trainer, module: RFDETRModule, needed: float) -> None:
        """Moves the schedule on, and ends the run where the time left does not allow what is
        `needed` next, in seconds."""
        ending = self.validation_seconds + self.closing_seconds(trainer)
        usable, spent = 60 * self.minutes - ending, self.spent
        share = min(spent / usable, 1.0) if usable > 0 else 1.0
        decision = max(self.share, share), spent + needed > usable
        self.share, self.over = trainer.strategy.broadcast(decision)
        module.time_share = self.share
        if self.over:
            trainer.should_stop = True
        if self.over and trainer.is_global_zero:
            told = "time is over after update %d: the rest of the %g min is for the evaluation"
            logger.info(told, trainer.global_step, self.minutes)

    def _end_in_words(self, trainer: Trainer, training: float, judging: float) -> list[str]:
        """How many epochs the time is enough for; a warning where most goes into evaluation."""
        ending = judging + self.closing_seconds(trainer)
        if 2 * ending > 60 * self.minutes:
            text = "minutes=%g: validation and the final evaluation take about %s of it; "
            text += "eval_ema_only=True, run_test=False or a smaller valid split leave more"
            logger.warning(text, self.minutes, forecast.in_time(ending))
        every = trainer.check_val_every_n_epoch or 1
        fitting = max(self.left - ending, 0.0) / (training + judging / every)
        done = trainer.current_epoch + trainer.fit_loop.batch_idx / trainer.num_training_batches
        most = min(done + fitting, trainer.max_epochs or -1)
        by_epochs = super()._end_in_words(trainer, training, judging)
        if 0 < most < done + fitting:
            return by_epochs
        end = forecast.clock_after(self.left)
        return [
            f"about {done + fitting:.1f} epochs until the end at {end}, in {self.minutes:g} min"
        ]
