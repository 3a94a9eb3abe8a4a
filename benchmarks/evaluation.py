"""Seconds and peak memory of evaluating 5,000 images, 80 classes and 500,000 detections.

python benchmarks/evaluation.py
python benchmarks/evaluation.py --engine pycocotools     # the reference
python benchmarks/evaluation.py --images 1000000 --distinct 256 --rounds 1     # a stream
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import time
from pathlib import Path
from typing import Any

import _common

Batch = list[dict[str, Any]]


def make_images(
    images: int, classes: int, detections: int, objects: int = 7
) -> tuple[Batch, Batch]:
    """Detections and targets per image as arrays; every object is found, shifted by a few pixels,
    among noise.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    found, truth = [], []
    for image_id in range(images):
        corner, size = rng.uniform(0, 400, (detections, 2)), rng.uniform(5, 200, (detections, 2))
        boxes, labels = (
            np.concatenate([corner, corner + size], axis=1),
            rng.integers(0, classes, detections),
        )
        shift = rng.normal(0, 4, (objects, 4))
        truth.append(
            {
                "image_id": image_id,
                "labels": labels[:objects],
                "boxes_xyxy": boxes[:objects] + shift,
            }
        )
        scores = np.sort(rng.random(detections))[::-1].astype(np.float32)
        found.append({"scores": scores, "labels": labels, "boxes": boxes.astype(np.float32)})
    return found, truth


def evaluate_ours(found: Batch, truth: Batch, classes: int, images: int) -> dict[str, float]:
    """Tensors in batches of 16, as in training; everything that `compute` gives.

    The images come again, under other ids, until there are `images`. What the evaluation holds of
    them, and what it holds at most while it computes, is told in bytes an image.
    """
    import numpy as np
    import torch

    from rfdetr.evaluation.evaluator import CocoEvaluator

    detections = [
        {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in row.items()}
        for row in found
    ]
    size = torch.tensor([480, 640])
    targets = [
        {key: torch.as_tensor(value) for key, value in row.items()} | {"orig_size": size}
        for row in truth
    ]
    before, resident = _common.peak_memory_gb(), resident_bytes()
    start = time.perf_counter()
    evaluator = CocoEvaluator([f"class{k}" for k in range(classes)], max_dets=100)
    for first in range(0, images, 16):
        ids = range(first, min(first + 16, images))
        places = [image_id % len(targets) for image_id in ids]
        seen = zip(ids, places, strict=True)
        batch = [{**targets[k], "image_id": torch.tensor(image_id)} for image_id, k in seen]
        evaluator.update([detections[k] for k in places], batch)
    updated, held = time.perf_counter(), resident_bytes()
    metrics = evaluator.compute()
    ended, peak = time.perf_counter(), _common.peak_memory_gb() * 1e9
    figures = {"update_s": updated - start, "compute_s": ended - updated}
    figures["evaluate_s"] = ended - start
    figures["held_bytes_an_image"] = (held - resident) / images
    figures["peak_bytes_an_image"] = max(peak - resident, 0) / images
    return figures | {"peak_before_gb": before, "mAP_50_95": metrics.overall["mAP_50_95"]}


def resident_bytes() -> int:
    """What is in memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def evaluate_pycocotools(found: Batch, truth: Batch, classes: int) -> dict[str, float]:
    """The same boxes; its figures only (no F1, no confusion matrix)."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    before = _common.peak_memory_gb()
    start = time.perf_counter()
    notes: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for seen, wanted in zip(found, truth, strict=True):
        shared = {"image_id": wanted["image_id"], "iscrowd": 0}
        for label, (x1, y1, x2, y2) in zip(
            wanted["labels"].tolist(), wanted["boxes_xyxy"].tolist(), strict=True
        ):
            note = {
                "category_id": label,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
            }
            notes.append(shared | note | {"id": len(notes) + 1})
        rows = zip(*(seen[key].tolist() for key in ("labels", "scores", "boxes")), strict=True)
        for label, score, (x1, y1, x2, y2) in rows:
            box = [x1, y1, x2 - x1, y2 - y1]
            results.append(
                {"image_id": wanted["image_id"], "category_id": label, "bbox": box, "score": score}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        categories = [{"id": k, "name": f"class{k}"} for k in range(classes)]
        images = [{"id": k} for k in range(len(truth))]
        coco.dataset = {"images": images, "categories": categories, "annotations": notes}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    seconds = time.perf_counter() - start
    return {
        "evaluate_s": seconds,
        "peak_before_gb": before,
        "mAP_50_95": float(evaluation.stats[0]),
    }


def work(args: argparse.Namespace) -> dict[str, float]:
    """One evaluation by one engine in this process."""
    distinct = min(args.distinct or args.images, args.images)
    found, truth = make_images(distinct, args.classes, args.detections)
    if args.engine == "ours":
        figures = evaluate_ours(found, truth, args.classes, args.images)
    else:
        figures = evaluate_pycocotools(found, truth, args.classes)
    return figures | {
        "peak_gb": _common.peak_memory_gb(),
        "boxes": float(args.images * args.detections),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Size of the task, and who does it."""
    parser.add_argument("--engine", choices=["ours", "pycocotools"], default="ours")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--distinct", type=int, help="images made; the rest are these again")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--detections", type=int, default=100, help="per image")


if __name__ == "__main__":
    _common.main(work, add_arguments)
