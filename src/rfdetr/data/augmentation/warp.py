"""Geometric steps of augmentation: all that is drawn for an image becomes one homography, by which
pixels are sampled once, at the size of the view, and boxes and outlines move by arithmetic.

A rotated box is not the box of the rotated object. That is known where the object has an outline;
else the object is taken for the ellipse in its box. Of drawn objects turned by 10 degrees, boxes
so made have a mean IoU of 0.86 with the true ones, boxes around the turned corners 0.76; of those
turned by 45 degrees it is 0.70 and 0.50, and round objects come out exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rfdetr.data.images import resize
from rfdetr.geometry import homography
from rfdetr.geometry.homography import Matrix, moved_points
from rfdetr.geometry.polygons import Crop, Segmentation

Steps: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Parameters by step, as `rfdetr.config.augment` has them."""
Outlines: TypeAlias = Sequence[Segmentation | None]
"""One for each box, None where a box has none; empty where outlines are not wanted."""

GRAY = 128
"""What a view shows where there is no image."""
_DENSITY = 1.25
"""Samples of the image for a pixel of the view. Of BCCD images turned by 5, 20 and 45 degrees, the
mean gradient is then that of an exact antialiased resampling within a tenth; with 1 it is 0.9 of
it, a blur, and from all samples 1.3 of it, noise.
"""


class Placement(NamedTuple):
    """How a view looks at an image: a crop, perhaps upended and turned, then perhaps bent."""

    crop: Crop
    upended: bool
    turns: int  # quarter turns, anticlockwise
    matrix: Matrix  # from pixels of the image to those of the turned crop
    canvas: tuple[float, float]  # width and height of that
    bent: bool  # by more than mirrors and quarter turns

    @property
    def plain(self) -> bool:
        """Whether it is its crop, and nothing else."""
        return not (self.upended or self.turns or self.bent)

    def to_view(self, size: tuple[int, int]) -> Matrix:
        """From pixels of the image to those of a view of `size` (height, width)."""
        width, height = self.canvas
        return homography.scaling(size[1] / width, size[0] / height) @ self.matrix


def is_drawn(name: str, steps: Steps, rng: np.random.Generator) -> bool:
    """Whether an image gets a step; nothing is drawn for one that is off."""
    return name in steps and bool(rng.random() < steps[name]["p"])


def draw_placement(crop: Crop, steps: Steps, rng: np.random.Generator) -> Placement:
    """What the geometric `steps` do to a view of `crop`."""
    width, height = float(crop.right - crop.left), float(crop.bottom - crop.top)
    matrix = homography.shifting(-crop.left, -crop.top)
    if crop.flipped:
        matrix = homography.shifting(width, 0) @ homography.scaling(-1, 1) @ matrix
    upended = is_drawn("vertical_flip", steps, rng)
    if upended:
        matrix = homography.shifting(0, height) @ homography.scaling(1, -1) @ matrix
    turns = int(rng.integers(1, 4)) if is_drawn("quarter_turn", steps, rng) else 0
    for _ in range(turns):  # x y becomes y, width - x
        turn = np.array([[0, 1, 0], [-1, 0, width], [0, 0, 1.0]])
        matrix, width, height = turn @ matrix, height, width
    bend = _draw_bend(width, height, steps, rng)
    bent = bool(np.abs(bend - np.eye(3)).max() > 1e-9)
    return Placement(crop, upended, turns, bend @ matrix, (width, height), bent)


def _draw_bend(width: float, height: float, steps: Steps, rng: np.random.Generator) -> Matrix:
    """The part of a placement that is no mirror and no quarter turn, about the canvas's middle."""
    bend: Matrix = np.eye(3)
    if is_drawn("rotate", steps, rng):
        bend = homography.turning(rng.uniform(*steps["rotate"]["degrees"]))
    if is_drawn("affine", steps, rng):
        ranges = steps["affine"]
        turn, scale = rng.uniform(*ranges["rotate"]), rng.uniform(*ranges["scale"])
        slant, move = (rng.uniform(*np.transpose([ranges[x]] * 2)) for x in ("shear", "translate"))
        bend = homography.slanting(*slant) @ homography.scaling(scale, scale) @ bend
        bend = homography.shifting(*move * (width, height)) @ homography.turning(turn) @ bend
    middle = homography.shifting(width / 2, height / 2)
    bend = middle @ bend @ homography.shifting(-width / 2, -height / 2)
    if is_drawn("perspective", steps, rng):
        most = rng.uniform(*steps["perspective"]["strength"])
        quad = homography.corners(0, 0, width, height)
        quad += rng.uniform(-most, most, (4, 2)) * (width, height)
        bend = homography.facing(quad, width, height) @ bend
    return bend


def place_pixels(image: NDArray[np.uint8], placement: Placement, size: tuple[int, int]) -> Tensor:
    """The view (3, height, width) uint8 of an image (H, W, 3)."""
    if placement.bent:
        return warp(image, placement.to_view(size), size)
    left, top, right, bottom, flipped = placement.crop
    height, width = size[::-1] if placement.turns % 2 else size
    pixels = resize(image[top:bottom, left:right], (height, width))
    pixels = pixels.flip(-1) if flipped else pixels
    pixels = pixels.flip(-2) if placement.upended else pixels
    return torch.rot90(pixels, placement.turns, (-2, -1))


