"""Writing checkpoints: all or nothing, in published tensor names, readable without this package."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rfdetr._version import __version__
from rfdetr.config import ModelConfig, variant_name
from rfdetr.files import atomic_write
from rfdetr.weights.names import to_published

RESIZE_POLICY = "bilinear-antialias-square"
"""How images are brought to the network's size; recorded in every file."""


def save_checkpoint(
    path: str | os.PathLike[str],
    detector_state: Mapping[str, Tensor],
    model_config: ModelConfig,
    class_names: Sequence[str] | None,
    extra: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Writes a `.pth` file from a detector's state dict.

    `extra` adds entries beside `model` and `args`; tensors and plain values only, since reading is
    `weights_only`. `data` adds to `args` what is known of the training data.
    """
    model = {name: _owned(tensor) for name, tensor in to_published(dict(detector_state)).items()}
    content = {**(extra or {}), "model": model, **description(model_config, class_names, data)}
    atomic_write(path, lambda stream: torch.save(content, stream), checksum=True)


def save_safetensors(  # noqa: PLR0913 - what a file holds, all but the first four by keyword
    path: str | os.PathLike[str],
    detector_state: Mapping[str, Tensor],
    model_config: ModelConfig,
    class_names: Sequence[str] | None,
    *,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Writes a `.safetensors` file: floating-point tensors as `dtype` if given, `notes` on its
    origin in the header.
    """
    from safetensors.torch import save

    model = {name: _owned(tensor) for name, tensor in to_published(dict(detector_state)).items()}
    if dtype is not None:
        model = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in model.items()
        }
    header = {"format": "pt", "args": json.dumps(checkpoint_args(model_config, class_names, data))}
    header |= {"notes": json.dumps(dict(notes))} if notes else {}
    content = _in_order(save(model, metadata=header))
    atomic_write(path, lambda stream: stream.write(content), checksum=True)


def _in_order(content: bytes) -> bytes:
    """The same file with the header sorted, which the library leaves in any order: equal runs make
    equal files.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def description(
    model_config: ModelConfig,
    class_names: Sequence[str] | None,
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a file says beside its tensors: `args`, and what `from_checkpoint` of the published
    package looks for.
    """
    told = {"args": checkpoint_args(model_config, class_names, data)}
    if variant_name(model_config) is None:
        return told
    fields = {
        **model_config.model_dump(mode="json"),
        "positional_encoding_size": model_config.position_grid,
    }
    return {
        **told,
        "model_name": type(model_config).__name__.removesuffix("Config"),
        "model_config": fields,
    }


def checkpoint_args(
    model_config: ModelConfig,
    class_names: Sequence[str] | None,
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The `args` entry of a file: all that is needed to build the model again, as plain values."""
    return {
        **model_config.model_dump(mode="json"),
        "positional_encoding_size": model_config.position_grid,  # readers of published files expect a number
        "variant": variant_name(model_config),
        "class_names": None if class_names is None else list(class_names),
        "resize": RESIZE_POLICY,
        "rfdetr_version": __version__,
        **(data or {}),
    }


def _owned(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, contiguous and alone in its storage: a view would drag the whole
    storage into the file.

    Numbers are float32, as in published files, whatever precision they were trained in.
    """
    tensor = tensor.detach().cpu().contiguous()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    shares = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
    return tensor.clone() if shares else tensor
