"""Proposals and decoder: from feature maps to queries, each with the box that it looks around.

Every query group proposes the best cells of the maps (two-stage Deformable DETR, arXiv 2010.04159,
section 4.2). Then queries attend to each other and to the maps, layer by layer, around reference
boxes made of the proposals, which stay fixed: no layer refines them. Letters as in `rfdetr.models`;
a cell is one position of one level.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.geometry.boxes import apply_box_deltas, at_least_float32
from rfdetr.models.layers import MLP, Linear, attention, init_linears, linear

_BOX_SIDE = 0.05  # of the image, at the first level; doubles from level to level
_BORDER = 0.01  # proposals must lie inside (border, 1 - border)


class Memory(NamedTuple):
    """The levels as one sequence of cells, and which of them are padding (None, None: none)."""

    tokens: Tensor  # B N C
    shapes: list[tuple[int, int]]  # h, w of each level
    padding: Tensor | None = None  # B N bool, True where padded
    valid_ratios: Tensor | None = None  # B levels 2, the share of width and height that is image


def flatten_levels(levels: Sequence[Tensor], mask: Tensor | None) -> Memory:
    """Levels (B, C, h, w) and the images' padding mask (B, H, W), True at padding, to memory."""
    shapes = [(level.shape[-2], level.shape[-1]) for level in levels]
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
    if mask is None:
        return Memory(tokens, shapes)
    masks = [F.interpolate(mask[:, None].float(), size=shape)[:, 0].bool() for shape in shapes]
    ratios = [  # of the first row and of the first column
        torch.stack([(~side).float().mean(1) for side in (m[:, 0], m[:, :, 0])], dim=-1)
        for m in masks
    ]
    padding = torch.cat([m.flatten(1) for m in masks], dim=1)
    return Memory(tokens, shapes, padding, torch.stack(ratios, dim=1))


def cell_boxes(memory: Memory) -> tuple[Tensor, Tensor]:
    """A box around each cell's centre: cxcywh (B or 1, N, 4), and whether it may be proposed.

    The second, (B or 1, N), is False in padding and at the border; there the box is 0.
    """
    boxes = []
    kind = at_least_float32(memory.tokens.new_empty(0))
    for level, (height, width) in enumerate(memory.shapes):
        sides = [torch.arange(n, device=kind.device, dtype=kind.dtype) for n in (height, width)]
        y, x = torch.meshgrid(*sides, indexing="ij")
        extent = x.new_tensor((width, height)).expand(1, 1, 2)
        if memory.valid_ratios is not None:
            extent = extent * memory.valid_ratios[:, level, None]
        centre = (torch.stack((x, y), dim=-1).reshape(1, -1, 2) + 0.5) / extent  # B N 2
        boxes.append(torch.cat((centre, torch.full_like(centre, _BOX_SIDE * 2.0**level)), dim=-1))
    boxes_cxcywh = torch.cat(boxes, dim=1)
    valid = ((boxes_cxcywh > _BORDER) & (boxes_cxcywh < 1 - _BORDER)).all(-1)
    if memory.padding is not None:
        valid = valid & ~memory.padding
    return boxes_cxcywh.masked_fill(~valid.unsqueeze(-1), 0), valid


class PerGroupLinear(nn.Module):
    """A linear layer for each group, as one batched product."""

    def __init__(self, groups: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(groups, out_features))
        for matrix in self.weight:
            nn.init.xavier_uniform_(matrix)

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """Rows of the first g groups (g, rows, in) -> (g, rows, out), its positive part."""
        weight, bias = self.weight[: x.shape[0]], self.bias[: x.shape[0]]
        product = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
        return F.relu(product) if relu else product


class PerGroupLayerNorm(nn.Module):
    """A LayerNorm for each group."""

    def __init__(self, groups: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(groups, features))
        self.bias = nn.Parameter(torch.zeros(groups, features))

    def forward(self, x: Tensor) -> Tensor:
        """Rows of the first g groups (g, rows, features), normalised."""
        weight, bias = self.weight[: x.shape[0]], self.bias[: x.shape[0]]
        normalised = F.layer_norm(x, x.shape[-1:])
        return torch.addcmul(bias.unsqueeze(1), normalised, weight.unsqueeze(1))


