"""Annotation files in XML: Pascal VOC (one for each image) and CVAT for images 1.1 (one for all).

A file with a document type is refused: what it can define (entities that name files or grow to
gigabytes) no annotation needs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from rfdetr.data.findings import DatasetError
from rfdetr.data.formats.shapes import (
    Picture,
    Shape,
    Tell,
    bitmap,
    check_area,
    find_image,
    name_of,
    not_read,
    numbers,
    polygon,
    shapes_of,
    turned_box,
)
from rfdetr.errors import InputError

Element = ElementTree.Element


def read_xml(path: Path, tag: str) -> Element:
    """The root element of a file, which must be `tag`; a `DatasetError` else."""
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: object) -> None:
        raise DatasetError(f"{path}: has a document type (DOCTYPE), which is not read; remove it")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except (expat.ExpatError, OSError) as error:
        raise DatasetError(f"{path}: not a valid XML file: {error}; export it again") from error
    root = builder.close()
    if root.tag != tag:
        raise DatasetError(f"{path}: its root element is <{root.tag[:40]}>, expected <{tag}>")
    return root


def read_voc(file: Path, tell: Tell) -> Iterator[Picture]:
    """The picture of a VOC file. Boxes are as written; those of the original challenge, whose files
    name it, count pixels from 1. Difficult objects are crowds: not learned, nor judged.
    """
    content = read_xml(file, "annotation")
    first = float(content.findtext("source/database", "").startswith("The VOC"))
    written, folder = content.findtext("filename"), file.parent
    folders = (folder, *(folder.parent / name for name in ("JPEGImages", "images", "Images", "")))
    size = _size(content.findtext("size/height")), _size(content.findtext("size/width"))
    parse = functools.partial(_voc_shape, first)
    shapes = shapes_of(content.iterfind("object"), parse, file.name, tell)
    yield Picture(file, find_image(written, file.stem, *folders), size, shapes)


def _size(text: str | None) -> int:
    return int(text) if text and text.strip().isdecimal() and len(text) < 10 else 0


def _voc_shape(first: float, item: Element) -> Shape:
    label, corners = name_of(item.findtext("name")), item.find("polygon")
    crowd = item.findtext("difficult", "0").strip() == "1"
    sides = [item.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    if corners is not None and len(corners) >= 6:  # Roboflow's x1, y1, x2, y2, ...
        return polygon(label, numbers(x.text for x in corners))._replace(crowd=crowd)
    left, top, right, bottom = numbers(sides)
    return Shape(label, (left - first, top - first, right, bottom), crowd=crowd)


def read_cvat(file: Path, tell: Tell) -> Iterator[Picture]:
    """The pictures of a CVAT file; images lie in images/, images/SUBSET/ or beside the file."""
    for number, item in enumerate(read_xml(file, "annotations").iterfind("image"), 1):
        name, subset = item.get("name"), item.get("subset", "")
        if not name:
            tell("image-entry", f"image number {number}", f"{dict(item.attrib)}", number)
            continue
        size = _size(item.get("height")), _size(item.get("width"))
        shapes = shapes_of(
            (one for one in item if one.tag != "tag"),
            functools.partial(_cvat_shape, size),
            name,
            tell,
        )
        images = file.parent / "images"
        places = (images / subset, images, file.parent / subset, file.parent)
        yield Picture(file, find_image(name, "", *places), size, shapes, subset)


def _cvat_shape(size: tuple[int, int], item: Element) -> Shape:
    get, group = item.get, item.get("group_id", "")
    label = name_of(get("label"))
    if item.tag == "box":
        box = left, top, right, bottom = numbers(map(get, ("xtl", "ytl", "xbr", "ybr")))
        (degrees,) = numbers([get("rotation", "0")])
        return turned_box(label, box, degrees, ((left + right) / 2, (top + bottom) / 2))
    if item.tag == "polygon":
        pairs = get("points", "").replace(";", ",").split(",")
        return polygon(label, numbers(pairs), group)
    if item.tag != "mask":
        raise not_read(item.tag)
    left, top, width, height = numbers(map(get, ("left", "top", "width", "height")))
    rows, columns = check_area(height, width)
    runs = np.array(numbers(get("rle", "").split(",")))
    if runs.min() < 0 or (runs % 1).any() or runs.sum() != rows * columns:
        found = f"runs of {runs.sum():g} pixels, for a mask of {columns}x{rows}"
        raise InputError("outline-rle", found)
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs.astype(np.int64))
    return bitmap(label, pixels.reshape(rows, columns), (left, top), size)
