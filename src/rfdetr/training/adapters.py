"""Which of a detector's weights learn: all, all but the encoder's, or adapters in the encoder.

Adapters are low-rank (DoRA, arXiv 2402.09353): the encoder's query, key and value matrices stay as
they are, and small matrices beside them learn. Wherever weights leave a run, they are merged.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.errors import needs_extra
from rfdetr.models.detector import Detector
from rfdetr.weights.names import ALPHA, RANK, from_published, has_adapters, to_published
from rfdetr.weights.reading import CheckpointError

PARTS = ("query", "key", "value")


class SplitProjection(nn.Module):
    """A block's fused query, key and value projection as three layers, one adapter for each."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        width = fused.in_features
        thirds = zip(PARTS, fused.weight.chunk(3), fused.bias.chunk(3), strict=True)
        for name, weight, bias in thirds:
            part = nn.Linear(width, width, device=weight.device, dtype=weight.dtype)
            part.load_state_dict({"weight": weight, "bias": bias})
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., 3 D), as the fused layer."""
        # torch.compile cannot follow PEFT's own layers, and would make many graphs of one.
        layer = adapted_linear if torch.compiler.is_compiling() else nn.Module.__call__
        return torch.cat([layer(part, x) for part in self.children()], dim=-1)


def adapted_linear(part: Any, x: Tensor) -> Tensor:
    """What PEFT's layer `part` gives for x (..., in), by plain tensors: (..., out).

    m (W + s B A) x / |W + s B A| + bias, the norm of each row taken as a constant (DoRA, 4.3). A
    layer without an adapter is called as it is.
    """
    if not hasattr(part, "lora_A"):
        return part(x)  # type: ignore[no-any-return]
    base = part.base_layer
    down, up = part.lora_A["default"], part.lora_B["default"]
    scale, magnitude = ALPHA / RANK, part.lora_magnitude_vector["default"].weight
    moved = base.weight + scale * (up.weight.detach() @ down.weight.detach())
    length = torch.linalg.vector_norm(moved.detach(), dim=1)
    product = F.linear(x, base.weight) + scale * up(down(x))
    grown = (magnitude / length).to(product.dtype) * product
    return grown + base.bias.to(product.dtype)  # type: ignore[no-any-return]


def add_adapters(detector: Detector) -> None:
    """Freezes the encoder and gives its query, key and value projections adapters that learn.

    The network computes what it did before. Blocks that are never run get none.
    """
    with needs_extra("lora", "backbone_lora=True"):
        from peft import LoraConfig, inject_adapter_in_model

    encoder = detector.encoder
    blocks: Any = encoder.blocks[: encoder.out_feature_indexes[-1]]
    for block in blocks:
        block.qkv = SplitProjection(block.qkv)
    targets = [f"blocks.{number}.qkv.{part}" for number in range(len(blocks)) for part in PARTS]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora=True, target_modules=targets)
    inject_adapter_in_model(config, encoder)  # it also freezes everything else in the encoder


def remove_adapters(detector: Detector) -> None:
    """Merges the adapters, if there are any: a plain network that computes the same."""
    if not adapted(detector):
        return
    state = from_published(to_published(detector.state_dict()))
    blocks: Any = detector.encoder.blocks
    for block in blocks:
        if isinstance(block.qkv, SplitProjection):
            like, width = block.out.weight, block.out.in_features
            block.qkv = nn.Linear(width, 3 * width, device=like.device, dtype=like.dtype)
    detector.load_state_dict(state)


def adapted(detector: nn.Module) -> bool:
    """Whether the detector has adapters."""
    return any(isinstance(module, SplitProjection) for module in detector.modules())


def match_adapters(
    detector: Detector, state: dict[str, Tensor], training: bool
) -> dict[str, Tensor]:
    """The `state` of a checkpoint, names under "model.", with adapters if `detector` has them.

    A run goes on as it began: with `training`, the other form is a `CheckpointError`. To evaluate
    and predict, the adapters are merged on both sides.
    """
    found = has_adapters(state)
    if found == adapted(detector):
        return state
    if training:
        raise CheckpointError(
            f"the checkpoint to go on from has {'' if found else 'no '}adapters, but backbone_lora "
            f"is {not found}: resume with backbone_lora={found}, or start anew from the "
            "checkpoint's weights with pretrain_weights=..."
        )
    remove_adapters(detector)
    published = to_published({name.removeprefix("model."): state[name] for name in state})
    return {f"model.{name}": tensor for name, tensor in from_published(published).items()}


def trained_parameters(detector: nn.Module) -> int:
    """How many numbers of the detector learn."""
    return sum(parameter.numel() for parameter in detector.parameters() if parameter.requires_grad)
