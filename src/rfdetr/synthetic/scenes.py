"""Synthetic scenes: textured, overlapping objects over a textured background.

All is drawn from one random generator, so a scene is a function of its seed. Objects hide each
other: a box fits what is visible of its object, and an object that is mostly hidden has no box.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from rfdetr.synthetic.shapes import CLUTTER_KINDS, Kind, Ring, Rings, bounds, random_rings

MIN_SIDE, PLAIN_MIN_SIDE = 12.0, 30.0  # longer side of the smallest object, pixels; if plain
MIN_VISIBLE_SHARE = 0.3  # of an object that must show for it to count
_MIN_VISIBLE_SIDE = 6
_PLAIN_MOST_COVERED = 0.15  # of a new object's patch by others, in plain scenes
_PLAIN_FAMILIES = ("plain", "slope")
_BANK = 512  # side of a texture, pixels

Picture: TypeAlias = Image.Image
Colour: TypeAlias = NDArray[np.float64]  # (3,) RGB, 0 to 255
Box: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom; the last two exclusive
T = TypeVar("T")


class Scene(NamedTuple):
    """An image and the n objects that can be seen in it."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    boxes_xyxy: NDArray[np.float32]  # (n, 4) pixels, around the visible part
    labels: NDArray[np.int64]  # (n,) positions in `kinds`
    areas: NDArray[np.float32]  # (n,) visible pixels
    rings: list[Rings]  # n whole objects in pixels, with what is hidden or outside the image
    whole: NDArray[np.bool_]  # (n,) nothing of the object is hidden or outside
    owner: NDArray[np.int16]  # (H, W) which of the objects a pixel shows; -1: none of them


class _Placed(NamedTuple):
    """An object as it was drawn, before others came to lie over it."""

    label: int  # -1: none
    rings: Rings
    box: Box  # the patch that was drawn, as far as it is in the image
    area: int  # pixels it covers, those outside the image included


def render_scene(
    rng: Generator,
    kinds: Sequence[Kind],
    size: tuple[int, int],
    distractors: Sequence[Kind] = (),
    plain: bool = False,
) -> Scene:
    """Draw one scene of `size` (height, width) pixels with objects of `kinds`, labelled 0, 1, ...

    Objects of `distractors` appear, too, but have no label; lines and splinters always do. A
    `plain` scene is an easy one: smooth textures, larger objects that hide little of each other,
    nothing without a label, a perfect camera.
    """
    families = _PLAIN_FAMILIES if plain else tuple(_textures())
    palette = _palette(rng, _random_colour(rng))
    canvas = _textured(rng, size[::-1], _random_texture(rng, families), palette)
    owner = np.full(size, -1, np.int16)  # which of `placed` a pixel shows
    placed: list[_Placed] = []
    for label, kind, side in _cast(rng, kinds, distractors, min(size), plain):
        rings, patch = _place(rng, random_rings(rng, kind, side), canvas.size)
        left, top, right, bottom = patch
        box = max(left, 0), max(top, 0), min(right, canvas.width), min(bottom, canvas.height)
        shown = owner[box[1] : box[3], box[0] : box[2]]
        if plain and np.mean(shown >= 0) > _PLAIN_MOST_COVERED:
            continue
        texture = _random_texture(rng, (kind.texture,) if kind.texture else families)
        mask = _coverage(rings, patch)
        _draw(rng, canvas, mask, patch, texture, strong=kind.texture is not None)
        covered = np.asarray(mask) >= 128
        shown[covered[box[1] - top : box[3] - top, box[0] - left : box[2] - left]] = len(placed)
        placed.append(_Placed(label, rings, box, int(covered.sum())))
    seen = list(_visible(owner, placed))
    things = [placed[index] for index, _, _ in seen]
    areas = np.array([area for _, _, area in seen], np.float32)
    number = np.full(len(placed) + 1, -1, np.int16)  # its last entry is for -1
    number[[index for index, _, _ in seen]] = np.arange(len(seen))
    return Scene(
        image=np.asarray(canvas) if plain else _photographed(rng, canvas),
        boxes_xyxy=np.array([box for _, box, _ in seen], np.float32).reshape(-1, 4),
        labels=np.array([thing.label for thing in things], np.int64),
        areas=areas,
        rings=[thing.rings for thing in things],
        whole=areas == np.array([thing.area for thing in things]),
        owner=number[owner],
    )


