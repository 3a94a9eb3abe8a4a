"""Box mathematics on hand-computed rows and as properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from rfdetr.geometry.boxes import (
    apply_box_deltas,
    box_area,
    cxcywh_to_xyxy,
    elementwise_giou,
    elementwise_iou,
    pairwise_giou,
    xyxy_to_cxcywh,
)

shares = st.floats(0, 1, width=32)
boxes_cxcywh = st.lists(st.tuples(shares, shares, shares, shares), max_size=6).map(
    lambda rows: torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
)


@settings(deadline=None)
@given(boxes_cxcywh)
def test_formats_there_and_back(boxes: Tensor) -> None:
    assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes, rtol=0, atol=1e-6)


def test_the_centre_comes_first_and_width_before_height() -> None:
    assert cxcywh_to_xyxy(torch.tensor([10.0, 20.0, 4.0, 6.0])).tolist() == [8.0, 17.0, 12.0, 23.0]


@pytest.mark.parametrize(
    ("a_xyxy", "b_xyxy", "iou", "giou"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0, 1.0),
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7, 1 / 7 - 2 / 9),
        ([0, 0, 1, 1], [2, 0, 3, 1], 0.0, -1 / 3),
        ([0, 0, 4, 4], [1, 1, 2, 2], 1 / 16, 1 / 16),
        ([0, 0, 2, 2], [1, 1, 1, 1], 0.0, 0.0),
        ([1, 1, 1, 1], [1, 1, 1, 1], 0.0, 0.0),
    ],
    ids=["same", "overlapping", "apart", "inside", "a point inside", "two points"],
)
def test_iou_and_giou_by_hand(
    a_xyxy: list[int], b_xyxy: list[int], iou: float, giou: float
) -> None:
    a, b = torch.tensor(a_xyxy).float(), torch.tensor(b_xyxy).float()
    assert_close(elementwise_iou(a, b)[0], torch.tensor(iou))
    assert_close(elementwise_giou(a, b), torch.tensor(giou))


@settings(deadline=None)
@given(boxes_cxcywh, boxes_cxcywh)
def test_pairwise_is_elementwise_of_every_pair(a: Tensor, b: Tensor) -> None:
    a, b = cxcywh_to_xyxy(a), cxcywh_to_xyxy(b)
    giou = pairwise_giou(a, b)
    assert giou.shape == (len(a), len(b))
    for row, box in enumerate(a):
        assert_close(giou[row], elementwise_giou(box, b))


@settings(deadline=None)
@given(boxes_cxcywh)
def test_giou_lies_between_minus_one_and_iou(boxes: Tensor) -> None:
    boxes = cxcywh_to_xyxy(boxes)
    giou, (iou, union) = pairwise_giou(boxes, boxes), elementwise_iou(boxes[:, None], boxes)
    assert giou.shape == iou.shape == union.shape == (len(boxes), len(boxes))
    assert (giou >= -1 - 1e-6).all() and (giou <= iou + 1e-6).all()


def test_a_box_the_wrong_way_round_has_no_area() -> None:
    boxes = torch.tensor([[3.0, 3.0, 1.0, 5.0], [1.0, 1.0, 3.0, 2.0]])
    assert box_area(boxes).tolist() == [0.0, 2.0]


def test_iou_has_finite_gradients_for_boxes_without_area() -> None:
    boxes = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0]], requires_grad=True)
    elementwise_giou(boxes, boxes.detach().flip(0)).sum().backward()
    assert boxes.grad is not None and boxes.grad.isfinite().all()


@settings(deadline=None)
@given(boxes_cxcywh)
def test_no_delta_keeps_the_reference(reference: Tensor) -> None:
    assert torch.equal(apply_box_deltas(torch.zeros_like(reference), reference), reference)


def test_deltas_move_in_units_of_the_reference_and_scale_by_exp() -> None:
    deltas = torch.tensor([0.5, -1.0, 0.0, 1.0])
    moved = apply_box_deltas(deltas, torch.tensor([0.5, 0.5, 0.2, 0.1]))
    assert_close(moved, torch.tensor([0.6, 0.4, 0.2, 0.1 * torch.e]))


def test_deltas_are_applied_in_float32() -> None:
    deltas = torch.zeros(4, dtype=torch.bfloat16)
    moved = apply_box_deltas(deltas, torch.tensor([0.5001, 0.5, 0.1, 0.1]))
    assert moved.dtype == torch.float32 and moved[0] == torch.tensor(0.5001)
