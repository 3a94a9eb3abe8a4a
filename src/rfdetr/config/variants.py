"""The variants: each class states only what differs from the one it builds on."""

from __future__ import annotations

from typing import Literal

from rfdetr.config.fields import PathText, PositiveInt
from rfdetr.config.model import EncoderName, ModelConfig


class RFDETRMiniConfig(ModelConfig):
    """Ours: under 3 M parameters, for laptops, tests and very small devices. Weights come with the
    package.
    """

    encoder: EncoderName = "dinov2_windowed_mini"
    out_feature_indexes: list[int] = [1, 3, 5]
    resolution: PositiveInt = 256
    hidden_dim: PositiveInt = 128
    ca_nheads: PositiveInt = 8
    dim_feedforward: PositiveInt = 512
    num_queries: PositiveInt = 100
    num_select: PositiveInt = 100
    group_detr: PositiveInt = 3
    pretrain_weights: PathText | None = "rf-detr-mini.safetensors"


class RFDETRNanoConfig(ModelConfig):
    """30.5 M parameters, 384 pixels."""

    pretrain_weights: PathText | None = "rf-detr-nano.pth"


class RFDETRSmallConfig(ModelConfig):
    """32.1 M parameters, 512 pixels."""

    resolution: PositiveInt = 512
    dec_layers: PositiveInt = 3
    pretrain_weights: PathText | None = "rf-detr-small.pth"


class RFDETRMediumConfig(ModelConfig):
    """33.7 M parameters, 576 pixels."""

    resolution: PositiveInt = 576
    dec_layers: PositiveInt = 4
    pretrain_weights: PathText | None = "rf-detr-medium.pth"


class RFDETRLargeConfig(ModelConfig):
    """33.9 M parameters, 704 pixels."""

    resolution: PositiveInt = 704
    dec_layers: PositiveInt = 4
    pretrain_weights: PathText | None = "rf-detr-large-2026.pth"


class RFDETRBaseConfig(ModelConfig):
    """The first published model: patch 14 on the DINOv2 position grid, 560 pixels."""

    out_feature_indexes: list[int] = [2, 5, 8, 11]
    patch_size: PositiveInt = 14
    num_windows: PositiveInt = 4
    resolution: PositiveInt = 560
    positional_encoding_size: PositiveInt | None = 37
    dec_layers: PositiveInt = 3
    pretrain_weights: PathText | None = "rf-detr-base.pth"


class RFDETRLargeDeprecatedConfig(RFDETRBaseConfig):
    """The first published large model: a base-size encoder and two feature levels."""

    encoder: EncoderName = "dinov2_windowed_base"
    projector_scale: list[Literal["P3", "P4", "P5"]] = ["P3", "P5"]
    hidden_dim: PositiveInt = 384
    sa_nheads: PositiveInt = 12
    ca_nheads: PositiveInt = 24
    dec_n_points: PositiveInt = 4
    pretrain_weights: PathText | None = "rf-detr-large.pth"


class RFDETRSegMiniConfig(RFDETRMiniConfig):
    """Ours: instance segmentation on the Mini. Weights come with the package."""

    segmentation_head: bool = True
    pretrain_weights: PathText | None = "rf-detr-seg-mini.safetensors"


class RFDETRSegNanoConfig(ModelConfig):
    """Instance segmentation, 33.6 M parameters, 312 pixels."""

    patch_size: PositiveInt = 12
    num_windows: PositiveInt = 1
    resolution: PositiveInt = 312
    dec_layers: PositiveInt = 4
    num_queries: PositiveInt = 100
    num_select: PositiveInt = 100
    segmentation_head: bool = True
    pretrain_weights: PathText | None = "rf-detr-seg-nano.pt"


class RFDETRSegSmallConfig(RFDETRSegNanoConfig):
    """Instance segmentation, 33.7 M parameters, 384 pixels."""

    num_windows: PositiveInt = 2
    resolution: PositiveInt = 384
    pretrain_weights: PathText | None = "rf-detr-seg-small.pt"


class RFDETRSegMediumConfig(RFDETRSegSmallConfig):
    """Instance segmentation, 35.7 M parameters, 432 pixels."""

    resolution: PositiveInt = 432
    dec_layers: PositiveInt = 5
    num_queries: PositiveInt = 200
    num_select: PositiveInt = 200
    pretrain_weights: PathText | None = "rf-detr-seg-medium.pt"


class RFDETRSegLargeConfig(RFDETRSegMediumConfig):
    """Instance segmentation, 35.9 M parameters, 504 pixels."""

    resolution: PositiveInt = 504
    pretrain_weights: PathText | None = "rf-detr-seg-large.pt"


class RFDETRSegXLargeConfig(RFDETRSegLargeConfig):
    """Instance segmentation, 38.1 M parameters, 624 pixels."""

    resolution: PositiveInt = 624
    dec_layers: PositiveInt = 6
    num_queries: PositiveInt = 300
    num_select: PositiveInt = 300
    pretrain_weights: PathText | None = "rf-detr-seg-xlarge.pt"


class RFDETRSeg2XLargeConfig(RFDETRSegXLargeConfig):
    """Instance segmentation, 38.6 M parameters, 768 pixels."""

    resolution: PositiveInt = 768
    pretrain_weights: PathText | None = "rf-detr-seg-xxlarge.pt"


class RFDETRSegPreviewConfig(RFDETRSegSmallConfig):
    """The first published segmentation model, 432 pixels."""

    resolution: PositiveInt = 432
    num_queries: PositiveInt = 200
    num_select: PositiveInt = 200
    pretrain_weights: PathText | None = "rf-detr-seg-preview.pt"


VARIANTS: dict[str, type[ModelConfig]] = {
    "mini": RFDETRMiniConfig,
    "nano": RFDETRNanoConfig,
    "small": RFDETRSmallConfig,
    "medium": RFDETRMediumConfig,
    "large": RFDETRLargeConfig,
    "base": RFDETRBaseConfig,
    "large-deprecated": RFDETRLargeDeprecatedConfig,
    "seg-mini": RFDETRSegMiniConfig,
    "seg-nano": RFDETRSegNanoConfig,
    "seg-small": RFDETRSegSmallConfig,
    "seg-medium": RFDETRSegMediumConfig,
    "seg-large": RFDETRSegLargeConfig,
    "seg-xlarge": RFDETRSegXLargeConfig,
    "seg-2xlarge": RFDETRSeg2XLargeConfig,
    "seg-preview": RFDETRSegPreviewConfig,
}


def adds_masks_to(detector: type[ModelConfig], variant: type[ModelConfig]) -> bool:
    """Whether a variant is another one with a segmentation head, and so can start from its weights."""
    without, with_head = (
        cls().model_dump(exclude={"pretrain_weights"}) for cls in (detector, variant)
    )
    return without != with_head == {**without, "segmentation_head": True}


def variant_name(config: ModelConfig | type[ModelConfig]) -> str | None:
    """Short name of a configuration's variant ("nano"), or None for one that is no published or
    bundled variant.
    """
    cls = config if isinstance(config, type) else type(config)
    return next((name for name, variant in VARIANTS.items() if variant is cls), None)
