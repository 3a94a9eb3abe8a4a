"""What a loader hands over: images of one size as a `NestedTensor`, and a `Target` for each."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor


class NestedTensor(NamedTuple):
    """Images (B, 3, H, W) and a bool mask (B, H, W), True where padded; None: no padding."""

    tensors: Tensor
    mask: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> NestedTensor:
        """The same batch on another device."""
        mask = None if self.mask is None else self.mask.to(device, non_blocking=non_blocking)
        return NestedTensor(self.tensors.to(device, non_blocking=non_blocking), mask)


class Target(dict[str, Tensor]):
    """Labels (n,), boxes (n, 4) cxcywh from 0 to 1, image_id and orig_size (height, width).

    Evaluation adds iscrowd (n,), area (n,) and boxes_xyxy (n, 4) in pixels of the original image.
    With outlines there are masks (n, size, size) bool of the network input, and has_mask (n,),
    False where an object has no outline or one too small to show. Evaluation then adds rle_bytes
    and rle_offsets of the whole outlines (see `pack_rles`); an object without one has no bytes.
    An image that cannot be decoded has undecodable (2,): its number, and that of all images.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker sends arrays inside its message. Each tensor would take a file in shared memory
        # of its own, and the number of files that a process may have open is limited.
        return Target.from_arrays, ({name: tensor.numpy() for name, tensor in self.items()},)

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Target:
        """The target whose tensors share the memory of `arrays`."""
        return cls((name, torch.from_numpy(array)) for name, array in arrays.items())


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[NestedTensor, list[Target]]:
    """Stack images (3, size, size) to a batch (B, 3, size, size) uint8; targets stay a list."""
    images, targets = zip(*samples, strict=True)
    return NestedTensor(torch.stack(images)), list(targets)
