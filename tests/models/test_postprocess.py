"""From logits and boxes to detections."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from rfdetr.models.detector import full_size_masks, postprocess


def test_the_best_pairs_come_first_and_a_query_may_come_twice() -> None:
    logits = torch.tensor([[[0.0, 3.0], [2.0, 1.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.5, 1.0]]])
    (found,) = postprocess(logits, boxes, torch.tensor([[100, 200]]), num_select=3)
    assert_close(found["scores"], torch.tensor([3.0, 2.0, 1.0]).sigmoid())
    assert found["labels"].tolist() == [1, 0, 1] and found["labels"].dtype == torch.int64
    assert_close(
        found["boxes"], torch.tensor([[80.0, 30, 120, 70], [0, 0, 100, 100], [0, 0, 100, 100]])
    )


def test_equal_scores_come_in_the_order_of_the_pairs() -> None:
    logits = torch.zeros(1, 300, 91, dtype=torch.bfloat16)
    logits[0, 200, 7] = 1.0
    (found,) = postprocess(logits, torch.rand(1, 300, 4), torch.tensor([[10, 10]]), num_select=200)
    assert found["labels"].tolist() == [7, *range(91), *range(91), *range(17)]
    assert found["scores"].dtype == torch.float32


def test_boxes_are_cut_at_the_image() -> None:
    boxes = torch.tensor([[[0.0, 1.0, 0.5, 0.5]]])
    (found,) = postprocess(torch.zeros(1, 1, 1), boxes, torch.tensor([[40, 80]]), num_select=1)
    assert found["boxes"].tolist() == [[0.0, 30.0, 20.0, 40.0]]


def test_each_image_has_its_size() -> None:
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0]]]).repeat(2, 1, 1)
    found = postprocess(
        torch.zeros(2, 1, 1), boxes, torch.tensor([[10, 20], [30, 40]]), num_select=1
    )
    assert [f["boxes"].tolist() for f in found] == [
        [[0.0, 0.0, 20.0, 10.0]],
        [[0.0, 0.0, 40.0, 30.0]],
    ]


def test_masks_follow_their_query_and_fill_the_image() -> None:
    logits = torch.full((1, 40, 1), -5.0)
    logits[0, 30, 0] = 5.0
    masks = torch.full((1, 40, 2, 2), -1.0)
    masks[0, 30, :, 0] = 1.0  # left half
    (found,) = postprocess(
        logits, torch.rand(1, 40, 4), torch.tensor([[6, 8]]), num_select=20, mask_logits=masks
    )
    (full,) = full_size_masks(found["mask_logits"], (6, 8))
    assert full.shape == (20, 6, 8) and full.dtype == torch.bool
    assert full[0].tolist() == 6 * [4 * [True] + 4 * [False]]
    assert not full[1:].any()


def test_masks_of_a_large_image_come_in_parts_and_none_of_no_detections() -> None:
    logits = torch.randn(5, 3, 3)
    parts = list(full_size_masks(logits, (512, 256)))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.equal(parts[2], next(full_size_masks(logits[4:], (512, 256))))
    assert sum(len(part) for part in full_size_masks(logits[:0], (10, 10))) == 0
