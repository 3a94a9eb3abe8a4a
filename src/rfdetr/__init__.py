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
    from rfdetr.variants import *

__all__ = [
    "RFDETR",
    "RFDETRBase",
    "RFDETRLarge",
    "RFDETRLargeDeprecated",
    "RFDETRMedium",
    "RFDETRMini",
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
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("rfdetr.variants"), name)
    raise AttributeError(f"module 'rfdetr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
