"""Which of a detector's weights learn: all, all but the encoder's, or adapters in place of the
encoder's (DoRA).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rfdetr.errors import MissingPackageError
from rfdetr.models.detector import Detector
from rfdetr.models.encoder import Block
from rfdetr.weights.names import ALPHA, RANK, has_adapters
from rfdetr.weights.names import from_published, to_published
from rfdetr.weights.reading import CheckpointError

PARTS = ("query", "key", "value")


class SplitProjection(nn.Module):
    """The fused query, key and value projection of a block as three layers, each of which can have
    its adapter.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        width = fused.in_features
        for name, weight, bias in zip(
            PARTS, fused.weight.chunk(3), fused.bias.chunk(3), strict=True
        ):
            part = nn.Linear(width, width, device=weight.device, dtype=weight.dtype)
            part.load_state_dict({"weight": weight, "bias": bias})
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., 3 D), as the fused layer."""
        return torch.cat([part(x) for part in self.children()], dim=-1)


def freeze_encoder(detector: Detector) -> None:
    """Leaves the encoder's weights as they are for good."""
    detector.encoder.requires_grad_(False)


def add_adapters(detector: Detector) -> None:
    """Freezes the encoder and gives its query, key and value projections adapters that learn in its
    place.

    The network computes what it did before. Blocks that are never run get none.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "backbone_lora=True needs peft: pip install 'rfdetr-finetune[lora]'"
        ) from error

    encoder = detector.encoder
    blocks = list(_blocks(detector))[: encoder.out_feature_indexes[-1]]
    for block in blocks:
        block.qkv = SplitProjection(block.qkv)  # type: ignore[assignment]
    targets = [f"blocks.{number}.qkv.{part}" for number in range(len(blocks)) for part in PARTS]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora=True, target_modules=targets)
    inject_adapter_in_model(
        config, encoder
    )  # marks everything else in the encoder as not to be trained


def remove_adapters(detector: Detector) -> None:
    """Merges the adapters, if there are any, so that the network is a plain one again, and computes
    the same.
    """
    if not adapted(detector):
        return
    state = plain_state(detector)
    for block in _blocks(detector):
        if isinstance(block.qkv, SplitProjection):
            width = block.out.in_features
            block.qkv = nn.Linear(
                width, 3 * width, device=block.out.weight.device, dtype=block.out.weight.dtype
            )
    detector.load_state_dict(state)


def adapted(detector: nn.Module) -> bool:
    """Whether the detector has adapters."""
    return any(isinstance(module, SplitProjection) for module in detector.modules())


def plain_state(detector: nn.Module) -> dict[str, Tensor]:
    """The detector's state with its adapters merged."""
    return from_published(to_published(detector.state_dict()))


def in_form_of(detector: Detector, state: dict[str, Tensor], training: bool) -> dict[str, Tensor]:
    """A checkpoint's state, its names under "model.", in the detector's form: with adapters in the
    encoder or without.

    A run goes on as it began, anything else is refused; to evaluate and predict, the adapters are
    merged on both sides.
    """
    found = has_adapters(state)
    if found == adapted(detector):
        return state
    if training:
        raise CheckpointError(
            f"the checkpoint to go on from has {'' if found else 'no '}adapters, but backbone_lora is {not found}: "
            f"resume with backbone_lora={found}, or start anew from the checkpoint's weights with pretrain_weights=..."
        )
    remove_adapters(detector)
    plain = from_published(
        to_published({name.removeprefix("model."): tensor for name, tensor in state.items()})
    )
    return {f"model.{name}": tensor for name, tensor in plain.items()}


def trained_parameters(detector: nn.Module) -> int:
    """How many numbers of the detector learn."""
    return sum(parameter.numel() for parameter in detector.parameters() if parameter.requires_grad)


def _blocks(detector: Detector) -> Iterator[Block]:
    for block in detector.encoder.blocks:
        assert isinstance(block, Block)
        yield block
