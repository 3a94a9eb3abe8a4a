"""What is asked of Lightning's trainer; where a run stands in its counters, which no other file
reads or changes.

`trainer.fit_loop.state_dict()`, in a checkpoint `checkpoint["loops"]["fit_loop"]`, counts how often
a thing was ready, started, processed and completed, in the whole run ("total") and in the epoch
("current"), for example `["epoch_loop.batch_progress"]["current"]["completed"]`. None of this is a
public interface; a test holds that the installed Lightning has no other counters, as a resume that
misses one would be inexact without a word.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pytorch_lightning import Callback, LightningDataModule, Trainer

from rfdetr.data.loaders import ResumableLoader
from rfdetr.training.steps import count_steps

logger = logging.getLogger(__name__)

CallbackT = TypeVar("CallbackT", bound=Callback)

Point = Literal["epoch", "batch", "validation"]
"""What a saved run goes on with: a new epoch, the next batch of one, or its validation pass."""

# Keys of the state.
_EPOCHS, _BATCHES = "epoch_progress", "epoch_loop.batch_progress"
_VALIDATION, _SCHEDULER = "epoch_loop.val_loop.batch_progress", "epoch_loop.scheduler_progress"
_OPTIMIZER = "epoch_loop.automatic_optimization.optim_progress"


def training_loader(trainer: Trainer) -> Any:
    """The loader that `fit` was given, or that its datamodule makes."""
    return trainer.fit_loop._data_source.dataloader()


def predicts_with(trainer: Trainer, datamodule: LightningDataModule) -> bool:
    """Whether `trainer.predict` was given `datamodule`, and not loaders."""
    return trainer.predict_loop._data_source.instance is datamodule


def find_callback(trainer: Trainer, kind: type[CallbackT]) -> CallbackT | None:
    """The trainer's first callback of a class; None where it has none."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


def is_watched(trainer: Trainer, name: str) -> bool:
    """Whether a callback or a learning-rate schedule follows a logged figure, as its `monitor`."""
    watchers: list[Any] = [*trainer.callbacks, *trainer.lr_scheduler_configs]  # type: ignore[attr-defined]
    return any(getattr(watcher, "monitor", None) == name for watcher in watchers)


def loss_scale(trainer: Trainer) -> float:
    """The factor by which float16's scaler multiplies losses; 1 without a scaler."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def batches_done(trainer: Trainer) -> int:
    """How many batches of the present epoch have been trained."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.completed)


def is_between_updates(trainer: Trainer) -> bool:
    """Whether the batches that were trained make whole updates, with no gradient waiting."""
    last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    return last or batches_done(trainer) % trainer.accumulate_grad_batches == 0


def begin_epoch(trainer: Trainer) -> None:
    """Tells a resumed trainer that its epoch is new, which it else takes for one half done."""
    trainer.fit_loop.epoch_loop.restarting = False


def epochs_in(checkpoint: Mapping[str, Any], state: str) -> int | None:
    """How many epochs of a checkpoint's run are `state`, such as "completed"; None if untold."""
    progress = ((checkpoint.get("loops") or {}).get("fit_loop") or {}).get(_EPOCHS)
    return int(progress["current"][state]) if progress else None


def place_in_run(checkpoint: dict[str, Any], source: Path, trainer: Trainer) -> tuple[int, int]:
    """Changes the counters of `checkpoint` to those of the trainer's run.

    Returns the epoch and the batch in it, both counted from 0, with which the run goes on. A file
    without counters goes on at the beginning of its epoch, at the update that this run has there.
    With another batch size than `source` was saved with, batches are counted anew: 8 images taken
    in 4 batches of 2 are 2 batches of 4. The epoch then ends when all its images were taken.
    """
    loader = training_loader(trainer)
    if "loops" not in checkpoint:
        epochs = checkpoint["epoch"]
        steps = epochs * count_steps(trainer, operator.length_hint(loader)).per_epoch
        fit_loop = trainer.fit_loop.state_dict()
        for progress in fit_loop[_EPOCHS].values():
            progress.update(dict.fromkeys(progress, epochs))
        fit_loop[_OPTIMIZER]["optimizer"]["step"]["total"].update(ready=steps, completed=steps)
        fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = steps
        checkpoint.update(loops={"fit_loop": fit_loop}, optimizer_states=[], lr_schedulers=[])
        return epochs, 0
    fit_loop = checkpoint["loops"]["fit_loop"]
    batches, epoch = fit_loop[_BATCHES]["current"], fit_loop[_EPOCHS]["current"]["processed"]
    state: dict[str, int] = next(iter(fit_loop["state_dict"].get("combined_loader") or []), {})
    if isinstance(loader, ResumableLoader) and "images" in state:
        shift = len(loader) - loader.batches_after(state["images"]) - batches["ready"]
        batches.update({name: count + shift for name, count in batches.items()})
        judged = (epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        if shift and batches["ready"] == len(loader) and judged:
            rewind_progress(fit_loop, "validation")  # else the epoch's end would pass unjudged
        if state["batch"] != loader.images_per_batch:
            told = "%s: its batches had %d images, those of this run have %d; the epoch goes on "
            counts = (state["batch"], loader.images_per_batch, state["images"])
            logger.warning(told + "after its first %d images", source, *counts)
    return int(epoch), int(batches["ready"])


def rewind_progress(fit_loop: dict[str, Any], point: Point) -> None:
    """Changes counters that were saved between two hooks of Lightning to those of a clean `point`.

    "batch": a batch that was fetched, and not trained, counts as not fetched. "epoch": besides, the
    epoch is over, and its counters are 0. "validation": one validation pass has begun and not
    ended; so Lightning takes the training batches as they are, and does the pass again.
    """
    batches = fit_loop[_BATCHES]
    batches["is_last_batch"] = False
    if point == "validation":
        validation = fit_loop[_VALIDATION]
        validation["current"] = dict.fromkeys(validation["current"], 0)
        validation["total"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        return
    for progress in (batches, fit_loop[_EPOCHS]) if point == "epoch" else (batches,):
        for part in ("total", "current"):
            progress[part] = dict.fromkeys(progress[part], progress[part]["completed"])
    if point == "epoch":
        fit_loop["state_dict"].pop("combined_loader", None)
        optimizer = fit_loop[_OPTIMIZER]["optimizer"]
        for progress in (batches, fit_loop[_SCHEDULER], *optimizer.values()):
            progress["current"] = dict.fromkeys(progress["current"], 0)
    for state in fit_loop["state_dict"].get("combined_loader", []):
        if "images" in state:
            state["images"] -= state["batch"]  # of the batch that was fetched
