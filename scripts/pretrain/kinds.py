"""What the bundled weights were trained on: a recipe per class, which draws one object at random.

A gear has 6 to 11 teeth, a cup is wide or narrow. No class is one of the demo's, which those
weights are to learn. `scripts/pretrain_mini.py` uses them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

from rfdetr.synthetic.shapes import (
    DISTRACTOR_KINDS,
    Kind,
    Points,
    Ring,
    Rings,
    arc,
    corners,
    cut,
    disc,
    fill,
    pixel_rings,
    rect,
    regular,
    signed_area,
    stroke,
    symmetric,
)


def star(tips: int, inner: float) -> Points:
    """A star in the unit circle whose inner corners lie at radius `inner`."""
    return np.asarray(regular(2 * tips) * np.tile((1.0, inner), tips)[:, None])


def polar(radius: Callable[[Points], Points], count: int = 72) -> Points:
    """A closed curve from its radius as a function of the angle."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius(angle)[:, None])


@functools.cache
def trace_glyph(character: str) -> tuple[Ring, ...]:
    """A character of Pillow's own font: the edges of its bitmap, chained to rings and smoothed."""
    bitmap = Image.new("1", (128, 128))
    font = ImageFont.load_default(72)
    ImageDraw.Draw(bitmap).text((64, 64), character, fill=1, font=font, anchor="mm")
    rings = []
    for ring in pixel_rings(np.asarray(bitmap)):
        near = np.stack([np.roll(ring, shift, axis=0) for shift in range(-2, 3)])
        rings.append(np.asarray(near.mean(axis=0)[::3]))
    rings.sort(key=lambda ring: -abs(signed_area(ring)))  # what encloses before what it encloses
    return tuple(Ring(ring, signed_area(ring) > 0) for ring in rings if len(ring) >= 6)


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


def _gear(rng: Generator) -> Rings:
    teeth, depth = int(rng.integers(6, 12)), rng.uniform(0.7, 0.82)
    corner = np.tile((1.0, 1.0, depth, depth), teeth)
    return cut(fill(regular(4 * teeth) * corner[:, None]), disc(0, 0, rng.uniform(0.2, 0.45)))


def _spiral(rng: Generator) -> Rings:
    t = np.linspace(0.12, 1, 60)
    return fill(
        stroke(
            np.stack([np.cos(t * 14), np.sin(t * 14)], axis=1) * t[:, None], rng.uniform(0.12, 0.2)
        )
    )


def _flower(rng: Generator, petals: int) -> Rings:
    depth = rng.uniform(0.25, 0.4)
    return fill(polar(lambda a: 1 - depth + depth * np.cos(petals * a)))


def _cloud(rng: Generator) -> Rings:
    left, right = rng.uniform(0.35, 0.55, 2)
    return fill(
        disc(-0.7, 0.3, left), disc(0.75, 0.3, right), disc(0, 0, 0.7), rect(-0.7, 0.2, 0.75, 0.7)
    )


def _comb(rng: Generator) -> Rings:
    teeth = int(rng.integers(4, 7))
    tooth = 2 / (2 * teeth - 1)
    height = rng.uniform(0.6, 1.1)
    return fill(
        rect(-1, -0.3, 1, 0.05),
        *(rect(-1 + 2 * i * tooth, 0, -1 + (2 * i + 1) * tooth, height) for i in range(teeth)),
    )


def _ladder(rng: Generator) -> Rings:
    rungs = int(rng.integers(3, 6))
    rails = (rect(-0.45, -1, -0.28, 1), rect(0.28, -1, 0.45, 1))
    middle = np.linspace(-0.75, 0.75, rungs)
    return fill(*rails, *(rect(-0.4, y - 0.09, 0.4, y + 0.09) for y in middle))


_BUILDERS: dict[str, Callable[[Generator], Rings]] = {
    "disc": DISTRACTOR_KINDS["disc"].draw,
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
    "kite": DISTRACTOR_KINDS["kite"].draw,
    "pentagon": DISTRACTOR_KINDS["pentagon"].draw,
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
    "arc": DISTRACTOR_KINDS["arc"].draw,
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
    "drop": DISTRACTOR_KINDS["drop"].draw,
    "pin": lambda r: cut(
        fill(np.concatenate([corners((0, 2)), arc(155, 385)])), disc(0, 0, r.uniform(0.3, 0.5))
    ),
    "shield": DISTRACTOR_KINDS["shield"].draw,
    "dumbbell": lambda r: fill(
        disc(-0.8, 0, r.uniform(0.3, 0.4)), disc(0.8, 0, 0.35), rect(-0.8, -0.1, 0.8, 0.1)
    ),
    "bone": lambda r: fill(
        rect(-0.8, -0.17, 0.8, 0.17),
        *(disc(x, y, r.uniform(0.22, 0.28)) for x in (-0.85, 0.85) for y in (-0.2, 0.2)),
    ),
    "snowman": lambda r: fill(disc(0, 0.4, 0.65), disc(0, -0.5, r.uniform(0.35, 0.5))),
    "lollipop": lambda r: fill(disc(0, -0.6, r.uniform(0.4, 0.6)), rect(-0.07, -0.1, 0.07, 1.1)),
    "magnifier": DISTRACTOR_KINDS["magnifier"].draw,
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
    "bean": DISTRACTOR_KINDS["bean"].draw,
    "polygon": lambda r: fill(_convex(r)),
    "jagged": lambda r: fill(_jagged(r, r.uniform(0.4, 0.6))),
    "amoeba": lambda r: fill(_blob(r, 0.22, 7)),
}
_GLYPHS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789&?@#"


def _pebble(rng: Generator) -> Rings:
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
