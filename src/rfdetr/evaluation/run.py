"""The evaluation loop: batches -> detect -> update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rfdetr.console import with_progress
from rfdetr.data.dataset import DetectionDataset
from rfdetr.data.index import DatasetIndex
from rfdetr.data.loaders import EpochSampler, build_loader
from rfdetr.data.transforms import EvalTransform, OwnSizeTransform
from rfdetr.errors import InputError
from rfdetr.evaluation.evaluator import CocoEvaluator
from rfdetr.evaluation.metrics import Metrics

Found = list[dict[str, Tensor]]
Judged = Sequence[tuple[CocoEvaluator, Callable[[Any], Found]]]


def update_evaluators(batches: Iterable[Any], judged: Judged) -> None:
    """The loop. Each evaluator of `judged` takes what the function beside it detects in a batch
    (images, targets). Several networks are judged in one pass: images are decoded once.
    """
    for batch in batches:
        for evaluator, detect in judged:
            evaluator.update(detect(batch), batch[1])


def evaluate_split(  # noqa: PLR0913 - each is a setting of `evaluate`
    detect: Callable[[Tensor, Tensor], Found],
    index: DatasetIndex,
    *,
    size: tuple[int, int],
    batch_size: int,
    num_workers: int,
    max_dets: int,
    own_size: bool = False,
) -> Metrics:
    """Metrics of boxes on a labelled split, and of masks if its index has outlines.

    `detect` takes uint8 images (B, 3, *size) and their original sizes (B, 2) as height, width, and
    gives for each image `scores`, `labels` of the index's classes, `boxes` xyxy in original pixels,
    `mask_logits`. With `own_size`, it takes one image (1, 3, H, W) at a time, which is not resized,
    and may give `masks` as a CompactMask.
    """
    view = OwnSizeTransform() if own_size else EvalTransform(size)
    batch_size = 1 if own_size else batch_size
    dataset = DetectionDataset(index, view, evaluation=True)
    sampler = EpochSampler(len(dataset), shuffle=False)
    workers = min(num_workers, len(dataset))
    loader = build_loader(dataset, sampler, batch_size=batch_size, num_workers=workers)
    evaluator = CocoEvaluator(index.class_names, max_dets, masks=index.outlines is not None)

    def detect_batch(batch: Any) -> Found:
        images, targets = batch
        return detect(images.tensors, torch.stack([target["orig_size"] for target in targets]))

    update_evaluators(with_progress(loader, "Evaluating", len(loader)), [(evaluator, detect_batch)])
    return evaluator.compute()


def labels_of(known: Mapping[int, str], names: Sequence[str]) -> Tensor:
    """The data's label for each logit of a model: a table that indexes.

    `known` {0: "dog", 1: "owl", 2: "cat"} and the data's `names` ["cat", "dog"] give [1, 2, 0, 2]:
    a logit that names no class of the data gets the first label past them, and so does the last
    logit, of no class. Logits of one name have one label. Raises `InputError` for a class that the
    model does not know.
    """
    knows = list(dict.fromkeys(known.values()))
    if unknown := [name for name in names if name not in knows]:
        raise InputError(
            f"the data has classes the model does not know: {unknown}; it knows {knows}; "
            "class_names= gives the data's classes the model's names"
        )
    labels = {name: label for label, name in enumerate(names)}
    table = torch.full((max(known) + 2,), len(names))
    for logit, name in known.items():
        table[logit] = labels.get(name, len(names))
    return table
