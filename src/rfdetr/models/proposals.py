"""Two-stage proposals: the best cells of the feature maps, for each query group (Deformable DETR,
arXiv 2010.04159).

B images, N cells of all levels, C hidden width, G groups, k proposals of a group, K logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.geometry.boxes import apply_box_deltas, at_least_float32
from rfdetr.models.layers import MLP

_BOX_SIDE = 0.05  # of the image, at the first level; doubles from level to level
_BORDER = 0.01  # proposals must lie inside (border, 1 - border)


class Memory(NamedTuple):
    """The levels as one sequence, and what of it is padding (None, None: nothing)."""

    tokens: Tensor  # B N C
    shapes: list[tuple[int, int]]  # rows and columns of each level
    padding: Tensor | None = None  # B N bool, True where padded
    valid_ratios: Tensor | None = None  # B levels 2, the share of width and height that is image


def flatten_levels(levels: Sequence[Tensor], mask: Tensor | None) -> Memory:
    """Levels (B, C, h, w) and the image's padding mask (B, H, W) to memory."""
    shapes = [(level.shape[-2], level.shape[-1]) for level in levels]
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
    if mask is None:
        return Memory(tokens, shapes)
    masks = [F.interpolate(mask[:, None].float(), size=shape)[:, 0].bool() for shape in shapes]
    ratios = [
        torch.stack(((~m[:, 0]).float().mean(1), (~m[:, :, 0]).float().mean(1)), dim=-1)
        for m in masks
    ]
    return Memory(
        tokens, shapes, torch.cat([m.flatten(1) for m in masks], dim=1), torch.stack(ratios, dim=1)
    )


def cell_boxes(memory: Memory) -> tuple[Tensor, Tensor]:
    """One box_cxcywh per cell (B or 1, N, 4), and whether it may be proposed (B or 1, N); other
    cells' boxes are 0.
    """
    boxes = []
    exact = at_least_float32(memory.tokens.new_empty(0))
    for level, (height, width) in enumerate(memory.shapes):
        y, x = torch.meshgrid(
            *(torch.arange(n, device=exact.device, dtype=exact.dtype) for n in (height, width)),
            indexing="ij",
        )
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


class GroupLinear(nn.Module):
    """A linear layer for each group, as one batched product."""

    def __init__(self, groups: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(groups, out_features))
        for matrix in self.weight:
            nn.init.xavier_uniform_(matrix)

    @torch.no_grad()
    def copy_from(self, linear: nn.Linear) -> None:
        """Makes every group's layer equal to `linear`."""
        self.weight.copy_(linear.weight)
        self.bias.copy_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Rows of the first g groups (g, rows, in) -> (g, rows, out)."""
        groups = x.shape[0]
        return torch.baddbmm(
            self.bias[:groups].unsqueeze(1), x, self.weight[:groups].transpose(1, 2)
        )


class GroupNorm(nn.Module):
    """A LayerNorm for each group."""

    def __init__(self, groups: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(groups, features))
        self.bias = nn.Parameter(torch.zeros(groups, features))

    def forward(self, x: Tensor) -> Tensor:
        """Rows of the first g groups (g, rows, features), normalised."""
        groups = x.shape[0]
        normalised = F.layer_norm(x, x.shape[-1:])
        return torch.addcmul(
            self.bias[:groups].unsqueeze(1), normalised, self.weight[:groups].unsqueeze(1)
        )


class GroupMLP(nn.Module):
    """`MLP` for each group."""

    def __init__(self, groups: int, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GroupLinear(groups, a, b) for a, b in pairwise(widths))

    def copy_from(self, mlp: MLP) -> None:
        """Makes every group's layers equal to those of `mlp`."""
        for mine, shared in zip(self.layers, mlp.layers, strict=True):
            mine.copy_from(shared)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """(g, rows, in) -> (g, rows, out)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x), inplace=True)
        return self.layers[-1](x)  # type: ignore[no-any-return]


class ProposalOutput(NamedTuple):
    """The k best cells of each of g groups."""

    queries: Tensor  # B g k C, the cells' normalised features
    logits: Tensor  # B g k K
    boxes: Tensor  # B g k 4, cxcywh


class Proposals(nn.Module):
    """Scores every cell, and predicts logits and a box for the best `num_queries` of each group."""

    def __init__(self, *, hidden_dim: int, num_logits: int, num_queries: int, groups: int) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.groups = groups
        self.linear = GroupLinear(groups, hidden_dim, hidden_dim)
        self.norm = GroupNorm(groups, hidden_dim)
        self.class_head = GroupLinear(groups, hidden_dim, num_logits)
        self.box_head = GroupMLP(groups, hidden_dim, hidden_dim, hidden_dim, 4)

    def forward(self, memory: Memory) -> ProposalOutput:
        """Proposals of all groups in training, of the first in evaluation; all cells where there
        are fewer than k.
        """
        groups = self.groups if self.training else 1
        boxes_cxcywh, valid = cell_boxes(memory)
        cells = memory.tokens.masked_fill(~valid.unsqueeze(-1), 0)
        batch, num_cells, width = cells.shape
        # Only the best cells carry gradients, so only they are computed with a graph.
        best = self._best_cells(cells, groups)  # g B k
        chosen = (
            best + num_cells * torch.arange(batch, device=best.device).unsqueeze(-1)
        ).flatten()
        queries = self.transform(
            cells.flatten(0, 1).index_select(0, chosen).view(groups, -1, width)
        )  # g (B k) C
        references = (
            boxes_cxcywh.expand(batch, -1, -1)
            .flatten(0, 1)
            .index_select(0, chosen)
            .view(groups, -1, 4)
        )

        def by_image(x: Tensor) -> Tensor:
            return x.view(groups, batch, -1, x.shape[-1]).transpose(0, 1)

        return ProposalOutput(
            queries=by_image(queries),
            logits=by_image(at_least_float32(self.class_head(queries))),
            boxes=by_image(apply_box_deltas(self.box_head(queries), references)),
        )

    def transform(self, cells: Tensor) -> Tensor:
        """Features of cells (g, rows, C), by each group's own layer."""
        return self.norm(self.linear(cells))  # type: ignore[no-any-return]

    @torch.no_grad()
    def _best_cells(self, cells: Tensor, groups: int) -> Tensor:
        batch, num_cells, _ = cells.shape
        logits = self.class_head(
            self.transform(cells.flatten(0, 1).expand(groups, -1, -1))
        )  # g (B N) K
        scores: Tensor = logits.amax(-1).view(groups, batch, num_cells)
        return scores.topk(min(self.num_queries, num_cells)).indices
