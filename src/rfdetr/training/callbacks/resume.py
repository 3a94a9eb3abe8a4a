"""last.ckpt: where a run that ends in whatever way goes on, and how a signal ends it."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback

from rfdetr.training.callbacks.validation import in_training
from rfdetr.training.resume import Point, settle

logger = logging.getLogger(__name__)


LAST = "last.ckpt"
SIGNALS = [
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGUSR1")
    if name in signal.Signals.__members__
]


class RunStopped(SystemExit):
    """A run that was told to stop, and has saved where it stood; the exit code is 128 + the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class ContinuationCallback(Callback):
    """Saves last.ckpt after each epoch, every so many optimizer steps or minutes, and when a signal
    ends the run.

    Only where nothing is half done: between epochs, between optimizer steps, before validation. All
    that was logged until then is in the files, and nothing of what follows; so a resumed run
    repeats and leaves out nothing. SIGTERM, SIGINT and SIGUSR1 end the run at the next such point,
    a second SIGINT at once. A save that fails ends nothing.
    """

    def __init__(
        self,
        output_dir: str | Path,
        checkpoint_interval: int = 10,
        every_n_steps: int | None = None,
        every_minutes: float | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.checkpoint_interval = checkpoint_interval
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self._saved: tuple[int, int] | None = None  # epoch and batch of the last save
        self._saved_at = 0.0
        self._point: Point | None = None  # of the save that is being made
        self._signal = 0
        self._told = False
        self._handlers: dict[int, Any] = {}

    def setup(self, _trainer: Any, _pl_module: Any, stage: str) -> None:
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self._signal = 0
            self._handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        loop = trainer.fit_loop.epoch_loop
        done = loop.batch_progress.current.completed
        if done == 0:
            loop.restarting = (
                False  # with max_steps, Lightning takes a new epoch for one to be finished
            )
        self._saved = (trainer.current_epoch, done)
        self._saved_at = time.monotonic()
        for number in (
            self._handlers
        ):  # after Lightning, whose own handler would leave at once, within a step
            self._handlers[number] = (
                self._handlers[number],
                signal.signal(number, self._on_signal),
            )

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        self._save_epoch(trainer)

    def on_train_batch_start(
        self, trainer: Any, _pl_module: Any, _batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches or trainer.fast_dev_run:
            self._tell_of_waiting()
            return
        due = bool(self.every_n_steps and trainer.global_step % self.every_n_steps == 0)
        due |= (
            self.every_minutes is not None
            and time.monotonic() - self._saved_at >= 60 * self.every_minutes
        )
        signum, due = self._agreed(
            trainer, due and self._saved != (trainer.current_epoch, batch_idx)
        )
        if signum or (due and batch_idx):
            self._save(trainer, LAST, "batch" if batch_idx else "epoch", batch_idx)
        if signum:
            self._leave(trainer, signum)

    def on_validation_start(self, trainer: Any, *_: Any) -> None:
        if in_training(trainer) and (signum := self._agreed(trainer)[0]):
            self._leave_validation(trainer, signum)

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        if (
            self._signal and trainer.world_size == 1 and in_training(trainer)
        ):  # ranks may differ in batches
            self._leave_validation(trainer, self._signal)

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        self._save_epoch(trainer)

        process = os.getpid()

        def leave(signum: int, _frame: Any) -> None:
            if os.getpid() == process:  # not a loader worker that has just been forked
                self._leave(trainer, signum)

        for number, (before, _) in self._handlers.items():  # what is left has no steps to wait for
            requeues = signal.Signals(number).name == "SIGUSR1"
            signal.signal(number, (before or signal.SIG_DFL) if requeues else leave)
        if signum := self._agreed(trainer)[0]:
            self._leave(trainer, signum)

    def on_save_checkpoint(
        self, _trainer: Any, _pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        if self._point:
            settle(checkpoint["loops"]["fit_loop"], self._point)

    def _save_epoch(self, trainer: Any) -> None:
        done = trainer.current_epoch
        if self._saved == (done, 0) or trainer.fast_dev_run:
            return
        if done % self.checkpoint_interval == 0:
            self._save(trainer, f"checkpoint_{done:04d}.ckpt", "epoch", 0)
        self._save(trainer, LAST, "epoch", 0)

    def _save(self, trainer: Any, name: str, point: Point, batch: int) -> None:
        self._point = point
        try:
            trainer.save_checkpoint(self.output_dir / name, weights_only=False)
        except OSError as error:
            logger.error("%s; training goes on, and the next save tries again", error)
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the others wait
        else:
            self._saved = (trainer.current_epoch, batch)
        finally:
            self._point = None
            self._saved_at = time.monotonic()

    def _agreed(self, trainer: Any, due: bool = False) -> tuple[int, bool]:
        """The signal that any process has got, and whether any finds a save due: all must do the
        same.
        """
        if trainer.world_size == 1:
            return self._signal, due
        own = torch.tensor([self._signal, int(due)], device=trainer.strategy.root_device)
        signum, any_due = trainer.strategy.reduce(own, reduce_op="max").tolist()
        return int(signum), bool(any_due)

    def _leave_validation(self, trainer: Any, signum: int) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress
        done = progress.current.completed
        if not progress.is_last_batch and done % trainer.accumulate_grad_batches:
            self._tell_of_waiting()
            return  # a validation pass in the middle of an update
        self._save(trainer, LAST, "validation", done)
        self._leave(trainer, signum)

    def _leave(self, trainer: Any, signum: int) -> None:
        name = signal.Signals(signum).name
        logger.warning(
            '%s: stopped after optimizer step %d; go on from there with resume="last" and the same settings (%s)',
            name, trainer.global_step, self.output_dir / LAST,
        )  # fmt: skip
        theirs = self._handlers.get(signum, (None, None))[1]
        if name == "SIGUSR1" and callable(theirs):
            theirs(signum, None)  # on SLURM Lightning's, which queues the job again
        atexit.register(
            gc.freeze
        )  # or Python would spend seconds of its exit on collecting what ends with it
        raise RunStopped(signum)

    def _on_signal(self, signum: int, _frame: Any) -> None:
        if self._signal and signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self._signal = signum
        self._told = False

    def _tell_of_waiting(self) -> None:
        """Says why a signal has not ended the run yet: a run that leaves at once says so in one
        line alone.
        """
        if self._signal and not self._told:
            self._told = True
            again = "; once more to leave at once" if self._signal == signal.SIGINT else ""
            logger.warning(
                "%s: leaving after this step%s", signal.Signals(self._signal).name, again
            )