def place_objects(
    boxes_xyxy: NDArray[np.float32], outlines: Outlines, matrix: Matrix, size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], list[Segmentation | None]]:
    """Boxes (n, 4) cxcywh relative to a view of `size` to which `matrix` takes the image, which of
    the given (m, 4) they are, and their outlines there.

    A box that shows less than a pixel of width or height is dropped, unless all of it shows.
    """
    height, width = size
    frame, limits = Crop(0, 0, width, height), _limits(matrix, size)
    low, high = np.array(limits[:2], np.float32), np.array(limits[2:4], np.float32)
    ends = np.clip(boxes_xyxy.reshape(-1, 2, 2), low, high)
    there = (ends[:, 1] > ends[:, 0]).all(1)
    bounds = homography.ellipse_bounds(matrix, ends.reshape(-1, 4))
    moved: list[Segmentation | None] = [None] * len(bounds)
    for i in np.flatnonzero(there).tolist() if outlines else ():
        if (outline := outlines[i]) is not None:
            moved[i] = outline.moved(matrix, size, limits)
            box = moved[i] and moved[i].bounds(frame)  # type: ignore[union-attr]
            bounds[i] = np.zeros(4) if box is None else box
    shown = np.clip(bounds, 0, [width, height, width, height])
    visible = shown[:, 2:] - shown[:, :2]
    whole = np.abs(shown - bounds).max(1, initial=0) < 1e-3
    kept = there & ((visible > 0) & ((visible >= 1) | whole[:, None])).all(1)
    shown, visible = shown[kept], visible[kept]
    centres = (shown[:, :2] + shown[:, 2:]) / 2
    relative = np.concatenate((centres, visible), axis=1) / [width, height, width, height]
    return relative.astype(np.float32), kept, [moved[i] for i in np.flatnonzero(kept).tolist()]


def _limits(matrix: Matrix, size: tuple[int, int], more: float = 0.5) -> Crop:
    """The part of the image that a view shows, and `more` of its sides around it: objects are cut
    to that, since beyond a horizon nothing can be moved.
    """
    seen = moved_points(np.linalg.inv(matrix), homography.corners(0, 0, size[1], size[0]))
    low, high = seen.min(0), seen.max(0)
    around = (high - low) * more
    (left, top), (right, bottom) = np.floor(low - around), np.ceil(high + around)
    return Crop(int(left), int(top), int(right), int(bottom))


def warp(image: NDArray[np.uint8], matrix: Matrix, size: tuple[int, int]) -> Tensor:
    """The view (3, height, width) uint8 to which `matrix` takes an image (H, W, 3), gray beside it.

    What the view shows is first brought to `_DENSITY` samples a pixel, where it has more, and then
    sampled bilinearly.
    """
    (height, width), bounds = size, image.shape[1::-1]
    limits = np.array(_limits(matrix, size, more=0.0)[:4]).reshape(2, 2)
    (left, top), (right, bottom) = np.clip(limits + np.array([[-2], [2]]), 0, bounds).tolist()
    if left >= right or top >= bottom:
        return torch.full((3, height, width), GRAY, dtype=torch.uint8)
    sides = np.array([right - left, bottom - top])
    wanted = np.ceil(sides * _density(matrix, size) * _DENSITY).astype(np.int64).clip(min=1)
    columns, rows = np.minimum(sides, wanted).tolist()
    part = image[top:bottom, left:right]
    pixels = (
        resize(part, (rows, columns))
        if [columns, rows] != sides.tolist()
        else (torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1))
    )
    # From the view's pixels to the part from -1 to 1, as `grid_sample` counts.
    to_part = homography.scaling(2 / sides[0], 2 / sides[1]) @ homography.shifting(-left, -top)
    back = (homography.shifting(-1, -1) @ to_part @ np.linalg.inv(matrix)).astype(np.float32)
    x = np.arange(width, dtype=np.float32) + np.float32(0.5)
    y = (np.arange(height, dtype=np.float32) + np.float32(0.5))[:, None]
    # One operation after the other on each pixel: the same bits with any number of threads.
    shares = [back[i, 0] * x + (back[i, 1] * y + back[i, 2]) for i in range(3)]
    grid = np.stack((shares[0] / shares[2], shares[1] / shares[2]), axis=-1)
    found = F.grid_sample(
        pixels.float().sub_(GRAY)[None], torch.from_numpy(grid)[None], align_corners=False
    )
    return torch.from_numpy(found[0].add_(GRAY + 0.5).numpy().astype(np.uint8))


def _density(matrix: Matrix, size: tuple[int, int]) -> NDArray[np.float64]:
    """Pixels of the view for one of the image, along x and y, where they are most."""
    height, width = size
    view = np.append(homography.corners(0, 0, width, height), [[width / 2, height / 2]], axis=0)
    there = moved_points(np.linalg.inv(matrix), view)
    depth = there @ matrix[2, :2] + matrix[2, 2]
    slopes = matrix[:2, :2] - view[:, :, None] * matrix[2, :2]  # (5, 2, 2)
    most: NDArray[np.float64] = np.linalg.norm(slopes / depth[:, None, None], axis=1).max(0)
    return most
