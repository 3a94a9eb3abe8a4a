"""One pass over a labelled split: what a network finds in it, measured."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rfdetr.console import with_progress
from rfdetr.data.dataset import DetectionDataset
from rfdetr.data.index import DatasetIndex
from rfdetr.data.loaders import EpochSampler, build_loader
from rfdetr.data.transforms import EvalTransform
from rfdetr.evaluation.evaluator import CocoEvaluator
from rfdetr.evaluation.metrics import Metrics

Detect = Callable[[Tensor, Tensor], list[dict[str, Tensor]]]


def evaluate_split(
    detect: Detect,
    index: DatasetIndex,
    *,
    resolution: int,
    batch_size: int,
    num_workers: int,
    max_dets: int,
) -> Metrics:
    """Metrics of boxes, and of masks if the index has outlines.

    `detect` takes uint8 images (B, 3, resolution, resolution) and their original sizes (B, 2) as
    height, width, and gives for each image `scores`, `labels` of the index's classes, `boxes` xyxy
    in original pixels, `mask_logits`.
    """
    dataset = DetectionDataset(index, EvalTransform(resolution), evaluation=True)
    sampler = EpochSampler(len(dataset), shuffle=False)
    loader = build_loader(
        dataset, sampler, batch_size=batch_size, num_workers=min(num_workers, len(dataset))
    )
    evaluator = CocoEvaluator(index.class_names, max_dets, masks=index.outlines is not None)
    for images, targets in with_progress(loader, "Evaluating", len(loader)):
        sizes = torch.stack([target["orig_size"] for target in targets])
        evaluator.update(detect(images.tensors, sizes), targets)
    return evaluator.compute()
