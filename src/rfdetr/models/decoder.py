"""Decoder: queries attend to each other and to the image, layer by layer, around reference boxes
that stay fixed.

B images, G groups, Q queries of a group, C hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.models.attention import DeformableAttention, GroupSelfAttention
from rfdetr.models.layers import MLP, init_linears
from rfdetr.models.proposals import Memory


def sine_embedding(boxes_cxcywh: Tensor, features: int) -> Tensor:
    """Boxes (..., 4) -> (..., 4 features): sines and cosines in turn, coordinates in the order y,
    x, w, h.
    """
    exponent = torch.arange(features // 2, device=boxes_cxcywh.device, dtype=boxes_cxcywh.dtype) * (
        2 / features
    )
    coordinates = torch.cat((boxes_cxcywh[..., :2].flip(-1), boxes_cxcywh[..., 2:]), dim=-1)
    angle = coordinates.unsqueeze(-1) * (2 * math.pi / 10000**exponent)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-3)


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward; a LayerNorm after each."""

    def __init__(
        self,
        *,
        hidden_dim: int,
        self_heads: int,
        cross_heads: int,
        levels: int,
        points: int,
        dim_feedforward: int,
    ) -> None:
        super().__init__()
        self.self_attn = GroupSelfAttention(hidden_dim, self_heads)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.cross_attn = DeformableAttention(hidden_dim, cross_heads, levels, points)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.linear1 = nn.Linear(hidden_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)
        for linear in (self.linear1, self.linear2):
            init_linears(linear)

    def forward(
        self, x: Tensor, position: Tensor, references_cxcywh: Tensor, memory: Memory, groups: int
    ) -> Tensor:
        """Queries (B, G Q, C) in and out."""
        x = self.norm1(x + self.self_attn(x, position, groups))
        x = self.norm2(x + self.cross_attn(x + position, references_cxcywh, memory))
        if not self.training or x.device.type != "cpu":
            return self.feed_forward(x)
        # Image by image: the hidden states of all at once would raise a step's peak, and CPUs are
        # as fast with one.
        return torch.cat([self.feed_forward(part) for part in x.split(1)])  # type: ignore[no-untyped-call]

    def feed_forward(self, x: Tensor) -> Tensor:
        """Two linear layers, residual, norm."""
        hidden = F.relu(self.linear1(x), inplace=True)
        return self.norm3(x + self.linear2(hidden))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Layers over a fixed set of reference boxes, and the one LayerNorm that all their outputs
    pass.
    """

    def __init__(self, layers: Iterable[DecoderLayer], hidden_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(hidden_dim)
        self.position_mlp = MLP(2 * hidden_dim, hidden_dim, hidden_dim)
        init_linears(self.position_mlp)

    def forward(
        self, content: Tensor, references_cxcywh: Tensor, memory: Memory, groups: int
    ) -> Tensor:
        """Content (B, G Q, C) and references (B, G Q, 4) -> every layer's normalised output
        (layers, B, G Q, C).
        """
        references = references_cxcywh.unsqueeze(2)  # B GQ 1 4, the same for all levels
        if memory.valid_ratios is not None:
            references = references * memory.valid_ratios.repeat(1, 1, 2).unsqueeze(
                1
            )  # B GQ levels 4
        sine = sine_embedding(references[:, :, 0], content.shape[-1] // 2)
        position = self.position_mlp(sine.to(content.dtype))
        outputs = []
        x = content
        for layer in self.layers:
            x = layer(x, position, references, memory, groups)
            outputs.append(self.norm(x))
        return torch.stack(outputs)
