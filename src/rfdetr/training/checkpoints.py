"""Training state on disk: written whole or not at all, read without running code, legacy `.pth` files included."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.__version__ import version as lightning_version
from pytorch_lightning.plugins.io import CheckpointIO

from rfdetr.weights.checksums import advice, sidecar
from rfdetr.weights.names import from_published
from rfdetr.weights.reading import (
    CheckpointError,
    load_content,
    read_checkpoint,
    refuse_damaged,
    refuse_not_finite,
)
from rfdetr.weights.writing import atomic_write

logger = logging.getLogger(__name__)

PUBLISHED_PREFIX = "model.backbone.0."
_PAST_WARM_UP = 1_000_000  # updates of a legacy file's average, which does not tell


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's file access: `.ckpt` as they are, any other weights file as a checkpoint with nothing but weights."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any = None,  # noqa: ARG002 - for remote file systems
    ) -> None:
        atomic_write(path, lambda stream: torch.save(checkpoint, stream), checksum=True)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,  # noqa: ARG002 - Lightning moves what is read
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Refuses files that hold more than tensors and plain values, unless told `weights_only=False`."""
        path = checkpoint_file(path)
        if path.suffix != ".ckpt":
            return legacy_checkpoint(path)
        refuse_damaged(path)
        if weights_only is False:
            content = torch.load(path, map_location="cpu", weights_only=False)
        else:
            content = load_content(path, mapped=False)
        if not isinstance(content, dict) or not {"state_dict", "model"} & content.keys():
            raise CheckpointError(f"{path} is no checkpoint of a training run: it has no 'state_dict'{advice(path)}")
        if isinstance(state := content.get("state_dict"), dict):
            refuse_not_finite(path, state)
        return legacy_checkpoint(path) if is_published(content) else content

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        os.remove(path)
        sidecar(path).unlink(missing_ok=True)


def checkpoint_to_resume(resume: str | os.PathLike[str] | None, output_dir: Path) -> Path | None:
    """The file that `resume` means. "last" before there is any means a new run, so that one command can be repeated."""
    if resume is None:
        return None
    if os.fspath(resume) != "last":
        return checkpoint_file(resume)
    last = output_dir / "last.ckpt"
    if last.is_file():
        return last
    logger.warning('resume="last": there is no %s, so a new run begins', last)
    return None


def checkpoint_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file that is there."""
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}{advice(path) if path.parent.is_dir() else ''}")
    if not path.is_file():
        raise CheckpointError(f"{path} is a directory, not a checkpoint file")
    return path


def legacy_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A `.pth` file of weights in the form of a Lightning checkpoint, less what only a trainer knows."""
    file = read_checkpoint(path)
    averages = _averages(file.extra)
    return {
        "state_dict": {f"model.{name}": tensor for name, tensor in from_published(file.model).items()},
        "pytorch-lightning_version": lightning_version,
        "epoch": _next_epoch(file.extra),
        "global_step": 0,
        "callbacks": {"RFDETREMACallback": averages} if averages else {},
        "args": file.args,
    }


def convert_legacy_checkpoint(old_path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
    """Writes a `.pth` file, or a `.ckpt` of the published package, as a `.ckpt` for `trainer.fit(ckpt_path=...)`.

    Weights, averaged weights, epoch and what the file says of its model are kept; the optimizer starts afresh.
    """
    AtomicCheckpointIO().save_checkpoint(legacy_checkpoint(old_path), new_path)


def is_published(checkpoint: Any) -> bool:
    """Whether a Lightning checkpoint was written by the published package, in its own tensor names."""
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    return isinstance(state, dict) and any(str(name).startswith(PUBLISHED_PREFIX) for name in state)


def _averages(extra: Mapping[str, Any]) -> dict[str, Any] | None:
    """The averaged weights of a file, where the old training loop put them or where the published callback does."""
    if extra.get("ema_model"):
        return {"updates": _PAST_WARM_UP, "weights": from_published(dict(extra["ema_model"]))}
    state = dict((extra.get("callbacks") or {}).get("RFDETREMACallback") or {})
    if "average_model_state_dict" not in state:
        return None
    weights = {
        name.removeprefix("module.model."): tensor
        for name, tensor in state["average_model_state_dict"].items()
        if name.startswith("module.model.")
    }
    return {"updates": int(state.get("latest_update_step") or _PAST_WARM_UP), "weights": from_published(weights)}


def _next_epoch(extra: Mapping[str, Any]) -> int:
    """The epoch to go on with, counted from 0: Lightning's own count, or the one after the file's last."""
    progress = ((extra.get("loops") or {}).get("fit_loop") or {}).get("epoch_progress")
    return int(progress["current"]["ready"]) if progress else int(extra.get("epoch", -1)) + 1


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
