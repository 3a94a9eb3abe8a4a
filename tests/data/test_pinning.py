"""What a loader pins for a GPU: every tensor of a batch, whose types stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from rfdetr.data.dataset import NestedTensor, Target


@pytest.mark.parametrize("padded", [False, True])
def test_every_tensor_of_a_batch_is_pinned(monkeypatch: pytest.MonkeyPatch, padded: bool) -> None:
    """Pinning itself needs a GPU: here a tensor that would be pinned is copied, and known again."""
    pinned: set[int] = set()

    def pin(tensor: Tensor, *_: object) -> Tensor:
        copy = tensor.clone()
        pinned.add(copy.data_ptr())
        return copy

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    mask = torch.ones(2, 8, 8, dtype=torch.bool) if padded else None
    images = NestedTensor(torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8), mask)
    target = Target(labels=torch.arange(3), boxes=torch.rand(3, 4), orig_size=torch.tensor([9, 9]))
    got, (found, _) = pin_memory((images, [target, target]))
    assert isinstance(got, NestedTensor) and isinstance(found, Target)
    assert torch.equal(got.tensors, images.tensors) and (got.mask is None) == (mask is None)
    assert set(found) == set(target)
    tensors = [got.tensors, *([got.mask] if padded else []), *found.values()]
    assert all(tensor.data_ptr() in pinned for tensor in tensors)
