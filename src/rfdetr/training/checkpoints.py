"""Training state on disk: written whole or not at all, read without running code, legacy files
converted.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.__version__ import version as lightning_version
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor

from rfdetr.files import advice, atomic_write, record_digests
from rfdetr.training.optim import group_name
from rfdetr.weights.labels import classes_from_zero
from rfdetr.weights.names import from_published, our_name
from rfdetr.weights.reading import (
    Checkpoint,
    CheckpointError,
    checkpoint_of,
    counted_from_zero,
    load_content,
    read_checkpoint,
    refuse_damaged,
    refuse_not_finite,
)

logger = logging.getLogger(__name__)

PUBLISHED_PREFIX = "model.backbone.0."
_PAST_WARM_UP = 1_000_000  # updates of a legacy file's average, which does not tell
_VERSION = (
    "pytorch-lightning_version"  # without which Lightning hands no file on to `on_load_checkpoint`
)


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's file access: what the file holds, whatever its kind; `on_load_checkpoint`
    converts it.
    """

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
        """Refuses files that hold more than tensors and plain values, unless told
        `weights_only=False`.
        """
        path = checkpoint_file(path)
        if path.suffix == ".safetensors":
            file = read_checkpoint(path)
            return {"model": file.model, "args": file.args, _VERSION: lightning_version}
        refuse_damaged(path)
        if weights_only is False:
            content = torch.load(path, map_location="cpu", weights_only=False)
        else:
            content = load_content(path, mapped=False)
        if not isinstance(content, dict) or not {"state_dict", "model"} & content.keys():
            raise CheckpointError(
                f"{path} is no checkpoint of a training run: it has no 'state_dict'{advice(path)}"
            )
        if isinstance(tensors := content.get("state_dict", content.get("model")), dict):
            refuse_not_finite(path, tensors)
        return {_VERSION: lightning_version, **content}

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        os.remove(path)
        record_digests(path, [])


class PlainCheckpointIO(TorchCheckpointIO):
    """The file access of a Trainer that `build_trainer` has not built: Lightning's own, but it
    reads legacy files.
    """

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        if os.path.isfile(path):
            return AtomicCheckpointIO().load_checkpoint(path, map_location, weights_only)
        remote: dict[str, Any] = super().load_checkpoint(
            os.fspath(path), map_location, weights_only
        )
        return remote


def checkpoint_to_resume(resume: str | os.PathLike[str] | None, output_dir: Path) -> Path | None:
    """The file that `resume` means. "last" before there is any means a new run, so that one command
    can be repeated.
    """
    if resume is None:
        return None
    if os.fspath(resume) != "last":
        return checkpoint_file(resume)
    newest = newest_in(output_dir)
    if newest is None:
        logger.warning(
            'resume="last": there is no %s, so a new run begins', output_dir / "last.ckpt"
        )
    return newest


def newest_in(folder: Path) -> Path | None:
    """The checkpoint of a folder to go on from: last.ckpt, else the newest other one that has an
    optimizer's state.
    """
    numbered = [
        (int(found[1]), path)
        for path in folder.glob("checkpoint*")
        if (found := _NUMBERED.fullmatch(path.name))
    ]
    ordered = [path for _, path in sorted(numbered, reverse=True)]
    kept = [path for path in ordered if path.suffix == ".ckpt"]
    names = [folder / "last.ckpt", *kept, folder / "checkpoint.pth", *ordered]
    return next((path for path in names if path.is_file()), None)


_NUMBERED = re.compile(r"checkpoint_?(\d+)\.(?:ckpt|pth)")
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]+:/+")  # a Path of "s3://x" has one stroke


def checkpoint_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file that is there; the error names the one to go on from."""
    if _ADDRESS.match(os.fspath(path)):
        raise CheckpointError(
            f"{os.fspath(path)} is an address, not a file: download it, and give the path of the copy"
        )
    path = Path(path).expanduser()
    if path.is_file():
        return path
    newest = newest_in(path if path.is_dir() else path.parent)
    hint = f"; to go on from is {newest}" if newest else ""
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory, not a checkpoint file{hint}")
    raise FileNotFoundError(f"there is no checkpoint {path}{hint}")


def legacy_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A file of weights, or of another training loop, in the form of a Lightning checkpoint."""
    return _converted(read_checkpoint(path))


def convert_legacy_checkpoint(
    old_path: str | os.PathLike[str], new_path: str | os.PathLike[str]
) -> None:
    """Writes a `.pth` file, or a `.ckpt` of the published package, as a `.ckpt` for
    `trainer.fit(ckpt_path=...)`.

    Weights, averaged weights, the optimizer's state, epoch and what the file says of its model are
    kept.
    """
    AtomicCheckpointIO().save_checkpoint(legacy_checkpoint(old_path), new_path)


