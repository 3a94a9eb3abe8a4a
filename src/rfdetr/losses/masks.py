"""Mask losses and costs at points, never over whole masks (PointRend, arXiv 1912.08193;
Mask2Former, 2112.01527).

C channels, (H, W) the masks' size, P points (x, y) in [0, 1] of the image, T targets of an image, M
matched pairs. Masks are formed for the matched queries of one image and one stage, sampled, and let
go: their slope is put together from the points' alone, so that memory grows with matches, not with
queries or layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rfdetr.geometry.boxes import at_least_float32
from rfdetr.losses.matcher import Matches
from rfdetr.models.segmentation import MaskFeatures

OVERSAMPLING = 3  # points looked at for each that is used
UNCERTAIN_SHARE = 0.75  # of the points used; the rest lie anywhere


class StageMatches(NamedTuple):
    """One stage's matched pairs in the order of images: the image's queries, and targets of the
    whole batch.
    """

    counts: list[int]  # pairs of each image
    image: Tensor  # M
    query: Tensor  # M
    target: Tensor  # M


def mask_losses(
    features: MaskFeatures,
    targets: Sequence[Mapping[str, Tensor]],
    matches: Matches,
    groups: int,
    ratio: int,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice loss of each stage (S,), means over points summed over its matched
    masks.

    An object without an outline ("has_mask" False) adds nothing.
    """
    height, width = features.spatial[0].shape[-2:]
    num_points = max(height, height * width // ratio)
    masks = torch.cat([target["masks"] for target in targets])
    known = torch.cat([has_mask(target) for target in targets])
    sums = []
    stages = by_stage(matches, [queries.shape[1] for queries in features.queries], groups, targets)
    for spatial, queries, offsets, (counts, image, query, target) in zip(
        *features, stages, strict=True
    ):
        logits, points = logits_at_points(
            queries[image, query], offsets[image, query], spatial, counts, num_points
        )
        truth = nearest_at(masks, target, points).to(logits.dtype)
        ce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(dim=1)
        sums.append(
            torch.stack((ce, _dice_loss(logits.sigmoid(), truth))) @ known[target].to(logits.dtype)
        )
    ce_of_stages, dice_of_stages = torch.stack(sums, dim=1)
    return ce_of_stages, dice_of_stages


def by_stage(
    matches: Matches, lengths: Sequence[int], groups: int, targets: Sequence[Mapping[str, Tensor]]
) -> Iterator[StageMatches]:
    """The matches of each stage, of `lengths` candidates in so many groups; how many there are
    follows from the sizes.

    So nothing is asked of the device.
    """
    sizes = [
        groups * min(len(target["labels"]), length // groups)
        for target in targets
        for length in lengths
    ]
    parts = [torch.split(values, sizes) for values in matches]
    for stage, first in enumerate(accumulate(lengths[:-1], initial=0)):
        image, candidate, target = (torch.cat(part[stage :: len(lengths)]) for part in parts)
        yield StageMatches(sizes[stage :: len(lengths)], image, candidate - first, target)


@torch.no_grad()
def mask_costs(
    features: MaskFeatures,
    targets: Sequence[Mapping[str, Tensor]],
    ratio: int,
    *,
    ce_weight: float,
    dice_weight: float,
) -> list[Tensor]:
    """What each candidate's mask adds to its cost for each target: (T, C) of each image, at the
    same random points.

    The weights are those of the loss terms. It is nothing for an object without an outline.
    """
    height, width = features.spatial[0].shape[-2:]
    device = features.spatial[0].device
    points = torch.rand(1, max(1, height * width // ratio), 2, dtype=torch.float32, device=device)
    costs = []
    for image, target in enumerate(targets):
        truth = nearest_at(
            target["masks"], torch.arange(len(target["masks"]), device=device), points
        )
        stages = []
        for spatial, queries, offsets in zip(*features, strict=True):
            at_points = bilinear_at(spatial[image : image + 1], points)[0].to(
                queries.dtype
            )  # (C, P)
            logits = at_least_float32(queries[image] @ at_points) + offsets[image][:, None]
            stages.append(_mask_cost(logits, truth, ce_weight, dice_weight))
        costs.append(torch.where(has_mask(target)[:, None], torch.cat(stages, dim=1), 0.0))
    return costs


def _mask_cost(logits: Tensor, truth: Tensor, ce_weight: float, dice_weight: float) -> Tensor:
    """Cost (T, Q) of masks with logits (Q, P) for targets (T, P)."""
    truth, p = truth.to(logits.dtype), logits.sigmoid()
    ce = F.softplus(logits).mean(dim=1) - truth @ logits.T / truth.shape[1]
    dice = 1 - (2 * truth @ p.T + 1) / (truth.sum(dim=1, keepdim=True) + p.sum(dim=1) + 1)
    return ce_weight * ce + dice_weight * dice


def _dice_loss(p: Tensor, truth: Tensor) -> Tensor:
    return 1 - (2 * (p * truth).sum(dim=1) + 1) / (p.sum(dim=1) + truth.sum(dim=1) + 1)


def has_mask(target: Mapping[str, Tensor]) -> Tensor:
    """Which objects have an outline (T,): all, where nothing is said."""
    return target.get("has_mask", torch.ones_like(target["labels"], dtype=torch.bool))


def logits_at_points(
    queries: Tensor, offsets: Tensor, maps: Tensor, counts: list[int], num_points: int
) -> tuple[Tensor, Tensor]:
    """Mask logits (M, P) of queries (M, C) with offsets (M,) at points (M, P, 2) where they are
    unsure.

    The first counts[0] queries are those of the first of the images, whose maps are (B, C, H, W).
    Products are taken in the features' precision, everything after in float32.
    """
    return _LogitsAtPoints.apply(queries, offsets, maps, counts, num_points)  # type: ignore[no-any-return, no-untyped-call]


class _LogitsAtPoints(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, offsets: Tensor, maps: Tensor, counts: list[int], num_points: int
    ) -> tuple[Tensor, Tensor]:
        parts = []
        of_images = (torch.split(values, counts) for values in (queries, offsets))
        for q, b, of_image in zip(*of_images, maps, strict=True):
            masks = at_least_float32(q @ of_image.flatten(1)) + b[:, None]
            masks = masks.reshape(len(q), 1, *maps.shape[2:])
            points = uncertain_points(masks, num_points)
            parts.append((bilinear_at(masks, points)[:, 0], points))
        logits, points = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(queries, offsets, maps, points)
        ctx.mark_non_differentiable(points)
        ctx.counts = counts
        return logits, points

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        queries, offsets, maps, points = ctx.saved_tensors
        of_queries = torch.empty_like(queries)
        of_maps = torch.empty_like(
            maps, memory_format=torch.channels_last
        )  # its images' pixels are rows
        of_images = (
            torch.split(values, ctx.counts) for values in (slopes, points, queries, of_queries)
        )
        for slope, at, q, of_q, of_image, out in zip(*of_images, maps, of_maps, strict=True):
            of_masks = _slope_of_maps(slope, at, maps.shape[2:]).to(maps.dtype)
            torch.mm(of_masks, of_image.flatten(1).T, out=of_q)
            torch.mm(of_masks.T, q, out=out.flatten(1).T)
        return of_queries, slopes.sum(dim=1).to(offsets.dtype), of_maps, None, None


def _slope_of_maps(slope: Tensor, points: Tensor, size: Sequence[int]) -> Tensor:
    """The slope (M, P) of `bilinear_at` as that of the maps (M, H W) it read."""
    maps = slope.new_zeros(()).expand(len(slope), 1, *size).requires_grad_()
    with torch.enable_grad():
        read = bilinear_at(maps, points)[:, 0]
    return torch.autograd.grad(read, maps, slope)[0].flatten(1)


@torch.no_grad()
def uncertain_points(masks: Tensor, count: int) -> Tensor:
    """Points (M, count, 2) for mask logits (M, 1, H, W): most where a mask is nearest to 0, the
    rest anywhere.
    """
    drawn = torch.rand(len(masks), OVERSAMPLING * count, 2, device=masks.device, dtype=masks.dtype)
    unsure = int(UNCERTAIN_SHARE * count)
    nearest = (
        bilinear_at(masks, drawn)[:, 0]
        .abs()
        .topk(unsure, dim=1, largest=False, sorted=False)
        .indices
    )
    anywhere = torch.rand(len(masks), count - unsure, 2, device=masks.device, dtype=masks.dtype)
    return torch.cat((drawn.take_along_dim(nearest[..., None], dim=1), anywhere), dim=1)


def bilinear_at(maps: Tensor, points: Tensor) -> Tensor:
    """Maps (N, C, H, W) at points (N, P, 2): (N, C, P). Past the outermost centres they go on as
    they are there.
    """
    maps = at_least_float32(maps)
    grid = (2 * points[:, None] - 1).to(maps.dtype)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)[
        :, :, 0
    ]


def nearest_at(masks: Tensor, rows: Tensor, points: Tensor) -> Tensor:
    """Pixels (M, P) of masks (T, h, w), of those in `rows` (M,), in which points (M or 1, P, 2)
    lie.
    """
    height, width = masks.shape[1:]
    x = (points[..., 0] * width).long().clamp(max=width - 1)
    y = (points[..., 1] * height).long().clamp(max=height - 1)
    return masks[rows[:, None], y, x]
