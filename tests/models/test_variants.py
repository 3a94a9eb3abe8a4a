"""Every published variant: parameter count, tensor names and shapes; ours: its size."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rfdetr.config import VARIANTS, ModelConfig
from rfdetr.models.build import build_detector
from rfdetr.weights.names import from_published, to_published

LAYOUTS = json.loads((Path(__file__).parents[1] / "golden" / "layouts.json").read_text())
PUBLISHED = {name: cls for name, cls in VARIANTS.items() if "mini" not in name}


@pytest.mark.parametrize("config_class", PUBLISHED.values(), ids=PUBLISHED)
def test_published_layout(config_class: type[ModelConfig]) -> None:
    layout = LAYOUTS[config_class.__name__]
    with torch.device("meta"):
        detector = build_detector(config_class(pretrain_weights=None))
    state = detector.state_dict()
    published = to_published(state)
    assert {name: list(tensor.shape) for name, tensor in published.items()} == layout["state_dict"]
    assert sum(p.numel() for p in detector.parameters()) == layout["num_parameters"]
    back = from_published(published)
    assert {name: x.shape for name, x in back.items()} == {
        name: x.shape for name, x in state.items()
    }


@pytest.mark.parametrize("config_class", PUBLISHED.values(), ids=PUBLISHED)
def test_published_configuration(config_class: type[ModelConfig]) -> None:
    published: dict[str, Any] = LAYOUTS[config_class.__name__]["config"]
    config = config_class()
    shared = set(published) & set(ModelConfig.model_fields) - {
        "pretrain_weights",
        "positional_encoding_size",
    }
    assert {name: getattr(config, name) for name in shared} == {
        name: published[name] for name in shared
    }
    assert config.position_grid == published["positional_encoding_size"]


@pytest.mark.parametrize(("name", "most"), [("mini", 3_000_000), ("seg-mini", 3_200_000)])
def test_ours_stay_small(name: str, most: int) -> None:
    with torch.device("meta"):
        detector = build_detector(VARIANTS[name]())
    assert sum(math.prod(p.shape) for p in detector.parameters()) < most
