"""COCO figures from a stream of images: detections and ground truth in, `Metrics` out.

    evaluator = CocoEvaluator(["cat", "dog"])
    for images, targets in batches:
        evaluator.update(detect(images), targets)
    evaluator.compute().overall["mAP_50_95"]

Average precision and recall are hotcoco's, equal to pycocotools; F1 and the confusion matrix are
counted here, from the pairs that `matching` keeps of each image.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from hotcoco import Params, StreamingEval
from hotcoco.primitives import bbox_iou, mask_iou
from torch import Tensor

from rfdetr.errors import InputError
from rfdetr.evaluation.f1 import sweep_f1
from rfdetr.evaluation.found import UNKNOWN_TONE, Found, keep
from rfdetr.evaluation.matching import IOU_THRESHOLD, Array, ImageRecord, MatchTable
from rfdetr.evaluation.metrics import ClassMetrics, Metrics
from rfdetr.geometry.rle import compress, encode_bitmaps, rle_dict, rle_of_box, runs_of_part
from rfdetr.models.detector import full_size_masks

COCO_MAX_DETS = 100
BOXES, MASKS = "bbox", "segm"  # what is compared, as COCO's tools call it
# Positions in COCO's axes: IoU 0.50:0.05:0.95, and areas of any size, below 32^2, to 96^2 and
# above, in pixels of the original image.
_IOU_50, _IOU_75 = 0, 5
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)


Masks = Sequence[dict[str, Any]]  # run lengths in COCO's form


class Detections(NamedTuple):
    """What was detected in one image, classes without a name left out."""

    scores: Array  # (D,) float32
    labels: Array  # (D,) int64
    boxes: Array  # (D, 4) float64 xywh in pixels, as the reference computes
    masks: Masks = ()  # D of them or none


class GroundTruth(NamedTuple):
    """The objects of one image."""

    labels: Array  # (T,) int64
    boxes: Array  # (T, 4) float64 xywh in pixels
    areas: Array  # (T,) pixels
    crowd: Array  # (T,) bool: neither found nor missed, and what lies on it is no mistake
    masks: Masks = ()


class CocoEvaluator:
    """Streams batches with `update`; `compute` may be called at any time and as often as wanted.

    One evaluator per process: they pickle, and `merge` joins them. An image seen twice (a sampler's
    padding) counts once. `max_dets` detections per image and class are counted; the published
    benchmark's own number is 100. With `masks`, masks are compared as well as boxes. Where an
    object has no mask, what is found in its box is then neither right nor wrong.
    """

    def __init__(self, class_names: Sequence[str], max_dets: int = 500, masks: bool = False):
        self.class_names, self.max_dets = list(class_names), max_dets
        self._grid = sorted({1, 10, COCO_MAX_DETS, max_dets})
        categories = [{"id": label, "name": name} for label, name in enumerate(self.class_names)]
        self._streams: dict[str, StreamingEval] = {}
        self._records: dict[str, dict[int, ImageRecord]] = {}  # by kind, then by image id
        self._found: dict[int, Found] = {}  # by image id
        for kind in (BOXES, MASKS) if masks else (BOXES,):
            params = Params(kind)
            params.max_dets = self._grid
            self._streams[kind] = StreamingEval(categories, kind, params=params)
            self._records[kind] = {}

    def update(
        self, detections: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Take a batch: per image the `detections` that `postprocess` gives, and its target.

        Detections are `scores` (D,), `labels` (D,), `boxes` (D, 4) xyxy in pixels of the original
        image and, to compare masks, `mask_logits` (D, h, w), or `masks`, a CompactMask. One whose
        label names no class (the head's spare logit) is dropped.

        Targets hold `image_id`, `orig_size` (height, width), `labels` (T,) and either `boxes_xyxy`
        (T, 4) in original pixels or `boxes` (T, 4) cxcywh in [0, 1], whose float32 costs up to 1e-4
        pixel. `area` (T,) in pixels, `iscrowd` (T,) and `tone` (2,) are optional. Masks are
        `rle_bytes` and `rle_offsets`; to compare masks without them is an `InputError`.
        """
        for found, target in zip(detections, targets, strict=True):
            image_id, size = int(target["image_id"]), target["orig_size"].tolist()
            if image_id in self._records[BOXES]:
                continue
            known = found["labels"] < len(self.class_names)
            scores, labels, boxes = (found[name][known] for name in ("scores", "labels", "boxes"))
            detected = Detections(_array(scores), _array(labels), _xyxy_to_xywh(boxes))
            truth = _ground_truth(target)
            self._add(BOXES, image_id, size, detected, truth)
            shown = None
            if MASKS in self._streams:
                shown = found["masks" if "masks" in found else "mask_logits"][known]
                masks = [rle_dict(counts, *size) for counts in _encoded(shown, size)]
                detected = detected._replace(masks=masks)
                self._add(MASKS, image_id, size, detected, _with_masks(truth, target))
            tone = _array(target["tone"]) if "tone" in target else UNKNOWN_TONE
            self._found[image_id] = keep(*detected[:3], size, shown, tone)

    def _add(
        self, kind: str, image_id: int, size: list[int], found: Detections, truth: GroundTruth
    ) -> None:
        """Match one image's boxes or masks, and keep what the figures need of it."""
        columns = {"category_id": truth.labels, "bbox": truth.boxes, "area": truth.areas}
        objects = _entries(image_id, truth.masks, **columns, iscrowd=truth.crowd.astype(int))
        # The `max_dets` highest scores of each class, by their place among the class's own.
        order = np.lexsort((-found.scores, found.labels))
        sorted_labels = found.labels[order]
        place = np.arange(order.size) - np.searchsorted(sorted_labels, sorted_labels)
        kept = np.sort(order[place < self.max_dets])
        if kind == BOXES:
            ids = np.full(found.scores.size, float(image_id))
            # (D, 7): image id, xywh, score, label
            detected: Any = np.column_stack([ids, found.boxes, found.scores, found.labels])
            iou = bbox_iou(found.boxes[kept], truth.boxes, truth.crowd)
        else:
            # Without a "bbox", so that the area of a detection is that of its mask.
            columns = {"category_id": found.labels, "score": found.scores}
            detected = _entries(image_id, found.masks, **columns)
            iou = mask_iou([found.masks[row] for row in kept], truth.masks, truth.crowd)
        image = {"id": image_id, "height": size[0], "width": size[1]}
        self._streams[kind].update([image], objects, detected)
        # With a crowd region, the IoU is the share of the detection that lies inside it.
        iou = iou.reshape(len(kept), len(truth.labels))
        detection, matched = np.nonzero(iou >= IOU_THRESHOLD)
        self._records[kind][image_id] = ImageRecord(
            scores=found.scores[kept].astype(np.float32),
            labels=found.labels[kept].astype(np.int32),
            truth_labels=truth.labels.astype(np.int32),
            truth_crowd=truth.crowd,
            pair_detection=detection.astype(np.int32),
            pair_truth=matched.astype(np.int32),
            pair_iou=iou[detection, matched],
        )

    @classmethod
    def merge(cls, evaluators: Iterable[CocoEvaluator]) -> CocoEvaluator:
        """One evaluator over the images of all; `InputError` if they were not made alike."""
        parts = list(evaluators)
        arguments = [(part.class_names, part.max_dets, MASKS in part._streams) for part in parts]
        if any(other != arguments[0] for other in arguments):
            raise InputError("evaluators of other class_names, max_dets or masks do not merge")
        merged = cls(*arguments[0])
        for kind in merged._streams:
            merged._streams[kind] = StreamingEval.merge([part._streams[kind] for part in parts])
            for part in reversed(parts):  # as in the stream, the first record of an image stays
                merged._records[kind] |= part._records[kind]
        for part in reversed(parts):
            merged._found |= part._found
        return merged

    def compute(self) -> Metrics:
        """All figures of the images seen so far."""
        masks = self._figures(MASKS) if MASKS in self._streams else None
        return replace(self._figures(BOXES), masks=masks, found=self._found)

    def _figures(self, kind: str) -> Metrics:
        evaluation = copy.copy(self._streams[kind]).finalize()  # finalize spends the object
        evaluation.accumulate()
        arrays: dict[str, Any] = evaluation.eval or {}
        at, at_coco = self._grid.index(self.max_dets), self._grid.index(COCO_MAX_DETS)
        # (IoU 10, recall 101, K, area 4) and (IoU 10, K, area 4); -1 means "no such object".
        precision, recall = (arrays[name][..., at] for name in ("precision", "recall"))
        at_50 = precision[_IOU_50, ..., _ALL]
        table = MatchTable.from_records(self._records[kind].values())
        sweep = sweep_f1(table, len(self.class_names))
        figures = {
            "mAP_50_95": precision[..., _ALL],
            "mAP_50": at_50,
            "mAP_75": precision[_IOU_75, ..., _ALL],
            "mAP_small": precision[..., _SMALL],
            "mAP_medium": precision[..., _MEDIUM],
            "mAP_large": precision[..., _LARGE],
            "mAP_50_95_max100": arrays["precision"][..., _ALL, at_coco],
            "mAR": recall[..., _ALL],
            "F1": sweep.at_best.f1,
            "precision": sweep.at_best.precision,
            "recall": sweep.at_best.recall,
        }
        overall = {name: _mean(values) for name, values in figures.items()}
        real = ~table.truth_crowd
        labels, images = table.truth_labels[real], table.truth_image[real]
        shown = np.unique(np.stack([labels, images]), axis=1)[0]  # a label once for each image
        counts = [np.bincount(of, minlength=len(self.class_names)) for of in (shown, labels)]
        per_class = [
            ClassMetrics(
                name=name,
                AP=_mean(precision[:, :, label, _ALL]),
                AP50=_mean(at_50[:, label]),
                AR=_mean(recall[:, label, _ALL]),
                precision=float(sweep.at_best.precision[label]),
                recall=float(sweep.at_best.recall[label]),
                F1=float(sweep.at_best.f1[label]),
                best_F1=float(sweep.class_f1[label]),
                best_threshold=float(sweep.class_threshold[label]),
                images=int(counts[0][label]),
                boxes=int(counts[1][label]),
            )
            for label, name in enumerate(self.class_names)
        ]
        return Metrics(
            overall={**overall, "best_threshold": sweep.best_threshold},
            per_class=per_class,
            num_images=len(self._records[kind]),
            num_boxes=len(labels),
            max_dets=self.max_dets,
            pr_precision=np.where(at_50 < 0, np.nan, at_50).T,
            sweep=sweep,
            matches=table,
        )


