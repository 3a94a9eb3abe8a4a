"""Random detection sets, and pycocotools as the oracle."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from rfdetr.evaluation.evaluator import CocoEvaluator


@dataclass
class DetectionSet:
    """Detections and targets as the evaluator takes them, one of each per image."""

    class_names: list[str]
    detections: list[dict[str, Tensor]] = field(default_factory=list)
    targets: list[dict[str, Tensor]] = field(default_factory=list)


def random_set(seed: int, images: int = 16, classes: int = 5, ties: bool = False) -> DetectionSet:
    """Jittered copies of the objects among noise, some of a wrong class; crowds; the last class has
    no object.

    Image 0 is empty, image 1 has no detections, image 2 no objects. `ties` rounds scores and boxes
    to force equals.
    """
    rng = np.random.default_rng(seed)
    made = DetectionSet([f"class {label}" for label in range(classes)])
    for index in range(images):
        objects = 0 if index in (0, 2) else int(rng.integers(1, 12))
        truth, labels = random_boxes(rng, objects), rng.integers(0, classes - 1, objects)
        copies = np.repeat(np.arange(objects), rng.integers(0, 4, objects))
        found = np.concatenate(
            [truth[copies] + rng.normal(0, 6, (copies.size, 4)), random_boxes(rng, 8)]
        )
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        # Label `classes` names no class.
        guessed = np.concatenate([labels[copies], rng.integers(0, classes + 1, 8)])
        guessed = np.where(
            rng.random(guessed.size) < 0.2, rng.integers(0, classes, guessed.size), guessed
        )
        scores = rng.random(guessed.size)
        if ties:
            truth, found, scores = (
                truth.round(-1),
                found.round(-1) + np.array([0, 0, 10, 10]),
                scores.round(1),
            )
        shown = slice(0, 0) if index in (0, 1) else slice(None)
        made.detections.append(detection(scores[shown], guessed[shown], found[shown]))
        made.targets.append(target(index + 7, labels, truth, rng.random(objects) < 0.15))
    return made


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """xyxy pixels in a 640 x 480 image, of all three COCO sizes."""
    size = np.exp(rng.uniform(np.log(8), np.log(250), (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * (np.array([640, 480]) - size)
    return np.concatenate([corner, corner + size], axis=1)


def detection(scores: object, labels: object, boxes: object) -> dict[str, Tensor]:
    return {
        "scores": torch.as_tensor(np.asarray(scores), dtype=torch.float32).reshape(-1),
        "labels": torch.as_tensor(np.asarray(labels), dtype=torch.int64).reshape(-1),
        "boxes": torch.as_tensor(np.asarray(boxes), dtype=torch.float32).reshape(-1, 4),
    }


def target(
    image_id: int, labels: object, boxes_xyxy: object, crowd: object = None
) -> dict[str, Tensor]:
    boxes = torch.as_tensor(np.asarray(boxes_xyxy), dtype=torch.float64).reshape(-1, 4)
    labels = torch.as_tensor(np.asarray(labels), dtype=torch.int64).reshape(-1)
    return {
        "image_id": torch.tensor(image_id),
        "orig_size": torch.tensor([480, 640]),
        "labels": labels,
        "boxes_xyxy": boxes,
        "area": (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        * 0.7,  # as of a segment: smaller than the box
        "iscrowd": torch.zeros(len(labels), dtype=torch.bool)
        if crowd is None
        else torch.as_tensor(np.asarray(crowd)),
    }


def pycocotools_eval(made: DetectionSet, max_dets: int) -> COCOeval:
    """The reference's accumulated evaluation, over its standard figures."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), []
        truth.dataset = {
            "images": [{"id": int(t["image_id"])} for t in made.targets],
            "categories": [{"id": k, "name": name} for k, name in enumerate(made.class_names)],
            "annotations": [],
        }
        for seen, wanted in zip(made.detections, made.targets, strict=True):
            image_id = int(wanted["image_id"])
            for k, (x1, y1, x2, y2) in enumerate(wanted["boxes_xyxy"].tolist()):
                box, label = [x1, y1, x2 - x1, y2 - y1], int(wanted["labels"][k])
                note = {"image_id": image_id, "category_id": label, "bbox": box}
                note |= {"area": float(wanted["area"][k]), "iscrowd": int(wanted["iscrowd"][k])}
                truth.dataset["annotations"].append(
                    note | {"id": len(truth.dataset["annotations"]) + 1}
                )
            for label, score, (x1, y1, x2, y2) in zip(
                seen["labels"].tolist(),
                seen["scores"].tolist(),
                seen["boxes"].tolist(),
                strict=True,
            ):
                box = [x1, y1, x2 - x1, y2 - y1]
                found.append(
                    {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
                )
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found) if found else COCO(), "bbox")
        evaluation.params.imgIds = [int(t["image_id"]) for t in made.targets]
        evaluation.params.maxDets = [max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


@pytest.fixture(
    params=[(0, False), (1, False), (2, True), (3, True)], ids=["a", "b", "ties-a", "ties-b"]
)
def made(request: pytest.FixtureRequest) -> DetectionSet:
    seed, ties = request.param
    return random_set(seed, ties=ties)


@pytest.fixture(scope="session")
def sets() -> SimpleNamespace:
    """The functions above; test modules cannot import one another."""
    return SimpleNamespace(
        DetectionSet=DetectionSet,
        random_set=random_set,
        detection=detection,
        target=target,
        pycocotools_eval=pycocotools_eval,
        evaluated=evaluated,
    )


def evaluated(made: DetectionSet, max_dets: int = 500) -> CocoEvaluator:
    evaluator = CocoEvaluator(made.class_names, max_dets)
    evaluator.update(made.detections, made.targets)
    return evaluator