def convert_content(checkpoint: dict[str, Any], source: Path) -> None:
    """Brings what was read from a file into the form of a Lightning checkpoint of ours, in place."""
    state = checkpoint.get("state_dict")
    if state is None or any(str(name).startswith(PUBLISHED_PREFIX) for name in state):
        converted = _converted(counted_from_zero(checkpoint_of(source, checkpoint)))
        checkpoint.clear()
        checkpoint.update(converted)


def _converted(file: Checkpoint) -> dict[str, Any]:
    averages = _averages(file.extra)
    moments, lost = _moments(file)
    return {
        "state_dict": {
            f"model.{name}": tensor for name, tensor in from_published(file.model).items()
        },
        _VERSION: lightning_version,
        "epoch": _next_epoch(file.extra),
        "global_step": 0,
        "callbacks": {"RFDETREMACallback": averages} if averages else {},
        "args": file.args,
        "moments": moments,
        "moments_lost": lost,
    }


def _averages(extra: Mapping[str, Any]) -> dict[str, Any] | None:
    """The averaged weights of a file, where the old training loop put them or where the published
    callback does.
    """
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
    return {
        "updates": int(state.get("latest_update_step") or _PAST_WARM_UP),
        "weights": from_published(weights),
    }


def _next_epoch(extra: Mapping[str, Any]) -> int:
    """The epoch to go on with, counted from 0: Lightning's own count, or the one after the file's
    last.
    """
    progress = ((extra.get("loops") or {}).get("fit_loop") or {}).get("epoch_progress")
    return int(progress["current"]["ready"]) if progress else int(extra.get("epoch", -1)) + 1


Moments = dict[str, dict[str, Tensor]]


def _moments(file: Checkpoint) -> tuple[Moments, str]:
    """AdamW's state by our parameters' names, and why there is none: "" where there is.

    An optimizer's state is numbered; which number is which tensor follows from the groups'
    published order.
    """
    optimizer = next(iter(file.extra.get("optimizer_states") or [file.extra.get("optimizer")]))
    try:
        if not optimizer or not optimizer["state"]:
            return {}, "the file has no state of an optimizer"
        groups, state = optimizer["param_groups"], optimizer["state"]
        names = names_in_groups(file.model, [len(group["params"]) for group in groups])
        if names is None:
            return {}, f"its groups of parameters ({len(groups)}) are in no published layout"
        numbered = [(number, group) for group in groups for number in group["params"]]
        found: dict[str, dict[str, Any]] = {}
        rates: dict[str, set[tuple[float, float]]] = {}
        for name, (number, group) in zip(names, numbered, strict=True):
            rate = group.get("initial_lr", group["lr"])
            rates.setdefault(group_name(our_name(name)), set()).add((rate, group["weight_decay"]))
            if number in state:  # else nothing has come from its gradient
                found[name] = state[number]
        kinds = ("exp_avg", "exp_avg_sq")
        shapes = all(
            entry[kind].shape == file.model[name].shape
            for name, entry in found.items()
            for kind in kinds
        )
        if not shapes or any(len(several) > 1 for several in rates.values()):
            return (
                {},
                "shapes or learning rates in it are not those of the published order of parameters",
            )
        steps = {
            name: torch.as_tensor(entry["step"]).float().reshape(1) for name, entry in found.items()
        }
        raw = {kind: {name: entry[kind] for name, entry in found.items()} for kind in kinds}
        if file.first_class:  # its weights are counted from 0 already
            raw = {kind: classes_from_zero(tensors) for kind, tensors in raw.items()}
        moments = {kind: from_published(tensors) for kind, tensors in raw.items()}
        counts = {name: step.flatten()[0].clone() for name, step in from_published(steps).items()}
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        return {}, f"what the file has of it is no state of AdamW ({type(error).__name__}: {error})"
    return {
        name: {"step": count, **{kind: moments[kind][name] for kind in kinds}}
        for name, count in counts.items()
    }, ""


def names_in_groups(model: Mapping[str, Tensor], sizes: list[int]) -> list[str] | None:
    """Published names in the order of an optimizer's parameters, from the groups' sizes; None if
    that fits none.

    Heads and projector come first, then the encoder, then the decoder, each in the order of the
    model, one group for a parameter or one for those that share rate and decay. A frozen encoder is
    in no group.
    """
    parts = ("head", "encoder", "decoder")
    part_of = {name: group_name(our_name(name)).partition(".")[0] for name in model}
    for kept in (parts, ("head", "decoder")):
        names = [name for part in kept for name in model if part_of[name] == part]
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(group_name(our_name(name)), []).append(name)
        if sizes == [1] * len(names):
            return names
        if sizes == [len(group) for group in groups.values()]:
            return [name for group in groups.values() for name in group]
    return None
