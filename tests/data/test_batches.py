"""A padded batch keeps its two tensors together."""

from __future__ import annotations

import pytest
import torch

from rfdetr.data.dataset import NestedTensor, tone


def test_both_tensors_move() -> None:
    batch = NestedTensor(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)).to("meta")
    assert batch.tensors.device.type == "meta"
    assert batch.mask is not None and batch.mask.device.type == "meta"


def test_no_mask_stays_no_mask() -> None:
    assert NestedTensor(torch.zeros(2, 3, 4, 4)).to("meta").mask is None


def test_tone_is_the_mean_and_what_blur_takes_away() -> None:
    flat = torch.full((3, 6, 6), 50, dtype=torch.uint8)
    assert tone(flat).tolist() == [50, 0]
    columns = torch.arange(6)
    board = ((columns[:, None] + columns) % 2 * 100).to(torch.uint8).expand(3, 6, 6)
    assert tone(board).tolist() == pytest.approx([50, 400])  # 4 x 100 up and down
