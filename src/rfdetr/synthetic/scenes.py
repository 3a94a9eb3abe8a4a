"""Synthetic scenes: textured, overlapping objects of `data.synthetic_kinds` over a textured
background.

All is drawn from one random generator, so a scene is a function of its seed. Objects hide each
other: a box fits what is visible of its object, and an object that is mostly hidden has no box.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from rfdetr.synthetic.kinds import ALL_KINDS, CLUTTER_KINDS, random_outline
from rfdetr.synthetic.outlines import Outline, Ring

MIN_SIDE = 12.0
"""Longer side of the smallest object, pixels."""
MIN_VISIBLE_SHARE = 0.3
"""Share of an object that must show for it to count."""
_MIN_VISIBLE_SIDE = 6
_PLAIN_MIN_SIDE = 30.0
_PLAIN_MOST_COVERED = 0.15
"""Share of a new object's patch in which others may show already, in plain scenes."""
_BANK_SIDE = 512
_PLAIN_TEXTURES = ("plain", "slope")
_RAMP = np.linspace(0, 1, 256)[:, None]

Colour: TypeAlias = NDArray[np.float64]
"""(3,) RGB, 0 to 255."""
Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right, bottom; the last two exclusive."""


class Scene(NamedTuple):
    """An image and the n objects that can be seen in it."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    boxes_xyxy: NDArray[np.float32]
    """(n, 4) pixels, around the visible part."""
    labels: NDArray[np.int64]
    """(n,) positions in `kinds`."""
    areas: NDArray[np.float32]
    """(n,) visible pixels."""
    outlines: list[Outline]
    """Whole outlines in image coordinates, with what is hidden or outside the image."""
    whole: NDArray[np.bool_]
    """(n,) nothing of the object is hidden or outside."""
    owner: NDArray[np.int16]
    """(H, W) which of the objects a pixel shows; -1: none of them."""


class _Placed(NamedTuple):
    """An object as it was drawn, before others came to lie over it."""

    label: int
    outline: Outline
    box: Box
    """The patch that was drawn, as far as it is in the image."""
    area: int


def render_scene(
    rng: Generator,
    kinds: Sequence[str],
    size: tuple[int, int],
    distractors: Sequence[str] = (),
    plain: bool = False,
) -> Scene:
    """Draws one scene of `size` (height, width) pixels.

    `distractors` are kinds that appear but belong to no class; lines and shards always do. A
    `plain` scene is an easy one: smooth textures, larger objects that hide little of each other,
    nothing else, a perfect camera.
    """
    height, width = size
    textures = _PLAIN_TEXTURES if plain else tuple(_textures())
    background = _palette(rng, _random_colours(rng, 1)[0])
    canvas = _textured(
        rng, (width, height), _random_texture(rng, _pick(rng, textures, 1)[0]), background
    )
    owner = np.full((height, width), -1, dtype=np.int16)  # which of `placed` a pixel shows
    unlabelled = [] if plain else [*CLUTTER_KINDS, *CLUTTER_KINDS, *distractors]
    least = _PLAIN_MIN_SIDE if plain else MIN_SIDE
    placed: list[_Placed] = []
    for name, side in _cast(rng, kinds, unlabelled, min(size), least):
        kind = ALL_KINDS[name]
        outline, patch = _place(rng, random_outline(rng, kind, side), canvas.size)
        if plain and _covered(owner, patch) > _PLAIN_MOST_COVERED:
            continue
        texture = _random_texture(rng, kind.texture or _pick(rng, textures, 1)[0])
        box, inside, area = _draw(rng, canvas, outline, patch, (texture, kind.texture is not None))
        owner[box[1] : box[3], box[0] : box[2]][inside] = len(placed)
        placed.append(_Placed(kinds.index(name) if name in kinds else -1, outline, box, area))
    seen = [
        (index, *_visible_box(owner, index, thing))
        for index, thing in enumerate(placed)
        if thing.label >= 0
    ]
    seen = [(index, box, area) for index, box, area in seen if area]
    things = [placed[index] for index, _, _ in seen]
    number = np.full(len(placed) + 1, -1, dtype=np.int16)  # its last entry is for -1
    number[[index for index, _, _ in seen]] = np.arange(len(seen))
    return Scene(
        image=np.asarray(canvas) if plain else _photographed(rng, canvas),
        boxes_xyxy=np.array([box for _, box, _ in seen], dtype=np.float32).reshape(-1, 4),
        labels=np.array([thing.label for thing in things], dtype=np.int64),
        areas=np.array([area for _, _, area in seen], dtype=np.float32),
        outlines=[thing.outline for thing in things],
        whole=np.array(
            [area == thing.area for thing, (_, _, area) in zip(things, seen, strict=True)],
            dtype=np.bool_,
        ),
        owner=number[owner],
    )


