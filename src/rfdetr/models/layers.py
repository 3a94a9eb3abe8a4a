"""Small layers that several parts of the network share. Letters as in `rfdetr.models`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention over tensors (B, heads, N, width of a head): PyTorch's fused kernel.

    On CPUs its backward pass for bfloat16 is slow: the three steps one by one take a third of it.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not query.requires_grad:
        return F.scaled_dot_product_attention(query, key, value)
    q, k, v = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
    nothing, scale = q.new_zeros(1, 1, 1), query.shape[-1] ** -0.5
    scores = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0, alpha=scale)
    return torch.bmm(scores.softmax(-1), v).view(query.shape)


def linear_of_recomputed(cheap: nn.Module, x: Tensor, linear: nn.Module) -> Tensor:
    """linear(cheap(x)); in training cheap(x) is not kept for the backward pass but recomputed.

    Together with `DecoderLayer`, which feeds forward image by image, this takes the peak of a
    training step of RFDETRNano from 3.9 to 3.3 GB, and no time.
    """
    if not linear.training:
        return linear(cheap(x))  # type: ignore[no-any-return]
    return checkpoint(  # type: ignore[no-any-return]
        lambda x: linear(cheap(x)), x, use_reentrant=False, preserve_rng_state=False
    )


class MLP(nn.Module):
    """Linear layers with ReLU between them: `widths` (in, hidden..., out), made by `linear`."""

    def __init__(self, *widths: int, linear: Callable[[int, int], nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)  # type: ignore[no-any-return]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map; no copy where the map is channels last in memory."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w), channels last in memory."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def init_linears(module: nn.Module) -> None:
    """Xavier matrices and zero biases for every linear layer inside `module`, in place."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
