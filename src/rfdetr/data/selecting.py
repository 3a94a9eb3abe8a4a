"""Other indexes made of indexes: some of the images, some of the classes, several as one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr.data.findings import DatasetError
from rfdetr.data.index import DatasetIndex
from rfdetr.data.packs import PackedFiles
from rfdetr.data.segmentations import Segmentations


def with_images(index: DatasetIndex, chosen: NDArray[np.bool_]) -> DatasetIndex:
    """The images that `chosen` (N,) marks, with their objects."""
    objects = np.diff(index.offsets)
    sizes = np.diff(index.name_offsets)
    kept = _with_boxes(index, np.repeat(chosen, objects))
    return replace(
        kept,
        name_bytes=index.name_bytes[np.repeat(chosen, sizes)],
        name_offsets=np.cumsum([0, *sizes[chosen]]),
        image_ids=index.image_ids[chosen],
        sizes=index.sizes[chosen],
        offsets=np.cumsum([0, *objects[chosen]]),
        packed=index.packed and index.packed._replace(rows=index.packed.rows[chosen]),
    )


def with_labels(
    index: DatasetIndex, new_of: Mapping[str, str], names: Sequence[str]
) -> DatasetIndex:
    """The index with the classes `names`, into which `new_of` takes its own; objects of others are
    left out, their images stay.
    """
    place = {name: label for label, name in enumerate(names)}
    table = np.array([place[new_of[name]] if name in new_of else -1 for name in index.class_names])
    ids = np.full(len(names), -1)
    for label, identity in reversed([*zip(table.tolist(), index.category_ids, strict=True)]):
        ids[label] = identity if label >= 0 else ids[label]
    labels = table[index.labels]
    kept = _with_boxes(replace(index, labels=labels), labels >= 0)
    return replace(kept, class_names=tuple(names), category_ids=ids, unused_parents={})


def _with_boxes(index: DatasetIndex, chosen: NDArray[np.bool_]) -> DatasetIndex:
    """The objects that `chosen` (M,) marks, in all images."""
    outlines = index.outlines
    if outlines is not None:
        outlines = replace(outlines, entries=outlines.entries[chosen])
    return replace(
        index,
        offsets=np.concatenate([[0], np.cumsum(chosen)])[index.offsets],
        boxes=index.boxes[chosen],
        labels=index.labels[chosen],
        crowd=index.crowd[chosen],
        areas=index.areas[chosen],
        outlines=outlines,
    )


def joined(parts: Sequence[DatasetIndex]) -> DatasetIndex:
    """Several indexes of the same classes, of whole images, as one; images are numbered anew."""
    if len(parts) == 1:
        return parts[0]
    root = Path(os.path.commonpath([os.path.abspath(part.root) for part in parts]))
    names = [
        os.fsencode(os.path.relpath(os.path.abspath(part.path(image)), root))
        for part in parts
        for image in range(len(part))
    ]

    def all_of(field: str) -> Any:
        return np.concatenate([getattr(part, field) for part in parts])

    outlines = [part.outlines for part in parts if part.outlines is not None]
    return replace(
        parts[0],
        root=root,
        category_ids=np.arange(len(parts[0].class_names)),
        name_bytes=np.frombuffer(b"".join(names), np.uint8),
        name_offsets=np.cumsum([0, *map(len, names)]),
        image_ids=np.arange(len(names)),
        offsets=_chained([part.offsets for part in parts]),
        outlines=_joined_outlines(outlines) if outlines else None,
        packed=_joined_packs(parts, root),
        sizes=all_of("sizes"),
        boxes=all_of("boxes"),
        labels=all_of("labels"),
        crowd=all_of("crowd"),
        areas=all_of("areas"),
    )


def _joined_packs(parts: Sequence[DatasetIndex], root: Path) -> PackedFiles | None:
    packs = [part.packed for part in parts if part.packed is not None]
    if len(packs) not in (0, len(parts)):
        raise DatasetError("packed and unpacked datasets cannot be trained on together: pack all")
    shards, rows = tuple[str, ...](), []
    for pack in packs:
        own = pack.rows.copy()
        own["shard"] += len(shards)
        rows.append(own)
        shards += pack.shards
    return PackedFiles(shards, root, np.concatenate(rows)) if packs else None


def _chained(ends: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Offsets into arrays that are put one behind the other."""
    return np.cumsum([0, *np.concatenate([np.diff(offsets) for offsets in ends])])


def _joined_outlines(parts: Sequence[Segmentations]) -> Segmentations:
    first = np.cumsum([0, *(len(part.first_byte) - 1 for part in parts)])
    entries = [
        np.where(part.entries < 0, -1, part.entries + start)
        for part, start in zip(parts, first.tolist(), strict=False)
    ]
    return Segmentations(
        entries=np.concatenate(entries),
        first_polygon=_chained([part.first_polygon for part in parts]),
        first_point=_chained([part.first_point for part in parts]),
        points=np.concatenate([part.points for part in parts]),
        first_byte=_chained([part.first_byte for part in parts]),
        rle_bytes=np.concatenate([part.rle_bytes for part in parts]),
    )
