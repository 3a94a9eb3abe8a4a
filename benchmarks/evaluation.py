"""Seconds and peak memory of evaluating 5,000 images, 80 classes and 500,000 detections.

python benchmarks/evaluation.py
python benchmarks/evaluation.py --engine pycocotools     # the reference
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
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


def evaluate_ours(found: Batch, truth: Batch, classes: int) -> dict[str, float]:
    """Tensors in batches of 16, as in training; everything that `compute` gives."""
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
    before = _common.peak_memory_gb()
    start = time.perf_counter()
    evaluator = CocoEvaluator([f"class{k}" for k in range(classes)], max_dets=100)
    for k in range(0, len(targets), 16):
        evaluator.update(detections[k : k + 16], targets[k : k + 16])
    updated = time.perf_counter()
    metrics = evaluator.compute()
    ended = time.perf_counter()
    figures = {"update_s": updated - start, "compute_s": ended - updated}
    figures["evaluate_s"] = ended - start
    return figures | {"peak_before_gb": before, "mAP_50_95": metrics.overall["mAP_50_95"]}


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
    found, truth = make_images(args.images, args.classes, args.detections)
    engine = evaluate_ours if args.engine == "ours" else evaluate_pycocotools
    figures = engine(found, truth, args.classes)
    return figures | {
        "peak_gb": _common.peak_memory_gb(),
        "boxes": float(args.images * args.detections),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Size of the task, and who does it."""
    parser.add_argument("--engine", choices=["ours", "pycocotools"], default="ours")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--detections", type=int, default=100, help="per image")


if __name__ == "__main__":
    _common.main(work, add_arguments)
