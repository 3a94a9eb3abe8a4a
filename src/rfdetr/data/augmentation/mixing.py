"""Steps of augmentation that show several training images in one, or hide a part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfdetr.data.augmentation.warp import GRAY, Outlines, Steps, is_drawn
from rfdetr.data.tiling import LEAST_SHOWN
from rfdetr.geometry.polygons import Crop

Size: TypeAlias = tuple[int, int]
"""Height and width, pixels."""
MIXING = ("mosaic", "copy_paste", "mixup", "cutout")
"""The steps of `compose`."""


class View(NamedTuple):
    """What is made of a training image: pixels at the network's size, and its objects there.

    An object without an outline has an empty mask; `masks` is None where they are not drawn, or
    there are none at all. `outlines` are those of the objects in what `crop` cuts the view out of.
    """

    image: Tensor  # (3, height, width) uint8
    boxes_cxcywh: NDArray[np.float32]  # (n, 4), relative
    labels: NDArray[np.int64]  # (n,)
    masks: NDArray[np.bool_] | None  # (n, height, width)
    outlines: Outlines = ()
    crop: Crop = Crop(0, 0, 1, 1)


def compose(
    view_of: Callable[[int, Size, bool], View],
    steps: Steps,
    rng: np.random.Generator,
    size: Size,
    progress: float,
) -> View:
    """A view of `size` made of some: `view_of(k, size, drawn)` is one of the image itself for k 0,
    and of other training images for greater k, with its masks `drawn` or not. `progress` is the
    share of the run that is over at the end of this epoch.
    """
    steps = {name: step for name, step in steps.items() if progress <= step.get("until", 1)}
    if is_drawn("mosaic", steps, rng):
        middle = [round(side * rng.uniform(*steps["mosaic"]["centre"])) for side in size]
        tall, wide = ((first, side - first) for first, side in zip(middle, size, strict=True))
        sizes = [(height, width) for height in tall for width in wide]
        own = int(rng.integers(4))  # the quarter of the image itself
        order = [(k - own) % 4 for k in range(4)]
        view = joined([view_of(k, each, True) for k, each in zip(order, sizes, strict=True)])
    else:
        view = view_of(0, size, True)
    if is_drawn("copy_paste", steps, rng):
        view = pasted(view, view_of(4, size, False), rng, **_ranges(steps["copy_paste"]))
    if is_drawn("mixup", steps, rng):
        view = blended(view, view_of(5, size, True), rng.uniform(*steps["mixup"]["share"]))
    if is_drawn("cutout", steps, rng):
        view = cut_out(view, rng, **_ranges(steps["cutout"]))
    return view


def most_images(steps: Iterable[str]) -> int:
    """Of how many images a view may show the objects."""
    shown = {"mosaic": 3, "copy_paste": 1, "mixup": 1}
    return 1 + sum(shown.get(name, 0) for name in steps)


def _ranges(step: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in step.items() if name not in ("p", "until")}


def joined(quarters: Sequence[View]) -> View:
    """Four views as the quarters of one, row by row; two of a row are equally high, two of a column
    equally wide.
    """
    rows = [torch.cat([view.image for view in quarters[at : at + 2]], 2) for at in (0, 2)]
    image = torch.cat(rows, 1)
    height, width = image.shape[1:]
    top, left = quarters[0].image.shape[1:]
    boxes: list[NDArray[np.float64]] = []
    masks: list[NDArray[np.bool_]] = []
    for view, (y, x) in zip(quarters, ((0, 0), (0, left), (top, 0), (top, left)), strict=True):
        part = view.image.shape[1:]
        scale = np.array([part[1] / width, part[0] / height] * 2)
        boxes.append(view.boxes_cxcywh * scale + [x / width, y / height, 0, 0])
        if view.masks is not None:
            whole = np.zeros((len(view.masks), height, width), np.bool_)
            whole[:, y : y + part[0], x : x + part[1]] = view.masks
            masks.append(whole)
    return View(
        image,
        np.concatenate(boxes, dtype=np.float32),
        np.concatenate([view.labels for view in quarters]),
        np.concatenate(masks) if masks else None,
    )


def blended(view: View, other: View, share: float) -> View:
    """Two views as one, of which `share` is the other's; with the objects of both."""
    image = view.image.float().mul_(1 - share).add_(other.image.float().mul_(share)).add_(0.5)
    return _with_more(view._replace(image=torch.from_numpy(image.numpy().astype(np.uint8))), other)


