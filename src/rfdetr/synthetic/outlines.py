"""Outlines as polygons, and the few figures of which the synthetic objects are put together.

Coordinates: x to the right, y down, any unit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Points: TypeAlias = NDArray[np.float64]
"""(N, 2) x, y."""


class Ring(NamedTuple):
    """A closed polygon that is filled, or cut out of what the rings before it filled."""

    points: Points
    filled: bool


Outline: TypeAlias = list[Ring]


def fill(*polygons: Points) -> Outline:
    """What any of the polygons covers."""
    return [Ring(polygon, True) for polygon in polygons]


def cut(outline: Outline, *polygons: Points) -> Outline:
    """The outline with holes."""
    return [*outline, *(Ring(polygon, False) for polygon in polygons)]


def arc(start: float, stop: float, count: int = 28) -> Points:
    """Points of the unit circle between two angles in degrees (0: right, 90: down)."""
    angle = np.radians(np.linspace(start, stop, count))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def disc(
    x: float = 0.0, y: float = 0.0, radius_x: float = 1.0, radius_y: float | None = None
) -> Points:
    """A disc or, with two radii, an ellipse."""
    radii = (radius_x, radius_x if radius_y is None else radius_y)
    return np.asarray(arc(0, 360, 37)[:-1] * radii + (x, y))


def rect(left: float, top: float, right: float, bottom: float) -> Points:
    """An upright rectangle."""
    return corners((left, top), (right, top), (right, bottom), (left, bottom))


def corners(*xy: tuple[float, float]) -> Points:
    """A polygon, or a path, by its corners."""
    return np.array(xy, dtype=np.float64)


def regular(sides: int) -> Points:
    """A regular polygon in the unit circle, one corner at the top."""
    return arc(-90, 270, sides + 1)[:-1]


def star(tips: int, inner: float) -> Points:
    """A star in the unit circle whose inner corners lie at radius `inner`."""
    return np.asarray(regular(2 * tips) * np.tile((1.0, inner), tips)[:, None])


def polar(radius: Callable[[Points], Points], count: int = 72) -> Points:
    """A closed curve from its radius as a function of the angle."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius(angle)[:, None])


def symmetric(*right_half: tuple[float, float]) -> Points:
    """Closes a right half, listed from top to bottom, with its mirror image."""
    half = corners(*right_half)
    return np.concatenate([half, half[::-1] * np.array((-1, 1))])


def stroke(path: Points, width: float) -> Points:
    """The band of a given width along a path."""
    along = np.gradient(path, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / (
        np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    )
    return np.concatenate([path + normal * width / 2, (path - normal * width / 2)[::-1]])


@functools.cache
def trace_glyph(character: str) -> tuple[Ring, ...]:
    """Outline of a character of Pillow's own font: the edges of its bitmap, chained to rings and
    smoothed.
    """
    bitmap = Image.new("1", (128, 128))
    ImageDraw.Draw(bitmap).text(
        (64, 64), character, fill=1, font=ImageFont.load_default(72), anchor="mm"
    )
    rings = [_smoothed(ring) for ring in _pixel_rings(np.asarray(bitmap))]
    rings.sort(
        key=lambda ring: -abs(_signed_area(ring))
    )  # what encloses comes before what it encloses
    return tuple(Ring(ring, _signed_area(ring) > 0) for ring in rings if len(ring) >= 6)


def trace_pixels(inside: NDArray[np.bool_]) -> list[Ring]:
    """The outline of what a bitmap shows, along the edges of its pixels."""
    rings = []
    for ring in _pixel_rings(inside):
        step = np.roll(ring, -1, axis=0) - ring
        rings.append(
            Ring(ring[(step != np.roll(step, 1, axis=0)).any(axis=1)], _signed_area(ring) > 0)
        )
    return rings


def _pixel_rings(inside: NDArray[np.bool_]) -> list[Points]:
    """Boundaries of a bitmap along its pixels' edges, the inside always at the right hand."""
    steps: dict[
        tuple[int, int], list[tuple[int, int]]
    ] = {}  # corner (x, y) -> the corners that edges lead to
    clockwise = [(0, 0), (1, 0), (1, 1), (0, 1)]
    neighbours = [
        (0, -1),
        (1, 0),
        (0, 1),
        (-1, 0),
    ]  # across the edge that starts at each of those corners
    for side, (dx, dy) in enumerate(neighbours):
        (x0, y0), (x1, y1) = clockwise[side], clockwise[(side + 1) % 4]
        for y, x in np.argwhere(inside & ~np.roll(inside, (-dy, -dx), axis=(0, 1))):
            steps.setdefault((x + x0, y + y0), []).append((x + x1, y + y1))
    rings = []
    while steps:
        corner = next(iter(steps))
        ring = []
        while corner in steps:
            ring.append(corner)
            ends = steps[corner]
            corner = ends.pop()
            if not ends:
                del steps[ring[-1]]
        rings.append(corners(*ring))
    return rings


def _smoothed(ring: Points) -> Points:
    near = np.stack([np.roll(ring, shift, axis=0) for shift in range(-2, 3)])
    return np.asarray(near.mean(axis=0)[::3])


def _signed_area(polygon: Points) -> float:
    x, y = polygon.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
