"""Shapes: the kinds of objects that synthetic scenes show, and the figures they are drawn of.

A recipe draws one object of its kind at random, so that a heart is wide or narrow and a key has two
or three teeth. It says so in rings: `cut(fill(disc()), disc(0, 0, 0.5))` is a ring's two circles.
Coordinates are x to the right and y down, in any unit: `random_rings` brings them to pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Points: TypeAlias = NDArray[np.float64]  # (n, 2) x, y


class Ring(NamedTuple):
    """A closed polygon: filled, or cut out of what the rings before it filled."""

    points: Points
    filled: bool


Rings: TypeAlias = list[Ring]
"""An object: its polygons in the order in which they are filled and cut out."""


class Kind(NamedTuple):
    """How objects of one class look."""

    draw: Callable[[Generator], Rings]
    tilt: float = 180.0  # largest rotation either way, degrees
    mirrored: bool = True  # its mirror image is of the same class
    texture: str | None = None  # family of textures by which the class is told; None: any


def fill(*polygons: Points) -> Rings:
    return [Ring(polygon, True) for polygon in polygons]


def cut(rings: Rings, *polygons: Points) -> Rings:
    return [*rings, *(Ring(polygon, False) for polygon in polygons)]


def arc(start: float, stop: float, count: int = 28) -> Points:
    """Points of the unit circle between two angles in degrees (0: right, 90: down)."""
    angle = np.radians(np.linspace(start, stop, count))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def disc(x: float = 0, y: float = 0, radius_x: float = 1, radius_y: float | None = None) -> Points:
    """A disc or, with two radii, an ellipse."""
    radii = (radius_x, radius_x if radius_y is None else radius_y)
    return np.asarray(arc(0, 360, 37)[:-1] * radii + (x, y))


def corners(*xy: tuple[float, float]) -> Points:
    """A polygon, or a path, by its corners."""
    return np.array(xy, dtype=np.float64)


def rect(left: float, top: float, right: float, bottom: float) -> Points:
    return corners((left, top), (right, top), (right, bottom), (left, bottom))


def regular(sides: int) -> Points:
    """A regular polygon in the unit circle, one corner at the top."""
    return arc(-90, 270, sides + 1)[:-1]


def symmetric(*right_half: tuple[float, float]) -> Points:
    """A right half, listed from top to bottom, closed by its mirror image."""
    half = corners(*right_half)
    return np.concatenate([half, half[::-1] * np.array((-1, 1))])


def stroke(path: Points, width: float) -> Points:
    """The band of a given width along a path."""
    along = np.gradient(path, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    normal /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    return np.concatenate([path + normal * width / 2, (path - normal * width / 2)[::-1]])


# A function per kind that takes more than a line; each draws one object.


def crescent(rng: Generator) -> Rings:
    """A disc less a disc: both arcs end where the circles cross."""
    inner, shift = rng.uniform(0.8, 1.0), rng.uniform(0.4, 0.6)
    x = (1 - inner**2 + shift**2) / (2 * shift)
    y = np.sqrt(1 - x * x)
    outer_end, inner_end = np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(y, x - shift))
    bite = arc(360 - inner_end, inner_end) * inner + (shift, 0)
    return fill(np.concatenate([arc(outer_end, 360 - outer_end), bite]))


def fish(rng: Generator) -> Rings:
    height, tail = rng.uniform(0.42, 0.62), rng.uniform(0.4, 0.6)
    fins = corners((-0.1, -height * 0.9), (0.25, -height - 0.3), (0.45, -height * 0.8))
    tail_fin = corners((0.75, 0), (1.5, -tail), (1.3, 0), (1.5, tail))
    eye = disc(-0.6, -0.12, 0.09)
    return cut(fill(disc(0, 0, 1, height), fins, tail_fin), eye)


def heart(rng: Generator) -> Rings:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return fill(np.stack([16 * np.sin(t) ** 3, y * rng.uniform(0.85, 1.2)], axis=1))


def house(rng: Generator) -> Rings:
    wall, roof, eaves = rng.uniform(0.6, 0.9), rng.uniform(0.5, 0.8), rng.uniform(0.12, 0.3)
    left = rng.uniform(0.3, 0.45)
    gable = corners((0, -roof), (0.8 + eaves, 0.05), (-0.8 - eaves, 0.05))
    door, chimney = rect(-0.5, wall * 0.35, -0.15, wall + 0.1), rect(left, -roof, left + 0.2, 0)
    return cut(fill(rect(-0.8, 0, 0.8, wall), gable, chimney), door)


def key(rng: Generator) -> Rings:
    length, bow, shaft = rng.uniform(1.6, 2.4), rng.uniform(0.5, 0.65), rng.uniform(0.09, 0.14)
    lefts = length - np.arange(rng.integers(2, 4)) * 0.32 - 0.17
    teeth = [rect(x, 0, x + 0.17, rng.uniform(0.3, 0.5)) for x in lefts]
    head = cut(fill(disc(0, 0, bow)), disc(-0.05, 0, bow * rng.uniform(0.45, 0.6)))
    return head + fill(rect(bow * 0.9, -shaft, length, shaft), *teeth)


def leaf(rng: Generator) -> Rings:
    """Two bowed, toothed sides that meet in a point, on a stalk."""
    t = np.linspace(0, 1, 33)
    teeth = 0.07 * (np.arange(33) % 4) / 3
    side = np.sin(np.pi * t**0.8) * rng.uniform(0.38, 0.5) * (1 - teeth * 3)
    right, left = np.stack([side, 2 * t - 1], axis=1), np.stack([-side, 2 * t - 1], axis=1)
    blade = np.concatenate([right, left[::-1]])
    return fill(blade, rect(-0.05, 0.9, 0.05, rng.uniform(1.3, 1.5)))


def magnifier(rng: Generator) -> Rings:
    frame = cut(fill(disc(0, -0.6, 0.55)), disc(0, -0.6, rng.uniform(0.35, 0.43)))
    return frame + fill(rect(-0.1, -0.1, 0.1, 1))


def shield(rng: Generator) -> Rings:
    tip = (0, rng.uniform(0.9, 1.2))
    return fill(symmetric((0, -0.85), (0.8, -1), (0.8, 0), (0.5, 0.6), tip))


def squiggle(rng: Generator) -> Rings:
    t = np.linspace(0, 1, 24)
    x = t * rng.uniform(1, 4) + 0.3 * np.sin(t * rng.uniform(3, 9))
    y = rng.uniform(0.1, 0.8) * np.sin(t * rng.uniform(2, 12) + rng.uniform(0, 6))
    return fill(stroke(np.stack([x, y], axis=1), rng.uniform(0.04, 0.12)))


_DEMO = (crescent, fish, heart, house, key, leaf)
DEMO_KINDS: dict[str, Kind] = {draw.__name__: Kind(draw) for draw in _DEMO}
"""Classes of the demo, which the bundled weights have not seen."""
DISTRACTOR_KINDS: dict[str, Kind] = {
    "drop": Kind(lambda r: fill(np.concatenate([[(0, r.uniform(-2.0, -1.5))], arc(-25, 205)]))),
    "disc": Kind(lambda _: fill(disc())),
    "arc": Kind(lambda r: fill(stroke(arc(0, r.uniform(180, 270)), r.uniform(0.25, 0.4)))),
    "bean": Kind(lambda r: fill(stroke(arc(20, r.uniform(140, 180)) * (1, 0.9), 0.75))),
    "magnifier": Kind(magnifier),
    "pentagon": Kind(lambda _: fill(regular(5))),
    "kite": Kind(lambda r: fill(symmetric((0, -1), (r.uniform(0.5, 0.8), -0.3), (0, 1.2)))),
    "shield": Kind(shield),
}
"""Shapes that resemble a demo class and are none."""
CLUTTER_KINDS: dict[str, Kind] = {
    "squiggle": Kind(squiggle),
    "shard": Kind(lambda r: fill(r.uniform(-1, 1, (3, 2)))),
}
"""Lines and splinters, which belong to no class."""


def random_rings(rng: Generator, kind: Kind, size: float) -> Rings:
    """An object of a kind, stretched, mirrored and turned at random.

    Its bounding box starts at (0, 0), and the longer side of it is `size`.
    """
    rings = kind.draw(rng)
    turn, stretch, mirror = rng.random(3).tolist()
    angle = math.radians(kind.tilt * (2 * turn - 1))
    x_scale = math.exp(0.5 * stretch - 0.25) * (-1 if kind.mirrored and mirror < 0.5 else 1)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array([(x_scale * cos, x_scale * sin), (-sin, cos)])
    turned = [Ring(points @ matrix, filled) for points, filled in rings]
    low, high = bounds(turned)
    scale = size / (high - low).max()
    return [Ring((points - low) * scale, filled) for points, filled in turned]


def bounds(rings: Rings) -> tuple[Points, Points]:
    """Smallest and largest x, y (2,) of what is filled."""
    solid = np.concatenate([points for points, filled in rings if filled])
    return solid.min(axis=0), solid.max(axis=0)


_EDGES = (  # of a pixel, clockwise: the neighbour across it, and its two ends
    ((0, -1), (0, 0), (1, 0)),
    ((1, 0), (1, 0), (1, 1)),
    ((0, 1), (1, 1), (0, 1)),
    ((-1, 0), (0, 1), (0, 0)),
)


def pixel_rings(inside: NDArray[np.bool_]) -> list[Points]:
    """Outlines of what a bitmap (height, width) shows, a point at each corner of a pixel.

    What is inside is at the right hand, so that `signed_area` is positive, and negative for a hole.
    The border of the bitmap must be outside.
    """
    ends_of: dict[tuple[int, int], list[tuple[int, int]]] = {}  # where edges lead from a corner
    for (dx, dy), (x0, y0), (x1, y1) in _EDGES:
        for y, x in np.argwhere(inside & ~np.roll(inside, (-dy, -dx), axis=(0, 1))).tolist():
            ends_of.setdefault((x + x0, y + y0), []).append((x + x1, y + y1))
    rings = []
    while ends_of:
        corner, ring = next(iter(ends_of)), []
        while corner in ends_of:
            ring.append(corner)
            corner = ends_of[corner].pop()
            if not ends_of[ring[-1]]:
                del ends_of[ring[-1]]
        rings.append(corners(*ring))
    return rings


def signed_area(polygon: Points) -> float:
    """Area of a polygon (n, 2), negative where it runs against the clock (y is down)."""
    x, y = polygon.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
