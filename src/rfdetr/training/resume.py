"""Where a run goes, what it goes on with, and what it must share with that."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rfdetr.checks import short
from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.training.checkpoints import checkpoint_to_resume
from rfdetr.training.datamodule import RFDETRDataModule
from rfdetr.training.run_folder import RunFolder, default_folder
from rfdetr.weights.identify import (
    IN_TENSORS,
    NOT_IN_TENSORS,
    class_names,
    read_architecture,
    resolution_in,
)
from rfdetr.weights.names import to_published
from rfdetr.weights.reading import (
    Checkpoint,
    CheckpointError,
    checkpoint_of,
    load_content,
    read_checkpoint,
    refuse_damaged,
)

if TYPE_CHECKING:
    from rfdetr.training.module import RFDETRModule

logger = logging.getLogger(__name__)


def settle_folder(config: TrainConfig) -> Path | None:
    """Gives `config` the folder that the run writes to, where the user has named none; the
    checkpoint that the run goes on with.

    `InputError` where another run is in the folder, unless `overwrite` is True.
    """
    if "output_dir" not in config.model_fields_set and not config.overwrite:
        config.output_dir = default_folder(config.output_dir, config.resume)
    resumed = checkpoint_to_resume(config.resume, config.output_dir)
    if not config.overwrite:
        RunFolder(config.output_dir).refuse_to_overwrite(resumed)
    return resumed


def recorded_args(source: Path) -> dict[str, Any]:
    """What a checkpoint that a run goes on with tells of its model, data and run."""
    refuse_damaged(source)
    if source.suffix == ".safetensors":
        return read_checkpoint(source).args
    return checkpoint_of(source, load_content(source)).args


def kept_resolution(args: dict[str, Any], config: ModelConfig) -> Any:
    """The resolution that `args` of a checkpoint tell, if the network of `config` can have it.

    Another network is none to go on with: `check_shared` says so, and in what they differ.
    """
    found, step = resolution_in(args), config.patch_size * config.num_windows
    sides = found if isinstance(found, list | tuple) else [found]
    return found if all(isinstance(side, int) and side % step == 0 for side in sides) else None


def keep_settings(config: TrainConfig, args: dict[str, Any], names: list[str] | None) -> None:
    """Gives a run the `class_names` and `notes` of the one that it goes on with, if any, whose
    `args` these are, where its `config` has none.

    The names, where the data's own are still those that the checkpoint has recorded: `names`.
    """
    if config.notes is None:
        config.notes = args.get("notes")
    match args:  # published files record no data
        case {"data": {"train": {"boxes": dict(own)}}, "class_names": list(known)}:
            given = known[: len(own)]
            if config.class_names is None and list(own) == names != given:
                config.class_names = given


def check_shared(
    checkpoint: dict[str, Any], source: Path, module: RFDETRModule, names: list[str] | None
) -> None:
    """Raises `CheckpointError` where the run of a trainer cannot be that of its checkpoint, saying
    in what they differ.

    Shared must be the classes and their order (`names`: the data's), what the network is, and to
    train its resolution and the data; `allow_changed_data` makes the last a warning. A checkpoint
    tells no more than its writer knew.
    """
    args, ours = checkpoint.get("args") or {}, "seed" in checkpoint
    anew = f"or start a new run from its weights with pretrain_weights={str(source)!r}"
    if ours:  # such args tell everything, also of a network that a user has changed
        known, file_names = args, args.get("class_names")
    else:
        state = checkpoint["state_dict"].items()
        weights = to_published({name.removeprefix("model."): tensor for name, tensor in state})
        known = {**args, **read_architecture(weights, str(source))}
        file_names = class_names(Checkpoint(source, weights, args))
    if names is not None and file_names is not None and list(file_names) != names:
        same = "the same in another order" if sorted(file_names) == sorted(names) else "other ones"
        told = f"its classes are {', '.join(file_names)}; the data has {same}: {', '.join(names)}"
        what_to_do = (
            f"Use data with the classes of the checkpoint (class_names= gives them), {anew}"
        )
        raise CheckpointError(f"{source} does not fit this run: {told}. {what_to_do}")
    trains = module.trainer.state.fn == "fit"
    config = module.model_config
    here = {**config.model_dump(mode="json"), "positional_encoding_size": config.position_grid}
    known = {**known, "resolution": resolution_in(known)}
    fields = [*IN_TENSORS, *NOT_IN_TENSORS, *["freeze_encoder"] * ours] if trains else IN_TENSORS
    differ = [
        f"{field} is {known[field]} in the checkpoint, {here[field]} in the model"
        for field in fields
        if field != "num_select" and known.get(field) is not None and known[field] != here[field]
    ]
    if differ:
        what_to_do = f"Build the model as the checkpoint has it, {anew}"
        raise CheckpointError(f"{source} does not fit this run: {'; '.join(differ)}. {what_to_do}")
    if trains:
        had = checkpoint.get("train_config") or {}
        _check_data(args, had, source, module, anew)
        chose = had.get("best_model_metric", "map")
        if chose != module.train_config.best_model_metric:  # its scores are of another kind
            told = f"{source} does not fit this run: it chooses its best weights by {chose!r}"
            raise CheckpointError(f"{told}. Resume with best_model_metric={chose!r}, {anew}")
        seed = checkpoint.get("seed")
        if seed is not None and module.train_config.seed not in (None, seed):
            told = "%s: the run goes on with its seed %d, not with %d"
            logger.warning(told, source, seed, module.seed)


def _check_data(
    args: dict[str, Any], had: dict[str, Any], source: Path, module: RFDETRModule, anew: str
) -> None:
    """`had` is the checkpoint's training configuration, which may be why the data is another."""
    datamodule = module.trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(datamodule, RFDETRDataModule):
        return
    if changes := data_changes(args, datamodule.data_record()):
        has = module.train_config.model_dump(mode="json")
        causes = [
            f"{name} was {short(had[name])}, is {short(has[name])}; "
            for name in ("dataset_dir", "classes", "tiles", "tile_overlap")
            if name in had and had[name] != has[name]
        ]
        text = f"{source} was trained on other data than is there now: {''.join(causes)}{changes}"
        if not module.train_config.allow_changed_data:
            raise CheckpointError(
                f"{text}. Resume with the data as it was, pass allow_changed_data=True to go on "
                f"with what is there now, {anew}"
            )
        logger.warning("%s; the run goes on with what is there now", text)


def data_changes(recorded: dict[str, Any], present: dict[str, Any]) -> str:
    """What has changed between two `RFDETRDataModule.data_record`, split by split; "" for nothing.

    For example "train: 5 images (was 6), 9 boxes of red (was 11)".
    """
    changes = []
    for split, old in (recorded.get("data") or {}).items():
        new = present["data"][split]
        if old["labels"] == new["labels"]:
            continue
        counts, had, has = [("images", old["images"], new["images"])], old["boxes"], new["boxes"]
        for name in {**had, **has}:
            counts.append((f"boxes of {name}", had.get(name, 0), has.get(name, 0)))
        told = [f"{now:,} {what} (was {before:,})" for what, before, now in counts if now != before]
        if old["images"] == new["images"] and old["names"] != new["names"]:
            told.append("other image files, as many as before")
        changes.append(f"{split}: {', '.join(told) or 'other labels of the same images'}")
    return "; ".join(changes)
