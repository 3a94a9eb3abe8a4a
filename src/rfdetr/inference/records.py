"""Detections as plain values for JSON: those of predictions.json and of a server's answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rfdetr.geometry.rle import compress, runs_of_bitmap

if TYPE_CHECKING:
    from supervision import Detections


def objects_of(detections: Detections, size: tuple[int, int]) -> list[dict[str, Any]]:
    """A dict for each object of an image of (height, width): class, confidence, box in pixels and,
    where it has a mask, COCO's compressed run lengths.
    """
    objects = []
    found: Any = detections  # supervision types ids and confidences as perhaps missing
    for box, mask, confidence, class_id, _, data in found:
        entry = {
            "class_id": int(class_id),
            "class_name": str(data["class_name"]),
            "confidence": round(float(confidence), 4),
            "box_xyxy": [round(float(value), 2) for value in box],
        }
        if mask is not None:
            counts = compress(runs_of_bitmap(mask)).decode()
            entry["mask_rle"] = {"size": [*size], "counts": counts}
        objects.append(entry)
    return objects
