"""A detector of a few thousand parameters, and the published layouts of the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rfdetr.config import EncoderDims, ModelConfig
from rfdetr.models.build import build_detector
from rfdetr.models.detector import Detector

TINY = {
    "out_feature_indexes": [1, 2],
    "resolution": 64,
    "hidden_dim": 16,
    "sa_nheads": 4,
    "ca_nheads": 4,
    "dim_feedforward": 32,
    "num_queries": 6,
    "num_select": 6,
    "group_detr": 3,
    "num_classes": 4,
}


class Tiny:
    """Builds tiny detectors that differ from the usual tiny one in the fields given."""

    def config(self, **changes: Any) -> ModelConfig:
        return ModelConfig(**{**TINY, **changes})

    def detector(self, config: ModelConfig, seed: int = 0) -> Detector:
        torch.manual_seed(seed)
        detector = build_detector(config, EncoderDims(width=24, depth=2, heads=3))
        with (
            torch.no_grad()
        ):  # nothing at its initial zero or one, so that a tensor not loaded shows
            for parameter in detector.parameters():
                parameter.add_(torch.randn_like(parameter))
        return detector


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def layouts(golden_dir: Path) -> dict[str, Any]:
    """Published variants by configuration class: `config`, `state_dict` (name -> shape). Key points
    are not ours.
    """
    layouts: dict[str, Any] = json.loads((golden_dir / "layouts.json").read_text())
    return {name: layout for name, layout in layouts.items() if "Keypoint" not in name}


@pytest.fixture(scope="session")
def weightless() -> Any:
    """A published state of full-size tensors that take no memory: each repeats a single zero."""

    def build(layout: dict[str, Any]) -> dict[str, Tensor]:
        return {name: torch.zeros(()).expand(shape) for name, shape in layout["state_dict"].items()}

    return build
