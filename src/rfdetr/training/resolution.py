"""`resolution="auto"`: the network's input, chosen by the shapes and object sizes of the images."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfdetr.config.fields import squared

MOST_COST = 2.0
"""Times as many pixels as the square has that small objects are given at most."""
LEAST_PATCHES = 1.0
"""Side of the median object, in patches, under which they are small."""
LONGEST = 4.0
"""The longer side by the shorter one at most: positions were learned on a square."""
_ROUNDING = 1.1  # whole windows may make so many times more pixels of those that are wanted


class Choice(NamedTuple):
    """An input, and why it was chosen."""

    resolution: int | tuple[int, int]
    reason: str


def choose_resolution(
    sizes: NDArray[np.integer], objects: NDArray[np.floating], *, square: int, patch: int, step: int
) -> Choice:
    """The input for images of `sizes` (N, 2) height and width, whose objects have as `objects`
    (M, 2) heights and widths as shares of their image; all else is in pixels.

    Its shape (height / width) is the images' median, or 1 where a third of them is upright and a
    third wide. It has as many pixels as `square` x `square`. Only if the median object, by the root
    of its area, is under `LEAST_PATCHES` patches there, it has as many more as that takes, up to
    `MOST_COST` times. Both sides are the nearest multiples of `step`, a window.
    """
    shapes = np.log(np.maximum(sizes[:, 0], 1) / np.maximum(sizes[:, 1], 1))
    low, middle, high = np.quantile(shapes, (1 / 3, 1 / 2, 2 / 3)) if len(shapes) else (0, 0, 0)
    mixed = low < 0 < high
    shape = 1.0 if mixed else math.exp(np.clip(middle, -math.log(LONGEST), math.log(LONGEST)))
    share = float(np.median(np.sqrt(objects.prod(axis=1)))) if len(objects) else 1.0
    needed = (LEAST_PATCHES * patch / max(share * square, 1e-9)) ** 2
    area = square**2 * min(max(needed, 1.0), MOST_COST)
    size = _nearest_windows(math.sqrt(area * shape), math.sqrt(area / shape), step)
    cost = math.prod(size) / square**2
    ratio = Fraction(math.exp(abs(middle))).limit_denominator(20)  # the longer by the shorter side
    parts = (ratio.denominator, ratio.numerator)[:: 1 if middle < 0 else -1]
    shown = "upright and wide" if mixed else "{}:{} (height:width)".format(*parts)
    reason, side = f"images are {shown}", share * math.sqrt(math.prod(size))
    if len(objects):
        small = f", {share * square:.0f} at {square}x{square}, less than a patch of {patch}"
        reason += f"; median object {side:.0f} px of the input{small * (needed > 1)}"
        reason += "; tiles= and slice= show them larger" * (needed > MOST_COST)
    return Choice(squared(size), f"{reason}; {cost:.2f}x the cost of {square}x{square}")


def _nearest_windows(height: float, width: float, step: int) -> tuple[int, int]:
    """The multiples of `step` nearest to the sides by ratio, with no more than `_ROUNDING` times
    their pixels.
    """
    near = [{max(math.floor(s / step), 1), math.floor(s / step) + 1} for s in (height, width)]
    pairs = [(rows * step, columns * step) for rows, columns in itertools.product(*near)]
    fits = [pair for pair in pairs if math.prod(pair) <= _ROUNDING * height * width]

    def distance(pair: tuple[int, int]) -> float:
        return math.hypot(math.log(pair[0] / height), math.log(pair[1] / width))

    return min(fits or pairs, key=distance)