def _cast(
    rng: Generator, kinds: Sequence[str], unlabelled: Sequence[str], side: int, least: float
) -> list[tuple[str, float]]:
    """Names and sizes of what will be drawn, roughly from large to small so that little is buried."""
    if rng.random() < 0.25:  # many alike, as cells or parts on a belt
        few = _pick(rng, kinds, int(rng.integers(1, 4)))
        names = _pick(rng, few, int(rng.integers(6, 22)))
        usual = side * math.exp(rng.uniform(math.log(0.06), math.log(0.2)))
        sizes = np.maximum(usual * np.exp(rng.normal(0, 0.15, len(names))), least)
    else:
        names = _pick(rng, kinds, int(rng.integers(1, 10)))
        sizes = np.exp(rng.uniform(math.log(least), math.log(0.6 * side), len(names)))
    others = _pick(rng, unlabelled, int(rng.integers(0, 5)) if unlabelled else 0)
    other_sizes = np.exp(rng.uniform(math.log(least), math.log(0.4 * side), len(others)))
    sizes = np.concatenate([sizes, other_sizes])
    order = np.argsort(-sizes * np.exp(rng.normal(0, 0.4, len(sizes))))
    return [((names + others)[i], float(sizes[i])) for i in order]


def _pick(rng: Generator, names: Sequence[str], count: int) -> list[str]:
    return [names[i] for i in rng.integers(max(len(names), 1), size=count)]


def _covered(owner: NDArray[np.int16], patch: Box) -> float:
    """The share of a patch in which objects show already."""
    left, top = max(patch[0], 0), max(patch[1], 0)
    return float(np.mean(owner[top : patch[3], left : patch[2]] >= 0))


def _place(rng: Generator, outline: Outline, size: tuple[int, int]) -> tuple[Outline, Box]:
    """The outline somewhere in an image of (width, height), up to a seventh outside, and the patch
    around it.
    """
    width, height = np.max(
        [ring.points.max(axis=0) for ring in outline if ring.filled], axis=0
    ).tolist()
    x, y = rng.random(2).tolist()
    x = -0.15 * width + x * (size[0] - 0.7 * width)
    y = -0.15 * height + y * (size[1] - 0.7 * height)
    shift = np.array((x, y))
    moved = [Ring(ring.points + shift, ring.filled) for ring in outline]
    return moved, (
        math.floor(x),
        math.floor(y),
        math.ceil(x + width) + 1,
        math.ceil(y + height) + 1,
    )


