"""What the readers of annotation files share: pictures, their shapes, and how faults are told."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rfdetr.checks import short
from rfdetr.data.files import IMAGE_SUFFIXES, is_file_name, with_slashes
from rfdetr.errors import InputError
from rfdetr.geometry.rle import runs_of_part

Tell: TypeAlias = Callable[[str, str, str, "int | None"], None]
"""Takes a finding: rule, record, what was found, number of the shape in its picture."""
CORNERS = 64
"""Of the polygon that stands for a circle; four of them are its extremes."""
_MOST_PIXELS = 2**28  # of a mask


class Shape(NamedTuple):
    """An object in pixels of its image. `outline` is as in COCO files; those of one `group` that
    have a label in common are parts of one object.
    """

    label: str
    xyxy: tuple[float, ...]
    outline: Any = None
    group: str = ""
    crowd: bool = False
    place: int = 0  # in its picture, from 1


class Picture(NamedTuple):
    """An image with its objects; `size` is (height, width) as annotated, 0 where it is not."""

    file: Path  # of its labels
    image: Path
    size: tuple[int, int]
    shapes: list[Shape]
    subset: str = ""


def shapes_of(
    items: Iterable[Any], parse: Callable[[Any], Shape], who: str, tell: Tell
) -> list[Shape]:
    """The shapes of a picture; of an item that `parse` refuses by `InputError` (rule, what was
    found), that is told. Outlined ones of a group become one, with a box around all.
    """
    shapes: dict[Any, Shape] = {}
    for at, item in enumerate(items, 1):
        try:
            shape = parse(item)
        except InputError as error:
            rule, found = error.args
            tell(rule, f"{who}, object {at}", found, at)
            continue
        parts = isinstance(shape.outline, list) and shape.group not in ("", "0")
        key = (shape.label, shape.group) if parts else at
        if (first := shapes.get(key)) is not None:
            low = map(min, first.xyxy[:2], shape.xyxy[:2])
            high = map(max, first.xyxy[2:], shape.xyxy[2:])
            whole = [*first.outline, *shape.outline]
            shapes[key] = first._replace(xyxy=(*low, *high), outline=whole)
        else:
            shapes[key] = shape._replace(place=at)
    return [*shapes.values()]


def name_of(value: Any) -> str:
    """A label, which must be text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise InputError("annotation-entry", f"its label is {short(value)}, expected a name")
    return value.strip()


def numbers(values: Iterable[Any]) -> list[float]:
    """Finite numbers, of numbers or text."""
    listed = list(values)
    try:
        found = [float(value) for value in listed]
    except (TypeError, ValueError, OverflowError):
        raise InputError("annotation-entry", f"{short(listed)}, expected numbers") from None
    if not all(map(math.isfinite, found)):
        raise InputError("box-not-finite", short(found))
    return found


def polygon(label: str, points: Sequence[float], group: str = "") -> Shape:
    """The shape of corners x, y, x, y, ..."""
    if len(points) < 6 or len(points) % 2:
        found = f"{short(list(points))}, expected x, y of three corners or more"
        raise InputError("annotation-entry", found)
    xs, ys = points[::2], points[1::2]
    return Shape(label, (min(xs), min(ys), max(xs), max(ys)), [list(points)], group)


def turned_box(label: str, box: Sequence[float], degrees: float, pivot: Sequence[float]) -> Shape:
    """The box xyxy turned clockwise about `pivot` (x, y), as a polygon; as itself by 0 degrees."""
    left, top, right, bottom = box
    if degrees % 360 == 0:
        return Shape(label, (left, top, right, bottom))
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    points = []
    for x, y in ((left, top), (right, top), (right, bottom), (left, bottom)):
        dx, dy = x - pivot[0], y - pivot[1]
        points += [pivot[0] + dx * cos - dy * sin, pivot[1] + dx * sin + dy * cos]
    return polygon(label, points)


def circle(label: str, x: float, y: float, radius: float) -> Shape:
    steps = np.arange(CORNERS) * (2 * np.pi / CORNERS)
    around = np.stack((x + radius * np.cos(steps), y + radius * np.sin(steps)), axis=1)
    return polygon(label, around.ravel().tolist())


def bitmap(
    label: str, pixels: NDArray[np.bool_], place: Sequence[float], size: Sequence[int]
) -> Shape:
    """The shape of `pixels` (h, w) at `place` (left, top) in an image of `size` (height, width)."""
    (left, top), (height, width), (rows, columns) = map(int, place), size, pixels.shape
    ys, xs = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    inside = min(left, top) >= 0 and left + columns <= width and top + rows <= height
    if not inside or not len(xs):
        found = (
            f"a mask of {columns}x{rows} at {left}, {top} with {int(pixels.sum())} pixels inside"
        )
        raise InputError("outline-rle", f"{found}, in an image of {width}x{height}")
    runs = runs_of_part(pixels, left, top, height)
    outline = {"size": [height, width], "counts": [*runs, height * width - sum(runs)]}
    box = (left + xs[0], top + ys[0], left + xs[-1] + 1, top + ys[-1] + 1)
    return Shape(label, tuple(map(float, box)), outline)


def check_area(height: float, width: float) -> tuple[int, int]:
    """The sides of a mask, before it is drawn."""
    if min(height, width) < 1 or height * width > _MOST_PIXELS:
        raise InputError("outline-rle", f"a mask of {width:g}x{height:g} pixels")
    return int(height), int(width)


def not_read(kind: Any) -> InputError:
    """What is raised for a shape of another kind than boxes, polygons, circles and masks."""
    return InputError("shape-kind", f"a shape of kind {short(kind)}")


def find_image(written: Any, stem: str, *folders: Path) -> Path:
    """The image that annotations mean by what they have `written`: the first that exists of that
    name, then of its last part, then of the annotation file's `stem`; else as it is written.
    """
    name = with_slashes(folders[0], written) if is_file_name(written) else ""
    names = dict.fromkeys(filter(None, (name, name.rpartition("/")[2])))
    tried: Iterator[Path] = (folder / name for name in names for folder in folders)
    by_stem = (folder / f"{stem}{end}" for folder in folders for end in sorted(IMAGE_SUFFIXES))
    for path in (*tried, *(by_stem if stem else ())):
        if os.path.isfile(path):
            return Path(os.path.normpath(path))
    return folders[0] / (name or f"{stem}.jpg")
