"""Training state on disk: written whole or not at all, read without running code, legacy `.pth` files included."""

from __future__ import annotations

import os
import pickle
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.__version__ import version as lightning_version
from pytorch_lightning.plugins.io import CheckpointIO

from rfdetr.weights.names import from_published
from rfdetr.weights.reading import CheckpointError, read_checkpoint
from rfdetr.weights.writing import atomic_write

_PAST_WARM_UP = 1_000_000  # updates of a legacy file's average, which does not tell


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's file access: `.ckpt` as they are, any other weights file as a checkpoint with nothing but weights."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any = None,  # noqa: ARG002 - for remote file systems
    ) -> None:
        atomic_write(path, lambda stream: torch.save(checkpoint, stream))

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,  # noqa: ARG002 - Lightning moves what is read
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Refuses files that hold more than tensors and plain values, unless told `weights_only=False`."""
        if os.fspath(path).endswith(".ckpt"):
            try:
                content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=weights_only is not False)
            except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
                raise CheckpointError(f"{path} is damaged or holds objects that are refused: {error}") from error
            return content
        return legacy_checkpoint(path)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        os.remove(path)


def legacy_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A `.pth` file of weights in the form of a Lightning checkpoint, less what only a trainer knows."""
    file = read_checkpoint(path)
    average = file.extra.get("ema_model")
    averages = {"updates": _PAST_WARM_UP, "weights": from_published(dict(average))} if average else None
    return {
        "state_dict": {f"model.{name}": tensor for name, tensor in from_published(file.model).items()},
        "pytorch-lightning_version": lightning_version,
        "epoch": int(file.extra.get("epoch", -1)) + 1,  # the file counts the last finished epoch from 0
        "global_step": 0,
        "callbacks": {"RFDETREMACallback": averages} if averages else {},
    }


def fill_in_training_state(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Lets fit continue from a checkpoint of weights: at its epoch, with a fresh optimizer and schedule.

    A legacy optimizer's parameter groups are not ours, so its state cannot be carried over.
    """
    if "loops" in checkpoint or trainer.state.fn != "fit":
        return
    loops = {"fit_loop": trainer.fit_loop.state_dict()}
    for progress in loops["fit_loop"]["epoch_progress"].values():
        progress.update(dict.fromkeys(("ready", "started", "processed", "completed"), checkpoint["epoch"]))
    checkpoint.update(loops=loops, optimizer_states=[], lr_schedulers=[])
