"""RF-DETR fine-tuning: labelled images in, a trained detector and its proof out.

The public names load on first use, so `import rfdetr` costs nothing. Configuration classes live in
`rfdetr.config`, the training objects in `rfdetr.training`.
"""

# ruff: noqa: F403, F405 - type checkers follow the star, and see what `__all__` names

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rfdetr._version import __version__

if TYPE_CHECKING:
    from rfdetr.published import ModelContext
    from rfdetr.training import RFDETRDataModule, RFDETRModule, build_trainer
    from rfdetr.variants import *

    RFDETRModelModule = RFDETRModule
    from_checkpoint = RFDETR.from_checkpoint

__all__ = [
    "RFDETR",
    "ModelContext",
    "RFDETRBase",
    "RFDETRDataModule",
    "RFDETRLarge",
    "RFDETRLargeDeprecated",
    "RFDETRMedium",
    "RFDETRMini",
    "RFDETRModelModule",
    "RFDETRModule",
    "RFDETRNano",
    "RFDETRSeg2XLarge",
    "RFDETRSegLarge",
    "RFDETRSegMedium",
    "RFDETRSegMini",
    "RFDETRSegNano",
    "RFDETRSegPreview",
    "RFDETRSegSmall",
    "RFDETRSegXLarge",
    "RFDETRSmall",
    "__version__",
    "build_trainer",
    "from_checkpoint",
]
_ROOMS = [
    "assets",
    "config",
    "data",
    "datasets",
    "detr",
    "inference",
    "models",
    "training",
    "utilities",
    "variants",
]
_TRAINING = ("RFDETRDataModule", "RFDETRModelModule", "RFDETRModule", "build_trainer")


def __getattr__(name: str) -> Any:
    if name in _TRAINING:
        name = name.replace("ModelModule", "Module")  # its published name
        return getattr(importlib.import_module("rfdetr.training"), name)
    if name == "from_checkpoint":
        return importlib.import_module("rfdetr.variants").RFDETR.from_checkpoint
    if name in __all__:
        return getattr(importlib.import_module("rfdetr.detr"), name)
    if name in _ROOMS:
        return importlib.import_module(f"rfdetr.{name}")
    from rfdetr.moved import missing

    raise missing("rfdetr", name)


def __dir__() -> list[str]:
    return __all__
