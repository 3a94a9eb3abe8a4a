"""The segmentation head's shapes and its products."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from rfdetr.models.segmentation import MaskFeatures, SegmentationHead


def test_mask_logits_are_products_of_pixels_and_queries() -> None:
    features = MaskFeatures([torch.randn(2, 4, 3, 5)], [torch.randn(2, 6, 4)], [torch.randn(2, 6)])
    expected = torch.einsum("bchw,bqc->bqhw", features.spatial[0], features.queries[0])
    expected += features.offsets[0][..., None, None]
    assert_close(features.mask_logits(0), expected)


def test_one_entry_per_layer_and_one_for_the_encoder_stage() -> None:
    head = SegmentationHead(8, num_layers=3)
    masks = head(torch.randn(2, 8, 4, 4), (12, 16), torch.randn(3, 2, 10, 8), torch.randn(2, 7, 8))
    assert [tuple(masks.mask_logits(i).shape) for i in range(4)] == 3 * [(2, 10, 12, 16)] + [
        (2, 7, 12, 16)
    ]


def test_gradients_reach_every_parameter() -> None:
    head = SegmentationHead(8, num_layers=2)
    masks = head(torch.randn(1, 8, 4, 4), (8, 8), torch.randn(2, 1, 5, 8), torch.randn(1, 5, 8))
    sum(masks.mask_logits(i).square().mean() for i in range(3)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
