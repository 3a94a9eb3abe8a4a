"""COCO's class names under the import path they had before 1.9."""

from rfdetr.assets.coco_classes import COCO_CLASS_NAMES, COCO_CLASSES

__all__ = ["COCO_CLASSES", "COCO_CLASS_NAMES"]
