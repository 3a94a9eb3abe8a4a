"""The tiny model that tests train: 64 pixels, ten queries, a second or less an epoch."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "resolution": 64,
    "hidden_dim": 32,
    "sa_nheads": 4,
    "ca_nheads": 4,
    "dim_feedforward": 64,
    "dec_layers": 1,
    "num_queries": 10,
    "num_select": 10,
    "group_detr": 2,
    "pretrain_weights": None,
}
"""Settings over those of a Mini, of boxes or of masks."""
