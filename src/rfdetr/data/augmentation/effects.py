"""Steps of augmentation that change the pixels of a view (3, H, W) uint8 and move nothing.

What is computed in floats is computed pixel by pixel, so that the bits do not depend on the number
of threads.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rfdetr.data.augmentation.warp import Steps, is_drawn

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in gray
_QUANTILES = np.array([NormalDist().inv_cdf((at + 0.5) / 256) for at in range(256)])


def apply_effects(image: Tensor, steps: Steps, rng: np.random.Generator) -> Tensor:
    """What the `steps` draw: colours, blur, noise, compression."""
    colours, added = np.eye(3), 0.0
    draw = rng.uniform
    if is_drawn("hsv", steps, rng):
        ranges = steps["hsv"]
        hue, saturation, value = (draw(*ranges[name]) for name in ("hue", "saturation", "value"))
        colours = hue_and_saturation(hue, 1 + saturation) * (1 + value)
    if is_drawn("brightness_contrast", steps, rng):
        ranges = steps["brightness_contrast"]
        brightness, contrast = draw(*ranges["brightness"]), draw(*ranges["contrast"])
        mean = float(image[:, ::4].double().mean((1, 2)).numpy() @ colours.T @ LUMA)
        colours, added = colours * (1 + contrast), 255 * brightness - contrast * mean
    if not np.array_equal(colours, np.eye(3)) or added:
        image = recolor(image, colours, added)
    if steps.keys() & {"blur", "noise"}:
        image = image.contiguous()  # what was resized has its colours side by side, which is slow
    if is_drawn("blur", steps, rng):
        image = blur(image, draw(*steps["blur"]["radius"]))
    if is_drawn("noise", steps, rng):
        image = add_noise(image, 255 * draw(*steps["noise"]["deviation"]), rng)
    if is_drawn("jpeg", steps, rng):
        low, high = steps["jpeg"]["quality"]
        image = compress(image, int(rng.integers(low, high + 1)))
    return image


def hue_and_saturation(degrees: float, saturation: float) -> NDArray[np.float64]:
    """The matrix (3, 3) that turns colours about the gray axis, 120 degrees from red to green, and
    then moves them to their gray, which is saturation 0, or away from it.
    """
    turn, third = math.radians(degrees), (1 - math.cos(math.radians(degrees))) / 3
    sine = math.sin(turn) / math.sqrt(3)
    across = np.array([[0, -sine, sine], [sine, 0, -sine], [-sine, sine, 0]])
    mixed = saturation * np.eye(3) + (1 - saturation) * np.ones((3, 1)) * LUMA
    matrix: NDArray[np.float64] = mixed @ (math.cos(turn) * np.eye(3) + third + across)
    return matrix


def recolor(image: Tensor, colours: NDArray[np.float64], added: float) -> Tensor:
    """Each pixel's red, green and blue times `colours` (3, 3), and `added` to all."""
    channels = image.float()
    changed = torch.full_like(channels, added)
    for out, row in zip(changed, colours.tolist(), strict=True):
        for channel, factor in zip(channels, row, strict=True):
            out.add_(channel * factor)
    return _as_pixels(changed)


def blur(image: Tensor, radius: float) -> Tensor:
    """A Gaussian of deviation `radius`, in pixels; the border goes on as its last pixel."""
    reach = math.ceil(2.5 * radius)
    weights = [math.exp(-((at / radius) ** 2) / 2) if radius else 1.0 for at in range(reach + 1)]
    total = 2 * sum(weights) - weights[0]
    blurred = F.pad(image.float()[None], [reach] * 4, mode="replicate")[0]
    for axis in (1, 2):
        side = blurred.shape[axis] - 2 * reach
        summed = blurred.narrow(axis, reach, side) * (weights[0] / total)
        for at, weight in enumerate(weights[1:], 1):
            both = blurred.narrow(axis, reach - at, side) + blurred.narrow(axis, reach + at, side)
            summed.add_(both.mul_(weight / total))
        blurred = summed
    return _as_pixels(blurred)


def add_noise(image: Tensor, deviation: float, rng: np.random.Generator) -> Tensor:
    """Adds to each value one of 256 quantiles of the normal distribution of such a deviation, in
    gray levels: a byte of random numbers each.
    """
    table = (_QUANTILES * deviation).round().astype(np.int16)
    noise = np.take(table, rng.integers(0, 256, image.shape, np.uint8))
    return torch.from_numpy(np.clip(image.numpy() + noise, 0, 255).astype(np.uint8))


def compress(image: Tensor, quality: int) -> Tensor:
    """Written as JPEG with half as many colours along each side, and read again."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    encoded = simplejpeg.encode_jpeg(pixels, quality, colorsubsampling="420")
    return torch.from_numpy(simplejpeg.decode_jpeg(encoded)).permute(2, 0, 1)


def _as_pixels(values: Tensor) -> Tensor:
    return torch.from_numpy(values.add_(0.5).clamp_(0, 255).numpy().astype(np.uint8))
