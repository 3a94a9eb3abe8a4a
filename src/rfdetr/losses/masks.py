"""Mask losses and costs at points, never over whole masks.

As in PointRend (arXiv 1912.08193) and Mask2Former (2112.01527). Letters as in `rfdetr.models`;
points (x, y) lie in [0, 1] of the image. A mask (h, w) is formed for matched queries only, those of
one image and one layer at a time: its logits at P points are read, and the mask is thrown away; the
backward pass forms it once more. So memory grows with M * P, not with queries or layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rfdetr.geometry.boxes import at_least_float32
from rfdetr.losses.matcher import Matches, Targets
from rfdetr.models.segmentation import MaskFeatures

OVERSAMPLING = 3  # points looked at for each that is used
UNCERTAIN_SHARE = 0.75  # of the points used; the rest lie anywhere


class LayerMatches(NamedTuple):
    """One layer's matched pairs, image after image; M here is the number of these pairs."""

    counts: list[int]  # pairs of each image
    image: Tensor  # M
    query: Tensor  # M, among the image's queries of this layer
    target: Tensor  # M, among the targets of the whole batch


def mask_losses(
    features: MaskFeatures, targets: Targets, matches: Matches, groups: int, ratio: int
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice loss (S,) of each layer: means over points, summed over its pairs.

    A mask has `ratio` cells for each point. A target of which "has_mask" is False adds nothing.
    """
    height, width = features.spatial[0].shape[-2:]
    num_points = max(height, height * width // ratio)
    masks = torch.cat([target["masks"] for target in targets])
    known = torch.cat([has_mask(target) for target in targets])
    lengths = [queries.shape[1] for queries in features.queries]
    layers = matches_by_layer(matches, lengths, groups, targets)
    sums = []
    for spatial, queries, offsets, pairs in zip(*features, layers, strict=True):
        matched = queries[pairs.image, pairs.query], offsets[pairs.image, pairs.query]
        logits, points = logits_at_points(*matched, spatial, pairs.counts, num_points)
        truth = nearest_at(masks, pairs.target, points).to(logits.dtype)
        ce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(dim=1)
        p = logits.sigmoid()
        dice = 1 - (2 * (p * truth).sum(dim=1) + 1) / (p.sum(dim=1) + truth.sum(dim=1) + 1)
        sums.append(torch.stack((ce, dice)) @ known[pairs.target].to(logits.dtype))
    ce_of_layers, dice_of_layers = torch.stack(sums, dim=1)
    return ce_of_layers, dice_of_layers


def matches_by_layer(
    matches: Matches, lengths: Sequence[int], groups: int, targets: Targets
) -> Iterator[LayerMatches]:
    """Splits `matches` into those of each of S layers, which have `lengths` candidates an image.

    `matches` come image by image, in an image layer by layer. A block of Q candidates and T targets
    gives min(Q, T) pairs, so all sizes are known here, without waiting for the device.
    """
    sizes = [  # of image 0 layer 0, image 0 layer 1, ...
        groups * min(len(target["labels"]), length // groups)
        for target in targets
        for length in lengths
    ]
    parts = [torch.split(indexes, sizes) for indexes in matches]
    for layer, first in enumerate(accumulate(lengths[:-1], initial=0)):
        own = slice(layer, None, len(lengths))
        image, candidate, target = (torch.cat(part[own]) for part in parts)
        yield LayerMatches(sizes[own], image, candidate - first, target)


@torch.no_grad()
def mask_costs(
    features: MaskFeatures, targets: Targets, ratio: int, ce_weight: float, dice_weight: float
) -> list[Tensor]:
    """What its mask adds to a candidate's cost for a target, (T, A) of each image.

    All masks are compared at the same random points. A target of which "has_mask" is False adds 0.
    """
    height, width = features.spatial[0].shape[-2:]
    device = features.spatial[0].device
    points = torch.rand(1, max(1, height * width // ratio), 2, dtype=torch.float32, device=device)
    costs = []
    for image, target in enumerate(targets):
        rows = torch.arange(len(target["masks"]), device=device)
        mask_truth = nearest_at(target["masks"], rows, points)  # T P
        layers = []
        for spatial, queries, offsets in zip(*features, strict=True):
            at_points = bilinear_at(spatial[image : image + 1], points)[0].to(queries.dtype)  # C P
            logits = at_least_float32(queries[image] @ at_points) + offsets[image][:, None]  # GQ P
            truth, p = mask_truth.to(logits.dtype), logits.sigmoid()
            ce = F.softplus(logits).mean(dim=1) - truth @ logits.T / truth.shape[1]  # T GQ
            areas = truth.sum(dim=1, keepdim=True) + p.sum(dim=1)
            dice = 1 - (2 * truth @ p.T + 1) / (areas + 1)
            layers.append(ce_weight * ce + dice_weight * dice)
        costs.append(torch.where(has_mask(target)[:, None], torch.cat(layers, dim=1), 0.0))
    return costs


def has_mask(target: Mapping[str, Tensor]) -> Tensor:
    """Which objects of an image have a mask, (T,) bool: all, where "has_mask" is missing."""
    return target.get("has_mask", torch.ones_like(target["labels"], dtype=torch.bool))


def logits_at_points(
    queries: Tensor, offsets: Tensor, maps: Tensor, counts: list[int], num_points: int
) -> tuple[Tensor, Tensor]:
    """Logits (M, P) of the masks of M queries at points (M, P, 2) where these are uncertain.

    `queries` (M, C), `offsets` (M,), `maps` (B, C, h, w); the first counts[0] queries belong to
    image 0, and so on. Products are in the precision of `maps`, all after them in float32.
    """

    def read(q: Tensor, offset: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        masks = at_least_float32(q @ pixels.flatten(1)) + offset[:, None]
        masks = masks.reshape(len(q), 1, *pixels.shape[1:])
        points = uncertain_points(masks, num_points)
        return bilinear_at(masks, points)[:, 0], points

    by_image = (torch.split(values, counts) for values in (queries, offsets.detach()))
    # Else the backward pass would need every mask (M, h, w) at once; so it forms them again.
    rows = zip(*by_image, maps, strict=True)
    parts = [checkpoint(read, *row, use_reentrant=False) for row in rows]
    logits, points = (torch.cat(part) for part in zip(*parts, strict=True))
    # Plus 0: the offsets' gradient is summed over the points, not over the masks.
    return logits + (offsets - offsets.detach())[:, None], points


@torch.no_grad()
def uncertain_points(masks: Tensor, count: int) -> Tensor:
    """Points (M, count, 2), most where the mask logits (M, 1, h, w) are nearest to 0.

    Of 3 * count random points those 0.75 * count with the least |logit|; the rest lie anywhere.
    """
    uncertain = int(UNCERTAIN_SHARE * count)
    points = masks.new_empty(len(masks), OVERSAMPLING * count, 2).uniform_()
    size = bilinear_at(masks, points)[:, 0].abs()
    nearest = size.topk(uncertain, dim=1, largest=False, sorted=False).indices
    anywhere = masks.new_empty(len(masks), count - uncertain, 2).uniform_()
    return torch.cat((points.take_along_dim(nearest[..., None], dim=1), anywhere), dim=1)


def bilinear_at(maps: Tensor, points: Tensor) -> Tensor:
    """Maps (n, C, h, w) at points (n, P, 2): (n, C, P), at least float32; flat at the border."""
    maps = at_least_float32(maps)
    grid = (2 * points[:, None] - 1).to(maps.dtype)
    found = F.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    return found[:, :, 0]


def nearest_at(masks: Tensor, rows: Tensor, points: Tensor) -> Tensor:
    """Values (M, P) of the masks `rows` (M,) among `masks` (T, H, W), at points (M or 1, P, 2)."""
    height, width = masks.shape[1:]
    x = (points[..., 0] * width).long().clamp(max=width - 1)
    y = (points[..., 1] * height).long().clamp(max=height - 1)
    return masks[rows[:, None], y, x]
