"""The variants: each class states only what differs from the one it builds on. What each is for
stands at its class in `rfdetr.detector`: at `RFDETRNano` for `RFDETRNanoConfig`.
"""

# Imported as modules, so that `from rfdetr.config.variants import *` gives variants alone.
from rfdetr.config import fields, model


class RFDETRMiniConfig(model.ModelConfig, variant="mini"):  # ours, bundled; under 3 M parameters
    encoder: model.EncoderName = "dinov2_windowed_mini"
    out_feature_indexes: list[int] = [1, 3, 5]
    resolution: fields.Resolution = 256
    hidden_dim: fields.PositiveInt = 128
    ca_nheads: fields.PositiveInt = 8
    dim_feedforward: fields.PositiveInt = 512
    num_queries: fields.PositiveInt = 100
    num_select: fields.PositiveInt = 100
    group_detr: fields.PositiveInt = 3
    pretrain_weights: fields.PathText | None = "rf-detr-mini.safetensors"


class RFDETRNanoConfig(model.ModelConfig, variant="nano"):  # 30.5 M parameters
    pretrain_weights: fields.PathText | None = "rf-detr-nano.pth"


class RFDETRSmallConfig(model.ModelConfig, variant="small"):  # 32.1 M parameters
    resolution: fields.Resolution = 512
    dec_layers: fields.PositiveInt = 3
    pretrain_weights: fields.PathText | None = "rf-detr-small.pth"


class RFDETRMediumConfig(model.ModelConfig, variant="medium"):  # 33.7 M parameters
    resolution: fields.Resolution = 576
    dec_layers: fields.PositiveInt = 4
    pretrain_weights: fields.PathText | None = "rf-detr-medium.pth"


class RFDETRLargeConfig(model.ModelConfig, variant="large"):  # 33.9 M parameters
    resolution: fields.Resolution = 704
    dec_layers: fields.PositiveInt = 4
    pretrain_weights: fields.PathText | None = "rf-detr-large-2026.pth"


class RFDETRBaseConfig(model.ModelConfig, variant="base"):  # on the DINOv2 position grid
    out_feature_indexes: list[int] = [2, 5, 8, 11]
    patch_size: fields.PositiveInt = 14
    num_windows: fields.PositiveInt = 4
    resolution: fields.Resolution = 560
    positional_encoding_size: fields.Side | None = 37
    dec_layers: fields.PositiveInt = 3
    pretrain_weights: fields.PathText | None = "rf-detr-base.pth"


class RFDETRLargeDeprecatedConfig(RFDETRBaseConfig, variant="large-deprecated"):
    encoder: model.EncoderName = "dinov2_windowed_base"
    projector_scale: list[model.Level] = ["P3", "P5"]
    hidden_dim: fields.PositiveInt = 384
    sa_nheads: fields.PositiveInt = 12
    ca_nheads: fields.PositiveInt = 24
    dec_n_points: fields.PositiveInt = 4
    pretrain_weights: fields.PathText | None = "rf-detr-large.pth"


class RFDETRSegMiniConfig(RFDETRMiniConfig, variant="seg-mini"):  # ours, bundled
    segmentation_head: bool = True
    pretrain_weights: fields.PathText | None = "rf-detr-seg-mini.safetensors"


class RFDETRSegNanoConfig(model.ModelConfig, variant="seg-nano"):  # 33.6 M parameters
    patch_size: fields.PositiveInt = 12
    num_windows: fields.PositiveInt = 1
    resolution: fields.Resolution = 312
    dec_layers: fields.PositiveInt = 4
    num_queries: fields.PositiveInt = 100
    num_select: fields.PositiveInt = 100
    segmentation_head: bool = True
    pretrain_weights: fields.PathText | None = "rf-detr-seg-nano.pt"


class RFDETRSegSmallConfig(RFDETRSegNanoConfig, variant="seg-small"):  # 33.7 M parameters
    num_windows: fields.PositiveInt = 2
    resolution: fields.Resolution = 384
    pretrain_weights: fields.PathText | None = "rf-detr-seg-small.pt"


class RFDETRSegMediumConfig(RFDETRSegSmallConfig, variant="seg-medium"):  # 35.7 M parameters
    resolution: fields.Resolution = 432
    dec_layers: fields.PositiveInt = 5
    num_queries: fields.PositiveInt = 200
    num_select: fields.PositiveInt = 200
    pretrain_weights: fields.PathText | None = "rf-detr-seg-medium.pt"


class RFDETRSegLargeConfig(RFDETRSegMediumConfig, variant="seg-large"):  # 35.9 M parameters
    resolution: fields.Resolution = 504
    pretrain_weights: fields.PathText | None = "rf-detr-seg-large.pt"


class RFDETRSegXLargeConfig(RFDETRSegLargeConfig, variant="seg-xlarge"):  # 38.1 M parameters
    resolution: fields.Resolution = 624
    dec_layers: fields.PositiveInt = 6
    num_queries: fields.PositiveInt = 300
    num_select: fields.PositiveInt = 300
    pretrain_weights: fields.PathText | None = "rf-detr-seg-xlarge.pt"


class RFDETRSeg2XLargeConfig(RFDETRSegXLargeConfig, variant="seg-2xlarge"):  # 38.6 M parameters
    resolution: fields.Resolution = 768
    pretrain_weights: fields.PathText | None = "rf-detr-seg-xxlarge.pt"


class RFDETRSegPreviewConfig(RFDETRSegSmallConfig, variant="seg-preview"):
    resolution: fields.Resolution = 432
    num_queries: fields.PositiveInt = 200
    num_select: fields.PositiveInt = 200
    pretrain_weights: fields.PathText | None = "rf-detr-seg-preview.pt"


def adds_masks_to(detector: type[model.ModelConfig], variant: type[model.ModelConfig]) -> bool:
    """Whether `variant` is `detector` with a segmentation head: it can start from its weights."""
    without, with_head = (cls(pretrain_weights=None).model_dump() for cls in (detector, variant))
    return without != with_head == {**without, "segmentation_head": True}


def variant_name(config: model.Architecture | type[model.Architecture]) -> str | None:
    """Short name ("nano") of a configuration's variant; None for a design of your own."""
    cls = config if isinstance(config, type) else type(config)
    return next((name for name, variant in model.VARIANTS.items() if variant is cls), None)
