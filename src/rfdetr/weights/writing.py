"""Writing checkpoints: all or nothing, in published tensor names, readable without this package."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from rfdetr._version import __version__
from rfdetr.config import ModelConfig, variant_name
from rfdetr.weights.names import to_published

RESIZE_POLICY = "bilinear-antialias-square"
"""How images are brought to the network's size; recorded in every file."""


def atomic_write(path: str | os.PathLike[str], writer: Callable[[BinaryIO], object]) -> None:
    """Writes a file so that a reader, or a crash, meets the old content or the new, never a part.

    The temporary file lies beside `path` under a name of its own; a symbolic link at `path` is replaced, not followed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as stream:
            writer(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:  # an interrupt, too, must leave no temporary file behind
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def save_checkpoint(
    path: str | os.PathLike[str],
    detector_state: Mapping[str, Tensor],
    model_config: ModelConfig,
    class_names: Sequence[str] | None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a `.pth` file from a detector's state dict.

    `extra` adds entries beside `model` and `args`; tensors and plain values only, since reading is `weights_only`.
    """
    model = {name: _owned(tensor) for name, tensor in to_published(dict(detector_state)).items()}
    content = {**(extra or {}), "model": model, "args": checkpoint_args(model_config, class_names)}
    atomic_write(path, lambda stream: torch.save(content, stream))


def save_safetensors(
    path: str | os.PathLike[str],
    detector_state: Mapping[str, Tensor],
    model_config: ModelConfig,
    class_names: Sequence[str] | None,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes a `.safetensors` file: floating-point tensors as `dtype` if given, `notes` on its origin in the header."""
    from safetensors.torch import save

    model = {name: _owned(tensor) for name, tensor in to_published(dict(detector_state)).items()}
    if dtype is not None:
        model = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in model.items()}
    header = {"format": "pt", "args": json.dumps(checkpoint_args(model_config, class_names))}
    header |= {"notes": json.dumps(dict(notes))} if notes else {}
    content = save(model, metadata=header)
    atomic_write(path, lambda stream: stream.write(content))


def checkpoint_args(model_config: ModelConfig, class_names: Sequence[str] | None) -> dict[str, Any]:
    """The `args` entry of a file: all that is needed to build the model again, as plain values."""
    return {
        **model_config.model_dump(mode="json"),
        "positional_encoding_size": model_config.position_grid,  # readers of published files expect a number
        "variant": variant_name(model_config),
        "class_names": None if class_names is None else list(class_names),
        "resize": RESIZE_POLICY,
        "rfdetr_version": __version__,
    }


def _owned(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, contiguous and alone in its storage: a view would drag the whole storage into the file."""
    tensor = tensor.detach().cpu().contiguous()
    shares = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
    return tensor.clone() if shares else tensor


def _sync_directory(folder: Path) -> None:
    """Makes the rename itself survive a power cut, where the system can."""
    with suppress(OSError):  # Windows opens no directories, some network file systems sync none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
