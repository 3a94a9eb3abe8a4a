"""Annotation files in JSON of LabelMe (one for each image) and Label Studio (one for all)."""

from __future__ import annotations

import base64
import functools
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rfdetr.checks import short
from rfdetr.data.files import is_image
from rfdetr.data.findings import DatasetError
from rfdetr.data.formats.shapes import (
    Picture,
    Shape,
    Tell,
    bitmap,
    check_area,
    circle,
    find_image,
    name_of,
    not_read,
    numbers,
    polygon,
    shapes_of,
    turned_box,
)
from rfdetr.errors import InputError


def read_json(path: Path, kind: type, expected: str) -> Any:
    """What a file holds, which must be a `kind`; a `DatasetError` else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise DatasetError(f"{path}: not a valid JSON file: {error}; export it again") from error
    if not isinstance(content, kind):
        raise DatasetError(f"{path}: {short(content)}, expected {expected}")
    return content


def read_labelme(file: Path, tell: Tell) -> Iterator[Picture]:
    """The picture of a LabelMe file; shapes of one group_id and label are one object."""
    content = read_json(file, dict, "an object with 'shapes' and 'imagePath', as LabelMe writes")
    items = content.get("shapes")
    if not isinstance(items, list):
        raise DatasetError(f"{file}: 'shapes' is {short(items)}, expected a list: is it LabelMe's?")
    size = _sides(content.get("imageHeight"), content.get("imageWidth"))
    folders = (file.parent, file.parent.parent / "images", file.parent.parent)
    image = find_image(content.get("imagePath"), file.stem, *folders)
    parse = functools.partial(_labelme_shape, size)
    yield Picture(file, image, size, shapes_of(items, parse, file.name, tell))


def _sides(height: Any, width: Any) -> tuple[int, int]:
    """Both as they are if they can be the sides of an image, else (0, 0)."""
    known = all(isinstance(side, int) and 0 < side < 2**31 for side in (height, width))
    return (height, width) if known else (0, 0)


def _labelme_shape(size: tuple[int, int], item: Any) -> Shape:
    fields = item if isinstance(item, dict) else {}
    label, kind = name_of(fields.get("label")), fields.get("shape_type") or "polygon"
    points = fields.get("points")
    pairs = [p for p in points if isinstance(p, list)] if isinstance(points, list) else []
    flat = numbers(value for pair in pairs for value in pair)
    if kind == "polygon":
        return polygon(
            label, flat, "" if (group := fields.get("group_id")) is None else f"group {group}"
        )
    if kind not in ("rectangle", "circle", "mask"):
        raise not_read(kind)
    if len(flat) != 4:
        raise InputError("annotation-entry", f"points are {short(points)}, expected two x, y pairs")
    (x1, x2), (y1, y2) = flat[::2], flat[1::2]
    if kind == "circle":  # its centre, and a point on it
        return circle(label, x1, y1, math.hypot(x2 - x1, y2 - y1))
    if kind == "rectangle":
        return Shape(label, (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    try:
        with Image.open(
            io.BytesIO(base64.b64decode(fields.get("mask") or "")), formats=["PNG"]
        ) as png:
            check_area(png.height, png.width)
            pixels = np.asarray(png.convert("L")) > 0
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError("outline-rle", f"mask is no PNG image: {error}") from error
    return bitmap(label, pixels, (x1, y1), size)


def read_label_studio(file: Path, tell: Tell) -> Iterator[Picture]:
    """The pictures of a Label Studio export: of each task the annotation marked as ground truth, or
    the first that was not cancelled.
    """
    for number, task in enumerate(read_json(file, list, "a list of tasks"), 1):
        fields = task if isinstance(task, dict) else {}
        who, data = f"task {fields.get('id', f'number {number}')}", fields.get("data")
        texts = [data.get("image"), *data.values()] if isinstance(data, dict) else []
        written = [text for text in texts if isinstance(text, str)]  # a signed address has a query
        paths = [unquote(text.rpartition("?d=")[2].partition("?")[0]) for text in written]
        address = next((path for path in paths if is_image(Path(path))), None)
        if address is None:
            tell(
                "image-entry",
                who,
                f"data is {short(data)}, expected the address of an image",
                number,
            )
            continue
        given = fields.get("annotations")
        done = [
            one
            for one in (given if isinstance(given, list) else [])
            if isinstance(one, dict) and isinstance(one.get("result"), list)
            if not one.get("was_cancelled")
        ]
        if not done:
            tell("image-unfinished", who, address, number)
            continue
        if len(done) > 1:
            tell("annotation-more", who, f"{len(done)} annotations", number)
        result = max(done, key=lambda one: bool(one.get("ground_truth")))["result"]
        items = [item for item in result if isinstance(item, dict)]
        size = next((_original(item) for item in items if _original(item) != (0, 0)), (0, 0))
        name = address.rpartition("/")[2]
        original = re.sub(r"^[0-9a-f]{8}-", "", name)  # what the upload has put before it
        folders = [
            place / name for place in (file.parent, file.parent.parent) for name in ("", "images")
        ]
        image = find_image(address.lstrip("/"), "", *folders)
        if not image.is_file():
            image = find_image(original, "", *folders)
        yield Picture(file, image, size, shapes_of(_labelled(items), _studio_shape, who, tell))


def _original(item: dict[str, Any]) -> tuple[int, int]:
    return _sides(item.get("original_height"), item.get("original_width"))


def _labelled(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The regions, less those that stand a second time with their label (of a control apart)."""

    def has_label(item: dict[str, Any]) -> bool:
        return isinstance(value := item.get("value"), dict) and str(item.get("type")) in value

    named = {str(item.get("id")) for item in items if has_label(item)}
    return [item for item in items if has_label(item) or str(item.get("id")) not in named]


