"""Writing checkpoints: all or nothing, in published tensor names, readable without this package."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rfdetr._version import __version__
from rfdetr.config import ModelConfig, variant_name
from rfdetr.files import atomic_write
from rfdetr.weights.identify import SIDES
from rfdetr.weights.names import to_published

ClassNames: TypeAlias = "Sequence[str] | None"
Entries: TypeAlias = "Mapping[str, Any] | None"
RESIZE_POLICY = "bilinear-antialias-{}"
"""How images are brought to the network's size, "square" or "rectangle"; recorded in every file."""
_LIGHTNING = "2.6.4"  # whose layout of a checkpoint it is


def save_checkpoint(
    path: str | os.PathLike[str],
    detector_state: Mapping[str, Tensor],
    model_config: ModelConfig,
    class_names: ClassNames,
    extra: Entries = None,
    data: Entries = None,
) -> None:
    """Writes a `.pth` file from a detector's state dict.

    `extra` adds entries beside `model` and `args`; tensors and plain values only, since reading is
    `weights_only`. `data` adds to `args` what is known of the training data.

    Another Lightning trainer can go on from the file, the published package's too: under
    `state_dict` it finds the same tensors (stored once), and an optimizer that starts afresh.
    """
    model = published_tensors(detector_state)
    content = {
        **(extra or {}),
        "model": model,
        **description(model_config, class_names, data),
        "state_dict": {f"model.{name}": tensor for name, tensor in model.items()},
        "pytorch-lightning_version": _LIGHTNING,
        "optimizer_states": [],
        "lr_schedulers": [],
    }
    atomic_write(path, lambda stream: torch.save(content, stream), checksum=True)


def save_safetensors(  # noqa: PLR0913 - what a file holds, all but the first four by keyword
    path: str | os.PathLike[str],
    detector_state: Mapping[str, Tensor],
    model_config: ModelConfig,
    class_names: ClassNames,
    *,
    dtype: torch.dtype = torch.float32,
    notes: Entries = None,
    data: Entries = None,
) -> None:
    """Writes a `.safetensors` file: numbers as `dtype`, `notes` on its origin in the header, `data`
    as in `save_checkpoint`.
    """
    from safetensors.torch import save

    header = {"format": "pt", "args": json.dumps(checkpoint_args(model_config, class_names, data))}
    header |= {"notes": json.dumps(dict(notes))} if notes else {}
    content = save(published_tensors(detector_state, dtype), metadata=header)
    # The library writes the header's entries in any order; sorted, equal runs make equal files.
    end = 8 + int.from_bytes(content[:8], "little")
    entries = json.dumps(json.loads(content[8:end]), sort_keys=True).encode()
    entries += b" " * (-len(entries) % 8)
    content = len(entries).to_bytes(8, "little") + entries + content[end:]
    atomic_write(path, lambda stream: stream.write(content), checksum=True)


def description(config: ModelConfig, names: ClassNames, data: Entries = None) -> dict[str, Any]:
    """What a file says beside its tensors: `args`, and what the published package looks for."""
    told: dict[str, Any] = {"args": checkpoint_args(config, names, data)}
    if variant_name(config) is not None:
        told["model_name"] = type(config).__name__.removesuffix("Config")
        told["model_config"] = _fields(config)
    return told


def checkpoint_args(
    config: ModelConfig, class_names: ClassNames, data: Entries = None
) -> dict[str, Any]:
    """The `args` entry of a file: all that is needed to build the model again, as plain values."""
    shape = "square" if isinstance(config.resolution, int) else "rectangle"
    return {
        **_fields(config),
        "variant": variant_name(config),
        "class_names": None if class_names is None else list(class_names),
        "resize": RESIZE_POLICY.format(shape),
        "rfdetr_version": __version__,
        **(data or {}),
    }


def _fields(config: ModelConfig) -> dict[str, Any]:
    """The configuration; readers of published files expect the position grid to be a number, and
    the resolution too.
    """
    grid = {"positional_encoding_size": config.position_grid, "resolution": config.square}
    sides = {} if isinstance(config.resolution, int) else {SIDES: list(config.resolution)}
    return config.model_dump(mode="json") | grid | sides


def published_tensors(
    state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """A detector's tensors under published names, on the CPU, numbers as `dtype` whatever precision
    they were trained in, contiguous, and alone in their storage: a view would drag the whole
    storage into the file.
    """
    model = to_published(state)
    for name, tensor in model.items():
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        tensor = tensor.detach().cpu().contiguous().to(kind)
        shares = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
        model[name] = tensor.clone() if shares else tensor
    return model
