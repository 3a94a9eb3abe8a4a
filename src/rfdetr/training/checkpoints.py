"""Training state on disk: written whole, read without running code; other loops' files in ours."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.__version__ import version as lightning_version
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor

from rfdetr.files import advice, atomic_write, record_digests
from rfdetr.training.lightning_state import epochs_in
from rfdetr.training.optim import group_name
from rfdetr.training.run_folder import RunFolder
from rfdetr.weights import reading
from rfdetr.weights.labels import classes_from_zero
from rfdetr.weights.names import from_published, our_name
from rfdetr.weights.reading import Checkpoint, CheckpointError

logger = logging.getLogger(__name__)

AnyPath = str | os.PathLike[str]
Moments = dict[str, dict[str, Tensor]]
"""AdamW's state by our parameters' names: {"step": (), "exp_avg": ..., "exp_avg_sq": ...} each."""
_VERSION = {"pytorch-lightning_version": lightning_version}
"""Without it, Lightning hands no file on to `on_load_checkpoint`."""


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's file access: a file as it is, of any kind; `on_load_checkpoint` converts it."""

    def save_checkpoint(self, checkpoint: Any, path: AnyPath, *_: Any, **__: Any) -> None:
        atomic_write(path, lambda stream: torch.save(checkpoint, stream), checksum=True)

    def load_checkpoint(  # to the CPU: Lightning moves what is read
        self, path: AnyPath, _: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Refuses files with more than tensors and plain values, unless `weights_only=False`."""
        path = checkpoint_file(path)
        if path.suffix == ".safetensors":
            file = reading.read_checkpoint(path)
            return {**_VERSION, "model": file.model, "args": file.args}
        reading.refuse_damaged(path)
        if weights_only is False:
            content = torch.load(path, map_location="cpu", weights_only=False)
        else:
            content = reading.load_content(path, mapped=False)
        if not isinstance(content, dict) or not {"state_dict", "model"} & content.keys():
            told = "is no checkpoint of a training run: it has no 'state_dict'"
            raise CheckpointError(f"{path} {told}{advice(path)}")
        if isinstance(tensors := content.get("state_dict", content.get("model")), dict):
            reading.refuse_not_finite(path, tensors)
        return {**_VERSION, **content}

    def remove_checkpoint(self, path: AnyPath) -> None:
        os.remove(path)
        record_digests(path, [])


class PlainCheckpointIO(TorchCheckpointIO):
    """The file access of a Trainer that users build: Lightning's, but it reads legacy files."""

    def load_checkpoint(
        self, path: AnyPath, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        here = os.path.isfile(path)
        load = AtomicCheckpointIO().load_checkpoint if here else super().load_checkpoint
        return dict(load(os.fspath(path), map_location, weights_only))


def checkpoint_to_resume(resume: AnyPath | None, output_dir: Path) -> Path | None:
    """The file that `resume` means; None for a new run, as with "last" before there is any."""
    if resume is None:
        return None
    if os.fspath(resume) != "last":
        return checkpoint_file(resume)
    folder = RunFolder(output_dir)
    if (newest := folder.newest_checkpoint()) is None:
        logger.warning('resume="last": there is no %s, so a new run begins', folder.last)
    return newest


def checkpoint_file(path: AnyPath) -> Path:
    """The path of a file that is there; the error names the one to go on from."""
    if re.match(r"[A-Za-z][\w+.-]+:/+", os.fspath(path)):  # a Path of "s3://x" has one stroke
        told = "is an address, not a file: download it, and give the path of the copy"
        raise CheckpointError(f"{os.fspath(path)} {told}")
    path = Path(path).expanduser()
    if path.is_file():
        return path
    newest = RunFolder(path if path.is_dir() else path.parent).newest_checkpoint()
    hint = f"; to go on from is {newest}" if newest else ""
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory, not a checkpoint file{hint}")
    raise FileNotFoundError(f"there is no checkpoint {path}{hint}")


def convert_legacy_checkpoint(old_path: AnyPath, new_path: AnyPath) -> None:
    """Writes a `.pth` file, or a `.ckpt` of the published package, as a `.ckpt` for
    `trainer.fit(ckpt_path=...)`.

    Weights, averaged weights, the optimizer's state, epoch and what the file says of its model are
    kept.
    """
    content = lightning_checkpoint(reading.read_checkpoint(old_path))
    AtomicCheckpointIO().save_checkpoint(content, new_path)


def convert_content(checkpoint: dict[str, Any], source: Path) -> None:
    """Brings what was read from a file, in place, into the form of a Lightning checkpoint."""
    state = checkpoint.get("state_dict")
    if state is None or any(str(name).startswith("model.backbone.0.") for name in state):
        file = reading.counted_from_zero(reading.checkpoint_of(source, checkpoint))
        checkpoint.clear()
        checkpoint.update(lightning_checkpoint(file))


def lightning_checkpoint(file: Checkpoint) -> dict[str, Any]:
    """A file of weights, or of another training loop, in the form of a Lightning checkpoint.

    It goes on with the epoch after the file's last, counted from 0, or with the one that Lightning
    had begun. "moments" are the optimizer's; "moments_lost" says why there are none, or is "".
    """
    extra, moments, lost = file.extra, {}, ""
    try:
        moments = _moments(file, (extra.get("optimizer_states") or [extra.get("optimizer")])[0])
    except CheckpointError as error:
        lost = str(error)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        lost = f"what the file has of it is no state of AdamW ({what})"
    begun = epochs_in(extra, "ready")
    weights = from_published(file.model)
    return {
        **_VERSION,
        "state_dict": {f"model.{name}": weights[name] for name in weights},
        "epoch": int(extra.get("epoch", -1)) + 1 if begun is None else begun,
        "global_step": 0,
        "callbacks": _average(extra),
        "args": file.args,
        "moments": moments,
        "moments_lost": lost,
    }


def _average(extra: Mapping[str, Any]) -> dict[str, Any]:
    """The averaged weights of a file, from where the old training loop puts them or the published
    callback does, as the state of our callback; empty where there are none.
    """
    name, prefix = "RFDETREMACallback", "module.model."
    state = (extra.get("callbacks") or {}).get(name) or {}
    weights, updates = extra.get("ema_model"), None
    if not weights:
        if (tensors := state.get("average_model_state_dict")) is None:
            return {}
        updates = state.get("latest_update_step")
        weights = {k.removeprefix(prefix): tensors[k] for k in tensors if k.startswith(prefix)}
    updates = int(updates or 1_000_000)  # untold: past its warm-up
    return {name: {"updates": updates, "weights": from_published(dict(weights))}}


def _moments(file: Checkpoint, optimizer: Any) -> Moments:
    """The state of an AdamW by the names of our parameters; `CheckpointError` says why not.

    An optimizer numbers its parameters. Which number is which tensor follows from the sizes of its
    groups, if those are a published layout; shapes and learning rates must then be as expected.
    """
    if not optimizer or not optimizer["state"]:
        raise CheckpointError("the file has no state of an optimizer")
    groups, state = optimizer["param_groups"], optimizer["state"]
    names = names_in_groups(file.model, [len(group["params"]) for group in groups])
    if names is None:
        told = f"its groups of parameters ({len(groups)}) are in no published layout"
        raise CheckpointError(told)
    numbered = [(number, group) for group in groups for number in group["params"]]
    known: dict[str, dict[str, Any]] = {}
    rates: dict[str, tuple[float, float]] = {}
    fits = True
    for name, (number, group) in zip(names, numbered, strict=True):
        rate = (group.get("initial_lr", group["lr"]), group["weight_decay"])
        fits &= rates.setdefault(group_name(our_name(name)), rate) == rate
        if number in state:  # else the parameter has had no gradient yet
            known[name] = entry = state[number]
            shapes = {entry["exp_avg"].shape, entry["exp_avg_sq"].shape}
            fits &= shapes == {file.model[name].shape}
    if not fits:
        told = "shapes or learning rates in it are not those of the published order of parameters"
        raise CheckpointError(told)
    moments: Moments = {}
    for kind in ("step", "exp_avg", "exp_avg_sq"):
        tensors = {name: torch.as_tensor(entry[kind]) for name, entry in known.items()}
        if kind == "step":  # a number, which takes the ways of a tensor to our names
            tensors = {name: step.float().reshape(1) for name, step in tensors.items()}
        elif file.first_class:  # the file's weights are counted from 0 already
            tensors = classes_from_zero(tensors)
        for name, tensor in from_published(tensors).items():
            value = tensor.flatten()[0].clone() if kind == "step" else tensor
            moments.setdefault(name, {})[kind] = value
    return moments


def names_in_groups(model: Mapping[str, Tensor], sizes: list[int]) -> list[str] | None:
    """Published names in the order of an optimizer's parameters, from the groups' sizes; None if
    that fits none.

    Heads and projector come first, then the encoder, then the decoder, each in the order of the
    model, one group for a parameter or one for those that share rate and decay. A frozen encoder is
    in no group.
    """
    group_of = {name: group_name(our_name(name)) for name in model}
    for parts in (("head", "encoder", "decoder"), ("head", "decoder")):
        names = [n for part in parts for n in model if group_of[n].partition(".")[0] == part]
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            groups[group_of[name]].append(name)
        if sizes == [1] * len(names):
            return names
        if sizes == [len(group) for group in groups.values()]:
            return [name for group in groups.values() for name in group]
    return None
