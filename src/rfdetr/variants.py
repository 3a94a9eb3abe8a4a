"""The variants: a class for each published model, and for the bundled Mini."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rfdetr import config
from rfdetr.detector import RFDETR as RFDETR
from rfdetr.moved import missing


class RFDETRMini(RFDETR, config=config.RFDETRMiniConfig):
    """Under 3 M parameters, 256 pixels, or as many in the shape of the images that it is trained on
    (measured: docs/training.md); its weights come with the package.
    """

    auto_resolution = True


class RFDETRNano(RFDETR, config=config.RFDETRNanoConfig):
    """30.5 M parameters, 384 pixels."""


class RFDETRSmall(RFDETR, config=config.RFDETRSmallConfig):
    """32.1 M parameters, 512 pixels."""


class RFDETRMedium(RFDETR, config=config.RFDETRMediumConfig):
    """33.7 M parameters, 576 pixels."""


class RFDETRLarge(RFDETR, config=config.RFDETRLargeConfig):
    """33.9 M parameters, 704 pixels."""


class RFDETRBase(RFDETR, config=config.RFDETRBaseConfig):
    """The first published model, 560 pixels."""


class RFDETRLargeDeprecated(RFDETR, config=config.RFDETRLargeDeprecatedConfig):
    """The first published large model, 560 pixels."""


class RFDETRSegMini(RFDETR, config=config.RFDETRSegMiniConfig):
    """`RFDETRMini` with masks; its weights come with the package."""

    auto_resolution = True


class RFDETRSegNano(RFDETR, config=config.RFDETRSegNanoConfig):
    """Instance segmentation, 312 pixels."""


class RFDETRSegSmall(RFDETR, config=config.RFDETRSegSmallConfig):
    """Instance segmentation, 384 pixels."""


class RFDETRSegMedium(RFDETR, config=config.RFDETRSegMediumConfig):
    """Instance segmentation, 432 pixels."""


class RFDETRSegLarge(RFDETR, config=config.RFDETRSegLargeConfig):
    """Instance segmentation, 504 pixels."""


class RFDETRSegXLarge(RFDETR, config=config.RFDETRSegXLargeConfig):
    """Instance segmentation, 624 pixels."""


class RFDETRSeg2XLarge(RFDETR, config=config.RFDETRSeg2XLargeConfig):
    """Instance segmentation, 768 pixels."""


class RFDETRSegPreview(RFDETR, config=config.RFDETRSegPreviewConfig):
    """The first published segmentation model, 432 pixels."""


FACES = {name: RFDETR.classes[config_class] for name, config_class in config.VARIANTS.items()}
"""The class of each variant, by short name."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise missing(__name__, name)
