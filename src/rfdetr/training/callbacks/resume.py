"""last.ckpt: where a run that ends in whatever way goes on, and how a signal ends it."""

# mypy: disable-error-code="override"

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
from pytorch_lightning import Callback, Trainer

from rfdetr.training import lightning_state
from rfdetr.training.callbacks.validation import in_training
from rfdetr.training.run_folder import RunFolder, saves

logger = logging.getLogger(__name__)

SIGNALS = [one for one in signal.Signals if one.name in ("SIGINT", "SIGTERM", "SIGUSR1")]


class RunStopped(SystemExit):
    """A run that was told to stop, and has saved where it stood; its code is 128 + the signal."""


class ResumeCallback(Callback):
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
        self.checkpoint_interval = checkpoint_interval
        self.every_n_steps, self.every_minutes = every_n_steps, every_minutes
        self._folder = RunFolder(output_dir)
        self._saved: tuple[int, int] | None = None  # epoch and batch of the last save
        self._saved_at = 0.0
        self._point: lightning_state.Point | None = None  # of the save that is being made
        self._signal, self._told = 0, False  # what the run is to leave at, and whether it said so
        self._before: dict[int, Any] = {}  # the handlers of SIGNALS before fit
        self._theirs: dict[int, Any] = {}  # those that Lightning has put in their place

    def setup(self, _: Trainer, __: Any, stage: str) -> None:
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self._signal = 0
            self._before = {number: signal.getsignal(number) for number in SIGNALS}

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        done = lightning_state.batches_done(trainer)
        if done == 0:
            lightning_state.begin_epoch(trainer)
        self._saved, self._saved_at = (trainer.current_epoch, done), time.monotonic()
        # Now, after Lightning, whose own handlers would leave at once, within a step.
        self._theirs = {number: signal.signal(number, self._on_signal) for number in self._before}

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        self._save_epoch(trainer)  # not at the epoch's end, where others still log and write

    def on_train_batch_start(self, trainer: Trainer, _: Any, __: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches or not saves(trainer):
            self._tell_of_waiting()
            return
        steps, minutes = self.every_n_steps, self.every_minutes
        due = bool(steps and trainer.global_step % steps == 0)
        due |= minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        due &= self._saved != (trainer.current_epoch, batch_idx)
        signum, due = self._agreed(trainer, due)
        if signum or (due and batch_idx):
            self._save(trainer, self._folder.last, "batch" if batch_idx else "epoch", batch_idx)
        if signum:
            self._leave(trainer, signum)

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        if in_training(trainer) and (signum := self._agreed(trainer)[0]):
            self._leave_validation(trainer, signum)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        # Alone: ranks may differ in how many batches they validate, and could not agree.
        if self._signal and trainer.world_size == 1 and in_training(trainer):
            self._leave_validation(trainer, self._signal)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        self._save_epoch(trainer)
        process = os.getpid()

        def leave(signum: int, _frame: Any) -> None:
            if os.getpid() == process:  # not a loader worker that has just been forked
                self._leave(trainer, signum)

        for number, before in self._before.items():  # what is left has no steps to wait for
            requeues = signal.Signals(number).name == "SIGUSR1"
            signal.signal(number, (before or signal.SIG_DFL) if requeues else leave)
        if signum := self._agreed(trainer)[0]:
            self._leave(trainer, signum)

    def on_save_checkpoint(self, _: Trainer, __: Any, checkpoint: dict[str, Any]) -> None:
        if self._point:
            lightning_state.rewind_progress(checkpoint["loops"]["fit_loop"], self._point)

    def _save_epoch(self, trainer: Trainer) -> None:
        done = trainer.current_epoch
        if self._saved == (done, 0) or not saves(trainer):
            return
        if done % self.checkpoint_interval == 0:
            self._save(trainer, self._folder.after(done), "epoch", 0)
        self._save(trainer, self._folder.last, "epoch", 0)

    def _save(self, trainer: Trainer, path: Path, point: lightning_state.Point, batch: int) -> None:
        """Writes a checkpoint that goes on at `point`; where there is no room, that is logged."""
        self._point = point
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except OSError as error:
            logger.error("%s; training goes on, and the next save tries again", error)
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the others wait
        else:
            self._saved = (trainer.current_epoch, batch)
        finally:
            self._point = None
            self._saved_at = time.monotonic()

    def _agreed(self, trainer: Trainer, due: bool = False) -> tuple[int, bool]:
        """The signal that any rank has got, and whether any finds a save due: all do the same."""
        if trainer.world_size == 1:
            return self._signal, due
        own = torch.tensor([self._signal, int(due)], device=trainer.strategy.root_device)
        signum, any_due = trainer.strategy.reduce(own, reduce_op="max").tolist()
        return int(signum), bool(any_due)

    def _leave_validation(self, trainer: Trainer, signum: int) -> None:
        """Ends the run in a validation pass, which a resumed run does again from its beginning."""
        if not lightning_state.is_between_updates(trainer):  # with a val_check_interval of batches
            self._tell_of_waiting()
            return
        self._save(trainer, self._folder.last, "validation", lightning_state.batches_done(trainer))
        self._leave(trainer, signum)

    def _leave(self, trainer: Trainer, signum: int) -> None:
        """Ends the run, which is saved, with the exit code of a process that a signal ends."""
        name, theirs = signal.Signals(signum).name, self._theirs.get(signum)
        logger.warning(
            '%s: stopped after optimizer step %d; go on from there with resume="last" and the same '
            "settings (%s)",
            *(name, trainer.global_step, self._folder.last),
        )
        if name == "SIGUSR1" and callable(theirs):
            theirs(signum, None)  # on SLURM Lightning's, which queues the job again
        atexit.register(gc.freeze)  # or Python collects for seconds what ends with it
        raise RunStopped(128 + signum)

    def _on_signal(self, signum: int, _frame: Any) -> None:
        """Notes a signal for the next point at which the run can end; a second SIGINT ends it."""
        if self._signal and signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self._signal, self._told = signum, False

    def _tell_of_waiting(self) -> None:
        """Says, once, why a signal has not ended the run yet."""
        if self._signal and not self._told:
            self._told = True
            name = signal.Signals(self._signal).name
            again = "; once more to leave at once" if self._signal == signal.SIGINT else ""
            logger.warning("%s: leaving after this step%s", name, again)
