"""The decoder's two kinds of attention: among the queries of a group, and deformable into the
image.

B images, G groups, Q queries of a group, H heads, L levels, P points, C hidden width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.geometry.boxes import at_least_float32
from rfdetr.models.layers import attention, init_linears
from rfdetr.models.proposals import Memory


class GroupSelfAttention(nn.Module):
    """Self-attention of the queries inside each group; groups never see each other (Group DETR,
    arXiv 2207.13085).
    """

    def __init__(self, hidden_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_dim, hidden_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_dim))
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        init_linears(self)

    def forward(self, content: Tensor, position: Tensor, groups: int) -> Tensor:
        """Content and position (B, G Q, C) -> (B, G Q, C); query = key = content + position, value
        = content.
        """
        width = content.shape[-1]
        query_key = F.linear(
            content + position, self.in_proj_weight[: 2 * width], self.in_proj_bias[: 2 * width]
        )
        value = F.linear(content, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :])
        query, key = query_key.chunk(2, dim=-1)
        attended = attention(*(self._split(x, groups) for x in (query, key, value)))
        return self.out_proj(attended.transpose(1, 2).reshape(content.shape))  # type: ignore[no-any-return]

    def _split(self, x: Tensor, groups: int) -> Tensor:
        rows = x.shape[0] * groups
        return x.reshape(rows, -1, self.heads, x.shape[-1] // self.heads).transpose(
            1, 2
        )  # (B G) H Q C/H


class DeformableAttention(nn.Module):
    """Every head samples a few points of each level around the query's reference box (arXiv
    2010.04159).
    """

    def __init__(self, hidden_dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(hidden_dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(hidden_dim, heads * levels * points)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, hidden_dim)
        init_linears(self)
        self._init_directions()

    @torch.no_grad()
    def _init_directions(self) -> None:
        angle = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        reach = torch.arange(1, self.points + 1).view(1, 1, -1, 1)
        bias = (direction[:, None, None] * reach).expand(-1, self.levels, -1, -1)  # H L P 2
        self.sampling_offsets.bias.copy_(bias.reshape(-1))
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)

    def forward(self, query: Tensor, references_cxcywh: Tensor, memory: Memory) -> Tensor:
        """Query (B, GQ, C) and references (B, GQ, L or 1, 4) -> (B, GQ, C)."""
        value = self.value_proj(memory.tokens)
        if memory.padding is not None:
            value = value.masked_fill(memory.padding.unsqueeze(-1), 0)
        grid = 2 * self.sampling_locations(query, references_cxcywh) - 1  # B GQ H L P 2
        weights = at_least_float32(
            self.attention_weights(query).unflatten(-1, (self.heads, -1))
        ).softmax(-1)
        weights = weights.view(*weights.shape[:-1], self.levels, self.points).permute(
            3, 0, 2, 4, 1
        )  # L B H P GQ
        sampled = []
        for level, values in enumerate(value.split([h * w for h, w in memory.shapes], dim=1)):
            maps = values.transpose(1, 2).reshape(
                -1, values.shape[-1] // self.heads, *memory.shapes[level]
            )
            where = grid[:, :, :, level].permute(0, 2, 3, 1, 4).flatten(0, 1)  # (B H) P GQ 2
            points = F.grid_sample(
                maps.to(grid.dtype), where, align_corners=False
            )  # (B H) C/H P GQ
            sampled.append((points * weights[level].flatten(0, 1).unsqueeze(1)).sum(2))
        heads = (
            sum(sampled[1:], sampled[0]).to(value.dtype).view(query.shape[0], -1, query.shape[1])
        )  # B C GQ
        return self.output_proj(heads.transpose(1, 2))  # type: ignore[no-any-return]

    def sampling_locations(self, query: Tensor, references_cxcywh: Tensor) -> Tensor:
        """Where to sample, relative to the level's map: (B, GQ, H, L, P, 2), x then y, at least
        float32.
        """
        offsets = self.sampling_offsets(query).unflatten(
            -1, (self.heads, self.levels, self.points, 2)
        )
        references = references_cxcywh[:, :, None, :, None]  # B GQ 1 L 1 4
        locations: Tensor = references[..., :2] + at_least_float32(offsets) * references[
            ..., 2:
        ] * (0.5 / self.points)
        return locations
