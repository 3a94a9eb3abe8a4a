"""COCO's class names under their published import path."""

from rfdetr.assets.coco_classes import COCO_CLASSES

__all__ = ["COCO_CLASSES", "COCO_CLASS_NAMES"]

COCO_CLASS_NAMES = list(COCO_CLASSES.values())
"""The 80 names in the order of COCO's category ids."""
