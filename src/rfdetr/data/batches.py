"""A batch of images of one tensor size, with a mask of what is padding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class NestedTensor(NamedTuple):
    """Images (B, 3, H, W) and their padding mask (B, H, W), True where padded; None: nothing is
    padded.
    """

    tensors: Tensor
    mask: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> NestedTensor:
        """The same batch on another device."""
        mask = None if self.mask is None else self.mask.to(device, non_blocking=non_blocking)
        return NestedTensor(self.tensors.to(device, non_blocking=non_blocking), mask)

    def pin_memory(self) -> NestedTensor:
        """The same batch in page-locked memory, for asynchronous copies to a GPU."""
        return NestedTensor(
            self.tensors.pin_memory(), None if self.mask is None else self.mask.pin_memory()
        )
