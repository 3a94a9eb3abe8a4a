"""Configuration: what a model is (`ModelConfig` and its variants) and how it is trained
(`TrainConfig`).

What follows from other fields is computed, not stored. Unknown names are refused with the nearest
known one.
"""

from rfdetr.config.fields import ConfigError
from rfdetr.config.model import ENCODERS, PROJECTOR_SCALES, EncoderDims, ModelConfig
from rfdetr.config.training import SegmentationTrainConfig, TrainConfig
from rfdetr.config.variants import (
    VARIANTS,
    RFDETRBaseConfig,
    RFDETRLargeConfig,
    RFDETRLargeDeprecatedConfig,
    RFDETRMediumConfig,
    RFDETRMiniConfig,
    RFDETRNanoConfig,
    RFDETRSeg2XLargeConfig,
    RFDETRSegLargeConfig,
    RFDETRSegMediumConfig,
    RFDETRSegMiniConfig,
    RFDETRSegNanoConfig,
    RFDETRSegPreviewConfig,
    RFDETRSegSmallConfig,
    RFDETRSegXLargeConfig,
    RFDETRSmallConfig,
    adds_masks_to,
    variant_name,
)

__all__ = [
    "ENCODERS",
    "PROJECTOR_SCALES",
    "VARIANTS",
    "ConfigError",
    "EncoderDims",
    "ModelConfig",
    "RFDETRBaseConfig",
    "RFDETRLargeConfig",
    "RFDETRLargeDeprecatedConfig",
    "RFDETRMediumConfig",
    "RFDETRMiniConfig",
    "RFDETRNanoConfig",
    "RFDETRSeg2XLargeConfig",
    "RFDETRSegLargeConfig",
    "RFDETRSegMediumConfig",
    "RFDETRSegMiniConfig",
    "RFDETRSegNanoConfig",
    "RFDETRSegPreviewConfig",
    "RFDETRSegSmallConfig",
    "RFDETRSegXLargeConfig",
    "RFDETRSmallConfig",
    "SegmentationTrainConfig",
    "TrainConfig",
    "adds_masks_to",
    "variant_name",
]
