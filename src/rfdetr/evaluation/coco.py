"""The evaluator: detections and ground truth in, batch by batch; COCO's figures, F1 and confusion matrix out.

Average precision and recall are hotcoco's, equal to pycocotools. Kept per image is only what the final count needs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from hotcoco import Params, StreamingEval
from hotcoco.primitives import bbox_iou
from torch import Tensor

from rfdetr.evaluation.f1 import F1Sweep, sweep_f1
from rfdetr.evaluation.matching import IOU_THRESHOLD, Array, ImageRecord, MatchTable, confusion_matrix
from rfdetr.evaluation.metrics import ClassMetrics, Metrics

COCO_MAX_DETS = 100
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)  # area ranges: below 32^2, to 96^2, above, in pixels of the original image
_IOU_50, _IOU_75 = 0, 5  # positions in IoU 0.50:0.05:0.95


class CocoEvaluator:
    """Streams batches with `update`; `compute` may be called at any time and as often as wanted.

    One evaluator per process: they pickle, and `merge` joins them. An image seen twice (a sampler's padding) counts
    once. `max_dets` detections per image and class are counted; the published benchmark's own number is 100.
    """

    def __init__(self, class_names: Sequence[str], max_dets: int = 500) -> None:
        self.class_names = list(class_names)
        self.max_dets = max_dets
        params = Params("bbox")
        params.max_dets = _max_dets_grid(max_dets)
        categories = [{"id": label, "name": name} for label, name in enumerate(self.class_names)]
        self._stream = StreamingEval(categories, "bbox", params=params)
        self._records: dict[int, ImageRecord] = {}  # by image id

    def update(self, detections: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]) -> None:
        """Take a batch: detections as `postprocess` gives them (xyxy pixels of the original image), one per target.

        Targets hold `image_id`, `orig_size`, `labels`, and boxes: `boxes_xyxy` in original pixels, or without it
        `boxes` (cxcywh in [0, 1]), whose float32 costs up to 1e-4 pixel. `area` (pixels) and `iscrowd` are optional.
        A detection whose label names no class (the head's spare logit) matches nothing anywhere and is dropped.
        """
        for found, target in zip(detections, targets, strict=True):
            image_id = int(target["image_id"])
            if image_id not in self._records:
                self._records[image_id] = self._add_image(image_id, found, target)

    def _add_image(self, image_id: int, found: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> ImageRecord:
        known = _array(found["labels"]) < len(self.class_names)
        scores, labels = _array(found["scores"])[known], _array(found["labels"])[known]
        boxes = _xyxy_to_xywh(_array(found["boxes"])[known])
        truth_labels, truth_boxes = _array(target["labels"]), _truth_xywh(target)
        crowd = _array(target["iscrowd"]).astype(bool) if "iscrowd" in target else np.zeros(truth_labels.size, bool)
        area = _array(target["area"]) if "area" in target else truth_boxes[:, 2:].prod(axis=1)
        rows = zip(truth_labels.tolist(), truth_boxes.tolist(), area.tolist(), crowd.tolist(), strict=True)
        truths = [
            {"image_id": image_id, "category_id": label, "bbox": box, "area": size, "iscrowd": int(is_crowd)}
            for label, box, size, is_crowd in rows
        ]
        height, width = target["orig_size"].tolist()
        image = {"id": image_id, "height": height, "width": width}
        columns = np.column_stack([np.full(scores.size, float(image_id)), boxes, scores, labels])  # (D, 7) float64
        self._stream.update([image], truths, columns)

        kept = _highest_per_class(scores, labels, self.max_dets)
        iou = bbox_iou(boxes[kept], truth_boxes, crowd)  # (D, T); of a crowd: share of the detection inside it
        pair_detection, pair_truth = np.nonzero(iou >= IOU_THRESHOLD)
        return ImageRecord(
            scores=scores[kept].astype(np.float32),
            labels=labels[kept].astype(np.int32),
            truth_labels=truth_labels.astype(np.int32),
            truth_crowd=crowd,
            pair_detection=pair_detection.astype(np.int32),
            pair_truth=pair_truth.astype(np.int32),
            pair_iou=iou[pair_detection, pair_truth],
        )

    @classmethod
    def merge(cls, evaluators: Iterable[CocoEvaluator]) -> CocoEvaluator:
        """One evaluator over the images of all; they must have been made with the same arguments."""
        parts = list(evaluators)
        if any((part.class_names, part.max_dets) != (parts[0].class_names, parts[0].max_dets) for part in parts):
            raise ValueError("evaluators with different class_names or max_dets cannot be merged")
        merged = cls(parts[0].class_names, parts[0].max_dets)
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
        precision: Array = arrays["precision"][..., at]  # (IoU 10, recall 101, K, area 4); -1: no such object
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
            confusion=confusion_matrix(table, num_classes, sweep.best_threshold),
        )

    def _per_class(self, precision: Array, recall: Array, sweep: F1Sweep, table: MatchTable) -> list[ClassMetrics]:
        labels, image = table.truth_labels[~table.truth_crowd], table.truth_image[~table.truth_crowd]
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


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array


def _xyxy_to_xywh(boxes_xyxy: Array) -> Array:
    """float64, as the reference computes."""
    corners = boxes_xyxy.astype(np.float64).reshape(-1, 4)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _truth_xywh(target: Mapping[str, Tensor]) -> Array:
    """Ground truth in pixels of the original image, (T, 4) float64."""
    if "boxes_xyxy" in target:
        return _xyxy_to_xywh(_array(target["boxes_xyxy"]))
    height, width = target["orig_size"].tolist()
    centre_size = _array(target["boxes"]).astype(np.float64).reshape(-1, 4) * (width, height, width, height)
    return np.concatenate([centre_size[:, :2] - centre_size[:, 2:] / 2, centre_size[:, 2:]], axis=1)


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
