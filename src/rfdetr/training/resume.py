"""What a resumed run must share with its checkpoint, and where in the run it goes on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning import Trainer

from rfdetr.data.loaders import ResumableLoader
from rfdetr.training.datamodule import RFDETRDataModule
from rfdetr.training.steps import count_steps
from rfdetr.weights.identify import IN_TENSORS, NOT_IN_TENSORS, class_names, read_architecture
from rfdetr.weights.names import to_published
from rfdetr.weights.reading import Checkpoint, CheckpointError

logger = logging.getLogger(__name__)

Point = Literal["epoch", "batch", "validation"]


def check_shared(
    checkpoint: dict[str, Any], source: Path, module: Any, names: list[str] | None
) -> None:
    """Raises `CheckpointError` where the run of a trainer cannot be that of its checkpoint, saying
    in what they differ.

    Shared must be the classes and their order (`names`: the data's), what the network is, and to
    train its resolution and the data; `allow_changed_data` makes the last a warning. A checkpoint
    tells no more than its writer knew.
    """
    args = checkpoint.get("args") or {}
    trains = module.trainer.state.fn == "fit"
    anew = f"or start a new run from its weights with pretrain_weights={str(source)!r}"
    state = {
        name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()
    }
    ours = (
        "seed" in checkpoint
    )  # such a file's args tell everything, also of a network that a user has changed
    known = args if ours else {**args, **read_architecture(to_published(state), str(source))}
    file_names = (
        args.get("class_names")
        if ours
        else class_names(Checkpoint(source, to_published(state), args))
    )
    if names is not None and file_names is not None and list(file_names) != names:
        same = "the same in another order" if sorted(file_names) == sorted(names) else "other ones"
        raise CheckpointError(
            f"{source} does not fit this run: its classes are {', '.join(file_names)}; the data has {same}: "
            f"{', '.join(names)}. Use data with the classes of the checkpoint, {anew}"
        )
    config = module.model_config
    here = {**config.model_dump(), "positional_encoding_size": config.position_grid}
    fields = (
        (*IN_TENSORS, *NOT_IN_TENSORS, *(["freeze_encoder"] if ours else []))
        if trains
        else IN_TENSORS
    )
    differ = [
        f"{field} is {known[field]} in the checkpoint, {here[field]} in the model"
        for field in fields
        if field != "num_select" and known.get(field) is not None and known[field] != here[field]
    ]
    if differ:
        raise CheckpointError(
            f"{source} does not fit this run: {'; '.join(differ)}. Build the model as the checkpoint has it, {anew}"
        )
    datamodule = module.trainer.datamodule
    if (
        trains
        and isinstance(datamodule, RFDETRDataModule)
        and (changes := data_changes(args, datamodule.data_record()))
    ):
        text = f"{source} was trained on other data than is there now: {changes}"
        if not module.train_config.allow_changed_data:
            raise CheckpointError(
                f"{text}. Resume with the data as it was, pass allow_changed_data=True to go on with what is there "
                f"now, {anew}"
            )
        logger.warning("%s; the run goes on with what is there now", text)
    if trains and module.train_config.seed not in (
        None,
        checkpoint.get("seed", module.train_config.seed),
    ):
        logger.warning(
            "%s: the run goes on with its seed %d, not with %d",
            source,
            checkpoint["seed"],
            module.seed,
        )


def data_changes(recorded: dict[str, Any], present: dict[str, Any]) -> str:
    """What has changed between two `RFDETRDataModule.data_record`, split by split; "" for nothing."""
    changes = []
    for split, old in (recorded.get("data") or {}).items():
        new = present["data"][split]
        if old["labels"] == new["labels"]:
            continue
        classes = dict.fromkeys((*old["boxes"], *new["boxes"]))
        counts = [("images", old["images"], new["images"])]
        counts += [
            (f"boxes of {name}", old["boxes"].get(name, 0), new["boxes"].get(name, 0))
            for name in classes
        ]
        told = [
            f"{after:,} {what} (was {before:,})"
            for what, before, after in counts
            if before != after
        ]
        if old["images"] == new["images"] and old["names"] != new["names"]:
            told.append("other image files, as many as before")
        changes.append(f"{split}: {', '.join(told) or 'other labels of the same images'}")
    return "; ".join(changes)


def place_in_run(checkpoint: dict[str, Any], source: Path, trainer: Trainer) -> int:
    """Makes Lightning's counters those of this run; the batch of the epoch, counted from 0, to go
    on with.

    A checkpoint without counters goes on at the beginning of its epoch, and at the update that this
    run has there.
    """
    loader = trainer.fit_loop._data_source.dataloader()
    if "loops" not in checkpoint:
        per_epoch = count_steps(trainer, len(loader)).per_epoch if hasattr(loader, "__len__") else 0
        checkpoint.update(loops={"fit_loop": _counters(trainer, checkpoint["epoch"], per_epoch)})
        checkpoint.update(optimizer_states=[], lr_schedulers=[])
        return 0
    fit_loop = checkpoint["loops"]["fit_loop"]
    batches = fit_loop["epoch_loop.batch_progress"]["current"]
    state: dict[str, int] = next(iter(fit_loop["state_dict"].get("combined_loader") or []), {})
    if isinstance(loader, ResumableLoader) and "images" in state:
        shift = len(loader) - loader.batches_after(state["images"]) - batches["ready"]
        batches.update({name: count + shift for name, count in batches.items()})
        epoch = fit_loop["epoch_progress"]["current"]["processed"] + 1
        evaluates = epoch % (trainer.check_val_every_n_epoch or 1) == 0
        if shift and batches["ready"] == len(loader) and evaluates:
            settle(
                fit_loop, "validation"
            )  # an epoch that has become shorter has all its images, and is to be judged
        if state["batch"] != loader.images_per_batch:
            logger.warning(
                "%s: its batches had %d images, those of this run have %d; the epoch goes on after its first %d images",
                source, state["batch"], loader.images_per_batch, state["images"],
            )  # fmt: skip
    return int(batches["ready"])


def _counters(trainer: Trainer, epochs: int, per_epoch: int) -> dict[str, Any]:
    """Lightning's counters after whole epochs of so many updates."""
    counters = trainer.fit_loop.state_dict()
    for progress in counters["epoch_progress"].values():
        progress.update(dict.fromkeys(("ready", "started", "processed", "completed"), epochs))
    steps = epochs * per_epoch
    counters["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"][
        "total"
    ].update(ready=steps, completed=steps)
    counters["epoch_loop.state_dict"]["_batches_that_stepped"] = steps
    return counters


def settle(fit_loop: dict[str, Any], point: Point) -> None:
    """Makes the counters of Lightning's loops say: all before this point is over, and nothing after
    it has begun.
    """
    batches = fit_loop["epoch_loop.batch_progress"]
    if point == "validation":  # the form in which Lightning does a validation pass again
        batches["is_last_batch"] = False
        validation = fit_loop["epoch_loop.val_loop.batch_progress"]
        validation["current"] = dict.fromkeys(validation["current"], 0)
        validation["total"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        return
    batches["is_last_batch"] = False
    _end(batches)
    for state in fit_loop["state_dict"].get("combined_loader", []):
        if "images" in state:
            state["images"] -= state["batch"]  # the one in hand, which no step has seen
    if point == "epoch":
        fit_loop["state_dict"].pop("combined_loader", None)
        _end(fit_loop["epoch_progress"])
        optimizer = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        for progress in (batches, fit_loop["epoch_loop.scheduler_progress"], *optimizer.values()):
            progress["current"] = dict.fromkeys(progress["current"], 0)


def _end(progress: dict[str, Any]) -> None:
    for part in ("total", "current"):
        progress[part] = dict.fromkeys(progress[part], progress[part]["completed"])
