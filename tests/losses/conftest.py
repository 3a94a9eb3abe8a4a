"""Random predictions and targets of a tiny detector."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rfdetr.models.detector import DetectorOutput
from rfdetr.models.segmentation import MaskFeatures

Targets = list[dict[str, Tensor]]


def random_boxes(*shape: int) -> Tensor:
    centre, size = (
        torch.rand(*shape, 2, dtype=torch.float64),
        torch.rand(*shape, 2, dtype=torch.float64),
    )
    return torch.cat((centre, 0.05 + 0.4 * size), dim=-1)


@pytest.fixture
def make_targets() -> Callable[..., Targets]:
    def make(*counts: int, classes: int = 4) -> Targets:
        return [{"labels": torch.randint(classes, (n,)), "boxes": random_boxes(n)} for n in counts]

    torch.manual_seed(0)
    return make


@pytest.fixture
def make_outputs() -> Callable[..., DetectorOutput]:
    """Leaf tensors of `layers` decoder layers and the encoder stage; `proposals` per group,
    `queries` unless given.
    """

    def make(
        images: int,
        groups: int = 1,
        queries: int = 6,
        proposals: int | None = None,
        layers: int = 2,
        logits: int = 5,
    ) -> DetectorOutput:
        rows, cells = groups * queries, groups * (proposals or queries)
        tensors = (
            torch.randn(layers, images, rows, logits, dtype=torch.float64),
            random_boxes(layers, images, rows),
            torch.randn(images, cells, logits, dtype=torch.float64),
            random_boxes(images, cells),
        )
        return DetectorOutput(*(tensor.requires_grad_() for tensor in tensors))

    torch.manual_seed(0)
    return make


@pytest.fixture
def with_masks() -> Callable[..., tuple[DetectorOutput, Targets]]:
    """The outputs with leaf tensors for masks of 8 x 6 cells, the targets with masks of 32 x 24,
    none missing.
    """

    def add(
        outputs: DetectorOutput, targets: Targets, channels: int = 3
    ) -> tuple[DetectorOutput, Targets]:
        images, kind = outputs.boxes.shape[1], {"dtype": outputs.boxes.dtype, "requires_grad": True}
        rows = [boxes.shape[1] for boxes in (*outputs.boxes, outputs.proposal_boxes)]
        features = MaskFeatures(
            spatial=[torch.randn(images, channels, 8, 6, **kind) for _ in rows],
            queries=[torch.randn(images, n, channels, **kind) for n in rows],
            offsets=[torch.randn(images, n, **kind) for n in rows],
        )
        masks = [torch.rand(len(target["labels"]), 4, 3) > 0.5 for target in targets]
        masks = [mask.repeat_interleave(8, 1).repeat_interleave(8, 2) for mask in masks]
        whole = [
            {**target, "masks": mask, "has_mask": torch.ones(len(mask), dtype=torch.bool)}
            for target, mask in zip(targets, masks, strict=True)
        ]
        return outputs._replace(masks=features), whole

    return add
