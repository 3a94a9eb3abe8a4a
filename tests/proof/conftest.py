"""A drawn set whose classes the bundled model knows, and that model with damaged weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rfdetr import RFDETRMini
from rfdetr.synthetic import generate

CLASSES = ["disc", "kite", "pentagon", "shield"]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14, 3 and 3 images."""
    return generate(tmp_path_factory.mktemp("drawn") / "set", 20, classes=CLASSES, plain=True)


@pytest.fixture(scope="session")
def trained() -> RFDETRMini:
    """The bundled model; it is only read."""
    return RFDETRMini()


@pytest.fixture(scope="session")
def damaged() -> RFDETRMini:
    """The bundled model whose weights are off by 0.3 of their spread: it loses 20 points of mAP."""
    return spoiled(RFDETRMini(), 0.3)


@pytest.fixture(scope="session")
def spoil() -> Callable[[RFDETRMini, float], RFDETRMini]:
    return spoiled


def spoiled(model: RFDETRMini, share: float) -> RFDETRMini:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.model.parameters():
            if parameter.dim() > 1:
                parameter.add_(share * parameter.std() * torch.randn_like(parameter))
    return model
