"""Rules about outlines: one object's polygons or run lengths against its image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr.data.segmentations import OutlineRecorder

_SLACK = 1.0  # pixels outside the image that tools write by habit
_TOUCH = 1e-6  # pixels between a corner and an edge that touch
_MOST_POINTS = 1000  # of a ring that is looked at for crossings, which costs their square


def outline_faults(segmentation: Any, height: int, width: int) -> Iterator[tuple[str, str]]:
    """Rule and what was found, for a COCO `segmentation` that is not empty; the image's size 0 is
    unknown.
    """
    parts = segmentation if isinstance(segmentation, list) else []
    pairs = [part for part in parts if isinstance(part, list) and len(part) % 2 == 0]
    rings = [part for part in pairs if len(part) >= 6]
    if len(rings) < len(pairs):
        yield "outline-points", f"{min(map(len, pairs)) // 2} points"
    if len(pairs) < len(parts):
        yield "outline-numbers", "not a list of x y pairs"
    if not parts or rings:
        recorder = OutlineRecorder()
        recorder.add(rings or segmentation)
        if recorder.faults:
            yield recorder.faults[0]
            return
    if isinstance(segmentation, dict):
        size = [int(side) for side in segmentation["size"]]
        if height and size != [height, width]:
            yield "outline-rle", f"size is {size}, the image's is {[height, width]}"
    for ring in rings:
        yield from ring_faults(np.array(ring, np.float64).reshape(-1, 2), height, width)


def ring_faults(points: NDArray[np.float64], height: int, width: int) -> Iterator[tuple[str, str]]:
    """What is odd about a polygon's points (n, 2), in pixels."""
    low, high = points.min(0), points.max(0)
    if height and ((low < -_SLACK).any() or (high > np.array((width, height)) + _SLACK).any()):
        yield (
            "outline-outside",
            f"x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g} in {width}x{height} pixels",
        )
    if len(points) <= _MOST_POINTS and (found := crossing(points)) is not None:
        yield found[0], f"near x {found[1][0]:g}, y {found[1][1]:g}"


def crossing(points: NDArray[np.float64]) -> tuple[str, NDArray[np.float64]] | None:
    """The rule that a closed polygon (n, 2) breaks by meeting itself, and near which point; None:
    it does not.

    It is "outline-crossing" where edges cross. Else it may be "outline-touching": a corner lies on
    an edge that is not its own, as where one corner occurs twice (a pinched ring, of which traced
    masks have many).
    """
    points = points[
        (points != np.roll(points, 1, axis=0)).any(1)
    ]  # a corner may be written twice in a row
    n = len(points)
    if n < 4:
        return None
    start, end = points, np.roll(points, -1, axis=0)
    turn = _turn(
        start[:, None], end[:, None], points[None]
    )  # (n, n): of edge i, on which side corner j lies
    sides = np.sign(turn)
    ahead = np.roll(sides, -1, axis=1)  # where its next corner lies
    own = np.isin((np.arange(n) - np.arange(n)[:, None]) % n, (0, 1))  # corners of the edge
    crosses = (sides * ahead < 0) & (sides * ahead < 0).T & ~(own | own.T)
    low, high = np.minimum(start, end)[:, None] - _TOUCH, np.maximum(start, end)[:, None] + _TOUCH
    on_line = np.abs(turn) <= _TOUCH * np.linalg.norm(end - start, axis=1)[:, None]
    touches = on_line & ((low <= points) & (points <= high)).all(2) & ~own
    for rule, edges in (("outline-crossing", crosses), ("outline-touching", touches)):
        if edges.any():
            return rule, start[np.argwhere(edges)[0][0]]
    return None


def _turn(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Twice the signed area of the triangle a, b, c: its sign tells the side of the line a b on
    which c lies.
    """
    ab, ac = b - a, c - a
    area: NDArray[np.float64] = ab[..., 0] * ac[..., 1] - ab[..., 1] * ac[..., 0]
    return area
