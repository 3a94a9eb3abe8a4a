"""COCO figures from a stream of images: detections and ground truth in, `Metrics` out.

    evaluator = CocoEvaluator(["cat", "dog"])
    for images, targets in batches:
        evaluator.update(detect(images), targets)
    evaluator.compute().overall["mAP_50_95"]

Kept are a few bytes of each detection and object, which IoU is above which of COCO's thresholds;
no box's place counts once its image is matched. `average_precision` makes COCO's figures of that,
`f1` and `matching` the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from hotcoco.primitives import bbox_iou, mask_iou
from torch import Tensor

from rfdetr.errors import InputError
from rfdetr.evaluation.average_precision import Sizes, curves, outside
from rfdetr.evaluation.f1 import sweep_f1
from rfdetr.evaluation.found import UNKNOWN_TONE, keep
from rfdetr.evaluation.kept import (
    BEYOND_COCO,
    BEYOND_LIMIT,
    CROWD,
    Columns,
    FoundImages,
    ImageRow,
    KindRow,
    tables,
)
from rfdetr.evaluation.matching import IOU_THRESHOLD, Array, MatchTable, by_preference
from rfdetr.evaluation.metrics import ClassMetrics, Metrics
from rfdetr.geometry.rle import (
    coco_masks,
    compress,
    encode_bitmaps,
    rle_dict,
    rle_of_box,
    runs_of_part,
)
from rfdetr.models.detector import full_size_masks

COCO_MAX_DETS = 100
BOXES, MASKS = "bbox", "segm"  # what is compared, as COCO's tools call it
# Positions in COCO's axes: IoU 0.50:0.05:0.95, and areas of any size, below 32^2, to 96^2 and
# above, in pixels of the original image.
_IOU_50, _IOU_75 = 0, 5
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)


Masks = Sequence[dict[str, Any]]  # run lengths in COCO's form


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
        self._label_type = np.min_scalar_type(len(self.class_names))
        self._rows: dict[int, int] = {}  # by image id, in the order of coming
        self._images = Columns()  # of `ImageRow`
        self._kinds = {kind: Columns() for kind in ((BOXES, MASKS) if masks else (BOXES,))}

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
            image_id, size, shown = int(target["image_id"]), target["orig_size"].tolist(), None
            if image_id in self._rows:
                continue
            truth = self._ground_truth(target)
            labels, all_scores = _array(found["labels"]), _array(found["scores"])
            if np.isnan(all_scores[labels < len(self.class_names)]).any():
                raise InputError(f"image {image_id}: a detection's score is nan, which has no rank")
            order, beyond = self._counted(all_scores, labels)
            chosen = torch.from_numpy(order).to(found["boxes"].device)
            scores, labels = all_scores[order].astype(np.float32), labels[order]
            boxes = _xyxy_to_xywh(found["boxes"][chosen])
            iou = bbox_iou(boxes, truth.boxes, truth.crowd)
            kinds = {BOXES: self._kind_row(boxes[:, 2:].prod(axis=1), beyond, iou, truth)}
            if MASKS in self._kinds:
                shown = found["masks"][order] if "masks" in found else found["mask_logits"][chosen]
                masks = [rle_dict(counts, *size) for counts in _encoded(shown, size)]
                areas = np.array([coco_masks().area(mask) for mask in masks], np.float64)
                outlined = _with_masks(truth, target)
                iou = mask_iou(masks, outlined.masks, outlined.crowd)
                kinds[MASKS] = self._kind_row(areas, beyond, iou, outlined)
            row = ImageRow(
                scores,
                labels.astype(self._label_type),
                truth.labels.astype(self._label_type),
                *keep(scores, boxes, size, shown),
                _array(target["tone"]) if "tone" in target else UNKNOWN_TONE,
            )
            self._add(image_id, row, kinds)

    def _ground_truth(self, target: Mapping[str, Tensor]) -> GroundTruth:
        height, width = target["orig_size"].tolist()
        if "boxes_xyxy" in target:
            boxes = _xyxy_to_xywh(target["boxes_xyxy"])
        else:  # centre and size, relative to the image
            boxes = _array(target["boxes"]).astype(np.float64).reshape(-1, 4)
            boxes = boxes * (width, height, width, height)
            boxes[:, :2] -= boxes[:, 2:] / 2
        areas = _array(target["area"]) if "area" in target else boxes[:, 2:].prod(axis=1)
        crowd = _array(target.get("iscrowd", torch.zeros_like(target["labels"]))).astype(bool)
        labels = _array(target["labels"])
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            named = f"image {int(target['image_id'])} has labels {sorted(set(labels.tolist()))}"
            raise InputError(f"{named}; they must be 0 to {len(self.class_names) - 1}")
        return GroundTruth(labels, boxes, areas, crowd)

    def _counted(self, scores: Array, labels: Array) -> tuple[Array, Array]:
        """The detections that count, best first, and (D,) uint8 which limits they are past.

        They have labels of classes, and are among the highest scores of their class.
        """
        known = np.flatnonzero((labels >= 0) & (labels < len(self.class_names)))
        order = known[np.lexsort((-scores[known], labels[known]))]
        of_class = labels[order]
        place = np.arange(order.size) - np.searchsorted(of_class, of_class)
        beyond = (place >= self.max_dets) * BEYOND_LIMIT + (place >= COCO_MAX_DETS) * BEYOND_COCO
        within = place < max(self.max_dets, COCO_MAX_DETS)
        order, beyond = order[within], beyond[within].astype(np.uint8)
        best = np.lexsort((order, -scores[order]))
        return order[best], beyond[best]

    def _kind_row(self, areas: Array, beyond: Array, iou: Array, truth: GroundTruth) -> KindRow:
        """What the figures need of one image's boxes or masks: with a crowd region, the IoU (D, T)
        is the share of the detection that lies inside it.
        """
        iou = iou.reshape(len(areas), len(truth.labels))
        detection, matched, level = by_preference(iou, IOU_THRESHOLD)
        return KindRow(
            outside(areas) | beyond,
            outside(truth.areas) | (truth.crowd * np.uint8(CROWD)),
            detection.astype(np.min_scalar_type(len(areas))),
            matched.astype(np.min_scalar_type(len(truth.labels))),
            level,
        )

    def _add(
        self, image_id: int, row: Sequence[Array], kinds: Mapping[str, Sequence[Array]]
    ) -> None:
        self._rows[image_id] = len(self._rows)
        self._images.append(row)
        for kind, of_kind in kinds.items():
            self._kinds[kind].append(of_kind)

    @classmethod
    def merge(cls, evaluators: Iterable[CocoEvaluator]) -> CocoEvaluator:
        """One evaluator over the images of all; `InputError` if they were not made alike."""
        parts = list(evaluators)
        arguments = [(part.class_names, part.max_dets, MASKS in part._kinds) for part in parts]
        if any(other != arguments[0] for other in arguments):
            raise InputError("evaluators of other class_names, max_dets or masks do not merge")
        merged = cls(*arguments[0])
        for part in parts:
            for image_id, row in part._rows.items():
                if image_id not in merged._rows:
                    kinds = {kind: columns[row] for kind, columns in part._kinds.items()}
                    merged._add(image_id, part._images[row], kinds)
        return merged

    def compute(self) -> Metrics:
        """All figures of the images seen so far."""
        made = tables([*self._rows], self._images, [*self._kinds.values()])
        boxes, *masks = [self._figures(*of_kind) for of_kind in made]
        found = FoundImages(self._rows, self._images)
        return replace(boxes, masks=masks[0] if masks else None, found=found)

    def _figures(self, table: MatchTable, sizes: Sizes) -> Metrics:
        classes, past = len(self.class_names), sizes.detections & BEYOND_LIMIT > 0
        # (IoU 10, recall 101, K, area 4) and (IoU 10, K, area 4); -1 means "no such object".
        precision, recall = curves(table, sizes, classes, past)
        past_coco = sizes.detections & BEYOND_COCO > 0
        at_coco = precision
        if not np.array_equal(past, past_coco):
            at_coco, _ = curves(table, sizes, classes, past_coco, areas=1)
        at_50 = precision[_IOU_50, ..., _ALL]
        table = table.without(past)
        sweep = sweep_f1(table, classes)
        figures = {
            "mAP_50_95": precision[..., _ALL],
            "mAP_50": at_50,
            "mAP_75": precision[_IOU_75, ..., _ALL],
            "mAP_small": precision[..., _SMALL],
            "mAP_medium": precision[..., _MEDIUM],
            "mAP_large": precision[..., _LARGE],
            "mAP_50_95_max100": at_coco[..., _ALL],
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
            num_images=len(self._rows),
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