class ProposalOutput(NamedTuple):
    """The k best cells of each of G groups (in evaluation of the first: G = 1), best first."""

    queries: Tensor  # B G k C, the cells' normalised features
    logits: Tensor  # B G k K
    boxes: Tensor  # B G k 4, cxcywh


class Proposals(nn.Module):
    """Scores every cell, and predicts logits and a box for the best `num_queries` of each group."""

    def __init__(self, width: int, num_logits: int, num_queries: int, groups: int) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.groups = groups
        per_group = partial(PerGroupLinear, groups)
        self.linear = per_group(width, width)
        self.norm = PerGroupLayerNorm(groups, width)
        self.class_head = per_group(width, num_logits)
        self.box_head = MLP(width, width, width, 4, linear=per_group)

    @torch.no_grad()
    def start_from(self, class_head: nn.Linear, box_head: MLP) -> None:
        """Makes every group's heads equal to those of the decoder."""
        mine = (*self.class_head.parameters(), *self.box_head.parameters())
        shared = (*class_head.parameters(), *box_head.parameters())
        for parameter, source in zip(mine, shared, strict=True):
            parameter.copy_(source)

    def forward(self, memory: Memory) -> ProposalOutput:
        """Proposals of all groups in training, of the first in evaluation.

        Where there are fewer than `num_queries` cells, all of them are proposed.
        """
        groups = self.groups if self.training else 1
        boxes_cxcywh, valid = cell_boxes(memory)
        cells = memory.tokens.masked_fill(~valid.unsqueeze(-1), 0)
        batch, num_cells, width = cells.shape
        rows = cells.flatten(0, 1)  # (B N) C
        # Only the best cells carry gradients, so only they are computed with a graph.
        with torch.no_grad():
            logits = self.class_head(self.transform(rows.expand(groups, -1, -1)))  # G (B N) K
            scores = logits.amax(-1).view(groups, batch, num_cells)
            best = scores.topk(min(self.num_queries, num_cells)).indices  # G B k
        offsets = num_cells * torch.arange(batch, device=best.device).unsqueeze(-1)
        chosen = (best + offsets).flatten()
        queries = self.transform(rows.index_select(0, chosen).view(groups, -1, width))  # G (B k) C
        boxes = boxes_cxcywh.expand(batch, -1, -1).flatten(0, 1)  # (B N) 4
        references = boxes.index_select(0, chosen).view(groups, -1, 4)

        def by_image(x: Tensor) -> Tensor:
            return x.view(groups, batch, -1, x.shape[-1]).transpose(0, 1)  # B G k, ...

        return ProposalOutput(
            queries=by_image(queries),
            logits=by_image(at_least_float32(self.class_head(queries))),
            boxes=by_image(apply_box_deltas(self.box_head(queries), references)),
        )

    def transform(self, cells: Tensor) -> Tensor:
        """Features of cells (G, rows, C) -> (G, rows, C), by each group's own layer."""
        return self.norm(self.linear(cells))  # type: ignore[no-any-return]


class GroupSelfAttention(nn.Module):
    """Self-attention inside each query group; groups never see each other (arXiv 2207.13085)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))  # query, key, value
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        init_linears(self)

    def forward(self, content: Tensor, position: Tensor, groups: int) -> Tensor:
        """(B, GQ, C) twice -> (B, GQ, C): query and key of content + position, value of content."""
        batch, _, width = content.shape
        weight, bias = self.in_proj_weight, self.in_proj_bias
        both = linear(content + position, weight[: 2 * width], bias[: 2 * width])
        value = linear(content, weight[2 * width :], bias[2 * width :])
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
        self.sampling_offsets = Linear(width, heads * levels * points * 2)
        self.attention_weights = Linear(width, heads * levels * points)
        self.value_proj = Linear(width, width)
        self.output_proj = Linear(width, width)
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
        self.linear1 = Linear(width, hidden)
        self.linear2 = Linear(hidden, width)
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
        return self.norm3(x + self.linear2(self.linear1(x, relu=True)))  # type: ignore[no-any-return]


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
