"""Training on PyTorch Lightning. The three objects of a run are `RFDETRModule`, `RFDETRDataModule`
and the trainer of `build_trainer`.

The public names load on first use, so this package imports in no time.
"""

# ruff: noqa: F403, F405 - type checkers follow the star, and see what `__all__` names

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rfdetr.moved import missing

if TYPE_CHECKING:
    from pytorch_lightning import seed_everything

    from rfdetr.training.callbacks import *
    from rfdetr.training.checkpoints import convert_legacy_checkpoint
    from rfdetr.training.datamodule import RFDETRDataModule
    from rfdetr.training.module import RFDETRModelModule, RFDETRModule
    from rfdetr.training.trainer import build_trainer
    from rfdetr.training.verify import verify_resume

__all__ = ["BestModelCallback", "COCOEvalCallback", "DropPathCallback", "RFDETRDataModule"]
__all__ += ["RFDETREMACallback", "RFDETREarlyStopping", "RFDETRModelModule", "RFDETRModule"]
__all__ += ["build_trainer", "convert_legacy_checkpoint", "seed_everything", "verify_resume"]
# Where names come from; all others are in `callbacks`.
_HOMES = {
    **{"RFDETRDataModule": "datamodule", "RFDETRModule": "module", "RFDETRModelModule": "module"},
    **{"build_trainer": "trainer", "convert_legacy_checkpoint": "checkpoints"},
    **{"verify_resume": "verify", "seed_everything": "trainer"},
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise missing(__name__, name)
    home = importlib.import_module(f"rfdetr.training.{_HOMES.get(name, 'callbacks')}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return __all__
