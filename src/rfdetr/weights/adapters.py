"""Low-rank adapters in a state of weights: how they are named, and merging them into the matrices
they change.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

RANK = 16
ALPHA = 16
_BASE = ".base_layer."
_DOWN, _UP, _MAGNITUDE = (
    ".lora_A.default.weight",
    ".lora_B.default.weight",
    ".lora_magnitude_vector.default.weight",
)


def has_adapters(state: Mapping[str, Tensor]) -> bool:
    """Whether a state holds adapters beside the weights."""
    return any(name.endswith(_MAGNITUDE) for name in state)


def merge_adapters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with each adapted matrix in place of its parts: m (W + s B A) / |W + s B A|, by row
    (arXiv 2402.09353).

    A state without adapters comes back as it is.
    """
    merged = {
        name.replace(_BASE, "."): tensor for name, tensor in state.items() if ".lora_" not in name
    }
    for name in state:
        if name.endswith(_MAGNITUDE):
            stem = name.removesuffix(_MAGNITUDE)
            weight = state[f"{stem}{_BASE}weight"]
            moved = weight + ALPHA / RANK * (state[stem + _UP] @ state[stem + _DOWN])
            merged[f"{stem}.weight"] = (
                moved * (state[name] / torch.linalg.norm(moved, dim=1))[:, None]
            )
    return merged
