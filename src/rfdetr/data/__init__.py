"""Data: labelled folders in COCO or YOLO layout, indexed once, then read image by image.

The life of an image, and the file in which each step is:

1. `layout` finds the split, `coco` or `yolo` reads its labels, and `index` packs them into a few
   flat arrays (`DatasetIndex`), boxes clipped to their image. Of images, only headers are read.
2. `loaders`: an `EpochSampler` orders the epoch and hands out keys (epoch, image, size).
3. `dataset`, in a worker process: the file is decoded to upright RGB (H, W, 3) by `images`; a
   generator keyed by (seed, epoch, image) makes what follows repeatable.
4. `transforms`: one crop of the original is drawn, and mirrored or not; pixels are resized once, to
   (3, size, size) uint8, and boxes become cxcywh relative to the crop.
5. `collate`: images are stacked to (B, 3, size, size), each with a `Target`. They go to the device
   as uint8, a quarter of what floats take, and are normalised there by `images.normalize`.

`check(dataset_dir)` is the dataset doctor; it loads on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfdetr.doctor.check import check

__all__ = ["check"]


def __getattr__(name: str) -> Any:
    if name != "check":
        raise AttributeError(f"module 'rfdetr.data' has no attribute {name!r}")
    from rfdetr.doctor.check import check

    return check