def _encoded(shown: Any, size: Sequence[int]) -> Iterator[bytes]:
    """Compressed run lengths of masks, logits (n, h, w) or a CompactMask, in an image of `size`."""
    if isinstance(shown, Tensor):
        # Run lengths go down the columns, so that transposed masks need no copy.
        for part in full_size_masks(shown.mT, (size[1], size[0])):
            yield from encode_bitmaps(part.mT)
        return
    height, width = size
    for number, (left, top) in enumerate(shown.offsets.tolist()):
        lengths = runs_of_part(shown.crop(number), left, top, height)
        yield compress([*lengths, height * width - sum(lengths)])


def _ground_truth(target: Mapping[str, Tensor]) -> GroundTruth:
    height, width = target["orig_size"].tolist()
    if "boxes_xyxy" in target:
        boxes = _xyxy_to_xywh(target["boxes_xyxy"])
    else:  # centre and size, relative to the image
        boxes = _array(target["boxes"]).astype(np.float64).reshape(-1, 4)
        boxes = boxes * (width, height, width, height)
        boxes[:, :2] -= boxes[:, 2:] / 2
    areas = _array(target["area"]) if "area" in target else boxes[:, 2:].prod(axis=1)
    crowd = _array(target.get("iscrowd", torch.zeros_like(target["labels"]))).astype(bool)
    return GroundTruth(_array(target["labels"]), boxes, areas, crowd)


