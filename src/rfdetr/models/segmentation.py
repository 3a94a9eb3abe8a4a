"""Segmentation head: mask logits as products of per-pixel and per-query features.

Letters as in `rfdetr.models`; (h, w) is the size of the predicted masks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.models.layers import ChannelNorm, Linear


class MaskFeatures(NamedTuple):
    """What mask logits are made of: an entry for each decoder layer, the last for the proposals.

    The logits of all queries are seldom needed: training forms those of the matched ones alone. So
    they are made on demand.
    """

    spatial: list[Tensor]  # S of B C h w
    queries: list[Tensor]  # S of B GQ C, the last B Gk C
    offsets: list[Tensor]  # S of B GQ, the last B Gk

    def mask_logits(self, layer: int) -> Tensor:
        """All masks of entry `layer`: (B, GQ, h, w)."""
        spatial = self.spatial[layer]
        products = torch.matmul(self.queries[layer], spatial.flatten(2))
        products = products + self.offsets[layer][..., None]
        return products.reshape(*products.shape[:2], *spatial.shape[-2:])


class MaskBlock(nn.Module):
    """Depthwise convolution, LayerNorm, linear layer, GELU; with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = ChannelNorm(channels)
        self.linear = Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        mixed = self.linear(self.norm(self.depthwise(x)).permute(0, 2, 3, 1))
        return x + F.gelu(mixed).permute(0, 3, 1, 2)


class SegmentationHead(nn.Module):
    """One spatial block per decoder layer; all share the query branch and the projections."""

    def __init__(self, channels: int, num_layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MaskBlock(channels) for _ in range(num_layers))
        self.spatial_proj = nn.Conv2d(channels, channels, 1)
        self.query_norm = nn.LayerNorm(channels)
        self.query_expand = Linear(channels, 4 * channels)
        self.query_reduce = Linear(4 * channels, channels)
        self.query_proj = Linear(channels, channels)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(
        self, features: Tensor, size: tuple[int, int], hidden: Tensor, proposal_queries: Tensor
    ) -> MaskFeatures:
        """From the first level's `features`, queries `hidden` (L, B, GQ, C) and the proposals'.

        `proposal_queries` are (B, Gk, C), `size` is (h, w). The logit of a query q at a pixel x is
        (W x + v) . q + b. Computed is x . (W' q) + (v . q + b), the same for less: queries are
        fewer than pixels.
        """
        x = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        spatial = [x]
        for block in self.blocks:
            spatial.append(block(spatial[-1]))
        projected = [self.project_queries(queries) for queries in (*hidden, proposal_queries)]
        queries = [torch.matmul(q, self.spatial_proj.weight.flatten(1)) for q in projected]
        offsets = [(q * self.spatial_proj.bias).sum(-1) + self.bias for q in projected]  # type: ignore[operator]
        return MaskFeatures([*spatial[1:], x], queries, offsets)

    def project_queries(self, queries: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        branch = self.query_reduce(F.gelu(self.query_expand(self.query_norm(queries))))
        return self.query_proj(queries + branch)  # type: ignore[no-any-return]
