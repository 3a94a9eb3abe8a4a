"""What an evaluation keeps of its images: columns of bytes, and hardly an object of Python.

An array of Python's costs 112 bytes before its first number. The rows of `SHELF` images are
therefore joined, one array a column, as soon as there are so many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rfdetr.evaluation.average_precision import Sizes
from rfdetr.evaluation.found import Found
from rfdetr.evaluation.matching import Array, MatchTable

SHELF = 256  # images
BEYOND_LIMIT, BEYOND_COCO = 16, 32  # bits of `KindRow.outside`, beside those of the areas
CROWD = 16  # a bit of `KindRow.truth_outside`


class ImageRow(NamedTuple):
    """One image's D detections, best first, and T objects. Of the first L, the likely ones, there
    are boxes, of the first M masks, for pictures.
    """

    scores: Array  # (D,) float32
    labels: Array  # (D,) of the narrowest type that holds them
    truth_labels: Array  # (T,) the same
    boxes: Array  # (L, 4) as `Found` has them
    small_masks: Array  # (M, 98)
    tone: Array  # (2,)


class KindRow(NamedTuple):
    """The same image's boxes, or masks, and which objects they meet."""

    outside: Array  # (D,) uint8 of `average_precision.outside`, and whether past a limit
    truth_outside: Array  # (T,) uint8 the same, and whether it is a crowd region
    pair_detection: Array  # (P,) of the narrowest type, as those of `MatchTable`
    pair_truth: Array  # (P,)
    pair_level: Array  # (P,) uint8


class Columns:
    """Rows of arrays, packed; the n-th row is what was appended n-th."""

    def __init__(self) -> None:
        self._shelves: list[list[tuple[Array, Array]]] = []  # of each column: joined, and offsets
        self._loose: list[Sequence[Array]] = []

    def __len__(self) -> int:
        return SHELF * len(self._shelves) + len(self._loose)

    def __getitem__(self, row: int) -> list[Array]:
        number, place = divmod(row, SHELF)
        if number == len(self._shelves):
            return list(self._loose[place])
        return [whole[at[place] : at[place + 1]] for whole, at in self._shelves[number]]

    def append(self, row: Sequence[Array]) -> None:
        self._loose.append(row)
        if len(self._loose) == SHELF:
            self._shelves.append(_joined(self._loose))
            self._loose = []

    def column(self, number: int) -> tuple[Array, Array]:
        """A column of all rows as one array, and the rows' lengths in it."""
        parts = [shelf[number] for shelf in self._shelves]
        if self._loose:
            parts.append(_joined(self._loose)[number])
        if not parts:
            return np.zeros(0, np.uint8), np.zeros(0, np.int64)
        lengths = [np.diff(offsets.astype(np.int64)) for _, offsets in parts]
        return np.concatenate([whole for whole, _ in parts]), np.concatenate(lengths)


def _joined(rows: Sequence[Sequence[Array]]) -> list[tuple[Array, Array]]:
    columns = zip(*rows, strict=True)
    return [
        (np.concatenate(column), np.cumsum([0, *map(len, column)], dtype=np.uint32))
        for column in columns
    ]


class FoundImages(Mapping[int, Found]):
    """The likely detections by image id, read from the columns when asked for."""

    def __init__(self, rows: Mapping[int, int], columns: Columns):
        self._rows, self._columns = rows, columns

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    def __getitem__(self, image_id: int) -> Found:
        row = ImageRow(*self._columns[self._rows[image_id]])
        likely = len(row.boxes)
        return Found(row.scores[:likely], row.labels[:likely], row.boxes, row.small_masks, row.tone)


def tables(
    ids: Sequence[int], images: Columns, kinds: Sequence[Columns]
) -> list[tuple[MatchTable, Sizes]]:
    """Of each kind the table of all images, in the order of their ids, and the sizes of what is in
    it, beside which stand the other bits. The tables share what does not differ.
    """
    rank = np.empty(len(ids), np.int32)
    rank[np.argsort(np.array(ids, np.int64), kind="stable")] = np.arange(len(ids))
    (scores, counts), (labels, _), (truth_labels, truths) = map(images.column, range(3))
    image = np.repeat(rank, counts)
    order = np.lexsort((image, -scores)).astype(np.int32)
    place = np.empty(order.size, np.int32)
    place[order] = np.arange(order.size)
    scores, labels, image = scores[order], labels[order].astype(np.int32), image[order]
    truth_labels, truth_image = truth_labels.astype(np.int32), np.repeat(rank, truths)
    before, truths_before = np.cumsum(counts) - counts, np.cumsum(truths) - truths
    made = []
    for kind in kinds:
        (bits, _), (truth_bits, _), (detection, pairs), (truth, _), (level, _) = map(
            kind.column, range(5)
        )
        detection = place[detection + np.repeat(before, pairs)]
        by_detection = np.argsort(detection, kind="stable")  # keeps the order of preference
        table = MatchTable(
            scores=scores,
            labels=labels,
            image=image,
            truth_labels=truth_labels,
            truth_crowd=truth_bits & CROWD > 0,
            truth_image=truth_image,
            pair_detection=detection[by_detection],
            pair_truth=(truth + np.repeat(truths_before, pairs)).astype(np.int32)[by_detection],
            pair_level=level[by_detection],
        )
        made.append((table, Sizes(bits[order], truth_bits)))
    return made
