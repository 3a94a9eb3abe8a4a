"""What models find in the same labelled images: how right each is, and how alike two are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rfdetr.checks import check_count, check_path
from rfdetr.console import with_progress
from rfdetr.data.dataset import DetectionDataset
from rfdetr.data.folders import Classes, Folders
from rfdetr.data.index import DatasetIndex
from rfdetr.data.transforms import EvalTransform
from rfdetr.errors import InputError, needs_extra
from rfdetr.evaluation.matching import IOU_THRESHOLD, Array
from rfdetr.geometry.boxes import elementwise_iou
from rfdetr.inference.predictor import Predictor
from rfdetr.weights.labels import are_numbers, renamed

if TYPE_CHECKING:
    from rfdetr.evaluation.metrics import Metrics

THRESHOLD = 0.3
"""Least confidence of the detections that are compared one by one."""
PIXELS, CONFIDENCE = 1.0, 0.01
"""Up to these differences of each edge and of the confidence, two detections match."""
Found = dict[str, Tensor]


@dataclass(frozen=True)
class Labelled:
    """Some images of a labelled split."""

    folder: Path
    split: str
    index: DatasetIndex
    numbers: tuple[int, ...]
    """Of the images in the index."""

    @classmethod
    def open(
        cls,
        dataset_dir: Any,
        images: int | None = 32,
        *,
        dataset_file: str = "roboflow",
        class_names: Sequence[str] | None = None,
        classes: Classes | None = None,
        masks: bool = False,
    ) -> Labelled:
        """`images` of them (None: all), evenly spread over the valid split, or over test or train
        where there is no valid one. `class_names` rename the classes; `masks` reads outlines.
        """
        folder = check_path("verify", dataset_dir)
        folders = Folders(folder, dataset_file, classes, known=True)
        split = next(name for name in ("valid", "test", "train") if name in folders.splits)
        index = folders.index(split, masks=masks)
        index = replace(index, class_names=tuple(renamed(index.class_names, class_names)))
        count = len(index) if images is None else min(check_count("images", images), len(index))
        numbers = np.linspace(0, len(index) - 1, count).round().astype(int)
        return cls(folder, split, index, tuple(numbers.tolist()))

    def paths(self) -> list[Path]:
        """The images' files, which other processes read too."""
        if self.index.packed is not None:
            raise InputError(f"{self.folder} is packed; to measure, give the folder of its images")
        return [self.index.path(number) for number in self.numbers]

    def facts(self) -> dict[str, Any]:
        """Which images these are. (The fingerprint is of the whole split's labels.)"""
        name, of = self.folder.resolve().name, len(self.index)
        facts = {"dataset": name, "split": self.split, "images": len(self.numbers), "of": of}
        return {**facts, "fingerprint": self.index.fingerprint()}


class Judged(NamedTuple):
    """What one model found."""

    metrics: Metrics
    found: list[Found]
    """By image, best first: scores (n,), labels (n,) of the model, boxes (n, 4) xyxy, pixels."""


def judge(model: Predictor, labelled: Labelled) -> Judged:
    """The figures and detections of `model`, which knows the data's classes by name, in the
    precision that `predict` has.
    """
    index = labelled.index
    dataset = DetectionDataset(index, EvalTransform(model.size), evaluation=True)
    with needs_extra("train", "a comparison"):
        from rfdetr.evaluation.evaluator import CocoEvaluator
    table = labels_in(index.class_names, model.labels)
    named = torch.tensor(list(model.labels))
    evaluator = CocoEvaluator(index.class_names, masks=index.outlines is not None)
    found: list[Found] = []
    for number in with_progress(labelled.numbers, "Comparing", len(labelled.numbers)):
        pixels, target = dataset[number]
        (one,) = model.detect(pixels[None], target["orig_size"][None])
        one = {key: value.cpu() for key, value in one.items()}
        evaluator.update([{**one, "labels": table[one["labels"]]}], [target])
        one.pop("mask_logits", None)
        shown = torch.isin(one["labels"], named)
        found.append({key: value[shown] for key, value in one.items()})
    return Judged(evaluator.compute(), found)


def labels_in(names: Sequence[str], labels: Mapping[int, str]) -> Tensor:
    """`labels_of` a model's logits among the data's `names`. `labels` that are as many numbers say
    nothing else than that they are these. `InputError` for a class that the model does not know.
    """
    with needs_extra("train", "a comparison"):
        from rfdetr.evaluation.run import labels_of

    is_open = are_numbers(labels) and len(labels) == len(names)
    return labels_of(dict(enumerate(names)) if is_open else labels, names)


class Agreement(NamedTuple):
    """How alike two models' detections are; those of `THRESHOLD` confidence or more, each paired
    with the most similar one of the same class that the other has in its place, whatever its
    confidence.
    """

    reference_detections: int
    exported_detections: int
    reference_matched: float | None
    """The share of the reference's that the exported model has within the tolerances."""
    exported_matched: float | None
    unpaired: int
    """Of either model, without one of the other in its place (IoU 0.5)."""
    largest_box_difference: float
    """Of an edge, pixels; of pairs."""
    largest_confidence_difference: float


def agreement(reference: Sequence[Found], exported: Sequence[Found]) -> Agreement:
    """Of what two models found in the same images."""
    counts: list[int] = []
    matched: list[float | None] = []
    rows: list[Array] = []
    for ones, others in ((reference, exported), (exported, reference)):
        pairs = [_pairs(one, other) for one, other in zip(ones, others, strict=True)]
        table = np.concatenate([np.zeros((0, 2)), *pairs])
        close = (table[:, 0] <= PIXELS) & (table[:, 1] <= CONFIDENCE)
        counts.append(sum(int((one["scores"] >= THRESHOLD).sum()) for one in ones))
        matched.append(round(int(close.sum()) / counts[-1], 4) if counts[-1] else None)
        rows.append(table)
    pixels, confidence = np.concatenate([np.zeros((1, 2)), *rows]).max(0).round(6).tolist()
    unpaired = sum(counts) - sum(map(len, rows))
    return Agreement(counts[0], counts[1], matched[0], matched[1], unpaired, pixels, confidence)


def _pairs(one: Found, other: Found) -> Array:
    """Differences (n, 2) in pixels and in confidence of the pairs, the most similar ones first."""
    shown = one["scores"] >= THRESHOLD
    scores, labels, boxes = (one[name][shown] for name in ("scores", "labels", "boxes"))
    pixels = (boxes[:, None] - other["boxes"]).abs().amax(-1)
    confidence = (scores[:, None] - other["scores"]).abs()
    in_place = elementwise_iou(boxes[:, None], other["boxes"])[0] >= IOU_THRESHOLD
    candidates = torch.nonzero(in_place & (labels[:, None] == other["labels"]))
    apart = torch.maximum(pixels / PIXELS, confidence / CONFIDENCE)
    taken: tuple[set[int], set[int]] = set(), set()
    pairs = []
    for row, column in candidates[apart[tuple(candidates.T)].argsort()].tolist():
        if row not in taken[0] and column not in taken[1]:
            taken[0].add(row)
            taken[1].add(column)
            pairs.append((float(pixels[row, column]), float(confidence[row, column])))
    return np.array(pairs).reshape(-1, 2)
