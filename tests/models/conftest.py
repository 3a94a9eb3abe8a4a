"""A network small enough for every test: two encoder blocks more than it needs, two groups, two
layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rfdetr.config import EncoderDims, ModelConfig
from rfdetr.models.build import build_detector
from rfdetr.models.detector import Detector


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_detector() -> Callable[..., Detector]:
    """`make_detector(num_queries=100, ...)`: the small network with some settings changed.

    Fresh weights hide much: offsets, attention weights and box deltas do not depend on the input
    yet. So all weights are stirred, unless `stir=False`.
    """

    def make(stir: bool = True, **changes: Any) -> Detector:
        settings: dict[str, Any] = {
            "out_feature_indexes": [2, 4],
            "patch_size": 8,
            "resolution": 64,
            "hidden_dim": 16,
            "sa_nheads": 2,
            "ca_nheads": 4,
            "dim_feedforward": 32,
            "num_queries": 10,
            "num_select": 10,
            "group_detr": 2,
            "num_classes": 3,
        }
        dims = EncoderDims(width=24, depth=6, heads=2)
        detector = build_detector(ModelConfig(**(settings | changes)), dims)
        if stir:
            with torch.no_grad():
                for parameter in detector.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return detector

    return make
