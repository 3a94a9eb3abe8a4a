"""Reading checkpoints safely: `.pth`, `.pt`, Lightning's `.ckpt` and `.safetensors`, none of which
may run code.

Differences of packing end here: tensors come out under published names, class logits counted from
0, arguments as plain values.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from rfdetr.errors import InputError
from rfdetr.files import CHECKSUMS_FILE, advice, is_damaged
from rfdetr.weights.labels import classes_from_zero, first_class, names_by_logit
from rfdetr.weights.names import UNUSED, our_name, to_published

logger = logging.getLogger(__name__)

_WRAPPERS = ("module.", "model.", "_orig_mod.")  # data parallel, a Lightning module, torch.compile


class CheckpointError(InputError):
    """A file that is no checkpoint, or not one that fits; the message names it."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds; tensors may be mapped from the disk and read only when used."""

    path: Path
    model: dict[str, Tensor]
    """Tensors by published name."""
    args: dict[str, Any]
    """What the writer said of the model, unchecked; empty where the file says nothing."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Everything else: epoch, optimizer, notes."""
    first_class: int = 0
    """1 if the file counts classes from 1; `model` and `extra["ema_model"]` here count from 0."""


def read_checkpoint(path: str | os.PathLike[str], first_class: int | None = None) -> Checkpoint:
    """Reads a checkpoint of any of the known kinds.

    `first_class` (0 or 1) is the logit of the file's first class; None: what `labels.first_class`
    finds. Raises `CheckpointError` for a file that is no checkpoint, and for weights that are not
    finite.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if not path.is_file():
        raise CheckpointError(f"{path} is a directory, not a checkpoint file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty: its writing or download was cut off{advice(path)}")
    if path.suffix.lower() in (".onnx", ".xml", ".bin", ".pt2"):
        expected = "expected the checkpoint that it was made of"
        raise CheckpointError(f"{path} is an exported model, for prediction alone: {expected}")
    refuse_damaged(path)
    is_torch = path.suffix != ".safetensors"
    checkpoint = checkpoint_of(path, load_content(path)) if is_torch else _read_safetensors(path)
    if not checkpoint.model:
        raise CheckpointError(f"{path} holds no tensors")
    refuse_not_finite(path, checkpoint.model)
    return counted_from_zero(checkpoint, first_class)


def refuse_damaged(path: Path) -> None:
    """Raises `CheckpointError` for a file that is not what the checksum beside it says."""
    if is_damaged(path):
        raise CheckpointError(
            f"{path} is damaged: it is not what {CHECKSUMS_FILE} beside it (or its .sha256) says "
            f"(delete its line there if you changed the checkpoint yourself){advice(path)}"
        )


def refuse_not_finite(path: Path, tensors: Mapping[Any, Any]) -> None:
    """Raises `CheckpointError` where tensors hold NaN or infinity, naming the first ten."""
    numbers = {n: x for n, x in tensors.items() if isinstance(x, Tensor) and x.is_floating_point()}
    bad = [str(name) for name, tensor in numbers.items() if not tensor.isfinite().all()]
    if bad:
        named = ", ".join(bad[:10]) + (f" and {len(bad) - 10} more" if len(bad) > 10 else "")
        raise CheckpointError(
            f"{path} holds NaN or infinity in {len(bad)} of {len(tensors)} tensors: {named}; "
            "nothing can be computed with them: use a checkpoint from before the training failed"
        )


def counted_from_zero(checkpoint: Checkpoint, first: int | None = None) -> Checkpoint:
    """The checkpoint with its first class at logit 0. `first` is where the file has it; where that
    is None and the file does not say it, a warning tells what is assumed.
    """
    if first is None:
        first, sure = first_class(checkpoint.model, checkpoint.args, checkpoint.extra)
        if not sure:
            names = list((names_by_logit(checkpoint.args) or {}).values())
            why = "as its class heads show" if first else "though its class heads do not show it"
            logger.warning(
                "%s does not say which logit is its first class, %r: it is taken to be logit %d, "
                "%s (files of the published package before version 1.6 count from 1). If names are "
                "one class off, pass class_names=%r to RFDETR.from_checkpoint",
                *(checkpoint.path, names[0], first, why, dict(enumerate(names, 1 - first))),
            )
    if not first:
        return checkpoint
    model, extra = classes_from_zero(checkpoint.model), dict(checkpoint.extra)
    if extra.get("ema_model"):
        extra["ema_model"] = classes_from_zero(extra["ema_model"])
    return replace(checkpoint, model=model, extra=extra, first_class=1)


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            model = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        args = json.loads(header.pop("args", "{}"))
    except (SafetensorError, ValueError, RecursionError) as error:
        reason = f"it is damaged or no safetensors file ({error})"
        raise CheckpointError(f"{path} cannot be read: {reason}") from error
    return Checkpoint(path, _published(path, model), args if isinstance(args, dict) else {}, header)


def checkpoint_of(path: Path, content: Any) -> Checkpoint:
    """What a `torch.save` file that was read holds; `path` stands in the messages."""
    if not isinstance(content, Mapping):
        found = type(content).__name__
        raise CheckpointError(f"{path} holds a {found}; expected a dict with 'model' and 'args'")
    entries = dict(content)
    model = entries.pop("model", None)
    if model is None:
        model = entries.pop("state_dict", None)  # Lightning
    if not isinstance(model, Mapping):
        got = ", ".join(sorted(map(str, content))[:10]) or "nothing"
        raise CheckpointError(f"{path} has no tensors under 'model' or 'state_dict'; it has: {got}")
    # The published package now keeps in "args" how the model was trained, in "model_config" what
    # it is; before, all was in "args".
    told = [_plain(entries.pop(name, None)) for name in ("args", "model_config")]
    args = {key: value for part in told if isinstance(part, dict) for key, value in part.items()}
    return Checkpoint(path, _published(path, model), args, entries)


def load_content(path: Path, *, mapped: bool = True) -> Any:
    """The content of a `torch.save` file; if `mapped`, the tensors of a zip archive (all but the
    oldest files) stay on the disk. Raises `CheckpointError`, also for content that could run code.
    """
    with safe_globals(_safe_globals()):
        try:
            with open(path, "rb") as stream:
                mapped = mapped and stream.read(4) == b"PK\x03\x04"
            # torch maps no file whose name is not UTF-8: its bytes are no printable characters.
            mapped = mapped and str(path).isprintable()
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # damage makes torch raise whatever it likes
            told = str(error)
            try:
                unsafe = sorted(get_unsafe_globals_in_checkpoint(path))
            except Exception:  # noqa: BLE001 - no archive: the message names the first such type
                unsafe = re.findall(r"GLOBAL (\S+) (?:was not|whose module)", told)
            if unsafe:
                raise CheckpointError(
                    f"{path} holds objects that could run code when read, so it was refused: "
                    f"{', '.join(unsafe)}. If you trust its origin, open it with torch.load(..., "
                    "weights_only=False) in an environment that has these types, keep "
                    '{"model": ..., "args": ...} with plain values, save that and use the new file.'
                ) from error
            found = re.search(r"WeightsUnpickler error:\s+(.+)", told)  # its rest: trust the file
            reason = found[1] if found else told.partition("\n")[0]
            reason = f"it is damaged or no checkpoint ({reason})"
            raise CheckpointError(f"{path} cannot be read: {reason}") from error


def _published(path: Path, tensors: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Tensors under published names, whatever wrapped the model that was saved."""
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name!r} among the model's tensors is no named tensor")
    state: dict[str, Tensor] = dict(tensors)
    while state and (found := [w for w in _WRAPPERS if all(name.startswith(w) for name in state)]):
        state = {name.removeprefix(found[0]): tensor for name, tensor in state.items()}
    if all(our_name(name) == name for name in state):  # of ours
        state = to_published(state)
    return {name: tensor for name, tensor in state.items() if name != UNUSED}


def _plain(value: Any) -> Any:
    """Namespaces become dicts, paths strings, NumPy scalars numbers."""
    if isinstance(value, argparse.Namespace | types.SimpleNamespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, PurePath) else value


def _safe_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Types without behaviour that published files are known to hold.

    Paths are read as pure paths, so that a file from another operating system opens; Python and
    NumPy moved some of these types, and a file keeps the name that held when it was written.
    """
    numbers = [type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")]
    scalar: Any = np.float64(0).__reduce__()[0]
    moved = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    moved += [
        (pure, f"{module}.{prefix}{flavour}Path")
        for pure, flavour in ((PurePosixPath, "Posix"), (PureWindowsPath, "Windows"))
        for module in ("pathlib", "pathlib._local")
        for prefix in ("", "Pure")
    ]
    return [argparse.Namespace, types.SimpleNamespace, np.dtype, *numbers, *moved]
