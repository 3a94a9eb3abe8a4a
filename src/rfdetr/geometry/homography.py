"""Homographies: matrices (3, 3) float64 that take points x y of one picture to those of another.

(x, y, 1) becomes (x w, y w, w); what has w <= 0 lies beyond the horizon.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = "NDArray[np.floating]"


def scaling(x: float, y: float) -> Matrix:
    return np.diag([x, y, 1.0])


def shifting(x: float, y: float) -> Matrix:
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def turning(degrees: float) -> Matrix:
    """Anticlockwise as pictures are seen, whose y goes down."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])


def slanting(x: float, y: float) -> Matrix:
    """Rows slide along x, and columns along y, by so many degrees."""
    along_x, along_y = math.tan(math.radians(x)), math.tan(math.radians(y))
    return np.array([[1, along_x, 0], [along_y, 1, 0], [0, 0, 1]])


def facing(quad: NDArray[np.float64], width: float, height: float) -> Matrix:
    """Takes the corners `quad` (4, 2), from the top left clockwise, to those of a rectangle."""
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    rows = []
    for (x, y), (u, v) in zip(quad.tolist(), target.tolist(), strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    return np.append(np.linalg.solve(np.array(rows), target.ravel()), 1).reshape(3, 3)


def corners(left: float, top: float, right: float, bottom: float) -> NDArray[np.float64]:
    """The corners (4, 2) of a box, from the top left clockwise."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)


def moved_points(matrix: Matrix, points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Where points (n, 2) go."""
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    shown: NDArray[np.float64] = moved[:, :2] / moved[:, 2:]
    return shown


def ellipse_bounds(matrix: Matrix, boxes_xyxy: NDArray[np.floating]) -> NDArray[np.float64]:
    """Boxes (m, 4) around where the ellipses inscribed in `boxes_xyxy` (m, 4) go.

    An ellipse with its centre at c and half axes a, b has the dual conic u u' + v v' - c c' of
    u = M (a, 0, 0), v = M (0, b, 0), c = M (c, 1): its tangents. Bounds are the upright ones.
    """
    boxes = boxes_xyxy.astype(np.float64)
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    centre = np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, np.ones((len(boxes), 1))), axis=1)
    u, v, c = half[:, :1] * matrix[:, 0], half[:, 1:] * matrix[:, 1], centre @ matrix.T

    def conic(i: list[int], j: list[int]) -> NDArray[np.float64]:
        return u[:, i] * u[:, j] + v[:, i] * v[:, j] - c[:, i] * c[:, j]

    depth, middle = conic([2], [2]), conic([0, 1], [2, 2])
    reach = np.sqrt(np.maximum(middle**2 - conic([0, 1], [0, 1]) * depth, 0))
    middle, reach = middle / depth, np.abs(reach / depth)
    return np.concatenate((middle - reach, middle + reach), axis=1)
