"""`ModelConfig`: what the network is. Every field has its unit or range and one line of why."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import field_validator, model_validator

from rfdetr.config.fields import PathText, PositiveInt, StrictConfig
from rfdetr.errors import InputError


class EncoderDims(NamedTuple):
    """Size of a DINOv2 encoder: token width, number of blocks, attention heads."""

    width: int
    depth: int
    heads: int


ENCODERS: dict[str, EncoderDims] = {
    "mini": EncoderDims(width=160, depth=5, heads=5),
    "small": EncoderDims(width=384, depth=12, heads=6),
    "base": EncoderDims(width=768, depth=12, heads=12),
}
PROJECTOR_SCALES: dict[str, float] = {"P3": 2.0, "P4": 1.0, "P5": 0.5}
MAX_RESOLUTION = 8192

EncoderName = Literal[
    "dinov2_windowed_mini",
    "dinov2_windowed_small",
    "dinov2_windowed_base",
    "dinov2_registers_windowed_small",
    "dinov2_registers_windowed_base",
]


class ModelConfig(StrictConfig):
    """What the network is. Use a variant class (`RFDETRNanoConfig`, ...) unless you design your
    own.

    Source: RF-DETR (arXiv 2511.09554), table of variants.
    """

    PLACE = "the model: {model}({setting})"

    encoder: EncoderName = "dinov2_windowed_small"
    """DINOv2 family and size; `registers` encoders carry 4 extra learned tokens."""
    out_feature_indexes: list[int] = [3, 6, 9, 12]
    """States handed to the projector, counted in encoder blocks (1 = after the first). Those blocks
    attend globally.
    """
    patch_size: PositiveInt = 16
    """Side of an image patch, pixels."""
    num_windows: PositiveInt = 2
    """Attention windows per image side; 1 = every block attends globally."""
    resolution: PositiveInt = 384
    """Side of the square network input, pixels; a multiple of patch_size * num_windows."""
    positional_encoding_size: PositiveInt | None = None
    """Side of the stored position grid, patches. None: resolution // patch_size; set where
    published weights fix it.
    """
    projector_scale: list[Literal["P3", "P4", "P5"]] = ["P4"]
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
    pretrain_weights: PathText | None = None
    """Published file name (downloaded once), path to a checkpoint, or None for random weights."""
    freeze_encoder: bool = False
    """Leave the encoder as it is: projector, decoder and heads alone learn."""
    backbone_lora: bool = False
    """Train low-rank adapters (DoRA, rank 16) in the encoder instead of its own weights (extra
    `[lora]`).
    """
    gradient_checkpointing: bool = False
    """Recompute encoder blocks in the backward pass: less memory, slower steps."""
    amp: bool = True
    """Train and evaluate under automatic mixed precision where the device is fast at it."""
    device: str | None = None
    """Where `predict` runs ("cpu", "cuda:1", "mps"); None: the best there is."""

    @property
    def encoder_dims(self) -> EncoderDims:
        """Width, depth and heads of the encoder."""
        return ENCODERS[self.encoder.rsplit("_", 1)[1]]

    @property
    def num_registers(self) -> int:
        """Extra learned tokens of the encoder."""
        return 4 if "registers" in self.encoder else 0

    @property
    def position_grid(self) -> int:
        """Side of the stored position grid, patches."""
        return self.positional_encoding_size or self.resolution // self.patch_size

    @field_validator("resolution", "positional_encoding_size")
    @classmethod
    def _refuse_huge(cls, side: int | None) -> int | None:
        if side is not None and side > MAX_RESOLUTION:
            raise InputError(f"{side} is more than {MAX_RESOLUTION}: no memory holds the tokens")
        return side

    @model_validator(mode="after")
    def _check_trained_part(self) -> ModelConfig:
        if self.freeze_encoder and self.backbone_lora:
            raise InputError(
                "freeze_encoder True leaves the encoder as it is, backbone_lora True adapts it: choose one"
            )
        return self

    @model_validator(mode="after")
    def _check_consistency(self) -> ModelConfig:
        step = self.patch_size * self.num_windows
        if self.resolution % step:
            low = max(self.resolution // step, 1) * step
            raise InputError(
                f"resolution {self.resolution} is not a multiple of patch_size {self.patch_size} x num_windows "
                f"{self.num_windows} = {step}; the nearest that fit are {low} and {low + step}"
            )
        _check_feature_indexes(self.out_feature_indexes, self.encoder, self.encoder_dims.depth)
        for name, heads in (("sa_nheads", self.sa_nheads), ("ca_nheads", self.ca_nheads)):
            if self.hidden_dim % heads:
                raise InputError(
                    f"hidden_dim {self.hidden_dim} is not a multiple of {name} {heads}"
                )
        if self.hidden_dim % 4:
            raise InputError(
                f"hidden_dim {self.hidden_dim} is not a multiple of 4, the coordinates of a box"
            )
        if not self.projector_scale or len(set(self.projector_scale)) != len(self.projector_scale):
            raise InputError(
                f"projector_scale {self.projector_scale} needs one or more levels, each once"
            )
        most = self.num_queries * (self.num_classes + 1)
        if self.num_select > most:
            raise InputError(
                f"num_select {self.num_select} is more than num_queries {self.num_queries} x (num_classes "
                f"{self.num_classes} + 1) = {most}"
            )
        return self


def _check_feature_indexes(indexes: list[int], encoder: str, depth: int) -> None:
    if not indexes or indexes != sorted(set(indexes)) or indexes[0] < 1:
        raise InputError(
            f"out_feature_indexes {indexes} must be ascending, distinct and at least 1"
        )
    if indexes[-1] > depth:
        raise InputError(
            f"out_feature_indexes {indexes} go past the {depth} blocks of encoder {encoder!r}"
        )
