"""Decoder: queries attend to each other and to the image, layer by layer, around reference boxes.

The reference boxes stay fixed; no layer refines them. Letters as in `rfdetr.models`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.geometry.boxes import at_least_float32
from rfdetr.models.layers import MLP, attention, init_linears
from rfdetr.models.proposals import Memory


class GroupSelfAttention(nn.Module):
    """Self-attention inside each query group; groups never see each other (arXiv 2207.13085)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))  # query, key, value
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        init_linears(self)

    def forward(self, content: Tensor, position: Tensor, groups: int) -> Tensor:
        """(B, GQ, C) twice -> (B, GQ, C): query and key of content + position, value of content."""
        batch, _, width = content.shape
        weight, bias = self.in_proj_weight, self.in_proj_bias
        both = F.linear(content + position, weight[: 2 * width], bias[: 2 * width])
        value = F.linear(content, weight[2 * width :], bias[2 * width :])
        heads = [  # each (B G, heads, Q, C / heads)
            x.reshape(batch * groups, -1, self.heads, width // self.heads).transpose(1, 2)
            for x in (*both.chunk(2, dim=-1), value)
        ]
        attended = attention(*heads)
        return self.out_proj(attended.transpose(1, 2).reshape(content.shape))  # type: ignore[no-any-return]


class DeformableAttention(nn.Module):
    """Each head reads P points a level, placed around the query's box (arXiv 2010.04159)."""

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        init_linears(self)
        self._init_directions()

    @torch.no_grad()
    def _init_directions(self) -> None:
        """Heads look in even directions, their points 1, 2, ... steps away, at equal weights."""
        angle = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1).view(1, 1, -1, 1)
        bias = (direction[:, None, None] * steps).expand(-1, self.levels, -1, -1)
        self.sampling_offsets.bias.copy_(bias.reshape(-1))  # heads levels P 2
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)

    def forward(self, query: Tensor, references_cxcywh: Tensor, memory: Memory) -> Tensor:
        """`query` (B, GQ, C), `references_cxcywh` (B, GQ, levels or 1, 4) -> (B, GQ, C)."""
        value = self.value_proj(memory.tokens)
        if memory.padding is not None:
            value = value.masked_fill(memory.padding.unsqueeze(-1), 0)
        grid = 2 * self.sampling_locations(query, references_cxcywh) - 1
        weights = at_least_float32(self.attention_weights(query).unflatten(-1, (self.heads, -1)))
        shares = weights.softmax(-1).view(*weights.shape[:-1], self.levels, self.points)
        shares = shares.permute(3, 0, 2, 4, 1)  # levels B heads P GQ
        sampled = []
        for level, values in enumerate(value.split([h * w for h, w in memory.shapes], dim=1)):
            shape = (-1, values.shape[-1] // self.heads, *memory.shapes[level])
            maps = values.transpose(1, 2).reshape(shape).to(grid.dtype)  # (B heads) C/heads h w
            where = grid[:, :, :, level].permute(0, 2, 3, 1, 4).flatten(0, 1)  # (B heads) P GQ 2
            found = F.grid_sample(maps, where, align_corners=False)  # (B heads) C/heads P GQ
            sampled.append((found * shares[level].flatten(0, 1).unsqueeze(1)).sum(2))
        summed = sum(sampled[1:], sampled[0]).to(value.dtype)  # (B heads) C/heads GQ
        return self.output_proj(summed.view(query.shape[0], -1, query.shape[1]).transpose(1, 2))  # type: ignore[no-any-return]

    def sampling_locations(self, query: Tensor, references_cxcywh: Tensor) -> Tensor:
        """Where to sample: (B, GQ, heads, levels, P, 2) x, y relative to the map, at least float32.

        An offset of P reaches half of the reference box's side.
        """
        shape = (self.heads, self.levels, self.points, 2)
        offsets = at_least_float32(self.sampling_offsets(query).unflatten(-1, shape))
        references = references_cxcywh[:, :, None, :, None]  # B GQ 1 levels 1 4
        centre, size = references[..., :2], references[..., 2:]
        return centre + offsets * size * (0.5 / self.points)


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward; a LayerNorm after each."""

    def __init__(
        self,
        *,
        width: int,
        self_heads: int,
        cross_heads: int,
        levels: int,
        points: int,
        hidden: int,
    ) -> None:
        super().__init__()
        self.self_attn = GroupSelfAttention(width, self_heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn = DeformableAttention(width, cross_heads, levels, points)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm3 = nn.LayerNorm(width)
        init_linears(self.linear1)
        init_linears(self.linear2)

    def forward(
        self, x: Tensor, position: Tensor, references_cxcywh: Tensor, memory: Memory, groups: int
    ) -> Tensor:
        """Queries `x` (B, GQ, C) -> (B, GQ, C); the rest as `Decoder` hands it to every layer."""
        x = self.norm1(x + self.self_attn(x, position, groups))
        x = self.norm2(x + self.cross_attn(x + position, references_cxcywh, memory))
        if not self.training or x.device.type != "cpu":
            return self.feed_forward(x)
        # Image by image: the hidden states (B, GQ, hidden) of all images at once would raise the
        # memory peak of a step, and a CPU is as fast with one image at a time.
        return torch.cat([self.feed_forward(part) for part in x.split(1)])  # type: ignore[no-untyped-call]

    def feed_forward(self, x: Tensor) -> Tensor:
        """(B, GQ, C) -> (B, GQ, C): two linear layers with ReLU between them, residual, norm."""
        hidden = F.relu(self.linear1(x), inplace=True)
        return self.norm3(x + self.linear2(hidden))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Layers around fixed reference boxes, and the one LayerNorm that all their outputs pass."""

    def __init__(self, layers: Iterable[DecoderLayer], width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width)
        self.position_mlp = MLP(2 * width, width, width)
        init_linears(self.position_mlp)

    def forward(
        self, content: Tensor, references_cxcywh: Tensor, memory: Memory, groups: int
    ) -> Tensor:
        """`content` (B, GQ, C), references (B, GQ, 4) -> normalised outputs (L, B, GQ, C)."""
        references = references_cxcywh.unsqueeze(2)  # B GQ 1 4, the same for all levels
        if memory.valid_ratios is not None:
            ratios = memory.valid_ratios.repeat(1, 1, 2).unsqueeze(1)
            references = references * ratios  # B GQ levels 4
        sine = sine_embedding(references[:, :, 0], content.shape[-1] // 2)
        position = self.position_mlp(sine.to(content.dtype))
        outputs, x = [], content
        for layer in self.layers:
            x = layer(x, position, references, memory, groups)
            outputs.append(self.norm(x))
        return torch.stack(outputs)


def sine_embedding(boxes_cxcywh: Tensor, features: int) -> Tensor:
    """Boxes (..., 4) -> (..., 4 features): sines and cosines in turn, in the order y, x, w, h."""
    exponent = torch.arange(features // 2, device=boxes_cxcywh.device, dtype=boxes_cxcywh.dtype)
    coordinates = torch.cat((boxes_cxcywh[..., :2].flip(-1), boxes_cxcywh[..., 2:]), dim=-1)
    angle = coordinates.unsqueeze(-1) * (2 * math.pi / 10000 ** (exponent * (2 / features)))
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-3)
