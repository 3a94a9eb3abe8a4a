"""Linear layers in the layout that oneDNN multiplies fastest on CPUs.

For prediction alone: a packed matrix cannot learn. torch's own compiler packs frozen weights with
the same operators, `torch.ops.mkldnn`, which are private; `can_pack` asks whether they are there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rfdetr.models.detector import Detector


class PackedLinear(nn.Module):
    """A bfloat16 linear layer, its matrix laid out in blocks, with its activation in one pass."""

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias.detach()
        self.activation = activation

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """(..., in) -> (..., out)."""
        settings: Any = ("relu" if relu else self.activation, [], "none")
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *settings)  # type: ignore[no-any-return]


def can_pack() -> bool:
    """Whether torch has the operators, and the processor bfloat16 arithmetic for them."""
    operators = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    there = all(hasattr(torch.ops.mkldnn, name) for name in operators)
    return there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.no_grad()
def pack_linears(network: Detector) -> None:
    """Replaces every linear layer of a bfloat16 network, the encoder's with the GELU behind it."""
    for block in network.encoder.blocks:
        block.fc1 = PackedLinear(block.fc1, "gelu")  # type: ignore[arg-type]
        block.activation = nn.Identity()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child))
    network.eval()
