"""Training on PyTorch Lightning: `module`, `datamodule` and `build_trainer` are the three objects
of a run.

The public names load on first use, so this package imports in no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfdetr.training.callbacks import (
        BestModelCallback,
        COCOEvalCallback,
        DropPathCallback,
        RFDETREarlyStopping,
        RFDETREMACallback,
    )
    from rfdetr.training.checkpoints import convert_legacy_checkpoint
    from rfdetr.training.datamodule import RFDETRDataModule
    from rfdetr.training.module import RFDETRModelModule, RFDETRModule
    from rfdetr.training.trainer import build_trainer
    from rfdetr.training.verify import verify_resume

_HOMES = {
    "RFDETRModule": "rfdetr.training.module",
    "RFDETRDataModule": "rfdetr.training.datamodule",
    "build_trainer": "rfdetr.training.trainer",
    "verify_resume": "rfdetr.training.verify",
    "convert_legacy_checkpoint": "rfdetr.training.checkpoints",
    "RFDETRModelModule": "rfdetr.training.module",
    "RFDETREMACallback": "rfdetr.training.callbacks",
    "DropPathCallback": "rfdetr.training.callbacks",
    "COCOEvalCallback": "rfdetr.training.callbacks",
    "BestModelCallback": "rfdetr.training.callbacks",
    "RFDETREarlyStopping": "rfdetr.training.callbacks",
}

__all__ = [
    "BestModelCallback",
    "COCOEvalCallback",
    "DropPathCallback",
    "RFDETRDataModule",
    "RFDETREMACallback",
    "RFDETREarlyStopping",
    "RFDETRModelModule",
    "RFDETRModule",
    "build_trainer",
    "convert_legacy_checkpoint",
    "verify_resume",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rfdetr.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