def _with_masks(truth: GroundTruth, target: Mapping[str, Tensor]) -> GroundTruth:
    """The truth with masks. An object without one becomes a crowd region of its box's size."""
    if "rle_bytes" not in target:
        raise InputError("targets have no rle_bytes: load the data with load_index(masks=True)")
    height, width = target["orig_size"].tolist()
    stream, ends = _array(target["rle_bytes"]).tobytes(), target["rle_offsets"].tolist()
    given = [stream[start:end] for start, end in itertools.pairwise(ends)]
    masks = [
        rle_dict(counts or rle_of_box(box, height, width), height, width)
        for counts, box in zip(given, truth.boxes, strict=True)
    ]
    without = np.array([not counts for counts in given], bool)
    return truth._replace(crowd=truth.crowd | without, masks=masks)


def _entries(image_id: int, masks: Masks, **columns: Array) -> list[dict[str, Any]]:
    """COCO's entries of an image, {"image_id": 7, "category_id": 0, ...}, one for each row."""
    columns_of = {name: column.tolist() for name, column in columns.items()}
    if masks:
        columns_of["segmentation"] = masks
    rows = zip(*columns_of.values(), strict=True)
    return [{"image_id": image_id, **dict(zip(columns_of, row, strict=True))} for row in rows]


def _array(tensor: Tensor) -> Array:
    plain = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # which NumPy lacks
    array: Array = plain.detach().cpu().numpy()
    return array


def _xyxy_to_xywh(boxes_xyxy: Tensor) -> Array:
    """float64, as the reference computes."""
    corners = _array(boxes_xyxy).astype(np.float64).reshape(-1, 4)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _mean(values: Array) -> float:
    """Mean of what is defined (neither -1 nor nan); nan if nothing is."""
    defined = values[values >= 0]
    return float(defined.mean()) if defined.size else float("nan")
