"""Linear layers as oneDNN multiplies fastest on CPUs: for prediction alone, since a packed matrix
cannot learn.

Packing by this library is what torch's own compiler does with frozen weights; the operators are
those it calls.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rfdetr.models.detector import Detector


class PackedLinear(nn.Module):
    """A linear layer with its bfloat16 matrix laid out in blocks, and its activation in the same
    pass.
    """

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias.detach()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
            x, self.weight, self.bias, self.activation, [], "none"
        )


def can_pack() -> bool:
    """Whether this build of torch has the operators, and the processor bfloat16 arithmetic for
    them.
    """
    operators = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return all(hasattr(torch.ops.mkldnn, name) for name in operators) and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


@torch.no_grad()
def pack_linears(network: Detector) -> None:
    """Replaces every linear layer of a bfloat16 network; the encoder's GELU moves into the layer
    before it.
    """
    for block in network.encoder.blocks:
        block.fc1 = PackedLinear(block.fc1, "gelu")  # type: ignore[arg-type]
        block.activation = nn.Identity()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child))
    network.eval()
