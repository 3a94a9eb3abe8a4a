"""What a network is (`Architecture`) and how it is run (`ModelConfig`)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, model_validator

from rfdetr import compat
from rfdetr.config.fields import PathText, PositiveInt, Resolution, Side, StrictConfig, input_size
from rfdetr.errors import InputError

__all__ = ["ENCODERS", "PROJECTOR_SCALES", "VARIANTS", "Architecture", "EncoderDims", "ModelConfig"]

VARIANTS: dict[str, type[ModelConfig]] = {}
"""The class of each variant by its short name, "nano"."""


class EncoderDims(NamedTuple):
    """Size of a DINOv2 encoder."""

    width: int
    depth: int  # blocks
    heads: int  # of a block
    registers: int = 0  # learned tokens beside the class token (arXiv 2309.16588)


EncoderName = Literal[
    "dinov2_windowed_mini",
    "dinov2_windowed_small",
    "dinov2_windowed_base",
    "dinov2_registers_windowed_small",
    "dinov2_registers_windowed_base",
]
Level = Literal["P3", "P4", "P5"]
ENCODERS: dict[str, EncoderDims] = {
    "dinov2_windowed_mini": EncoderDims(width=160, depth=5, heads=5),
    "dinov2_windowed_small": EncoderDims(width=384, depth=12, heads=6),
    "dinov2_windowed_base": EncoderDims(width=768, depth=12, heads=12),
    "dinov2_registers_windowed_small": EncoderDims(width=384, depth=12, heads=6, registers=4),
    "dinov2_registers_windowed_base": EncoderDims(width=768, depth=12, heads=12, registers=4),
}
PROJECTOR_SCALES: dict[Level, float] = {"P3": 2.0, "P4": 1.0, "P5": 0.5}  # x the patch grid's


def _device_text(value: Any) -> Any:
    """The name of a torch.device, which is not imported for it; anything else as it is."""
    return str(value) if type(value).__name__ == "device" else value


class Architecture(StrictConfig):
    """What the network is. Source: RF-DETR (arXiv 2511.09554), table of variants."""

    PLACE = "the model: {model}({setting})"
    PUBLISHED = compat.MODEL

    encoder: EncoderName = "dinov2_windowed_small"
    """DINOv2 family and size; `registers` encoders carry 4 extra learned tokens."""
    out_feature_indexes: list[int] = [3, 6, 9, 12]
    """Encoder blocks whose outputs the projector gets, counted from 1; these attend globally."""
    patch_size: PositiveInt = 16
    """Side of an image patch, pixels."""
    num_windows: PositiveInt = 2
    """Attention windows per image side; 1 = every block attends globally."""
    resolution: Resolution = 384
    """Side of the square network input, pixels, or (height, width); multiples of patch_size *
    num_windows."""
    positional_encoding_size: Side | None = None
    """Side of the stored position grid, patches; None: resolution // patch_size, for a height and
    width that of a square of as many pixels."""
    projector_scale: list[Level] = ["P4"]
    """Feature levels for the decoder: P3 twice, P4 once, P5 half the patch grid's resolution."""
    hidden_dim: PositiveInt = 256
    """Width of projector and decoder; a multiple of 4 and of both head counts."""
    dec_layers: PositiveInt = 2
    """Decoder layers; more are slower and more precise."""
    sa_nheads: PositiveInt = 8
    """Heads of the decoder's self-attention."""
    ca_nheads: PositiveInt = 16
    """Heads of the decoder's deformable cross-attention."""
    dec_n_points: PositiveInt = 2
    """Sampling points per head and level of the deformable cross-attention."""
    dim_feedforward: PositiveInt = 2048
    """Hidden width of the decoder's feed-forward blocks."""
    num_queries: PositiveInt = 300
    """Queries per group: the most objects the decoder can tell apart in one image."""
    num_select: PositiveInt = 300
    """Detections kept per image, out of num_queries x (num_classes + 1) scores."""
    group_detr: PositiveInt = 13
    """Query groups in training (Group DETR, arXiv 2207.13085); inference uses the first."""
    num_classes: PositiveInt = 90
    """Classes; the head has one logit more. `train()` sets it from the data."""
    segmentation_head: bool = False
    """Predict a mask for every box."""
    mask_downsample_ratio: PositiveInt = 4
    """Masks are predicted at input size / this."""

    @property
    def encoder_dims(self) -> EncoderDims:
        return ENCODERS[self.encoder]

    @property
    def position_grid(self) -> int:
        """Side of the stored position grid, patches."""
        return self.positional_encoding_size or self.square // self.patch_size

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input, pixels."""
        return input_size(self.resolution)

    @property
    def square(self) -> int:
        """Side of the square input of about as many pixels: the resolution, where it is square."""
        height, width = self.input_size
        step = self.patch_size * self.num_windows
        return max(round(math.sqrt(height * width) / step), 1) * step

    @model_validator(mode="after")
    def _check_shapes(self) -> Architecture:
        patch, windows, hidden = self.patch_size, self.num_windows, self.hidden_dim
        blocks, levels = self.out_feature_indexes, self.projector_scale
        step, most = patch * windows, self.num_queries * (self.num_classes + 1)
        if odd := [side for side in self.input_size if side % step]:
            low = max(odd[0] // step, 1) * step
            part = "" if isinstance(self.resolution, int) else f" of {self.resolution}"
            fault = (
                f"resolution {odd[0]}{part} is not a multiple of patch_size {patch} x "
                f"num_windows {windows} = {step}; the nearest that fit are {low} and {low + step}"
            )
        elif not blocks or blocks != sorted(set(blocks)) or blocks[0] < 1:
            fault = f"out_feature_indexes {blocks} must be ascending, distinct and at least 1"
        elif blocks[-1] > (depth := self.encoder_dims.depth):
            fault = f"out_feature_indexes {blocks} go past the {depth} blocks of {self.encoder!r}"
        elif hidden % self.sa_nheads:
            fault = f"hidden_dim {hidden} is not a multiple of sa_nheads {self.sa_nheads}"
        elif hidden % self.ca_nheads:
            fault = f"hidden_dim {hidden} is not a multiple of ca_nheads {self.ca_nheads}"
        elif hidden % 4:
            fault = f"hidden_dim {hidden} is not a multiple of 4, the coordinates of a box"
        elif not levels or len(set(levels)) != len(levels):
            fault = f"projector_scale {levels} needs one or more levels, each once"
        elif self.num_select > most:
            scores = f"num_queries {self.num_queries} x (num_classes {self.num_classes} + 1)"
            fault = f"num_select {self.num_select} is more than {scores} = {most}"
        else:
            return self
        raise InputError(fault)


class ModelConfig(Architecture):
    """What the network is and how it is run. Use a variant class (`RFDETRNanoConfig`, ...) unless
    you design your own.
    """

    pretrain_weights: PathText | None = None
    """Published file name (downloaded once), path to a checkpoint, or None for random weights."""
    freeze_encoder: bool = False
    """Leave the encoder as it is: projector, decoder and heads alone learn."""
    backbone_lora: bool = False
    """Train low-rank adapters (DoRA, rank 16) in the encoder, not its own weights (`[lora]`)."""
    gradient_checkpointing: bool = False
    """Recompute encoder blocks in the backward pass: less memory, slower steps."""
    amp: bool = True
    """Train and evaluate under automatic mixed precision where the device is fast at it."""
    device: Annotated[str, BeforeValidator(_device_text)] | None = None
    """Where `predict` runs ("cpu", "cuda:1", "mps"); None: the best there is."""

    def __init_subclass__(cls, variant: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if variant is not None:
            VARIANTS[variant] = cls

    @model_validator(mode="after")
    def _check_trained_part(self) -> ModelConfig:
        if self.freeze_encoder and self.backbone_lora:
            raise InputError("freeze_encoder True keeps what backbone_lora True adapts: choose one")
        return self
