"""Two-stage proposals: each query group picks the best cells of the feature maps (Deformable DETR).

arXiv 2010.04159, section 4.2. Letters as in `rfdetr.models`; a cell is one position of one level.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.geometry.boxes import apply_box_deltas, at_least_float32
from rfdetr.models.layers import MLP

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

    def forward(self, x: Tensor) -> Tensor:
        """Rows of the first g groups (g, rows, in) -> (g, rows, out)."""
        weight, bias = self.weight[: x.shape[0]], self.bias[: x.shape[0]]
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


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
        linear = partial(PerGroupLinear, groups)
        self.linear = linear(width, width)
        self.norm = PerGroupLayerNorm(groups, width)
        self.class_head = linear(width, num_logits)
        self.box_head = MLP(width, width, width, 4, linear=linear)

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