def _cast(
    rng: Generator, kinds: Sequence[Kind], distractors: Sequence[Kind], side: int, plain: bool
) -> list[tuple[int, Kind, float]]:
    """Label, kind and size of what will be drawn, roughly from large to small: little is buried."""
    labelled = list(enumerate(kinds))
    clutter = [*CLUTTER_KINDS.values()] * 2
    others = [] if plain else [(-1, kind) for kind in (*clutter, *distractors)]
    least = PLAIN_MIN_SIDE if plain else MIN_SIDE
    if rng.random() < 0.25:  # many alike, as cells or parts on a belt
        few = _pick(rng, labelled, int(rng.integers(1, 4)))
        chosen = _pick(rng, few, int(rng.integers(6, 22)))
        usual = side * math.exp(rng.uniform(math.log(0.06), math.log(0.2)))
        sizes = np.maximum(usual * np.exp(rng.normal(0, 0.15, len(chosen))), least)
    else:
        chosen = _pick(rng, labelled, int(rng.integers(1, 10)))
        sizes = np.exp(rng.uniform(math.log(least), math.log(0.6 * side), len(chosen)))
    added = _pick(rng, others, int(rng.integers(0, 5)) if others else 0)
    more = np.exp(rng.uniform(math.log(least), math.log(0.4 * side), len(added)))
    sizes, chosen = np.concatenate([sizes, more]), chosen + added
    order = np.argsort(-sizes * np.exp(rng.normal(0, 0.4, len(sizes))))
    return [(*chosen[i], float(sizes[i])) for i in order]


def _pick(rng: Generator, items: Sequence[T], count: int) -> list[T]:
    return [items[i] for i in rng.integers(max(len(items), 1), size=count)]


def _place(rng: Generator, rings: Rings, size: tuple[int, int]) -> tuple[Rings, Box]:
    """The rings somewhere in an image of (width, height), up to a seventh of them outside.

    Also the patch around them, which may reach out of the image.
    """
    width, height = bounds(rings)[1].tolist()
    x, y = rng.random(2).tolist()
    x = -0.15 * width + x * (size[0] - 0.7 * width)
    y = -0.15 * height + y * (size[1] - 0.7 * height)
    patch = math.floor(x), math.floor(y), math.ceil(x + width) + 1, math.ceil(y + height) + 1
    return [Ring(points + np.array((x, y)), filled) for points, filled in rings], patch


def _coverage(rings: Rings, patch: Box) -> Picture:
    """How much of each pixel of a patch the rings cover, 0 to 255, from four samples a pixel."""
    left, top, right, bottom = patch
    fine = Image.new("L", (2 * (right - left), 2 * (bottom - top)))
    draw = ImageDraw.Draw(fine)
    for points, filled in rings:
        draw.polygon(((points - (left, top)) * 2).ravel().tolist(), fill=255 * filled)
    return fine.reduce(2)


def _draw(
    rng: Generator, canvas: Picture, mask: Picture, patch: Box, texture: Picture, strong: bool
) -> None:
    """Paint an object over a patch of the canvas, where its mask says."""
    left, top, right, bottom = patch
    middle_x = (max(left, 0) + min(right, canvas.width)) // 2
    middle_y = (max(top, 0) + min(bottom, canvas.height)) // 2
    beneath = np.array(canvas.getpixel((middle_x, middle_y)), np.float64)
    colour = _contrasting_colour(rng, beneath)
    if rng.random() < 0.25:  # a shadow
        dx, dy = rng.integers(-4, 5, 2).tolist()
        shadow = Image.blend(Image.new("L", mask.size), mask, 0.4)
        canvas.paste((0, 0, 0), (left + dx, top + dy), shadow)
    paint = _textured(rng, mask.size, texture, _palette(rng, colour, strong))
    if rng.random() < 0.3 and max(mask.size) > 16:  # a rim of another colour
        rim = Image.new("RGB", mask.size, tuple(_random_colour(rng).astype(int).tolist()))
        core = mask.filter(ImageFilter.MinFilter(3 if max(mask.size) < 60 else 5))
        rim.paste(paint, (0, 0), core)
        paint = rim
    canvas.paste(paint, (left, top), mask)


def _visible(owner: NDArray[np.int16], placed: Sequence[_Placed]) -> Iterator[tuple[int, Box, int]]:
    """Each labelled object of which enough shows: its index, the box and number of its pixels."""
    for index, (label, _, (left, top, right, bottom), whole) in enumerate(placed):
        shown = owner[top:bottom, left:right] == index
        area = int(shown.sum())
        if label < 0 or area < max(MIN_VISIBLE_SHARE * whole, 1):
            continue
        xs, ys = np.flatnonzero(shown.any(axis=0)), np.flatnonzero(shown.any(axis=1))
        box = left + int(xs[0]), top + int(ys[0]), left + int(xs[-1]) + 1, top + int(ys[-1]) + 1
        if max(box[2] - box[0], box[3] - box[1]) >= _MIN_VISIBLE_SIDE:
            yield index, box, area


