"""Figures of one kind of shape, boxes or masks, over a stream of images: COCO's, F1 and the
confusion matrix.

Average precision and recall are hotcoco's, equal to pycocotools. Kept per image is only what the
final count needs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from hotcoco import Params, StreamingEval
from hotcoco.primitives import bbox_iou, mask_iou

from rfdetr.evaluation.f1 import F1Sweep, sweep_f1
from rfdetr.evaluation.matching import IOU_THRESHOLD, Array, ImageRecord, MatchTable
from rfdetr.evaluation.metrics import ClassMetrics, Metrics

COCO_MAX_DETS = 100
_ALL, _SMALL, _MEDIUM, _LARGE = range(
    4
)  # area ranges: below 32^2, to 96^2, above, in pixels of the original image
_IOU_50, _IOU_75 = 0, 5  # positions in IoU 0.50:0.05:0.95


class Found(NamedTuple):
    """What was detected in an image."""

    scores: Array  # (D,)
    labels: Array  # (D,)
    boxes: Array  # (D, 4) xywh, float64 as the reference computes
    masks: Sequence[dict[str, Any]] = ()  # run lengths, as COCO's tools take them


class Truth(NamedTuple):
    """The objects of an image."""

    labels: Array  # (T,)
    boxes: Array  # (T, 4) xywh
    crowd: Array  # (T,) bool: neither found nor missed, and what lies on it is no mistake
    areas: Array  # (T,)
    masks: Sequence[dict[str, Any]] = ()


class MatchStream:
    """Matches images as they come; an image seen twice counts once."""

    def __init__(self, class_names: Sequence[str], max_dets: int, masks: bool) -> None:
        self.class_names = list(class_names)
        self.max_dets = max_dets
        self.masks = masks
        kind = "segm" if masks else "bbox"
        params = Params(kind)
        params.max_dets = _max_dets_grid(max_dets)
        categories = [{"id": label, "name": name} for label, name in enumerate(self.class_names)]
        self._stream = StreamingEval(categories, kind, params=params)
        self._records: dict[int, ImageRecord] = {}  # by image id

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._records

    def add(self, image_id: int, size: tuple[int, int], found: Found, truth: Truth) -> None:
        """Take an image of (height, width)."""
        rows = zip(
            truth.labels.tolist(),
            truth.boxes.tolist(),
            truth.areas.tolist(),
            truth.crowd.tolist(),
            strict=True,
        )
        truths: list[dict[str, Any]] = [
            {
                "image_id": image_id,
                "category_id": label,
                "bbox": box,
                "area": area,
                "iscrowd": int(is_crowd),
            }
            for label, box, area, is_crowd in rows
        ]
        for entry, mask in zip(truths, truth.masks, strict=self.masks):
            entry["segmentation"] = mask
        image = {"id": image_id, "height": size[0], "width": size[1]}
        self._stream.update([image], truths, self._detections(image_id, found))

        kept = _highest_per_class(found.scores, found.labels, self.max_dets)
        if self.masks:
            iou = mask_iou([found.masks[row] for row in kept], truth.masks, truth.crowd)
        else:
            iou = bbox_iou(found.boxes[kept], truth.boxes, truth.crowd)
        iou = iou.reshape(
            len(kept), len(truth.labels)
        )  # of a crowd: share of the detection inside it
        pair_detection, pair_truth = np.nonzero(iou >= IOU_THRESHOLD)
        self._records[image_id] = ImageRecord(
            scores=found.scores[kept].astype(np.float32),
            labels=found.labels[kept].astype(np.int32),
            truth_labels=truth.labels.astype(np.int32),
            truth_crowd=truth.crowd,
            pair_detection=pair_detection.astype(np.int32),
            pair_truth=pair_truth.astype(np.int32),
            pair_iou=iou[pair_detection, pair_truth],
        )

    def _detections(self, image_id: int, found: Found) -> Any:
        """Rows of a table for boxes; records for masks, whose area is then that of the mask, not of
        a box.
        """
        if not self.masks:
            image_ids = np.full(found.scores.size, float(image_id))
            return np.column_stack(
                [image_ids, found.boxes, found.scores, found.labels]
            )  # (D, 7) float64
        return [
            {"image_id": image_id, "category_id": label, "segmentation": mask, "score": score}
            for label, mask, score in zip(
                found.labels.tolist(), found.masks, found.scores.tolist(), strict=True
            )
        ]

    @classmethod
    def merge(cls, parts: Sequence[MatchStream]) -> MatchStream:
        """One stream over the images of all; they must have been made with the same arguments."""
        merged = cls(parts[0].class_names, parts[0].max_dets, parts[0].masks)
        merged._stream = StreamingEval.merge([part._stream for part in parts])
        for part in reversed(parts):  # as in the stream, the first record of an image stays
            merged._records |= part._records
        return merged

    def compute(self) -> Metrics:
        """All figures of the images seen so far."""
        evaluation = copy.copy(self._stream).finalize()  # finalize spends the object
        evaluation.accumulate()
        arrays: dict[str, Any] = evaluation.eval or {}
        grid = _max_dets_grid(self.max_dets)
        at = grid.index(self.max_dets)
        precision: Array = arrays["precision"][
            ..., at
        ]  # (IoU 10, recall 101, K, area 4); -1: no such object
        recall: Array = arrays["recall"][..., at]  # (IoU 10, K, area 4)

        num_classes = len(self.class_names)
        table = MatchTable.from_records(self._records.values())
        sweep = sweep_f1(table, num_classes)
        per_class = self._per_class(precision, recall, sweep, table)
        overall = {
            "mAP_50_95": _mean(precision[..., _ALL]),
            "mAP_50": _mean(precision[_IOU_50, ..., _ALL]),
            "mAP_75": _mean(precision[_IOU_75, ..., _ALL]),
            "mAP_small": _mean(precision[..., _SMALL]),
            "mAP_medium": _mean(precision[..., _MEDIUM]),
            "mAP_large": _mean(precision[..., _LARGE]),
            "mAP_50_95_max100": _mean(arrays["precision"][..., _ALL, grid.index(COCO_MAX_DETS)]),
            "mAR": _mean(recall[..., _ALL]),
            "F1": _mean(sweep.at_best.f1),
            "precision": _mean(sweep.at_best.precision),
            "recall": _mean(sweep.at_best.recall),
            "best_threshold": sweep.best_threshold,
        }
        return Metrics(
            overall=overall,
            per_class=per_class,
            num_images=len(self._records),
            num_boxes=sum(row["boxes"] for row in per_class),
            max_dets=self.max_dets,
            pr_precision=_defined(precision[_IOU_50, ..., _ALL]).T,
            sweep=sweep,
            matches=table,
        )

    def _per_class(
        self, precision: Array, recall: Array, sweep: F1Sweep, table: MatchTable
    ) -> list[ClassMetrics]:
        labels, image = (
            table.truth_labels[~table.truth_crowd],
            table.truth_image[~table.truth_crowd],
        )
        boxes = np.bincount(labels, minlength=len(self.class_names))
        shown = np.unique(np.stack([labels, image]), axis=1)[0]
        images = np.bincount(shown, minlength=len(self.class_names))
        return [
            ClassMetrics(
                name=name,
                AP=_mean(precision[:, :, label, _ALL]),
                AP50=_mean(precision[_IOU_50, :, label, _ALL]),
                AR=_mean(recall[:, label, _ALL]),
                precision=float(sweep.at_best.precision[label]),
                recall=float(sweep.at_best.recall[label]),
                F1=float(sweep.at_best.f1[label]),
                best_F1=float(sweep.class_f1[label]),
                best_threshold=float(sweep.class_threshold[label]),
                images=int(images[label]),
                boxes=int(boxes[label]),
            )
            for label, name in enumerate(self.class_names)
        ]


def _max_dets_grid(max_dets: int) -> list[int]:
    return sorted({1, 10, COCO_MAX_DETS, max_dets})


def _highest_per_class(scores: Array, labels: Array, count: int) -> Array:
    """Indexes of the `count` highest scores of each class."""
    order = np.lexsort((-scores, labels))
    place = np.arange(order.size) - np.searchsorted(labels[order], labels[order])
    return np.sort(order[place < count])


def _defined(values: Array) -> Array:
    """COCO writes -1 for "no such object"; here that is nan."""
    return np.where(values < 0, np.nan, values)


def _mean(values: Array) -> float:
    """Mean of what is defined (neither -1 nor nan); nan if nothing is."""
    defined = values[values >= 0]
    return float(defined.mean()) if defined.size else float("nan")
