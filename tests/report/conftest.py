"""Splits whose detections are known, judged as a run's are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rfdetr.data.index import DatasetIndex
from rfdetr.data.layout import find_splits, load_index
from rfdetr.evaluation.evaluator import CocoEvaluator
from rfdetr.report.judged import Judged

Change = Callable[[np.random.Generator, dict[str, np.ndarray]], dict[str, np.ndarray]]


@pytest.fixture(scope="session")
def index(
    write_coco: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> DatasetIndex:
    """The valid split of eighty small pictures: 120 objects of three classes."""
    root = write_coco(tmp_path_factory.mktemp("report") / "coco", {"train": 2, "valid": 80})
    return load_index(find_splits(root), "valid")


def found_in(index: DatasetIndex, seed: int = 0) -> list[dict[str, Any]]:
    """A good detector's answers on the true labels: each object a little off, and some noise."""
    rng, answers = np.random.default_rng(seed), []
    for image in range(len(index)):
        rows = index.rows(image)
        boxes, labels = index.boxes[rows], index.labels[rows]
        noise = np.array([[0, 0, 9, 9], [50, 35, 62, 46]], np.float32)
        scores = np.concatenate([rng.uniform(0.6, 0.95, len(boxes)), rng.uniform(0.05, 0.3, 2)])
        answers.append(
            {
                "scores": torch.from_numpy(scores.astype(np.float32)),
                "labels": torch.from_numpy(np.concatenate([labels, rng.integers(0, 3, 2)])),
                "boxes": torch.from_numpy(
                    np.concatenate([boxes + rng.uniform(-0.7, 0.7, boxes.shape), noise])
                ).float(),
            }
        )
    return answers


def judged(index: DatasetIndex, answers: list[dict[str, Any]], split: str = "valid") -> Judged:
    """Answers to the images of an index, beside its labels."""
    evaluator = CocoEvaluator(index.class_names)
    for image, found in enumerate(answers):
        rows = index.rows(image)
        target = {
            "image_id": torch.tensor(int(index.image_ids[image])),
            "orig_size": torch.from_numpy(index.sizes[image]),
            "labels": torch.from_numpy(index.labels[rows]),
            "boxes_xyxy": torch.from_numpy(index.boxes[rows]),
            "tone": torch.tensor([image + 100.0, -image]),
        }
        evaluator.update([found], [target])
    return Judged.join(split, index, evaluator.compute())


def with_rows(index: DatasetIndex, rows: np.ndarray, **columns: np.ndarray) -> DatasetIndex:
    """The index with some of its labels (in order), of which columns are as given."""
    image = np.repeat(np.arange(len(index)), np.diff(index.offsets))[rows]
    counts = np.bincount(image, minlength=len(index))
    kept = {name: getattr(index, name)[rows] for name in ("boxes", "labels", "crowd", "areas")}
    return replace(index, offsets=np.cumsum([0, *counts]), **{**kept, **columns})