def _studio_shape(item: dict[str, Any]) -> Shape:
    value, kind = item.get("value"), item.get("type")
    value = value if isinstance(value, dict) else {}
    known = kind in ("rectanglelabels", "polygonlabels", "brushlabels", "labels")
    if not known or not {"points", "rle", "width"} & value.keys():
        raise not_read(kind)
    names = value.get(kind)
    if not isinstance(names, list) or len(names) != 1:
        raise InputError("annotation-entry", f"labels are {short(names)}, expected one")
    label, (height, width) = name_of(names[0]), _original(item)
    if not height:
        raise InputError("annotation-entry", "original_width and original_height are missing")
    if "rle" in value:
        return bitmap(
            label, _unpacked(value["rle"], *check_area(height, width)), (0, 0), (height, width)
        )
    if "points" in value:
        points = value["points"] if isinstance(value["points"], list) else []
        flat = numbers(
            share for pair in points for share in (pair if isinstance(pair, list) else [None])
        )
        sides = (width, height) * len(flat)
        return polygon(label, [x / 100 * side for x, side in zip(flat, sides, strict=False)])
    x, y, w, h = numbers(map(value.get, ("x", "y", "width", "height")))
    (degrees,) = numbers([value.get("rotation") or 0])
    left, top = x / 100 * width, y / 100 * height
    box = left, top, left + w / 100 * width, top + h / 100 * height
    return turned_box(label, box, degrees, (left, top))


def _unpacked(rle: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The bitmap (height, width) of a brush: RGBA values packed by rle-pack, of which alpha counts.

    Bits: 32 the number of values, 5 the bits of one less 1, four times 4 the bits of a run's length
    less 1; then runs: 1 whether it repeats one value, 2 which of the lengths, the length less 1,
    and the value, or the values.
    """
    packed = rle if isinstance(rle, list) else []
    if not packed or not all(isinstance(byte, int) and 0 <= byte < 256 for byte in packed):
        raise InputError("outline-rle", f"rle is {short(rle)}, expected bytes as numbers")
    bits, at = "".join(f"{byte:08b}" for byte in packed), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        if at > len(bits):
            raise InputError("outline-rle", f"{len(packed)} bytes end within a run")
        return int(bits[at - count : at], 2)

    total, size = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    if total != 4 * height * width:
        found = f"{total} values, expected {4 * height * width} of {width}x{height} RGBA pixels"
        raise InputError("outline-rle", found)
    values, done = np.zeros(total, np.bool_), 0
    while done < total:
        repeats, run = take(1), take(lengths[take(2)]) + 1
        given = [take(size)] * run if repeats else [take(size) for _ in range(run)]
        values[done : done + run] = given[: total - done]
        done += run
    return values.reshape(height, width, 4)[..., 3]