def _photographed(rng: Generator, canvas: Picture) -> NDArray[np.uint8]:
    """The canvas (H, W, 3) with what a camera adds: blur, noise, compression, each at times."""
    if rng.random() < 0.35:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.2)))
    image = np.asarray(canvas)
    if rng.random() < 0.5:
        x, y = rng.integers(0, 64, 2).tolist()
        grain = _grain(-(-max(canvas.size) // 256))
        grain = grain[y : y + canvas.height, x : x + canvas.width, None]
        noise = (grain * np.float32(rng.uniform(2, 14))).astype(np.int16)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(rng.integers(35, 90)))
        image = np.asarray(Image.open(file))
    return image


@functools.cache
def _grain(side: int) -> NDArray[np.float32]:
    """Noise for images of up to 256 `side` pixels a side, cut out at an offset of up to 63."""
    shape = (256 * side + 63, 256 * side + 63)
    return np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)


# Colour and texture: a texture is a gray pattern, coloured by a palette of 256 entries.


@functools.cache
def _colours() -> NDArray[np.float64]:
    """(4096, 3) colours from gray to vivid."""
    rng = np.random.default_rng(2)
    vivid = rng.integers(0, 256, (4096, 3)).astype(np.float64)
    gray = vivid.mean(axis=1, keepdims=True)
    return np.asarray(gray + (vivid - gray) * rng.random((4096, 1)) ** 0.5)


def _random_colour(rng: Generator) -> Colour:
    return np.asarray(_colours()[rng.integers(4096, size=1)[0]])


def _contrasting_colour(rng: Generator, beneath: Colour) -> Colour:
    """The first of four random colours that stands out from what lies beneath, or the farthest."""
    candidates = _colours()[rng.integers(4096, size=4)]
    distance = np.abs(candidates - beneath).sum(axis=1)
    return np.asarray(candidates[int(np.minimum(distance, 110).argmax())])


def _palette(rng: Generator, colour: Colour, strong: bool = False) -> bytes:
    """256 colours from one to another, near or far; far and contrasting if `strong`."""
    other = _contrasting_colour(rng, colour) if strong else _random_colour(rng)
    reach = np.linspace(0, 1, 256)[:, None] * (1.0 if strong else rng.uniform(0.1, 0.9))
    return (colour + (other - colour) * reach).astype(np.uint8).tobytes()


def _random_texture(rng: Generator, families: Sequence[str]) -> Picture:
    patterns = _textures()[_pick(rng, families, 1)[0]]
    return patterns[int(rng.integers(len(patterns)))]


def _textured(rng: Generator, size: tuple[int, int], texture: Picture, palette: bytes) -> Picture:
    """A coloured (width, height) cut-out of a texture, at a random place and scale."""
    zoom, x, y = rng.random(3).tolist()
    scale = min(math.exp(-1.1 + 1.5 * zoom), _BANK / max(size))
    width, height = size[0] * scale, size[1] * scale
    left, top = x * (_BANK - width), y * (_BANK - height)
    box = (left, top, left + width, top + height)
    patch = texture.resize(size, Image.Resampling.BILINEAR, box=box)
    patch.putpalette(palette)
    return patch.convert("RGB")


@functools.cache
def _textures() -> dict[str, list[Picture]]:
    """Gray patterns by family, the same in every process."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:_BANK, 0:_BANK].astype(np.float32)
    clouds = []  # smooth noise of about unit range, more and more bumps a side
    for bumps in (3, 6, 12, 24, 48, 96):
        coarse = Image.fromarray(rng.normal(0, 0.5, (bumps, bumps)).astype(np.float32))
        clouds.append(np.asarray(coarse.resize((_BANK, _BANK), Image.Resampling.BICUBIC)))

    def waves(angle: float, period: float, bend: NDArray[np.float32] | float = 0) -> Colour:
        along = x * np.cos(angle) + y * np.sin(angle) + bend
        return np.asarray(np.sin(along * (2 * np.pi / period)))

    def picture(field: NDArray[np.floating]) -> Picture:
        return Image.fromarray(np.clip(field * 127.5 + 127.5, 0, 255).astype(np.uint8))

    angles = rng.uniform(0, np.pi, 6).tolist()
    grids = list(zip(angles, (12, 16, 24, 32, 48, 64), strict=True))
    crossed = [(waves(angle, period), waves(angle + np.pi / 2, period)) for angle, period in grids]
    fields = {
        "plain": [0.05 * cloud for cloud in clouds[:3]],
        "slope": [(x + y) / _BANK - 1, (x - y) / _BANK, np.hypot(x - 256, y - 256) / 180 - 1],
        "clouds": [*clouds[:4], np.sum(clouds, axis=0) / 2, np.sum(clouds[2:], axis=0) / 1.5],
        "stripes": [np.sign(wave) * 0.9 + 0.1 * clouds[5] for wave, _ in crossed],
        "checks": [np.sign(wave) * np.sign(other) for wave, other in crossed],
        "dots": [np.where(wave + other > 0.9, 1.0, -1.0) for wave, other in crossed],
        "grain": [waves(*grids[i], 40 * clouds[i]) for i in range(3)],
        "speckle": [np.where(clouds[4] > 0.45, 1.0, -0.6), np.where(clouds[5] > 0.3, 1.0, -0.5)],
    }
    return {name: [picture(field) for field in family] for name, family in fields.items()}