def _draw(
    rng: Generator,
    canvas: Image.Image,
    outline: Outline,
    patch: Box,
    surface: tuple[Image.Image, bool],
) -> tuple[Box, NDArray[np.bool_], int]:
    """Draws an object with a texture of two strong colours or not.

    Returns the part of its patch in the image, the pixels of that part which it covers, and its
    whole area.
    """
    left, top, right, bottom = patch
    mask = _mask(outline, patch)
    box = (max(left, 0), max(top, 0), min(right, canvas.width), min(bottom, canvas.height))
    beneath = canvas.getpixel(((box[0] + box[2]) // 2, (box[1] + box[3]) // 2))
    colour = _contrasting_colour(rng, np.array(beneath, dtype=np.float64))
    if rng.random() < 0.25:
        dx, dy = rng.integers(-4, 5, 2).tolist()
        canvas.paste(
            (0, 0, 0), (left + dx, top + dy), Image.blend(Image.new("L", mask.size), mask, 0.4)
        )  # a shadow
    texture, strong = surface
    fill = _textured(rng, mask.size, texture, _palette(rng, colour, strong))
    if rng.random() < 0.3 and max(mask.size) > 16:  # a rim of another colour
        red, green, blue = _random_colours(rng, 1)[0].astype(int).tolist()
        rim = Image.new("RGB", mask.size, (red, green, blue))
        rim.paste(fill, (0, 0), mask.filter(ImageFilter.MinFilter(3 if max(mask.size) < 60 else 5)))
        fill = rim
    canvas.paste(fill, (left, top), mask)
    covered = np.asarray(mask) >= 128
    inside = covered[box[1] - top : box[3] - top, box[0] - left : box[2] - left]
    return box, inside, int(covered.sum())


def _mask(outline: Outline, box: Box) -> Image.Image:
    """Coverage of the pixels of a box, 0 to 255, from four samples a pixel."""
    left, top, right, bottom = box
    fine = Image.new("L", (2 * (right - left), 2 * (bottom - top)))
    draw = ImageDraw.Draw(fine)
    for ring in outline:
        corners = (ring.points - (left, top)) * 2
        draw.polygon(corners.ravel().tolist(), fill=255 if ring.filled else 0)
    return fine.reduce(2)


def _visible_box(owner: NDArray[np.int16], index: int, thing: _Placed) -> tuple[Box, int]:
    """Box around the pixels that show an object, and their number; 0 where too little of it shows."""
    left, top, right, bottom = thing.box
    shown = owner[top:bottom, left:right] == index
    area = int(shown.sum())
    if area == 0 or area < MIN_VISIBLE_SHARE * thing.area:
        return thing.box, 0
    xs, ys = np.flatnonzero(shown.any(axis=0)), np.flatnonzero(shown.any(axis=1))
    box = (left + int(xs[0]), top + int(ys[0]), left + int(xs[-1]) + 1, top + int(ys[-1]) + 1)
    return box, area if max(box[2] - box[0], box[3] - box[1]) >= _MIN_VISIBLE_SIDE else 0


def _photographed(rng: Generator, canvas: Image.Image) -> NDArray[np.uint8]:
    """What a camera adds: blur, noise, compression."""
    if rng.random() < 0.35:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.2)))
    image = np.asarray(canvas)
    if rng.random() < 0.5:
        x, y = rng.integers(0, 64, 2).tolist()
        grain = _grain(-(-max(canvas.size) // 256))[
            y : y + canvas.height, x : x + canvas.width, None
        ]
        noise = (grain * np.float32(rng.uniform(2, 14))).astype(np.int16)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(rng.integers(35, 90)))
        image = np.asarray(Image.open(file))
    return image


# Colour and texture: a texture is a grey pattern, coloured by a palette of 256 entries.


def _random_colours(rng: Generator, count: int) -> NDArray[np.float64]:
    """(count, 3) colours from grey to vivid."""
    bank = _colours()
    return bank[rng.integers(len(bank), size=count)]


@functools.cache
def _colours() -> NDArray[np.float64]:
    rng = np.random.default_rng(2)
    vivid = rng.integers(0, 256, (4096, 3)).astype(np.float64)
    grey = vivid.mean(axis=1, keepdims=True)
    return np.asarray(grey + (vivid - grey) * rng.random((4096, 1)) ** 0.5)


@functools.cache
def _grain(side: int) -> NDArray[np.float32]:
    """Noise for images of up to so many times 256 pixels a side, cut out at an offset of up to 63."""
    return (
        np.random.default_rng(1).normal(0, 1, (256 * side + 63, 256 * side + 63)).astype(np.float32)
    )


