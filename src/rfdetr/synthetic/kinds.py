"""What the synthetic objects are: a recipe per class, which draws one outline at random.

A heart is wide or narrow, a gear has 6 to 11 teeth. Two disjoint sets: PRETRAIN_KINDS, broad, on
which the bundled weights are trained, and DEMO_KINDS, which those weights never saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from rfdetr.synthetic.outlines import (
    Outline,
    Points,
    Ring,
    arc,
    corners,
    cut,
    disc,
    fill,
    polar,
    rect,
    regular,
    star,
    stroke,
    symmetric,
    trace_glyph,
)


class Kind(NamedTuple):
    """How objects of one class look."""

    draw: Callable[[Generator], Outline]
    tilt: float = 180.0
    """Largest rotation either way, degrees."""
    mirrored: bool = True
    """Whether its mirror image is of the same class."""
    texture: str | None = None
    """Texture family its objects are told by; None: any."""


def _blob(rng: Generator, roughness: float, highest: int) -> Points:
    orders = np.arange(2, highest + 1)
    size = rng.normal(0, roughness, len(orders)) / orders**0.5
    phase = rng.uniform(0, 2 * np.pi, len(orders))
    return polar(
        lambda a: np.maximum(1 + (size * np.cos(np.outer(a, orders) + phase)).sum(axis=1), 0.25)
    )


def _jagged(rng: Generator, inner: float) -> Points:
    count = int(rng.integers(9, 16))
    return (
        regular(2 * count)
        * np.where(np.arange(2 * count) % 2, inner, rng.uniform(0.7, 1, 2 * count))[:, None]
    )


def _convex(rng: Generator) -> Points:
    angle = np.sort(rng.uniform(0, 360, 6) * 0.25 + np.arange(6) * 60)
    return np.concatenate([arc(a, a, 1) for a in angle]) * (1, rng.uniform(0.6, 1))


def _squiggle(rng: Generator) -> Points:
    t = np.linspace(0, 1, 24)
    x = t * rng.uniform(1, 4) + 0.3 * np.sin(t * rng.uniform(3, 9))
    y = rng.uniform(0.1, 0.8) * np.sin(t * rng.uniform(2, 12) + rng.uniform(0, 6))
    return stroke(np.stack([x, y], axis=1), rng.uniform(0.04, 0.12))


def _gear(rng: Generator) -> Outline:
    teeth, depth = int(rng.integers(6, 12)), rng.uniform(0.7, 0.82)
    corner = np.tile((1.0, 1.0, depth, depth), teeth)
    return cut(fill(regular(4 * teeth) * corner[:, None]), disc(0, 0, rng.uniform(0.2, 0.45)))


def _spiral(rng: Generator) -> Outline:
    t = np.linspace(0.12, 1, 60)
    return fill(
        stroke(
            np.stack([np.cos(t * 14), np.sin(t * 14)], axis=1) * t[:, None], rng.uniform(0.12, 0.2)
        )
    )


def _flower(rng: Generator, petals: int) -> Outline:
    depth = rng.uniform(0.25, 0.4)
    return fill(polar(lambda a: 1 - depth + depth * np.cos(petals * a)))


def _cloud(rng: Generator) -> Outline:
    left, right = rng.uniform(0.35, 0.55, 2)
    return fill(
        disc(-0.7, 0.3, left), disc(0.75, 0.3, right), disc(0, 0, 0.7), rect(-0.7, 0.2, 0.75, 0.7)
    )


def _comb(rng: Generator) -> Outline:
    teeth = int(rng.integers(4, 7))
    tooth = 2 / (2 * teeth - 1)
    height = rng.uniform(0.6, 1.1)
    return fill(
        rect(-1, -0.3, 1, 0.05),
        *(rect(-1 + 2 * i * tooth, 0, -1 + (2 * i + 1) * tooth, height) for i in range(teeth)),
    )


def _ladder(rng: Generator) -> Outline:
    rungs = int(rng.integers(3, 6))
    rails = (rect(-0.45, -1, -0.28, 1), rect(0.28, -1, 0.45, 1))
    middle = np.linspace(-0.75, 0.75, rungs)
    return fill(*rails, *(rect(-0.4, y - 0.09, 0.4, y + 0.09) for y in middle))


def _crescent(rng: Generator) -> Outline:
    """A disc less a disc: both arcs end where the circles cross."""
    inner, shift = rng.uniform(0.8, 1.0), rng.uniform(0.4, 0.6)
    x = (1 - inner**2 + shift**2) / (2 * shift)
    y = np.sqrt(1 - x * x)
    outer_end, inner_end = np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(y, x - shift))
    return fill(
        np.concatenate(
            [arc(outer_end, 360 - outer_end), arc(360 - inner_end, inner_end) * inner + (shift, 0)]
        )
    )


def _heart(rng: Generator) -> Outline:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return fill(np.stack([16 * np.sin(t) ** 3, y * rng.uniform(0.85, 1.2)], axis=1))


def _key(rng: Generator) -> Outline:
    length, bow, shaft = rng.uniform(1.6, 2.4), rng.uniform(0.5, 0.65), rng.uniform(0.09, 0.14)
    teeth = [
        rect(x, 0, x + 0.17, rng.uniform(0.3, 0.5))
        for x in length - np.arange(rng.integers(2, 4)) * 0.32 - 0.17
    ]
    outline = cut(fill(disc(0, 0, bow)), disc(-0.05, 0, bow * rng.uniform(0.45, 0.6)))
    return outline + fill(rect(bow * 0.9, -shaft, length, shaft), *teeth)


def _fish(rng: Generator) -> Outline:
    height, tail = rng.uniform(0.42, 0.62), rng.uniform(0.4, 0.6)
    body = disc(0, 0, 1, height)
    fins = corners((-0.1, -height * 0.9), (0.25, -height - 0.3), (0.45, -height * 0.8))
    outline = fill(body, fins, corners((0.75, 0), (1.5, -tail), (1.3, 0), (1.5, tail)))
    return cut(outline, disc(-0.6, -0.12, 0.09))


def _house(rng: Generator) -> Outline:
    wall, roof, eaves = rng.uniform(0.6, 0.9), rng.uniform(0.5, 0.8), rng.uniform(0.12, 0.3)
    chimney = rng.uniform(0.3, 0.45)
    outline = fill(
        rect(-0.8, 0, 0.8, wall),
        corners((0, -roof), (0.8 + eaves, 0.05), (-0.8 - eaves, 0.05)),
        rect(chimney, -roof, chimney + 0.2, 0),
    )
    return cut(outline, rect(-0.5, wall * 0.35, -0.15, wall + 0.1))


def _leaf(rng: Generator) -> Outline:
    """Two bowed, toothed sides that meet in a point, on a stalk."""
    t = np.linspace(0, 1, 33)
    teeth = 0.07 * (np.arange(33) % 4) / 3
    side = np.sin(np.pi * t**0.8) * rng.uniform(0.38, 0.5) * (1 - teeth * 3)
    blade = np.concatenate(
        [np.stack([side, 2 * t - 1], axis=1), np.stack([-side, 2 * t - 1], axis=1)[::-1]]
    )
    return fill(blade, rect(-0.05, 0.9, 0.05, rng.uniform(1.3, 1.5)))


_BUILDERS: dict[str, Callable[[Generator], Outline]] = {
    "disc": lambda _: fill(disc()),
    "ellipse": lambda r: fill(disc(0, 0, 1, r.uniform(0.35, 0.65))),
    "triangle": lambda r: fill(regular(3) * (1, r.uniform(0.7, 1.3))),
    "right-triangle": lambda r: fill(corners((-1, -1), (-1, 1), (r.uniform(0, 1), 1))),
    "square": lambda _: fill(rect(-1, -1, 1, 1)),
    "rectangle": lambda r: fill(rect(-1, -0.5, 1, r.uniform(-0.1, 0.1))),
    "bar": lambda r: fill(rect(-1, -0.1, 1, r.uniform(0, 0.12))),
    "capsule": lambda _: fill(rect(-0.7, -0.3, 0.7, 0.3), disc(-0.7, 0, 0.3), disc(0.7, 0, 0.3)),
    "rhombus": lambda r: fill(
        corners((-1, 0), (0, 0.55), (1, 0), (0, -0.55)) * (1, r.uniform(0.8, 1.2))
    ),
    "trapezoid": lambda r: fill(symmetric((r.uniform(0.3, 0.6), -0.6), (1, 0.6))),
    "parallelogram": lambda r: fill(
        corners((-1, 0.5), (-0.4, -0.5), (1, -0.5), (0.4, 0.5)) * (1, r.uniform(0.7, 1.2))
    ),
    "kite": lambda r: fill(symmetric((0, -1), (r.uniform(0.5, 0.8), -0.3), (0, 1.2))),
    "pentagon": lambda _: fill(regular(5)),
    "hexagon": lambda _: fill(regular(6)),
    "octagon": lambda _: fill(regular(8)),
    "star-4": lambda r: fill(star(4, r.uniform(0.25, 0.4))),
    "star-5": lambda r: fill(star(5, r.uniform(0.35, 0.5))),
    "star-6": lambda r: fill(star(6, r.uniform(0.45, 0.6))),
    "sun": lambda r: fill(star(int(r.integers(10, 15)), r.uniform(0.6, 0.75))),
    "ring": lambda r: cut(fill(disc()), disc(0, 0, r.uniform(0.5, 0.8))),
    "frame": lambda r: cut(fill(rect(-1, -1, 1, 1)), rect(-1, -1, 1, 1) * r.uniform(0.5, 0.75)),
    "triangle-frame": lambda r: cut(fill(regular(3)), regular(3) * r.uniform(0.4, 0.6)),
    "bullseye": lambda r: (
        cut(fill(disc()), disc(0, 0, 0.75)) + fill(disc(0, 0, r.uniform(0.3, 0.5)))
    ),
    "nut": lambda r: cut(fill(regular(6)), disc(0, 0, r.uniform(0.35, 0.55))),
    "washer": lambda r: cut(fill(disc()), rect(-0.4, -0.4, 0.4, 0.4) * r.uniform(0.8, 1.2)),
    "chain": lambda r: (
        cut(fill(disc(-0.6, 0, 0.7)), disc(-0.6, 0, 0.45))
        + fill(stroke(arc(-175, 175) * 0.58 + (0.45, 0), r.uniform(0.2, 0.27)))
    ),
    "half-disc": lambda _: fill(arc(180, 360)),
    "quarter-disc": lambda _: fill(np.concatenate([corners((0, 0)), arc(0, 90)])),
    "bitten-disc": lambda r: fill(np.concatenate([corners((0, 0)), arc(r.uniform(25, 45), 325)])),
    "arc": lambda r: fill(stroke(arc(0, r.uniform(180, 270)), r.uniform(0.25, 0.4))),
    "plus": lambda r: fill(
        rect(-1, -1, 1, 1) * (1, w := r.uniform(0.2, 0.35)), rect(-1, -1, 1, 1) * (w, 1)
    ),
    "tripod": lambda r: fill(
        *(stroke(corners((0, 0), xy), r.uniform(0.25, 0.4)) for xy in regular(3))
    ),
    "asterisk": lambda r: fill(
        *(stroke(np.stack([-xy, xy]), 0.22) for xy in regular(6)[:3] * r.uniform(0.9, 1.1))
    ),
    "arrow": lambda r: fill(
        symmetric((0, -1), (0.6, r.uniform(-0.4, -0.1)), (0.2, -0.3), (0.2, 1))
    ),
    "double-arrow": lambda r: fill(
        symmetric(
            (0, -1), (0.6, -0.4), (w := r.uniform(0.15, 0.25), -0.4), (w, 0.4), (0.6, 0.4), (0, 1)
        )
    ),
    "chevron": lambda r: fill(
        symmetric((0, -0.6), (1, 0.3), (1, 0.3 + (w := r.uniform(0.35, 0.55))), (0, w - 0.6))
    ),
    "bolt": lambda r: fill(
        corners(
            (0.3, -1),
            (-0.6, r.uniform(0, 0.2)),
            (-0.05, 0.1),
            (-0.3, 1),
            (0.6, -0.2),
            (0.05, -0.15),
        )
    ),
    "stairs": lambda r: fill(
        rect(-1, 0.4, 1, 1),
        rect(-0.33, -0.3, 1, 0.5),
        rect(0.33, -1, 1, -0.2) * (1, r.uniform(0.8, 1)),
    ),
    "zigzag": lambda r: fill(
        stroke(
            np.stack([np.linspace(-1, 1, 7), 0.35 * (-1.0) ** np.arange(7)], axis=1),
            r.uniform(0.2, 0.3),
        )
    ),
    "wave": lambda r: fill(
        stroke(
            np.stack([t := np.linspace(-1, 1, 40), 0.3 * np.sin(t * r.uniform(6, 9))], axis=1), 0.22
        )
    ),
    "spiral": _spiral,
    "gear": _gear,
    "flower-4": lambda r: _flower(r, 4),
    "flower-6": lambda r: _flower(r, 6),
    "cloud": _cloud,
    "drop": lambda r: fill(np.concatenate([corners((0, r.uniform(-2.0, -1.5))), arc(-25, 205)])),
    "pin": lambda r: cut(
        fill(np.concatenate([corners((0, 2)), arc(155, 385)])), disc(0, 0, r.uniform(0.3, 0.5))
    ),
    "shield": lambda r: fill(
        symmetric((0, -0.85), (0.8, -1), (0.8, 0), (0.5, 0.6), (0, r.uniform(0.9, 1.2)))
    ),
    "dumbbell": lambda r: fill(
        disc(-0.8, 0, r.uniform(0.3, 0.4)), disc(0.8, 0, 0.35), rect(-0.8, -0.1, 0.8, 0.1)
    ),
    "bone": lambda r: fill(
        rect(-0.8, -0.17, 0.8, 0.17),
        *(disc(x, y, r.uniform(0.22, 0.28)) for x in (-0.85, 0.85) for y in (-0.2, 0.2)),
    ),
    "snowman": lambda r: fill(disc(0, 0.4, 0.65), disc(0, -0.5, r.uniform(0.35, 0.5))),
    "lollipop": lambda r: fill(disc(0, -0.6, r.uniform(0.4, 0.6)), rect(-0.07, -0.1, 0.07, 1.1)),
    "magnifier": lambda r: (
        cut(fill(disc(0, -0.6, 0.55)), disc(0, -0.6, r.uniform(0.35, 0.43)))
        + fill(rect(-0.1, -0.1, 0.1, 1))
    ),
    "mushroom": lambda r: fill(arc(180, 360), rect(-0.3, -0.05, 0.3, r.uniform(0.6, 0.9))),
    "umbrella": lambda r: fill(
        arc(180, 360), rect(-0.06, 0, 0.06, 0.9), rect(-0.06, 0.8, r.uniform(0.3, 0.4), 0.92)
    ),
    "hammer": lambda r: fill(
        rect(-0.6, -1, 0.6, r.uniform(-0.6, -0.5)), rect(-0.12, -0.7, 0.12, 1)
    ),
    "flag": lambda r: fill(
        rect(-0.6, -1, -0.48, 1.1), corners((-0.5, -1), (0.7, r.uniform(-0.8, -0.6)), (-0.5, -0.2))
    ),
    "pine": lambda r: fill(
        *(regular(3) * 0.6 * s + (0, y) for s, y in ((0.8, -0.6), (1, -0.2), (1.2, 0.3))),
        rect(-0.12, 0.5, 0.12, r.uniform(0.9, 1.1)),
    ),
    "hourglass": lambda r: fill(symmetric((0.7, -1), (r.uniform(0.05, 0.15), 0), (0.7, 1))),
    "bottle": lambda r: fill(
        symmetric((0.16, -1), (0.16, r.uniform(-0.5, -0.3)), (0.42, -0.1), (0.42, 1))
    ),
    "vase": lambda r: fill(
        symmetric((0.35, -1), (0.18, -0.65), (r.uniform(0.5, 0.65), 0.1), (0.5, 0.6), (0.25, 1))
    ),
    "rocket": lambda r: fill(
        symmetric((0, -1.2), (0.3, -0.5), (0.3, 0.4), (0.65, r.uniform(0.7, 0.9)), (0.2, 0.7))
    ),
    "cup": lambda r: fill(
        symmetric((0.7, -0.7), (r.uniform(0.5, 0.65), 0.7)),
        stroke(arc(-80, 80) * 0.42 + (0.62, -0.05), 0.17),
    ),
    "wineglass": lambda r: fill(
        symmetric((0.5, -1), (0.45, -0.3), (0.06, 0), (0.06, 0.8), (r.uniform(0.35, 0.5), 0.95))
    ),
    "comb": _comb,
    "ladder": _ladder,
    "bean": lambda r: fill(stroke(arc(20, r.uniform(140, 180)) * (1, 0.9), 0.75)),
    "polygon": lambda r: fill(_convex(r)),
    "jagged": lambda r: fill(_jagged(r, r.uniform(0.4, 0.6))),
    "amoeba": lambda r: fill(_blob(r, 0.22, 7)),
}
_GLYPHS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789&?@#"
_DEMO_BUILDERS: dict[str, Callable[[Generator], Outline]] = {
    "crescent": _crescent,
    "fish": _fish,
    "heart": _heart,
    "house": _house,
    "key": _key,
    "leaf": _leaf,
}


def _pebble(rng: Generator) -> Outline:
    return fill(_blob(rng, 0.08, 4))


def _glyph(character: str) -> Kind:
    return Kind(lambda _: list(trace_glyph(character)), tilt=25.0, mirrored=False)


PRETRAIN_KINDS: dict[str, Kind] = {
    **{name: Kind(draw) for name, draw in _BUILDERS.items()},
    "striped-pebble": Kind(_pebble, texture="stripes"),
    "dotted-pebble": Kind(_pebble, texture="dots"),
    "checked-pebble": Kind(_pebble, texture="checks"),
    "plain-pebble": Kind(_pebble, texture="plain"),
    **{character: _glyph(character) for character in _GLYPHS},
}
"""Classes of the bundled weights' training."""
DEMO_KINDS: dict[str, Kind] = {name: Kind(draw) for name, draw in _DEMO_BUILDERS.items()}
"""Classes of the demo."""
CLUTTER_KINDS: dict[str, Kind] = {
    "squiggle": Kind(lambda r: fill(_squiggle(r))),
    "shard": Kind(lambda r: fill(r.uniform(-1, 1, (3, 2)))),
}
"""Things that belong to no class."""
ALL_KINDS: dict[str, Kind] = {**PRETRAIN_KINDS, **DEMO_KINDS, **CLUTTER_KINDS}


def random_outline(rng: Generator, kind: Kind, size: float) -> Outline:
    """An outline, stretched, mirrored and turned at random; its longer side is `size`, its box
    starts at (0, 0).
    """
    outline = kind.draw(rng)
    turn, stretch, mirror = rng.random(3).tolist()
    angle = math.radians(kind.tilt * (2 * turn - 1))
    x_scale = math.exp(0.5 * stretch - 0.25) * (-1 if kind.mirrored and mirror < 0.5 else 1)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array([(x_scale * cos, x_scale * sin), (-sin, cos)])
    turned = [ring.points @ matrix for ring in outline]
    solid = np.concatenate(
        [polygon for polygon, ring in zip(turned, outline, strict=True) if ring.filled]
    )
    low = solid.min(axis=0)
    scale = size / (solid.max(axis=0) - low).max()
    return [
        Ring((polygon - low) * scale, ring.filled)
        for polygon, ring in zip(turned, outline, strict=True)
    ]
