"""Decoded images that stay in memory: one copy of each for a run and all its loader processes.

The memory is a file without a name (Linux) or in a temporary folder, which every process maps. The
system frees it when the last of them has ended, in whatever way. Its first bytes say which images
are there; then comes the place of each, as large as its pixels: the index knows all sizes.
"""

from __future__ import annotations

import os
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class ImageCache:
    """Keeps the first images of `sizes` (N, 2), height and width, that find room in `most` bytes.

    Pixels are kept as decoded, in full size, so that a view of them is the same to the bit.
    Forked and spawned processes share what any of them has decoded.
    """

    def __init__(self, sizes: NDArray[np.int32], most: int) -> None:
        self._sizes = sizes
        self._ends = np.cumsum(3 * sizes.astype(np.int64).prod(axis=1))
        self.count = int(np.searchsorted(self._ends, most, side="right"))
        """Images that have a place, of `all`."""
        self.all = len(sizes)
        self.bytes = int(self._ends[self.count - 1]) if self.count else 0
        """Of all of them together."""
        if sys.platform == "linux":
            descriptor = os.memfd_create("rfdetr-images")
            weakref.finalize(self, os.close, descriptor)
            self._path = f"/proc/{os.getpid()}/fd/{descriptor}"
        else:
            self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            self._path = str(Path(self._folder.name, "images"))
            Path(self._path).touch()
        os.truncate(self._path, self.count + self.bytes + 1)  # one: no map is empty
        self._map()

    def _map(self) -> None:
        self._memory: Pixels = np.memmap(self._path, np.uint8, "r+").view(np.ndarray)

    def get(self, number: int, decode: Callable[[], Pixels]) -> Pixels:
        """The pixels (H, W, 3) of an image, read-only if they are kept; `decode` gives those that
        are not here yet. An image of another size than expected is not kept.
        """
        if number >= self.count:
            return decode()
        height, width = self._sizes[number].tolist()
        end = self.count + int(self._ends[number])
        place = self._memory[end - 3 * height * width : end].reshape(height, width, 3)
        if not self._memory[number]:
            pixels = decode()
            if pixels.shape != place.shape:
                return pixels
            place[:] = pixels
            self._memory[number] = 1  # last: who sees it finds all pixels there
        place.flags.writeable = False
        return place

    def __getstate__(self) -> dict[str, object]:
        """Of a spawned process, which maps the same file."""
        left_out = ("_memory", "_folder")
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._map()