def _contrasting_colour(rng: Generator, beneath: Colour) -> Colour:
    """The first of a few random colours that stands out from what lies beneath, else the farthest."""
    candidates = _random_colours(rng, 4)
    distance = np.abs(candidates - beneath).sum(axis=1)
    return np.asarray(candidates[int(np.minimum(distance, 110).argmax())])


def _palette(rng: Generator, colour: Colour, strong: bool = False) -> bytes:
    """256 colours from one to another, near or far."""
    other = _contrasting_colour(rng, colour) if strong else _random_colours(rng, 1)[0]
    reach = 1.0 if strong else rng.uniform(0.1, 0.9)
    return (colour + (other - colour) * (_RAMP * reach)).astype(np.uint8).tobytes()


def _textured(
    rng: Generator, size: tuple[int, int], texture: Image.Image, palette: bytes
) -> Image.Image:
    """A coloured (width, height) cut-out of a texture, at a random place and scale."""
    zoom, x, y = rng.random(3).tolist()
    scale = min(math.exp(-1.1 + 1.5 * zoom), _BANK_SIDE / max(size))
    width, height = size[0] * scale, size[1] * scale
    left, top = x * (_BANK_SIDE - width), y * (_BANK_SIDE - height)
    patch = texture.resize(
        size, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
    )
    patch.putpalette(palette)
    return patch.convert("RGB")


def _random_texture(rng: Generator, family: str) -> Image.Image:
    patterns = _textures()[family]
    return patterns[int(rng.integers(len(patterns)))]


@functools.cache
def _textures() -> dict[str, list[Image.Image]]:
    """Grey patterns by family, the same in every process."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:_BANK_SIDE, 0:_BANK_SIDE].astype(np.float32)
    clouds = [_cloud_noise(rng, bumps) for bumps in (3, 6, 12, 24, 48, 96)]

    def waves(
        angle: float, period: float, bend: NDArray[np.float32] | float = 0.0
    ) -> NDArray[np.float32]:
        return np.asarray(
            np.sin((x * np.cos(angle) + y * np.sin(angle) + bend) * (2 * np.pi / period))
        )

    grids = [
        (float(angle), period)
        for angle, period in zip(rng.uniform(0, np.pi, 6), (12, 16, 24, 32, 48, 64), strict=True)
    ]
    crossed = [(waves(angle, period), waves(angle + np.pi / 2, period)) for angle, period in grids]
    fields = {
        "plain": [0.05 * cloud for cloud in clouds[:3]],
        "slope": [
            (x + y) / _BANK_SIDE - 1,
            (x - y) / _BANK_SIDE,
            np.hypot(x - 256, y - 256) / 180 - 1,
        ],
        "clouds": [*clouds[:4], np.sum(clouds, axis=0) / 2, np.sum(clouds[2:], axis=0) / 1.5],
        "stripes": [np.sign(wave) * 0.9 + 0.1 * clouds[5] for wave, _ in crossed],
        "checks": [np.sign(wave) * np.sign(other) for wave, other in crossed],
        "dots": [np.where(wave + other > 0.9, 1.0, -1.0) for wave, other in crossed],
        "grain": [
            waves(*grid, 40 * cloud) for grid, cloud in zip(grids[:3], clouds[:3], strict=True)
        ],
        "speckle": [np.where(clouds[4] > 0.45, 1.0, -0.6), np.where(clouds[5] > 0.3, 1.0, -0.5)],
    }
    return {name: [_grey(field) for field in family] for name, family in fields.items()}


def _grey(field: NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(np.clip(field * 127.5 + 127.5, 0, 255).astype(np.uint8))


def _cloud_noise(rng: Generator, bumps: int) -> NDArray[np.float32]:
    """Smooth noise of about unit range, so many bumps a side."""
    coarse = Image.fromarray(rng.normal(0, 0.5, (bumps, bumps)).astype(np.float32))
    return np.asarray(coarse.resize((_BANK_SIDE, _BANK_SIDE), Image.Resampling.BICUBIC))
