"""The evaluator: detections and ground truth in, batch by batch; figures of boxes, and of masks if
wanted, out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rfdetr.errors import InputError
from rfdetr.evaluation.matching import Array
from rfdetr.evaluation.metrics import Metrics
from rfdetr.evaluation.streams import Found, MatchStream, Truth
from rfdetr.geometry.rle import encode_bitmaps, rle_dict, rle_of_box
from rfdetr.models.postprocess import full_size_masks


class CocoEvaluator:
    """Streams batches with `update`; `compute` may be called at any time and as often as wanted.

    One evaluator per process: they pickle, and `merge` joins them. An image seen twice (a sampler's
    padding) counts once. `max_dets` detections per image and class are counted; the published
    benchmark's own number is 100. With `masks`, masks are compared as well as boxes; an object
    without one is then left out of the figures of masks: what is found in its box is neither right
    nor wrong.
    """

    def __init__(
        self, class_names: Sequence[str], max_dets: int = 500, masks: bool = False
    ) -> None:
        self.class_names = list(class_names)
        self.max_dets = max_dets
        self._boxes = MatchStream(self.class_names, max_dets, masks=False)
        self._masks = MatchStream(self.class_names, max_dets, masks=True) if masks else None

    def update(
        self, detections: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Take a batch: detections as `postprocess` gives them (xyxy pixels of the original image),
        one per target.

        Targets hold `image_id`, `orig_size`, `labels`, and boxes: `boxes_xyxy` in original pixels,
        or without it `boxes` (cxcywh in [0, 1]), whose float32 costs up to 1e-4 pixel. `area`
        (pixels) and `iscrowd` are optional. Masks are `mask_logits` of detections, which become run
        lengths here, some at a time, and of targets `rle_bytes`, `rle_offsets`. A detection whose
        label names no class (the head's spare logit) matches nothing anywhere and is dropped.
        """
        for found, target in zip(detections, targets, strict=True):
            image_id = int(target["image_id"])
            if image_id not in self._boxes:
                self._add_image(image_id, found, target)

    def _add_image(
        self, image_id: int, found: Mapping[str, Tensor], target: Mapping[str, Tensor]
    ) -> None:
        known = found["labels"] < len(self.class_names)
        scores, labels = _array(found["scores"][known]), _array(found["labels"][known])
        seen = Found(scores, labels, _xyxy_to_xywh(_array(found["boxes"][known])))
        height, width = target["orig_size"].tolist()
        truth = _truth(target)
        self._boxes.add(image_id, (height, width), seen, truth)
        if self._masks is not None:
            columns = full_size_masks(
                found["mask_logits"][known].mT, (width, height)
            )  # the order of run lengths
            masks = [
                rle_dict(counts, height, width)
                for part in columns
                for counts in encode_bitmaps(part.mT)
            ]
            self._masks.add(
                image_id, (height, width), seen._replace(masks=masks), _with_masks(truth, target)
            )

    @classmethod
    def merge(cls, evaluators: Iterable[CocoEvaluator]) -> CocoEvaluator:
        """One evaluator over the images of all; they must have been made with the same arguments."""
        parts = list(evaluators)
        arguments = [(part.class_names, part.max_dets, part._masks is None) for part in parts]
        if any(other != arguments[0] for other in arguments):
            raise InputError(
                "evaluators with different class_names, max_dets or masks cannot be merged"
            )
        merged = cls(parts[0].class_names, parts[0].max_dets)
        merged._boxes = MatchStream.merge([part._boxes for part in parts])
        if parts[0]._masks is not None:
            merged._masks = MatchStream.merge(
                [part._masks for part in parts if part._masks is not None]
            )
        return merged

    def compute(self) -> Metrics:
        """All figures of the images seen so far."""
        boxes = self._boxes.compute()
        return boxes if self._masks is None else replace(boxes, masks=self._masks.compute())


def _truth(target: Mapping[str, Tensor]) -> Truth:
    labels, boxes = _array(target["labels"]), _truth_xywh(target)
    crowd = (
        _array(target["iscrowd"]).astype(bool)
        if "iscrowd" in target
        else np.zeros(labels.size, bool)
    )
    return Truth(
        labels,
        boxes,
        crowd,
        _array(target["area"]) if "area" in target else boxes[:, 2:].prod(axis=1),
    )


def _with_masks(truth: Truth, target: Mapping[str, Tensor]) -> Truth:
    """The truth about masks: an object without one becomes a region that counts for nothing, the
    size of its box.
    """
    if "rle_bytes" not in target:
        raise InputError(
            "targets have no rle_bytes and rle_offsets: load the data with load_index(..., masks=True)"
        )
    height, width = target["orig_size"].tolist()
    every, ends = _array(target["rle_bytes"]).tobytes(), _array(target["rle_offsets"]).tolist()
    given = [every[start:end] for start, end in itertools.pairwise(ends)]
    counts = [
        rle or rle_of_box(box, height, width) for rle, box in zip(given, truth.boxes, strict=True)
    ]
    without = np.array([not rle for rle in given], bool)
    masks = [rle_dict(rle, height, width) for rle in counts]
    return truth._replace(crowd=truth.crowd | without, masks=masks)


def _array(tensor: Tensor) -> Array:
    tensor = (
        tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    )  # which NumPy does not have
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
    centre_size = _array(target["boxes"]).astype(np.float64).reshape(-1, 4) * (
        width,
        height,
        width,
        height,
    )
    return np.concatenate([centre_size[:, :2] - centre_size[:, 2:] / 2, centre_size[:, 2:]], axis=1)
