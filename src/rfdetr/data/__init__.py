"""Data: labelled folders in COCO or YOLO layout, indexed once, decoded and augmented on the fly,
batched as uint8.

`check(dataset_dir)` is the dataset doctor; it loads on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfdetr.doctor.check import check

__all__ = ["check"]


def __getattr__(name: str) -> Any:
    if name == "check":
        from rfdetr.doctor.check import check

        return check
    raise AttributeError(f"module 'rfdetr.data' has no attribute {name!r}")