def pasted(view: View, other: View, rng: np.random.Generator, objects: tuple[int, int]) -> View:
    """A view with some `objects`, from so many to so many, of another one in front."""
    count = int(rng.integers(objects[0], objects[1] + 1))
    chosen = np.sort(rng.permutation(len(other.labels))[:count])
    height, width = other.image.shape[1:]
    outlines = [other.outlines[i] for i in chosen.tolist()] if other.outlines else [None] * count
    masks = draw_masks(outlines[: len(chosen)], other.crop, (height, width))
    shapes = masks.copy()
    for i in np.flatnonzero(~shapes.any((1, 2))).tolist():
        shapes[i] = ellipse(other.boxes_cxcywh[chosen[i]], height, width)
    front: NDArray[np.bool_] = np.any(shapes, axis=0)
    view = hidden(view, front)
    image = torch.where(torch.from_numpy(front), other.image, view.image)
    more = View(image, other.boxes_cxcywh[chosen], other.labels[chosen], masks)
    return _with_more(view._replace(image=image), more)


def cut_out(
    view: View, rng: np.random.Generator, holes: tuple[int, int], size: tuple[float, float]
) -> View:
    """A view with gray rectangles in front."""
    height, width = view.image.shape[1:]
    front = np.zeros((height, width), np.bool_)
    for _ in range(int(rng.integers(holes[0], holes[1] + 1))):
        tall, wide = (np.rint(rng.uniform(*size, 2) * (height, width))).astype(int).tolist()
        top, left = (int(rng.integers(0, most + 1)) for most in (height - tall, width - wide))
        front[top : top + tall, left : left + wide] = True
    image = torch.where(torch.from_numpy(front), torch.tensor(GRAY, dtype=torch.uint8), view.image)
    return hidden(view._replace(image=image), front)


def hidden(view: View, front: NDArray[np.bool_]) -> View:
    """What is left of a view's objects behind what covers `front` (height, width).

    An object of which less than `LEAST_SHOWN` is left is dropped: of its mask, or of its box where
    it has none. A mask loses what is covered, and its box becomes the box around the rest.
    """
    (height, width), boxes = front.shape, view.boxes_cxcywh.astype(np.float64)
    ends = np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)
    edges = np.rint(ends * [width, height, width, height]).astype(np.int64)
    left, top, right, bottom = edges.T
    # Of each pixel, how many are covered above and to the left of it.
    sums = np.pad(front, ((1, 0), (1, 0))).cumsum(0, np.int32).cumsum(1, np.int32)
    covered = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    shown = 1 - covered / np.maximum((bottom - top) * (right - left), 1)
    masks = view.masks
    if masks is not None:
        before, masks = masks.sum((1, 2)), masks & ~front
        after = masks.sum((1, 2))
        shown = np.where(before > 0, after / np.maximum(before, 1), shown)
        for i in np.flatnonzero((after < before) & (after > 0)).tolist():
            boxes[i] = _box_around(masks[i])
    kept = shown >= LEAST_SHOWN
    masks = None if masks is None else masks[kept]
    return View(view.image, boxes[kept].astype(np.float32), view.labels[kept], masks)


def draw_masks(outlines: Outlines, crop: Crop, size: Size) -> NDArray[np.bool_]:
    """What `crop` shows of `outlines`, as masks (n, height, width) of a view; empty for None."""
    masks = np.zeros((len(outlines), *size), np.bool_)
    for mask, outline in zip(masks, outlines, strict=True):
        if outline is not None:
            mask[:] = outline.bitmap(crop, size)
    return masks


def ellipse(box_cxcywh: NDArray[np.float32], height: int, width: int) -> NDArray[np.bool_]:
    """The pixels (height, width) whose centre is in the ellipse inscribed in a relative box."""
    cx, cy, w, h = (box_cxcywh.astype(np.float64) * [width, height, width, height]).tolist()
    x, y = (np.arange(width) + 0.5 - cx) / (w / 2), (np.arange(height) + 0.5 - cy) / (h / 2)
    inside: NDArray[np.bool_] = x**2 + y[:, None] ** 2 <= 1
    return inside


def _box_around(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The relative box (4,) cxcywh of a mask that is not empty."""
    (top, bottom), (left, right) = (np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (1, 0))
    box = np.array(
        [left + right + 1, top + bottom + 1, 2 * (right + 1 - left), 2 * (bottom + 1 - top)]
    )
    around: NDArray[np.float64] = box / 2 / np.array(mask.shape[::-1] * 2)
    return around


def _with_more(view: View, more: View) -> View:
    """A view with the objects of another one beside its own."""
    drawn = [masks for masks in (view.masks, more.masks) if masks is not None]
    masks = np.concatenate(drawn) if len(drawn) == 2 else None
    boxes = np.concatenate((view.boxes_cxcywh, more.boxes_cxcywh))
    return View(view.image, boxes, np.concatenate((view.labels, more.labels)), masks)
