"""COCO's run lengths of a bitmap: pixels column by column, outside and inside in turn.

The first run is outside, so it may be 0. The bitmap [[0, 1], [1, 1]] has the lengths [1, 3].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfdetr.errors import InputError

_MOST_DIGITS = 12  # of a number in base 32, so that it fits 64 bits


def coco_masks() -> Any:
    """COCO's mask functions, by hotcoco: it comes with the `train` extra, so it loads on use."""
    import hotcoco.mask

    return hotcoco.mask


def rle_dict(counts: bytes, height: int, width: int) -> dict[str, Any]:
    return {"size": [height, width], "counts": counts}


def rle_of_box(box_xywh: NDArray[np.floating], height: int, width: int) -> bytes:
    """Compressed run lengths of a box (4,) in pixels of an image."""
    return bytes(coco_masks().fr_bbox(box_xywh.tolist(), height, width)["counts"])


def encode_bitmaps(bitmaps: Tensor) -> list[bytes]:
    """Compressed run lengths of bool bitmaps (n, height, width); transposed ones need no copy."""
    columns = bitmaps.mT.contiguous().cpu().view(torch.uint8).numpy().transpose(2, 1, 0)
    return [rle["counts"] for rle in coco_masks().encode(columns)] if len(bitmaps) else []


def runs_of_part(part: NDArray[np.bool_], left: int, top: int, height: int) -> list[int]:
    """Run lengths of an image `height` high that shows `part` (h, w) at `left`, `top`, without its
    last run; the image is never drawn.
    """
    edges = np.diff(np.pad(part.T, ((0, 0), (1, 1))).astype(np.int8))  # (w, h + 1)
    column, row = np.nonzero(edges)
    places = (left + column) * height + top + row
    # A run that goes on in the next column ends where that one starts: neither is a change.
    places, times = np.unique(places, return_counts=True)
    lengths: list[int] = np.diff(places[times == 1], prepend=0).tolist()
    return lengths


def pack_rles(rles: Sequence[bytes]) -> dict[str, Tensor]:
    """Compressed run lengths of n objects, object i from `rle_offsets[i]` to `rle_offsets[i + 1]`.

    That is {"rle_bytes": uint8, "rle_offsets": (n + 1,) int64}.
    """
    stream = torch.from_numpy(np.frombuffer(bytearray(b"".join(rles)), np.uint8))
    return {"rle_bytes": stream, "rle_offsets": torch.from_numpy(np.cumsum([0, *map(len, rles)]))}


def compress(lengths: Sequence[int]) -> bytes:
    """COCO's compressed form: base 32, low digits first, "0" + digit, 32 more if another follows.

    Of numbers from the fourth on, the difference to the last but one is written.
    """
    digits = bytearray()
    for place, length in enumerate(lengths):
        rest, done = length - lengths[place - 2] if place > 2 else length, False
        while not done:
            digit, rest = rest & 31, rest >> 5
            done = rest == (-1 if digit & 16 else 0)  # what is left is the sign
            digits.append(48 + digit + (0 if done else 32))
    return bytes(digits)


def run_lengths(counts: bytes) -> NDArray[np.int64]:
    """Run lengths from their compressed form, see `compress`; `InputError` for other bytes."""
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((digits & 32) == 0)  # last digits of numbers
    length = np.diff(ends, prepend=-1)
    whole = len(ends) > 0 and ends[-1] == len(digits) - 1 and length.max() <= _MOST_DIGITS
    if not whole or digits.min() < 0 or digits.max() > 63:
        raise InputError("no compressed run lengths")
    starts = ends + 1 - length
    place = np.arange(len(digits)) - np.repeat(starts, length)
    numbers = np.add.reduceat((digits & 31) << (5 * place), starts)
    numbers -= np.where(digits[ends] & 16, 1 << (5 * length), 0)  # the sign bit
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def runs_of_bitmap(bitmap: NDArray[np.bool_]) -> list[int]:
    """Uncompressed run lengths of a bitmap (height, width), in the time that its object takes."""
    rows, columns = (np.flatnonzero(bitmap.any(axis)) for axis in (1, 0))
    if not len(rows):
        return [bitmap.size]
    crop = bitmap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    column, row = np.nonzero(np.diff(crop.T, prepend=False, append=False))
    changes = (column + columns[0]) * len(bitmap) + row + rows[0]
    goes_on = changes[1:] == changes[:-1]  # from the foot of a column to the head of the next
    changes = changes[~(np.append(goes_on, False) | np.append(False, goes_on))]
    lengths: list[int] = np.diff(changes, prepend=0, append=bitmap.size).tolist()
    if changes[-1] == bitmap.size:  # inside to the last pixel
        lengths.pop()
    return lengths
