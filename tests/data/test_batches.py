"""A padded batch keeps its two tensors together."""

from __future__ import annotations

import torch

from rfdetr.data.dataset import NestedTensor


def test_both_tensors_move() -> None:
    batch = NestedTensor(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)).to("meta")
    assert batch.tensors.device.type == "meta"
    assert batch.mask is not None and batch.mask.device.type == "meta"


def test_no_mask_stays_no_mask() -> None:
    assert NestedTensor(torch.zeros(2, 3, 4, 4)).to("meta").mask is None
