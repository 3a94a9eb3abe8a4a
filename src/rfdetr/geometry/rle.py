"""COCO's run lengths of bitmaps: pixels column by column, outside and inside in turn, outside
first.
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


def rle_dict(counts: bytes, height: int, width: int) -> dict[str, Any]:
    """Compressed run lengths as COCO's tools take them."""
    return {"size": [height, width], "counts": counts}


def rle_of_box(box_xywh: NDArray[np.floating], height: int, width: int) -> bytes:
    """Compressed run lengths of a box."""
    import hotcoco.mask

    counts: bytes = hotcoco.mask.fr_bbox(box_xywh.tolist(), height, width)["counts"]
    return counts


def encode_bitmaps(bitmaps: Tensor) -> list[bytes]:
    """Compressed run lengths of bool bitmaps (n, height, width); the transposes of (n, width,
    height) need no copy.
    """
    import hotcoco.mask

    columns = bitmaps.mT.contiguous().cpu().view(torch.uint8).numpy()
    return (
        [rle["counts"] for rle in hotcoco.mask.encode(columns.transpose(2, 1, 0))]
        if len(columns)
        else []
    )


def pack_rles(rles: Sequence[bytes]) -> dict[str, Tensor]:
    """A target's `rle_bytes` (uint8) and `rle_offsets` (n + 1,): n objects' compressed run lengths
    in one stream.
    """
    stream = torch.from_numpy(np.frombuffer(bytearray(b"".join(rles)), np.uint8))
    return {"rle_bytes": stream, "rle_offsets": torch.from_numpy(np.cumsum([0, *map(len, rles)]))}


def compress(lengths: Sequence[int]) -> bytes:
    """COCO's compressed form of run lengths; see `run_lengths`."""
    digits = bytearray()
    for place, length in enumerate(lengths):
        number = length - lengths[place - 2] if place > 2 else length
        while True:
            digit, number = number & 31, number >> 5
            done = number == (-1 if digit & 16 else 0)  # what is left is the sign
            digits.append(48 + digit + (0 if done else 32))
            if done:
                break
    return bytes(digits)


def run_lengths(counts: bytes) -> NDArray[np.int64]:
    """Read COCO's compressed form; `ValueError` for what is none.

    A number is written in base 32, low digits first, and from the fourth on as its difference to
    the last but one.
    """
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = (digits & 32) == 0  # of its number
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))[: len(ends)]
    length = ends - starts + 1
    if (
        not len(ends)
        or not last[-1]
        or length.max() > _MOST_DIGITS
        or digits.min() < 0
        or digits.max() > 63
    ):
        raise InputError("no compressed run lengths")
    place = np.arange(len(digits)) - np.repeat(starts, length)
    numbers = np.add.reduceat((digits & 31) << (5 * place), starts)
    numbers -= np.where(digits[ends] & 16, 1 << (5 * length), 0)  # the sign bit
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def runs_of_bitmap(bitmap: NDArray[np.bool_]) -> list[int]:
    """Uncompressed run lengths of a bitmap (height, width)."""
    columns = bitmap.T.ravel()
    changes = np.flatnonzero(np.diff(columns, prepend=False))
    lengths: list[int] = np.diff(changes, prepend=0, append=len(columns)).tolist()
    return lengths
